//! What the processes of one service say of themselves: their `sd_notify(3)` messages.

use std::time::Duration;

use tokio::time::Instant;

use heirloom_handover::fds::Received;
use heirloom_handover::notify::{self, Store as StoreRequest, Watchdog};

use super::Runner;
use crate::config::service::Ready;
use crate::core::generation::Phase;
use crate::core::service::{Generation, ProcessId};
use crate::daemon::process::Wish;

/// A program may not put off its own deadlines by more than this at a time.
const LONGEST_EXTENSION: Duration = Duration::from_secs(3600);

/// So many requests to the store are kept of a process that is not ready.
const MOST_WISHES: usize = 64;

impl Runner {
    pub(super) fn notified(&mut self, id: ProcessId, message: Received) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let generation = process.generation;
        let said = match notify::parse(&message.bytes) {
            Ok(said) => said,
            Err(error) => {
                let service = &self.service.name;
                tracing::warn!(
                    service,
                    generation,
                    "a notification was passed over: {error}"
                );
                return;
            }
        };
        if let Some(status) = said.status {
            process.status = Some(status);
        }
        if let Some(interval) = said.watchdog_interval {
            process.watchdog = Some(interval).filter(|interval| !interval.is_zero());
        }
        let starting = process.phase == Phase::Starting;
        let leaving = matches!(process.phase, Phase::Draining | Phase::Clearing);
        let by_its_word =
            matches!(process.plan.service.ready, Ready::Auto | Ready::Notify) && starting;
        if let Some(more) = said.extend_timeout.map(|more| more.min(LONGEST_EXTENSION)) {
            if starting {
                self.allow_to_become_ready(id, Some(more));
            } else if leaving {
                self.allow_to_drain_longer(id, more);
            }
        }
        if let Some(wish) = said.store {
            self.wish(id, starting, (wish, message.fds));
        }
        match said.watchdog {
            Some(Watchdog::Trigger) => {
                self.fail_with(id, "the program triggered its own watchdog".to_owned());
            }
            Some(_) => self.feed_watchdog(id),
            None => {}
        }
        if let Some(errno) = said.errno.filter(|errno| *errno != 0 && starting) {
            let error = std::io::Error::from_raw_os_error(errno.saturating_abs());
            self.fail_with(id, format!("the new program reported an error: {error}"));
        } else if said.ready && by_its_word {
            self.is_ready(id);
        }
    }

    pub(super) fn allow_to_drain_longer(&mut self, id: ProcessId, more: Duration) {
        let until = Instant::now() + more;
        let shorter = self.processes.get(&id).and_then(|process| {
            process
                .deadlines
                .drain
                .as_ref()
                .map(|(before, _)| *before < until)
        });
        if shorter == Some(true) {
            self.allow_to_drain(id, more);
        }
    }

    /// Carries a request to the descriptor store out, or keeps it until the process is ready.
    fn wish(&mut self, id: ProcessId, starting: bool, wish: Wish) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let generation = process.generation;
        if !starting {
            self.grant(generation, wish);
        } else if process.wishes.len() < MOST_WISHES {
            process.wishes.push(wish);
        } else {
            let service = &self.service.name;
            tracing::warn!(
                service,
                generation,
                "too many requests to the store before it is ready"
            );
        }
    }

    /// A process is ready: what it asked of the store counts, unless it was only tried.
    pub(super) fn grant_wishes(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let wishes = std::mem::take(&mut process.wishes);
        let (generation, plan) = (process.generation, process.plan_id);
        if !self.is_rehearsed(plan) {
            for wish in wishes {
                self.grant(generation, wish);
            }
        }
    }

    fn grant(&mut self, generation: Generation, (wish, fds): Wish) {
        match wish {
            StoreRequest::Keep { name, poll } => {
                self.keep_descriptors(generation, &name, poll, fds);
            }
            StoreRequest::Remove { name } => {
                self.store.remove(&name);
            }
            // Requests that are not known yet; what came along is closed.
            _unknown => {}
        }
    }

    pub(super) fn keep_descriptors(
        &mut self,
        generation: Generation,
        name: &str,
        poll: bool,
        fds: Vec<std::os::fd::OwnedFd>,
    ) {
        let service = &self.service.name;
        let refused = self
            .store
            .keep(&self.context.inputs, service, name, poll, fds);
        if refused > 0 {
            tracing::warn!(
                service,
                generation,
                "{refused} descriptors were not stored: the store is full"
            );
        }
    }
}
