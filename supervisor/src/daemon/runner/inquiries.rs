//! Processes that a former supervisor started: how their end is told, and what became of them meanwhile.

use std::sync::Arc;

use tokio::io::Interest;

use super::Runner;
use crate::core::generation::Event as Life;
use crate::core::service::{Event, ProcessId};
use crate::daemon::family::Bond;
use crate::daemon::input::{Input, ProcessInput, ServiceInput};
use crate::daemon::timer::Timer;

impl Runner {
    /// Has the end of a process told that we do not reap.
    pub(super) fn watch_adopted(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let Some(family) = process.family.as_ref() else {
            return;
        };
        if family.bond == Bond::Child || family.main_is_reaped {
            return;
        }
        let pidfd = family.pidfd.as_ref().map(|(_, pidfd)| Arc::clone(pidfd));
        let inputs = self.context.inputs.clone();
        let input = ServiceInput::Process(id, ProcessInput::AdoptedEnded);
        let input = Input::Service(self.service.name.clone(), input);
        let watch = Timer::task(async move {
            let duplicate = pidfd.and_then(|pidfd| pidfd.try_clone().ok());
            let watched = duplicate.and_then(|fd| crate::sys::watch(fd, Interest::READABLE).ok());
            if let Some(watched) = watched {
                // It is readable once the process has ended; an error comes to the same.
                let _ended = watched.readable().await.map(drop);
            }
            // The queue is closed only when the supervisor ends.
            let _ended = inputs.send(input).await;
        });
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.adopted = Some(watch);
        }
    }

    /// A process that we do not reap has ended.
    pub(super) fn adopted_ended(&mut self, id: ProcessId) {
        let how = "ended (its exit status went to another process, for it was started by a former supervisor)";
        self.process_ended(id, how, false);
    }

    /// A process of the record could not be taken over: for the machine it has failed.
    pub(super) fn lost(&mut self, id: ProcessId) {
        self.drive(Event::Died(id));
        self.drive(Event::FailedToStart(id));
        self.drive(Event::Gone(id));
    }

    /// Feeds a process's life, if it is not over.
    pub(super) fn feed_if_there(&mut self, id: ProcessId, event: Life) {
        if self.processes.contains_key(&id) {
            self.feed(id, event);
        }
    }
}
