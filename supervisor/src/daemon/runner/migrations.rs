//! Moving the state of a serving process into the one that replaces it.
//!
//! Carries the table of [`crate::core::transfer`] out: makes the pipe, the lifeline and the link, sends
//! orders, and keeps what both sides report. The supervisor keeps no end of what it makes, so each side
//! sees the other's death. What comes of it is in [`super::outcomes`]. What is changed here is to be
//! changed in the mirror of docs/model.md.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::pipe2;

use heirloom_handover::fault::{self, Point};
use heirloom_handover::lifeline::Lifeline;
use heirloom_handover::message::{self, Order, Report, Standing};
use heirloom_handover::way_back::Fate;

use super::Runner;
use super::outcomes::in_rounds;
use super::reserves::Early;
use crate::control::protocol::EventKind;
use crate::core::service::ProcessId;
use crate::core::transfer::{self, Action, Event, Outcome, Purpose, State};
use crate::daemon::input::{ProcessInput, ServiceInput};
use crate::daemon::memory::size;
use crate::daemon::process::{Custody, Process, Untold};
use crate::daemon::record;
use crate::daemon::timer::Timer;

/// What the pipe is enlarged to: the most an unprivileged process may ask for by default
/// (`/proc/sys/fs/pipe-max-size`). Fewer and longer turns of either side.
const PIPE_BYTES: i32 = 1 << 20;

/// How much longer than the state may stand still the supervisor waits for what ends that: the old
/// process's own deadline comes first, and its word is the better one.
const SLACK: Duration = Duration::from_secs(2);

/// How long a process may take from closing what it shares with the other one to its end.
const LONGEST_DEATH: Duration = Duration::from_millis(50);

/// What can be said of a way back before it counts: that it is lost, and what that led to.
const MOST_EARLY: usize = 2;

/// A migration under way.
#[derive(Debug)]
pub(crate) struct Migration {
    pub(super) number: u64,
    pub(super) old: ProcessId,
    pub(super) purpose: Purpose,
    pub(super) state: State,
    /// The longest the state may stand still.
    pub(super) freeze: Duration,
    pub(super) frozen: Option<Frozen>,
    /// Entries and bytes that the new one has verified.
    pub(super) verified: (u64, u64),
    pub(super) committed_at_usec: Option<u64>,
    /// Whether the old one has said that it knows.
    pub(super) yielded: bool,
    /// Whether it was begun by a supervisor that is gone.
    pub(super) inherited: bool,
    /// What the old one has said to have to do with the state, when it was asked.
    pub(super) old_stands: Option<Standing>,
    /// Whether the state can go back.
    pub(super) way_back: bool,
    /// What was said of the way back already.
    pub(super) early: Early,
    /// Why it failed.
    pub(super) blame: Option<String>,
    /// What the old one said of its end.
    pub(super) remark: Option<String>,
    /// What the old one said that is not carried out yet.
    postponed: Option<(Timer, Report)>,
    /// Which deadline is the one that runs.
    pub(super) allowed: u64,
    pub(super) deadline: Option<Timer>,
}

/// What the old one reported when its state stood still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frozen {
    pub(super) at_usec: u64,
    pub(super) rounds: u64,
    pub(super) stall_usec: u64,
}

/// What handovers of state came to, over all instances.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moved {
    /// Whether any was begun.
    pub(crate) begun: bool,
    pub(crate) pause_ms: f64,
    pub(crate) stall_ms: f64,
    pub(crate) bytes: u64,
    pub(crate) rounds: u64,
    pub(crate) entries: u64,
}

/// What the two sides are connected by; each has the stream, the lifeline, the link, and then the way back,
/// its fate and its link if there is one.
struct Ends {
    old: Vec<OwnedFd>,
    new: Vec<OwnedFd>,
}

impl Ends {
    fn make() -> io::Result<Self> {
        let (reading, writing) = pipe()?;
        let (old_lifeline, new_lifeline) = Lifeline::pair()?;
        let (old_link, new_link) = link()?;
        Ok(Self {
            old: vec![writing, old_lifeline, old_link],
            new: vec![reading, new_lifeline, new_link],
        })
    }

