//! The health of a process in its probation, as a command of the settings tells it.
//!
//! Owns when the command runs, and how often it may fail. What follows from that is what follows from any
//! failure in a probation.

use nix::sys::wait::WaitStatus;

use super::Runner;
use super::starts::{Command, Tests};
use crate::core::generation::Phase;
use crate::core::service::ProcessId;
use crate::daemon::input::{ProcessInput, ServiceInput};
use crate::daemon::process;

/// So often in a row the command may fail: a single failure may be the command's own.
const MOST_FAILURES: u32 = 3;

impl Runner {
    /// The probation of a process begins: its health is looked at until it ends.
    pub(super) fn begin_health(&mut self, id: ProcessId) {
        self.look_at_health_later(id);
    }

    fn look_at_health_later(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let settings = &process.plan.service;
        let next = settings.health.is_some().then(|| {
            let input = ServiceInput::Process(id, ProcessInput::CheckHealth);
            self.timer(settings.health_every.0, input)
        });
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.health = next;
        }
    }

    /// The probation of a process is over.
    pub(super) fn end_health(&mut self, id: ProcessId) {
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.health = None;
        }
    }

    /// Runs the command once.
    pub(super) fn start_health_command(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let Some(health) = process.plan.service.health.clone() else {
            return;
        };
        if process.phase != Phase::Serving {
            return;
        }
        if let Err(error) = self.start_command(id, health.words(), Tests::Health) {
            self.was_unhealthy(id, &error);
        }
    }

    /// The command has ended, or was ended.
    pub(super) fn health_command_ended(
        &mut self,
        id: ProcessId,
        succeeded: bool,
        status: &WaitStatus,
    ) {
        let probed = self.processes.get_mut(&id).filter(|process| {
            // Its probation may have ended meanwhile.
            process.phase == Phase::Serving && process.deadlines.health.is_some()
        });
        let Some(process) = probed else { return };
        if succeeded {
            process.unhealthy = 0;
            self.look_at_health_later(id);
        } else {
            self.was_unhealthy(id, &format!("it {}", process::describe(status)));
        }
    }

    fn was_unhealthy(&mut self, id: ProcessId, why: &str) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        process.unhealthy += 1;
        if process.unhealthy < MOST_FAILURES {
            return self.look_at_health_later(id);
        }
        let reason = format!(
            "the command that tests its health failed {MOST_FAILURES} times in a row, the last time {why}; see health"
        );
        self.fail_with(id, reason);
    }

    /// A command that tests a process has ended.
    pub(super) fn command_ended(
        &mut self,
        command: &Command,
        succeeded: bool,
        status: &WaitStatus,
    ) {
        match command.tests {
            Tests::Readiness => self.ready_command_ended(command.process, succeeded),
            Tests::Health => self.health_command_ended(command.process, succeeded, status),
        }
    }
}
