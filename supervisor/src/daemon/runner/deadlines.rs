//! What each process has time for: to become ready, to end, its probation, its watchdog.

use std::time::Duration;

use tokio::time::Instant;

use super::Runner;
use crate::core::generation::{Event as Life, Phase};
use crate::core::service::ProcessId;
use crate::daemon::input::{ProcessInput, ServiceInput};

/// A process that has served this long has not failed at starting.
const LONG_LIFE: Duration = Duration::from_secs(10);

impl Runner {
    pub(super) fn allow_to_become_ready(&mut self, id: ProcessId, longer: Option<Duration>) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let limit = longer.unwrap_or(process.plan.service.ready_timeout.0);
        let until = Instant::now() + limit;
        if process
            .deadlines
            .ready
            .as_ref()
            .is_some_and(|(before, _)| *before >= until)
        {
            return;
        }
        let input = ServiceInput::Process(id, ProcessInput::Life(Life::NotReadyInTime));
        let timer = self.timer(limit, input);
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.ready = Some((until, timer));
        }
    }

    pub(super) fn allow_to_drain(&mut self, id: ProcessId, limit: Duration) {
        let input = ServiceInput::Process(id, ProcessInput::Life(Life::DrainOver));
        let timer = self.timer(limit, input);
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.drain = Some((Instant::now() + limit, timer));
        }
    }

    pub(super) fn start_probation(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let window = process.plan.service.probation.0;
        let timer = self.timer(window, ServiceInput::Process(id, ProcessInput::Proved));
        // A short probation must not let a program that keeps dying be started again and again.
        let long = window.max(LONG_LIFE);
        let settled = self.timer(long, ServiceInput::Process(id, ProcessInput::Settled));
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.probation = Some(timer);
            process.deadlines.settled = Some(settled);
        }
        self.begin_health(id);
    }

    pub(super) fn feed_watchdog(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let timer = process
            .watchdog
            .filter(|_| process.phase == Phase::Serving)
            .map(|interval| {
                self.timer(
                    interval,
                    ServiceInput::Process(id, ProcessInput::WatchdogOver),
                )
            });
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.watchdog = timer;
        }
    }
}