    fn and_way_back(mut self, wanted: bool) -> io::Result<Self> {
        if wanted {
            let (reading, writing) = pipe()?;
            let (old_fate, new_fate) = Fate::pair()?;
            let (old_link, new_link) = link()?;
            self.old.extend([reading, old_fate, old_link]);
            self.new.extend([writing, new_fate, new_link]);
        }
        Ok(self)
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reading, writing) = pipe2(OFlag::O_CLOEXEC)?;
    // Where that is more than allowed, it works with less.
    let _smaller = fcntl(&writing, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    Ok((reading, writing))
}

fn link() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

impl Migration {
    /// One that was under way when its supervisor died.
    pub(super) fn restore(listed: &record::Migration) -> Self {
        Self {
            number: listed.number,
            old: listed.old,
            purpose: listed.purpose,
            state: listed.state,
            freeze: Duration::from_millis(listed.freeze_ms),
            frozen: None,
            verified: (0, 0),
            committed_at_usec: None,
            yielded: listed.yielded,
            way_back: listed.way_back,
            early: Vec::new(),
            inherited: true,
            old_stands: None,
            blame: None,
            remark: None,
            postponed: None,
            allowed: 0,
            deadline: None,
        }
    }
}

impl Runner {
    /// The new process of the migration of this number that a process has a part in.
    pub(super) fn migration_of(&self, id: ProcessId, number: u64) -> Option<ProcessId> {
        let mut all = self.migrations.iter();
        all.find(|(new, one)| one.number == number && (**new == id || one.old == id))
            .map(|(new, _)| *new)
    }

    /// The new process of the migration in which this one gives its state away.
    pub(super) fn migration_from(&self, old: ProcessId) -> Option<ProcessId> {
        let mut all = self.migrations.iter();
        all.find(|(_, one)| one.old == old).map(|(new, _)| *new)
    }

    /// Whether it is open who owns a state: a stop waits for that.
    pub(super) fn is_undecided(&self) -> bool {
        self.migrations.values().any(|one| one.state.is_undecided())
    }

    /// Begins to move the state of a serving process into one that said `HELLO`.
    pub(super) fn migrate(&mut self, old: ProcessId, new: ProcessId) {
        self.give_snapshot_up(old, "a handover needs the state; try again when it is over");
        let Some(taker) = self.processes.get(&new) else {
            return;
        };
        let (purpose, told) = if self.is_rehearsed(taker.plan_id) {
            (Purpose::Rehearsal, message::Purpose::Rehearsal)
        } else {
            (Purpose::Handover, message::Purpose::Handover)
        };
        let way_back = match purpose {
            Purpose::Handover => match self.way_back(old, new) {
                Ok(way_back) => way_back,
                Err(why) => {
                    let why = format!("{why}; see without_way_back");
                    return self.fail_with(new, why);
                }
            },
            Purpose::Rehearsal => None,
        };
        let ends = Ends::make().and_then(|ends| ends.and_way_back(way_back.is_some()));
        let ends = match ends {
            Ok(ends) => ends,
            Err(error) => {
                let reason = format!("the state cannot be moved, the supervisor is short: {error}");
                return self.fail_with(new, reason);
            }
        };
        let (Some(giver), Some(taker)) = (self.processes.get(&old), self.processes.get(&new))
        else {
            return;
        };
        let number = self.last_migration + 1;
        let settings = &taker.plan.service;
        let bytes_max = Some(settings.max_state.bytes());
        let hello = taker.native.hello.as_ref();
        let send = Order::Send {
            migration: number,
            to: taker.generation,
            purpose: told,
            pause: settings.pause.0,
            freeze: settings.freeze_timeout.0,
            reads: hello.map(|hello| hello.reads.clone()).unwrap_or_default(),
            bytes_max,
            way_back,
        };
        let known = giver.native.hello.as_ref();
        let receive = Order::Receive {
            migration: number,
            from: giver.generation,
            bytes_max,
            way_back: known
                .filter(|_| way_back.is_some())
                .map(|hello| hello.reads.clone()),
        };
        fault::reached(Point::Connecting);
        let to_new = taker.order(
            &receive,
            &ends.new.iter().map(AsFd::as_fd).collect::<Vec<_>>(),
        );
        fault::reached(Point::HalfConnected);
        let to_old = giver.order(&send, &ends.old.iter().map(AsFd::as_fd).collect::<Vec<_>>());
        drop(ends);
        fault::reached(Point::Connected);
        let text = format!("generation {} takes its state over", taker.generation);
        let generation = Some(giver.generation);
        let migration = Migration {
            number,
            old,
            purpose,
            state: State::Copying,
            freeze: settings.freeze_timeout.0,
            frozen: None,
            verified: (0, 0),
            committed_at_usec: None,
            yielded: false,
            inherited: false,
            old_stands: None,
            way_back: way_back.is_some(),
            early: Vec::new(),
            postponed: None,
            blame: None,
            remark: None,
            allowed: 0,
            deadline: None,
        };
        let plan = taker.plan_id;
        self.last_migration = number;
        self.migrations.insert(new, migration);
        if let Some(moved) = self.moved(plan) {
            moved.begun = true;
        }
        self.note(generation, EventKind::Copying, &text);
        self.entrust(new, Custody::Receiving);
        self.look_no_longer(new);
        if let Some(error) = to_old.err().and_then(Untold::unless_closed) {
            let why = format!("the old program cannot be told to copy its state: {error}");
            self.transfer(new, Event::Failed, Some(why));
        }
        if let Some(error) = to_new.err().and_then(Untold::unless_closed) {
            let why = format!("the new program cannot be told to take the state over: {error}");
            self.transfer(new, Event::NewDeaf, Some(why));
        }
    }

