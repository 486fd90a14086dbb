//! What native programs say, and what they are told before they own a state.
//!
//! Owns the answer to a `HELLO`: begin with none, take up a saved one, or take it over from the process
//! that serves; and sending each report where it belongs. How a state moves is in [`super::migrations`],
//! how it is saved and taken up in [`super::saves`].

use std::time::Duration;

use heirloom_handover::fault::{self, Point};
use heirloom_handover::message::{MOST_LINES, Order, PROTOCOL, Report};

use super::Runner;
use crate::config::service::Strategy;
use crate::control::protocol::EventKind;
use crate::core::generation::Phase;
use crate::core::service::ProcessId;
use crate::core::transfer;
use crate::daemon::input::{ProcessInput, ServiceInput};
use crate::daemon::process::{Custody, Hello};

/// Lines of an order beside those that say what the receiver can read.
const OTHER_LINES: usize = 16;

/// How long a process may take from closing its socket to its end, to count as one that ended: the
/// system clears its memory in between.
const LONGEST_DEATH: Duration = Duration::from_millis(250);

impl Runner {
    /// A process has sent a message of the protocol.
    pub(super) fn reported(&mut self, id: ProcessId, report: Report) {
        let number = match &report {
            Report::Hello {
                protocol,
                version,
                reads,
                way_back,
            } => {
                let hello = Hello {
                    // It is shown on terminals.
                    version: version.clone(),
                    reads: reads.clone(),
                    way_back: *way_back,
                };
                return self.greeted(id, *protocol, hello);
            }
            Report::Converged { migration, .. }
            | Report::Frozen { migration, .. }
            | Report::Ready { migration, .. }
            | Report::Reject { migration, .. }
            | Report::Committed { migration, .. }
            | Report::Failed { migration, .. }
            | Report::Thawed { migration, .. }
            | Report::Yielded { migration, .. }
            | Report::Returned { migration, .. }
            | Report::StoodDown { migration, .. }
            | Report::WayLost { migration, .. }
            | Report::Saved { migration, .. } => *migration,
            Report::Moved { moved, left, .. } => {
                let (moved, left) = (moved.clone(), left.clone());
                return self.connections_moved(id, moved, left);
            }
            Report::Gone { moved, cut, .. } => {
                let (moved, cut) = (moved.clone(), *cut);
                return self.connections_ended(id, moved, cut);
            }
            Report::Phase { migration, phase } => return self.stands(id, *migration, *phase),
            // Reports that are not known yet.
            _unknown => return self.garbled(id, "a report of another version of the protocol"),
        };
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let custody = process.native.custody;
        if let Some(new) = self.reserve_of(id, number)
            && self.reserve_said(new, id, &report)
        {
            return;
        }
        if let Some(new) = self.migration_of(id, number) {
            self.catch_up(new);
        }
        if let Some(new) = self.migration_of(id, number) {
            if !self.may_follow_from_a_death(new, id, &report) {
                self.migration_said(new, id, report);
            }
        } else if self.is_saving(id, number) {
            self.save_said(report);
        } else if matches!(custody, Custody::Restoring { number: one, .. } if one == number) {
            self.restore_said(id, report);
        } else {
            self.said_afterwards(id, report);
        }
    }

