//! Processes that a former supervisor started: how their end is told, and what they say of themselves.
//!
//! A record is as old as its writer's death, and the processes went on. Each that speaks the protocol is
//! asked what it has to do with the state; a handover that was under way is finished if it had been
//! decided, and called off if not. What is not known to be owned by the new process is owned by the old
//! one: the lifeline between the two has seen to that.

use std::sync::Arc;
use std::time::Duration;

use heirloom_handover::message::{Order, Standing};
use tokio::io::Interest;

use super::{Runner, reserves};
use crate::control::protocol::EventKind;
use crate::core::generation::{Event as Life, Phase};
use crate::core::reserve;
use crate::core::service::ProcessId;
use crate::core::transfer::{self, State};
use crate::daemon::family::Bond;
use crate::daemon::input::{Input, ProcessInput, ServiceInput};
use crate::daemon::process::Custody;
use crate::daemon::timer::Timer;

/// How often a process is looked at whose end nobody tells.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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
        let family = family.clone();
        let inputs = self.context.inputs.clone();
        let input = ServiceInput::Process(id, ProcessInput::AdoptedEnded);
        let input = Input::Service(self.service.name.clone(), input);
        let watch = Timer::task(async move {
            let duplicate = pidfd.and_then(|pidfd| pidfd.try_clone().ok());
            let watched = duplicate.and_then(|fd| crate::sys::watch(fd, Interest::READABLE).ok());
            if let Some(watched) = watched {
                // It is readable once the process has ended.
                let _ended = watched.readable().await.map(drop);
            }
            // Where there is no descriptor, or it cannot be watched, nobody tells.
            while family.main_is_alive() {
                tokio::time::sleep(LOOK_EVERY).await;
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
        let how = "ended (how is not known: it was started by a former supervisor)";
        self.process_ended(id, how, false);
    }

    /// Asks a process that was taken over what it has to do with the state.
    pub(super) fn inquire(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let generation = Some(process.generation);
        let alive = process
            .family
            .as_ref()
            .is_some_and(|family| family.main_is_alive());
        if !alive {
            return;
        }
        let text = "it was taken over from a supervisor that is gone";
        let native = process.native.hello.is_some() && !process.native.deaf;
        let told = native.then(|| process.order(&Order::Who, &[]));
        let mute = matches!(told, Some(Err(_)));
        self.note(generation, EventKind::Adopted, text);
        if mute {
            if self.processes.get(&id).map(|one| one.phase) == Some(Phase::Reserve) {
                // What it would have to be told in a rollback cannot be told.
                match self.reserve_with(id) {
                    Some(new) => self.reserve(new, reserve::Event::Dismiss),
                    None => self.feed(id, Life::Retire),
                }
            }
            // What it had to do with the state is known from the record alone.
            let input = ServiceInput::Process(id, ProcessInput::Deaf);
            let timer = self.timer(Duration::ZERO, input);
            if let Some(process) = self.processes.get_mut(&id) {
                process.deadlines.deaf = Some(timer);
            }
        }
    }

    /// A process says what it has to do with the state.
    pub(super) fn stands(&mut self, id: ProcessId, migration: u64, standing: Standing) {
        if let Some(new) = self.inherited_migration_of(id) {
            self.decide_inherited(new, id, standing);
            return;
        }
        if self.stands_of_reserve(id, standing) {
            return;
        }
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let leaving = !matches!(process.phase, Phase::Starting | Phase::Serving);
        match (standing, process.native.custody) {
            // It is a reserve for nobody that is known; RETIRE, which follows, ends it.
            (Standing::Yielded | Standing::Reserve, _) => self.yielded(id, migration),
            (_, _) if leaving => {}
            (Standing::Greeting, Custody::Unasked | Custody::Waiting) => self.welcome(id),
            (
                Standing::Owning,
                Custody::Unasked
                | Custody::Waiting
                | Custody::Receiving
                | Custody::Restoring { .. }
                | Custody::Dismissed,
            ) => {
                self.entrust(id, Custody::Owner);
                self.look_for_readiness_if_starting(id);
            }
            (
                Standing::Receiving | Standing::Greeting,
                Custody::Receiving | Custody::Restoring { .. },
            ) => {
                let why = "the supervisor died while the new program took the state up";
                self.fail_with(id, why.to_owned());
            }
            (_, _) => {}
        }
    }

    fn look_for_readiness_if_starting(&mut self, id: ProcessId) {
        let starting = self.processes.get(&id).map(|one| one.phase) == Some(Phase::Starting);
        if starting {
            self.look_for_readiness(id);
        }
    }

    /// The new process of the migration of before that a process has a part in.
    fn inherited_migration_of(&self, id: ProcessId) -> Option<ProcessId> {
        let mut all = self.migrations.iter();
        all.find(|(new, one)| one.inherited && (**new == id || one.old == id))
            .map(|(new, _)| *new)
    }

    /// One side of a migration of before has said what it has to do with the state.
    fn decide_inherited(&mut self, new: ProcessId, by: ProcessId, standing: Standing) {
        let Some(migration) = self.migrations.get_mut(&new) else {
            return;
        };
        let by_old = by == migration.old;
        let decided = matches!(
            (by_old, standing),
            (false, Standing::Owning) | (true, Standing::Yielded | Standing::Reserve)
        );
        if decided && !migration.state.is_undecided() {
            // It was ordered, and the order was not recorded any more.
            migration.state = State::Committing;
        }
        if by_old {
            migration.old_stands = Some(standing);
            if migration.way_back {
                // What it said while there was no supervisor counts once it is known that there is a reserve.
                let said = reserves::unheard(migration.number, standing);
                migration.early.extend(said.map(|report| (by, report)));
            }
        }
        let why = "the supervisor died before the new program owned the state".to_owned();
        match (by_old, standing) {
            (false, Standing::Owning) => self.transfer(new, transfer::Event::Committed, None),
            (true, Standing::Yielded | Standing::Reserve) => {
                migration.yielded = true;
                self.transfer(new, transfer::Event::Yielded, None);
            }
            (false, _) => self.transfer(new, transfer::Event::Cancel, Some(why)),
            (true, _) => {}
        }
        self.resolve_inherited(new);
    }

    /// The new process of a migration of before is gone, and the old one has said already that it owns the
    /// state.
    pub(super) fn resolve_inherited(&mut self, new: ProcessId) {
        let resolved = self.migrations.get(&new).is_some_and(|one| {
            one.state == State::Resolving && one.old_stands == Some(Standing::Owning)
        });
        if resolved {
            let why = "the supervisor died before the new program owned the state".to_owned();
            self.transfer(new, transfer::Event::Thawed, Some(why));
        }
    }
}