    /// The old one may have noticed that the new one is dying before that can be seen here: then the
    /// death is the reason, so it is waited for. The old one owns its state already, if it says so.
    /// Says whether it is waited for.
    pub(super) fn may_follow_from_a_death(
        &mut self,
        new: ProcessId,
        by: ProcessId,
        report: &Report,
    ) -> bool {
        let (Report::Failed { reason, .. } | Report::Thawed { reason, .. }) = report else {
            return false;
        };
        if self.processes.get(&new).is_some_and(Process::is_ending) {
            return false;
        }
        let input = ServiceInput::Process(new, ProcessInput::CatchUp);
        let timer = self.timer(LONGEST_DEATH, input);
        let Some(migration) = self.migrations.get_mut(&new) else {
            return false;
        };
        if migration.old != by {
            return false;
        }
        migration.remark = Some(format!("the old program: {reason}"));
        migration.postponed = Some((timer, report.clone()));
        true
    }

    /// Carries out what was put off, now that something else was said or the time for it is over.
    pub(super) fn catch_up(&mut self, new: ProcessId) {
        if let Some(migration) = self.migrations.get_mut(&new)
            && let Some((_, report)) = migration.postponed.take()
        {
            let old = migration.old;
            self.migration_said(new, old, report);
        }
    }