    /// What is said of a migration that is over.
    fn said_afterwards(&mut self, id: ProcessId, report: Report) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let generation = Some(process.generation);
        let thawed = process.native.thawed;
        match report {
            Report::Yielded { migration, .. } => self.yielded(id, migration),
            // The handover was given up, and yet the new one owned the state for a moment.
            Report::Returned { reason, .. } if process.deadlines.bereft.is_some() => {
                process.deadlines.bereft = None;
                process.reason = None;
                self.owns_again(id);
                let text = format!("it owns the state again, with every change: {reason}");
                self.note(generation, EventKind::Returned, &text);
            }
            Report::WayLost { reason, .. } => self.way_lost(id, &reason),
            // Told once a migration, however often it is said.
            Report::Thawed {
                migration, reason, ..
            } if (thawed + 1..=self.last_migration).contains(&migration) => {
                process.native.thawed = migration;
                let text = format!("it owns its state again: {reason}");
                self.note(generation, EventKind::Thawed, &text);
            }
            // Left over from what was called off.
            _left_over => {}
        }
    }

    fn greeted(&mut self, id: ProcessId, protocol: u32, hello: Hello) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        if process.native.hello.is_some() {
            return self.garbled(id, "it said HELLO twice");
        }
        let serves = process.phase == Phase::Serving;
        if protocol != PROTOCOL {
            let reason = format!(
                "the new program speaks version {protocol} of the handover protocol, this supervisor version {PROTOCOL}; one of the two is to be brought up to date"
            );
            return self.turn_away(id, serves, reason);
        }
        if hello.reads.len() + OTHER_LINES > MOST_LINES {
            let reason = format!(
                "the new program can read {} versions of its state, more than one message can say",
                hello.reads.len()
            );
            return self.turn_away(id, serves, reason);
        }
        process.native.hello = Some(hello);
        fault::reached(Point::Greeted);
        self.welcome(id);
    }

    /// A `HELLO` cannot be answered: the process has failed, unless it serves already, as a plain one.
    fn turn_away(&mut self, id: ProcessId, serves: bool, reason: String) {
        if serves {
            self.garbled(id, &reason);
        } else {
            self.fail_with(id, reason);
        }
    }

    /// Those who wait until a state is in its place are told what to do, if it is.
    pub(super) fn welcome_waiting(&mut self) {
        let waiting = self
            .processes
            .values()
            .filter(|process| process.native.custody == Custody::Waiting);
        for id in waiting.map(|process| process.id).collect::<Vec<_>>() {
            self.welcome(id);
        }
    }

    /// Whether the process that another is to replace is not ready yet, and is the one that has taken a
    /// saved state up: only when it serves can it give it away.
    fn predecessor_restores(&self, id: ProcessId) -> bool {
        let old = self.machine.starting_predecessor(id);
        let old = old.and_then(|old| self.processes.get(&old));
        old.is_some_and(|old| {
            let restoring = matches!(old.native.custody, Custody::Restoring { .. });
            old.phase == Phase::Starting && (restoring || old.native.restored)
        })
    }

    /// Tells a process that said `HELLO` what to do; or later, when the state it is to take up is being
    /// saved.
    pub(super) fn welcome(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let custody = process.native.custody;
        let leaving = !matches!(process.phase, Phase::Starting | Phase::Serving);
        if leaving || !matches!(custody, Custody::Unasked | Custody::Waiting) {
            return;
        }
        // Who serves already had nobody before it when it became ready.
        let starting = process.phase == Phase::Starting;
        let strategy = process.plan.service.strategy;
        let rehearsed = self.is_rehearsed(process.plan_id);
        let old = self.machine.predecessor(id).filter(|_| starting);
        let Some(old) = old.and_then(|old| self.processes.get(&old)) else {
            if self.is_keeping() || self.predecessor_restores(id) {
                self.entrust(id, Custody::Waiting);
            } else if rehearsed || !starting || !self.restore(id) {
                self.begin_with_nothing(id);
            }
            return;
        };
        let (generation, owner) = (old.generation, old.native.custody == Custody::Owner);
        let mute = old.native.hello.is_some() && !owner;
        let old = old.id;
        match strategy {
            _any if mute => {
                let why = "it has closed its socket of the handover protocol";
                self.note_not_taken_over(id, generation, why);
                self.begin_with_nothing(id);
            }
            // A state that may yet go back does not go on.
            Strategy::Auto | Strategy::Handover
                if owner && !rehearsed && self.reserves.contains_key(&old) =>
            {
                self.entrust(id, Custody::Waiting);
                self.reserve(old, crate::core::reserve::Event::Dismiss);
            }
            Strategy::Auto | Strategy::Handover if owner => self.migrate(old, id),
            Strategy::Handover => {
                let why = "it does not speak the handover protocol";
                self.note_not_taken_over(id, generation, why);
                self.begin_with_nothing(id);
            }
            Strategy::Overlap | Strategy::Sequential if owner => {
                let why = format!("the strategy is {}", word(strategy));
                self.note_not_taken_over(id, generation, &why);
                self.begin_with_nothing(id);
            }
            Strategy::Auto | Strategy::Overlap | Strategy::Sequential => {
                self.begin_with_nothing(id);
            }
        }
    }

    fn begin_with_nothing(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        match process.order(&Order::Begin, &[]) {
            Ok(()) => self.entrust(id, Custody::Owner),
            Err(error) => {
                self.fail_with(
                    id,
                    format!("the new program cannot be told to begin: {error}"),
                );
            }
        }
    }

    pub(super) fn entrust(&mut self, id: ProcessId, custody: Custody) {
        if let Some(process) = self.processes.get_mut(&id) {
            process.native.custody = custody;
        }
    }

    pub(super) fn note_not_taken_over(&self, new: ProcessId, old: u64, why: &str) {
        let generation = self.processes.get(&new).map(|process| process.generation);
        let text = format!("the state of generation {old} is not taken over: {why}");
        self.note(generation, EventKind::NotTakenOver, &text);
    }

    /// From now on nothing but its report of the state makes a process ready.
    pub(super) fn look_no_longer(&mut self, id: ProcessId) {
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.readiness = None;
        }
        self.end_ready_command(id);
    }

    /// Whether what is seen of a process, or its `READY=1`, may make it ready.
    pub(super) fn may_become_ready(&self, id: ProcessId) -> bool {
        let process = self.processes.get(&id);
        process.is_some_and(|process| match process.native.custody {
            Custody::Unasked | Custody::Owner => true,
            Custody::Waiting
            | Custody::Receiving
            | Custody::Restoring { .. }
            | Custody::Dismissed
            | Custody::Parting { .. }
            | Custody::Yielded => false,
        })
    }

    /// A process looks ready and never said `HELLO`: says whether that may be, where the one it replaces
    /// has a state.
    pub(super) fn plain_may_follow(&mut self, id: ProcessId) -> bool {
        let Some(process) = self.processes.get(&id) else {
            return false;
        };
        let plain = process.native.hello.is_none();
        if !plain || process.phase != Phase::Starting || self.is_rehearsed(process.plan_id) {
            return true;
        }
        let strategy = process.plan.service.strategy;
        let old = self.machine.predecessor(id);
        let Some(old) = old.and_then(|old| self.processes.get(&old)) else {
            return true;
        };
        if old.native.custody != Custody::Owner {
            return true;
        }
        if strategy == Strategy::Handover {
            let reason = format!(
                "the new program became ready without a HELLO, so it cannot take the state of generation {} over, which strategy = \"handover\" asks for",
                old.generation
            );
            self.fail_with(id, reason);
            return false;
        }
        let why = "the new program does not speak the handover protocol";
        self.note_not_taken_over(id, old.generation, why);
        true
    }

    /// A process has sent what makes no sense.
    pub(super) fn garbled(&mut self, id: ProcessId, what: &str) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let (service, generation) = (&self.service.name, process.generation);
        tracing::warn!(
            service,
            generation,
            "a message of the handover protocol was passed over: {what}"
        );
        if self.migrations.contains_key(&id) {
            let why = format!("the new program sent a message that makes no sense: {what}");
            self.transfer(id, transfer::Event::Reject, Some(why));
        } else if let Some(new) = self.migration_from(id) {
            let why = format!("the old program sent a message that makes no sense: {what}");
            self.transfer(new, transfer::Event::Failed, Some(why));
        } else if matches!(process.native.custody, Custody::Restoring { .. }) {
            let why = format!("the new program sent a message that makes no sense: {what}");
            self.fail_with(id, why);
        } else {
            let why = format!("the program sent a message that makes no sense: {what}");
            self.save_lost(id, &why);
        }
    }

    /// Nothing more will be heard of a process.
    pub(super) fn deafened(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        process.native.deaf = true;
        if process
            .family
            .as_ref()
            .is_some_and(|one| one.main_is_reaped)
        {
            return self.heard_its_death(id);
        }
        // A process that ends closes its socket first, and that it ends says more.
        let input = ServiceInput::Process(id, ProcessInput::StillDeaf);
        let timer = self.timer(LONGEST_DEATH, input);
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.deaf = Some(timer);
        }
    }

    /// Nothing more will be heard of a process, and it does not seem to end.
    pub(super) fn lives_deaf(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id).filter(|one| !one.is_dead()) else {
            return;
        };
        let custody = process.native.custody;
        if self.migrations.contains_key(&id) {
            let why = "the new program closed its socket of the handover protocol";
            self.transfer(id, transfer::Event::NewDeaf, Some(why.to_owned()));
        } else if let Some(new) = self.migration_from(id) {
            let why = "the old program closed its socket of the handover protocol";
            self.transfer(new, transfer::Event::OldDeaf, Some(why.to_owned()));
        }
        match custody {
            Custody::Restoring { .. } => {
                let why = "the new program closed its socket of the handover protocol before it had taken the saved state up";
                self.fail_with(id, why.to_owned());
            }
            Custody::Parting { retire: true, .. } => self.stop_by_signal(id),
            Custody::Owner => {
                // It cannot be asked for its state any more: from now on it is like any other.
                self.entrust(id, Custody::Unasked);
                self.save_lost(id, "the program closed its socket of the handover protocol");
            }
            Custody::Dismissed => {
                let why = "the new program closed its socket of the handover protocol";
                self.fail_with(id, why.to_owned());
            }
            Custody::Unasked
            | Custody::Waiting
            | Custody::Receiving
            | Custody::Parting { retire: false, .. }
            | Custody::Yielded => {}
        }
    }

    /// A process is dead, and all it said has been heard.
    pub(super) fn heard_its_death(&mut self, id: ProcessId) {
        self.reserve_heard_death(id);
        if self.migrations.contains_key(&id) {
            self.transfer(id, transfer::Event::NewDied, None);
            self.resolve_inherited(id);
        }
        if let Some(new) = self.migration_from(id) {
            // What it said counts before its death does.
            self.catch_up(new);
        }
        if let Some(new) = self.migration_from(id) {
            let why = "the old program died before its state was taken over; the state is lost with it, as in any crash";
            self.transfer(new, transfer::Event::OldDied, Some(why.to_owned()));
        }
    }
}

fn word(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Auto => "auto",
        Strategy::Handover => "handover",
        Strategy::Overlap => "overlap",
        Strategy::Sequential => "sequential",
    }
}