    /// One of the two sides has said something.
    pub(super) fn migration_said(&mut self, new: ProcessId, by: ProcessId, report: Report) {
        fault::reached(Point::Heard);
        let generation = self.processes.get(&by).map(|process| process.generation);
        let old_is_ending = self.migrations.get(&new).and_then(|one| {
            let old = self.processes.get(&one.old);
            old.map(Process::is_ending)
        });
        let new_is_ending = self.processes.get(&new).is_some_and(Process::is_ending);
        let Some(migration) = self.migrations.get_mut(&new) else {
            return;
        };
        let by_old = by == migration.old;
        if matches!(
            report,
            Report::Returned { .. } | Report::StoodDown { .. } | Report::WayLost { .. }
        ) {
            // What the commit came to is not known yet, and decides what it means.
            if migration.way_back && migration.early.len() < MOST_EARLY {
                migration.early.push((by, report));
            }
            return;
        }
        // The old one notices the new one's death before it is told here: that death is the reason.
        let unless_new_died = |why: String| Some(why).filter(|_| !new_is_ending);
        let mut said = None;
        let (event, why) = match report {
            Report::Converged { rounds, bytes, .. } if by_old => {
                let text = format!("it has copied {} in {}", size(bytes), in_rounds(rounds));
                said = Some((EventKind::Converged, text));
                let why = "the old program said CONVERGED out of turn";
                (Event::Converged, Some(why.to_owned()))
            }
            Report::Frozen {
                at_usec,
                rounds,
                bytes,
                stall_usec,
                ..
            } if by_old => {
                migration.frozen = Some(Frozen {
                    at_usec,
                    rounds,
                    stall_usec,
                });
                let text = format!(
                    "its state stands still, the copy is complete: {} in {}",
                    size(bytes),
                    in_rounds(rounds)
                );
                said = Some((EventKind::Frozen, text));
                let why = "the old program said FROZEN out of turn";
                (Event::Frozen, Some(why.to_owned()))
            }
            Report::Failed { reason, .. } if by_old => {
                migration.remark = Some(format!("the old program: {reason}"));
                let why = format!("the old program cannot copy its state: {reason}");
                (Event::Failed, unless_new_died(why))
            }
            Report::Thawed { reason, .. } if by_old => {
                migration.remark = Some(format!("the old program: {reason}"));
                let text = format!("it owns its state again: {reason}");
                said = Some((EventKind::Thawed, text));
                let why = format!("the old program has taken its state back: {reason}");
                (Event::Thawed, unless_new_died(why))
            }
            Report::Yielded { .. } if by_old => {
                migration.yielded = true;
                let text = "it has seen that the new generation owns the state";
                said = Some((EventKind::Yielded, text.to_owned()));
                let why = "the old program said YIELDED out of turn";
                (Event::Yielded, Some(why.to_owned()))
            }
            Report::Ready { entries, bytes, .. } if !by_old => {
                migration.verified = (entries, bytes);
                let why = "the new program said READY out of turn";
                (Event::Ready, Some(why.to_owned()))
            }
            Report::Reject { reason, .. } if !by_old => {
                let why = match old_is_ending {
                    Some(true) | None => format!(
                        "the old program died before its whole state was copied; the state is lost with it, as in any crash (the new program: {reason})"
                    ),
                    Some(false) => format!("the new program refused the state: {reason}"),
                };
                (Event::Reject, Some(why))
            }
            Report::Committed { at_usec, .. } if !by_old => {
                migration.committed_at_usec = Some(at_usec);
                let why = "the new program says that it owns the state, which it was not told to";
                (Event::Committed, Some(why.to_owned()))
            }
            other => {
                let bytes = other.to_bytes();
                let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
                let text = format!("{} is not its to say", String::from_utf8_lossy(line));
                return self.garbled(by, &text);
            }
        };
        // What changes nothing may be said over and over.
        let state = migration.state;
        let counts = transfer::step(migration.purpose, state, event).0 != state;
        if let Some((kind, text)) = said.filter(|_| counts) {
            self.note(generation, kind, &text);
        }
        self.transfer(new, event, why);
    }

    /// The time that was allowed for a step is over.
    pub(super) fn step_over(&mut self, new: ProcessId, allowed: u64) {
        let Some(migration) = self.migrations.get(&new) else {
            return;
        };
        if migration.allowed != allowed {
            return;
        }
        let limit = humantime::format_duration(migration.freeze + SLACK);
        let why = match migration.state {
            State::Freezing | State::Verified => {
                format!("the old program did not complete the copy within {limit}")
            }
            State::Frozen | State::Orphaned => format!(
                "the new program did not verify the copy within {limit}, while the state stood still"
            ),
            State::Committing | State::Yielded | State::Alone => format!(
                "the new program did not say within {limit} that it owns the state, and was killed"
            ),
            State::Resolving => "the old program does not say whether it owns the state".to_owned(),
            State::Copying | State::Ended => String::new(),
        };
        self.transfer(new, Event::Deadline, Some(why));
    }

    /// The new process has had its time; says whether it was taking a state over.
    pub(super) fn transfer_timed_out(&mut self, new: ProcessId) -> bool {
        let Some(migration) = self.migrations.get(&new) else {
            return false;
        };
        let limit = self
            .processes
            .get(&new)
            .map(|process| process.plan.service.ready_timeout.to_string())
            .unwrap_or_default();
        let missing = match migration.state {
            State::Copying => "the copy was still under way",
            State::Freezing | State::Verified => "the old program had not completed the copy",
            State::Frozen | State::Orphaned => "the new program had not verified the copy",
            State::Committing | State::Yielded | State::Alone => {
                "the new program had not said that it owns it"
            }
            State::Resolving | State::Ended => "it is open who owns it",
        };
        let why =
            format!("the state was not taken over within {limit}: {missing}; see ready_timeout");
        self.transfer(new, Event::Timeout, Some(why));
        true
    }

    /// Something happened to a migration: carries out what the table says.
    pub(super) fn transfer(&mut self, new: ProcessId, event: Event, why: Option<String>) {
        let mut events = VecDeque::from([(event, why)]);
        while let Some((event, why)) = events.pop_front() {
            let Some(migration) = self.migrations.get_mut(&new) else {
                return;
            };
            let (state, actions) = transfer::step(migration.purpose, migration.state, event);
            migration.state = state;
            let fails = |action: &Action| {
                matches!(
                    action,
                    Action::AbortOld
                        | Action::AbortNew
                        | Action::KillNew
                        | Action::Done(Outcome::Aborted | Outcome::Fallen)
                )
            };
            let rehearsed = actions.contains(&Action::Done(Outcome::Rehearsed));
            if actions.iter().any(fails) && !rehearsed && migration.blame.is_none() {
                migration.blame = why;
            }
            for action in actions {
                events.extend(self.carry_out(new, *action));
                fault::reached(Point::Ordered);
            }
        }
    }

    /// Carries one action out; what follows from that it cannot be.
    fn carry_out(&mut self, new: ProcessId, action: Action) -> Option<(Event, Option<String>)> {
        let migration = self.migrations.get_mut(&new)?;
        let number = migration.number;
        let reason = match action {
            Action::Done(_) => String::new(),
            _call_off => migration
                .blame
                .clone()
                .unwrap_or_else(|| match migration.purpose {
                    Purpose::Handover => "the new process is gone".to_owned(),
                    Purpose::Rehearsal => "the rehearsal is over".to_owned(),
                }),
        };
        let old = self.processes.get(&migration.old);
        let taker = self.processes.get(&new);
        let tell_new = |order: &Order| taker.map_or(Ok(()), |taker| taker.order(order, &[]));
        match action {
            Action::Freeze => {
                fault::reached(Point::Freeze);
                let order = Order::Freeze { migration: number };
                let told = old.map_or(Ok(()), |old| old.order(&order, &[]));
                let text = "the old program cannot be told to let its state stand still";
                told.err()
                    .and_then(Untold::unless_closed)
                    .map(|error| (Event::Failed, Some(format!("{text}: {error}"))))
            }
            Action::Commit | Action::CommitAlone => {
                fault::reached(Point::Commit);
                let alone = action == Action::CommitAlone;
                let order = Order::Commit {
                    migration: number,
                    alone,
                };
                let text = "the new program cannot be told to own the state";
                tell_new(&order)
                    .err()
                    .and_then(Untold::unless_closed)
                    .map(|error| (Event::NewDeaf, Some(format!("{text}: {error}"))))
            }
            Action::AbortOld => {
                fault::reached(Point::Abort);
                let order = Order::Abort {
                    migration: number,
                    reason,
                };
                // If it cannot be told, it sees the new one's end of the lifeline close.
                let _untold = old.map(|old| old.order(&order, &[]));
                None
            }
            Action::AbortNew => {
                fault::reached(Point::Abort);
                let order = Order::Abort {
                    migration: number,
                    reason,
                };
                // If it cannot be told, it is let go all the same.
                let _untold = tell_new(&order);
                None
            }
            Action::KillNew => {
                if let Some(taker) = taker {
                    taker.tell(Signal::SIGKILL);
                    taker.tell_all(Signal::SIGKILL);
                }
                None
            }
            Action::Allow => {
                migration.allowed += 1;
                let (limit, allowed) = (migration.freeze + SLACK, migration.allowed);
                let input = ServiceInput::Process(new, ProcessInput::StepOver(allowed));
                let timer = self.timer(limit, input);
                if let Some(migration) = self.migrations.get_mut(&new) {
                    migration.deadline = Some(timer);
                }
                None
            }
            Action::Done(outcome) => {
                self.transferred(new, outcome);
                None
            }
        }
    }
}
