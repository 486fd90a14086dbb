//! The probation of a state: the process that gave it away stays in reserve, and takes it back if the one
//! that has it fails.
//!
//! Carries the table of [`crate::core::reserve`] out: who is told what, and what an end of it means for the
//! lives of both. Whether there can be a way back at all, and what is said if not, is here too.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use nix::sys::signal::Signal;

use heirloom_handover::message::{Order, Reads, Report, Standing};

use super::Runner;
use super::handovers::Job;
use crate::config::service::WithoutWayBack;
use crate::control::protocol::{EventKind, Outcome as Told, Report as Handover};
use crate::core::generation::{Event as Life, Phase};
use crate::core::reserve::{self, Action, Event, Outcome, State};
use crate::core::service::{Event as Machine, ProcessId};
use crate::daemon::family::Family;
use crate::daemon::input::{ProcessInput, ServiceInput};
use crate::daemon::process::{Custody, Process};
use crate::daemon::record;
use crate::daemon::timer::Timer;

/// How long one of the two may take to answer. Both do nothing else meanwhile, but for a snapshot to a slow
/// disk, which the new one alone may be writing.
const LONGEST_ANSWER: Duration = Duration::from_secs(5);

/// How much longer than the probation a process in reserve waits when there is no supervisor left.
const ALONE_SLACK: Duration = Duration::from_secs(5);

/// A process in reserve, and the one it would replace.
#[derive(Debug)]
pub(crate) struct Reserve {
    /// The number of the migration that led to it.
    number: u64,
    old: ProcessId,
    state: State,
    /// Whether the new one has said that it owns the state no more.
    yielded: bool,
    /// Which deadline is the one that runs.
    allowed: u64,
    deadline: Option<Timer>,
}

impl Reserve {
    /// Whether nothing is being waited for but the end of the probation.
    pub(super) fn is_at_rest(&self) -> bool {
        self.state == State::Standing
    }

    pub(super) fn record(&self, new: ProcessId) -> record::Reserve {
        record::Reserve {
            new,
            old: self.old,
            number: self.number,
            state: self.state,
            yielded: self.yielded,
        }
    }

    pub(super) fn restore(listed: &record::Reserve) -> Self {
        Self {
            number: listed.number,
            old: listed.old,
            state: listed.state,
            yielded: listed.yielded,
            allowed: 0,
            deadline: None,
        }
    }
}

/// What was said of a way back before it was known that there is one.
pub(crate) type Early = Vec<(ProcessId, Report)>;

impl Runner {
    /// How long the process that gives its state to this one is to stay in reserve; none if it cannot, which
    /// is told, or is not to. The reason if it then must not take the state over.
    ///
    /// # Errors
    ///
    /// Why the settings refuse it.
    pub(super) fn way_back(
        &mut self,
        old: ProcessId,
        new: ProcessId,
    ) -> Result<Option<Duration>, String> {
        let (Some(giver), Some(taker)) = (self.processes.get(&old), self.processes.get(&new))
        else {
            return Ok(None);
        };
        let settings = &taker.plan.service;
        let window = settings.probation.0;
        if window.is_zero() {
            return Ok(None);
        }
        let policy = settings.without_way_back;
        let knows = |process: &Process| {
            let hello = process.native.hello.as_ref();
            hello.is_some_and(|hello| hello.way_back)
        };
        let reads = |process: &Process| {
            let hello = process.native.hello.as_ref();
            hello.map(|hello| hello.reads.clone()).unwrap_or_default()
        };
        let (generation, from) = (taker.generation, giver.generation);
        let lost = if !knows(giver) || !knows(taker) {
            let which = if knows(giver) { "new" } else { "old" };
            Some(format!(
                "the {which} program does not know how: if generation {generation} fails in its probation, the whole state is lost"
            ))
        } else {
            let lacking = lacking(&reads(giver), &reads(taker));
            (!lacking.is_empty()).then(|| {
                format!(
                    "generation {from} cannot read {} as the new program writes it: if generation {generation} fails in its probation, what it has changed there is lost",
                    lacking.join(", ")
                )
            })
        };
        let partly = knows(giver) && knows(taker);
        if let Some(lost) = lost {
            let why = format!("there is no way back for all of the state: {lost}");
            match policy {
                WithoutWayBack::Refuse => return Err(why),
                WithoutWayBack::Warn => {
                    self.note(Some(generation), EventKind::NoWayBack, &why);
                    self.warn_of(new, &why);
                }
            }
        }
        Ok(partly.then_some(window + ALONE_SLACK))
    }

    /// A state has moved and can go back: the one that had it stays in reserve.
    pub(super) fn begin_reserve(&mut self, new: ProcessId, old: ProcessId, number: u64) {
        let lives = self.processes.get(&old).is_some_and(|old| {
            let reaped = old.family.as_ref().is_none_or(|one| one.main_is_reaped);
            old.phase == Phase::Serving && !(reaped && old.native.deaf)
        });
        if !lives {
            return;
        }
        let reserve = Reserve {
            number,
            old,
            state: State::Standing,
            yielded: false,
            allowed: 0,
            deadline: None,
        };
        self.reserves.insert(new, reserve);
        let window = self.processes.get(&new);
        let window = window.map_or_else(String::new, |new| new.plan.service.probation.to_string());
        let generation = self.processes.get(&old).map(|old| old.generation);
        let text = format!("it stays in reserve for {window}, and follows every change");
        self.note(generation, EventKind::InReserve, &text);
    }

    /// The process in whose place this one would serve again.
    pub(super) fn reserve_with(&self, old: ProcessId) -> Option<ProcessId> {
        let mut all = self.reserves.iter();
        all.find(|(_, reserve)| reserve.old == old)
            .map(|(new, _)| *new)
    }

    /// The new process of the reserve of this number that a process has a part in.
    pub(super) fn reserve_of(&self, id: ProcessId, number: u64) -> Option<ProcessId> {
        let mut all = self.reserves.iter();
        all.find(|(new, one)| one.number == number && (**new == id || one.old == id))
            .map(|(new, _)| *new)
    }

    /// One of the two has said something of the way back; says whether it was that.
    pub(super) fn reserve_said(&mut self, new: ProcessId, by: ProcessId, report: &Report) -> bool {
        let Some(reserve) = self.reserves.get_mut(&new) else {
            return false;
        };
        let generation = self.processes.get(&by).map(|process| process.generation);
        let by_old = by == reserve.old;
        let (event, kind, text) = match report {
            Report::Returned { reason, .. } if by_old => {
                let text = format!("it owns the state again, with every change: {reason}");
                (Event::Returned, EventKind::Returned, text)
            }
            Report::StoodDown { reason, .. } if by_old => {
                let text = format!("it is in reserve no more: {reason}");
                (Event::StoodDown, EventKind::StoodDown, text)
            }
            Report::WayLost { reason, .. } if !by_old => {
                self.way_lost(new, reason);
                self.reserve(new, Event::Lost);
                return true;
            }
            Report::Failed { reason, .. } | Report::Thawed { reason, .. } if !by_old => {
                let text = format!("it keeps the state: {reason}");
                (Event::Lost, EventKind::NoWayBack, text)
            }
            Report::Yielded { .. } if !by_old => {
                reserve.yielded = true;
                return true;
            }
            _other => return false,
        };
        self.note(generation, kind, &text);
        self.reserve(new, event);
        true
    }

    /// A new process has given the way back up. The one in reserve hears that from it too, and may have stood
    /// down for it before.
    pub(super) fn way_lost(&mut self, new: ProcessId, reason: &str) {
        let Some(process) = self.processes.get_mut(&new) else {
            return;
        };
        // Told once, however often it is said.
        if std::mem::replace(&mut process.native.way_lost, true) {
            return;
        }
        let generation = Some(process.generation);
        let text = format!("there is no way back from it any more: {reason}");
        self.warn_of(new, &text);
        self.note(generation, EventKind::NoWayBack, &text);
    }

    /// Something happened to a reserve.
    pub(super) fn reserve(&mut self, new: ProcessId, event: Event) {
        let mut events = VecDeque::new();
        self.reserve_within(new, event, &mut events);
        self.drive_all(events);
        if matches!(event, Event::Dismiss | Event::GiveBack) {
            // Nothing is over yet.
            return;
        }
        self.reserves_changed();
    }

    /// The same within a step of the machine.
    pub(super) fn reserve_within(
        &mut self,
        new: ProcessId,
        event: Event,
        events: &mut VecDeque<Machine>,
    ) {
        let Some(reserve) = self.reserves.get_mut(&new) else {
            return;
        };
        let (state, actions) = reserve::step(reserve.state, event);
        reserve.state = state;
        self.reserve_acts(new, actions, events);
    }

    /// Goes on with a reserve of a supervisor that is gone.
    pub(super) fn resume_reserve(&mut self, new: ProcessId) {
        let state = self.reserves.get(&new).map(|reserve| reserve.state);
        let actions = state.map_or(&[][..], reserve::resumed);
        let mut events = VecDeque::new();
        self.reserve_acts(new, actions, &mut events);
        self.drive_all(events);
    }

    fn reserve_acts(&mut self, new: ProcessId, actions: &[Action], events: &mut VecDeque<Machine>) {
        let Some(reserve) = self.reserves.get(&new) else {
            return;
        };
        let (old, number) = (reserve.old, reserve.number);
        for action in actions {
            match action {
                Action::StandDown => self.order(old, &Order::StandDown { migration: number }),
                Action::Return => self.order(new, &Order::Return { migration: number }),
                Action::KillNew => self.kill(new),
                Action::KillOld => {
                    let generation = self.processes.get(&old).map(|old| old.generation);
                    let text = "killed: it did not say whether it stays in reserve";
                    self.note(generation, EventKind::Killed, text);
                    self.life(old, Life::Kill, events);
                }
                Action::Allow => self.allow_answer(new),
                Action::Done(outcome) => self.reserve_over(new, *outcome, events),
            }
        }
    }

    /// That it cannot be told is seen when it does not answer, or dies.
    fn order(&self, id: ProcessId, order: &Order) {
        if let Some(process) = self.processes.get(&id)
            && let Err(error) = process.order(order, &[])
        {
            tracing::warn!(generation = process.generation, "{order:?}: {error}");
        }
    }

    fn kill(&self, id: ProcessId) {
        if let Some(process) = self.processes.get(&id) {
            process.tell(Signal::SIGKILL);
            process.tell_all(Signal::SIGKILL);
        }
    }

    fn allow_answer(&mut self, new: ProcessId) {
        let Some(reserve) = self.reserves.get_mut(&new) else {
            return;
        };
        reserve.allowed += 1;
        let input = ServiceInput::Process(new, ProcessInput::AnswerOver(reserve.allowed));
        let timer = self.timer(LONGEST_ANSWER, input);
        if let Some(reserve) = self.reserves.get_mut(&new) {
            reserve.deadline = Some(timer);
        }
    }

    /// The time that was allowed for an answer is over.
    pub(super) fn answer_over(&mut self, new: ProcessId, allowed: u64) {
        let reserve = self.reserves.get(&new);
        if reserve.is_some_and(|reserve| reserve.allowed == allowed) {
            self.reserve(new, Event::Deadline);
        }
    }

    /// A process is dead, and all it said has been heard: the one in reserve, if it is one.
    pub(super) fn reserve_heard_death(&mut self, id: ProcessId) {
        if let Some(new) = self.reserve_with(id) {
            let generation = self.processes.get(&id).map(|old| old.generation);
            let text = "it died in reserve: there is no way back any more";
            self.note(generation, EventKind::StoodDown, text);
            self.reserve(new, Event::OldDied);
        }
    }

    /// Those in reserve are needed no more.
    pub(super) fn dismiss_reserves(&mut self) {
        let standing = |(_, one): &(_, &Reserve)| one.state == State::Standing;
        let all = self.reserves.iter().filter(standing);
        for new in all.map(|(new, _)| *new).collect::<Vec<_>>() {
            self.reserve(new, Event::Dismiss);
        }
    }

    /// The only process that serves, if the one in reserve behind it runs what a rollback is to bring back: then
    /// it takes its place without a start.
    pub(super) fn may_return(&self) -> Option<ProcessId> {
        let mut serving = self
            .processes
            .values()
            .filter(|process| process.phase == Phase::Serving);
        let (only, more) = (serving.next()?.id, serving.next());
        let reserve = self.reserves.get(&only)?;
        let plan = self.processes.get(&reserve.old)?.plan_id;
        let is_it = Some(plan) == self.machine.rollback_target();
        (more.is_none() && is_it && reserve.state == State::Standing).then_some(only)
    }

    /// What a reserve came to.
    fn reserve_over(&mut self, new: ProcessId, outcome: Outcome, events: &mut VecDeque<Machine>) {
        let Some(reserve) = self.reserves.remove(&new) else {
            return;
        };
        let old = reserve.old;
        let serves = |process: &Process| process.phase == Phase::Serving;
        let dead = !self.processes.get(&new).is_some_and(serves);
        match outcome {
            Outcome::Kept => self.life(old, Life::Retire, events),
            Outcome::Returned | Outcome::GivenBack => {
                self.owns_again(old);
                let parting = match (outcome, reserve.yielded) {
                    (Outcome::GivenBack, false) => Custody::Parting {
                        number: reserve.number,
                        retire: false,
                    },
                    _gone_or_yielded => Custody::Yielded,
                };
                self.entrust(new, parting);
                self.life(old, Life::Return, events);
                events.push_back(Machine::Returned { new, old });
                if outcome == Outcome::Returned && !dead {
                    self.life(new, Life::Kill, events);
                }
            }
            Outcome::Fallen => {
                self.life(old, Life::Retire, events);
                events.push_back(Machine::Died(new));
            }
        }
        if let Some(job) = self.returning.take() {
            match outcome {
                Outcome::GivenBack | Outcome::Returned => self.returned = Some(job),
                // What is left is to roll back in the other way.
                Outcome::Kept | Outcome::Fallen => self.jobs.push_front(job),
            }
        }
    }

    /// A process has its state back: its connections are its own, and none has moved in what comes next.
    pub(super) fn owns_again(&mut self, old: ProcessId) {
        self.entrust(old, Custody::Owner);
        if let Some(process) = self.processes.get_mut(&old) {
            process.native.connections = None;
        }
    }

    /// What waited for the end of a reserve goes on.
    pub(super) fn reserves_changed(&mut self) {
        if let Some(job) = self.returned.take() {
            self.answer_returned(job);
        }
        if self.stop_wanted && self.reserves.is_empty() && !self.is_undecided() {
            return self.stop(false);
        }
        self.welcome_waiting();
        self.begin_next();
    }

    /// A rollback that was asked for has given the state back to the one that had it before.
    fn answer_returned(&mut self, job: Job) {
        let to = self.serving_generation().unwrap_or(0);
        let undone = self.last_handover.as_ref().map_or(0, |last| last.to);
        let report = Handover {
            outcome: Told::Committed,
            from: undone,
            to,
            strategy: "handover".to_owned(),
            reason: None,
            ..job.report(&self.service, "")
        };
        self.last_handover = Some(report.clone());
        job.answer(&report);
    }

    /// A process that has a part in a reserve of a supervisor that is gone says what it has to do with the
    /// state; says whether that was all there is to it. What it said meanwhile nobody has heard.
    pub(super) fn stands_of_reserve(&mut self, id: ProcessId, standing: Standing) -> bool {
        let mut all = self.reserves.iter_mut();
        let Some((new, reserve)) = all.find(|(new, one)| **new == id || one.old == id) else {
            return false;
        };
        let (new, number, by_old) = (*new, reserve.number, reserve.old == id);
        let new_lives = self.processes.get(&new).is_some_and(|new| {
            let family = new.family.as_ref();
            family.is_some_and(Family::main_is_alive)
        });
        if by_old && standing == Standing::Owning && new_lives && reserve.state == State::Standing {
            // One that lives gives its state away only when it was told to, which was not recorded any more.
            reserve.state = State::Returning;
        }
        if !by_old {
            let yielded = matches!(standing, Standing::Yielded | Standing::Reserve);
            reserve.yielded |= yielded;
            return yielded;
        }
        if let Some(report) = unheard(number, standing) {
            self.reserve_said(new, id, &report);
        }
        true
    }

    /// Whether a rollback is under way that gives the state back.
    pub(super) fn is_returning(&self) -> bool {
        self.returning.is_some() || self.returned.is_some()
    }

    /// A handover that cannot be undone without a loss says so in its report.
    fn warn_of(&mut self, new: ProcessId, why: &str) {
        let plan = self.processes.get(&new).map(|process| process.plan_id);
        if let Some(active) = self.active.as_mut()
            && Some(active.plan) == plan
        {
            active.warning.get_or_insert_with(|| why.to_owned());
        }
    }
}

/// What the old process of a migration with a way back must have said, and nobody has heard, if it stands so.
pub(super) fn unheard(migration: u64, standing: Standing) -> Option<Report> {
    let reason = "while there was no supervisor".to_owned();
    match standing {
        Standing::Owning => Some(Report::Returned {
            migration,
            at_usec: 0,
            reason,
        }),
        Standing::Yielded => Some(Report::StoodDown { migration, reason }),
        Standing::Reserve | Standing::Greeting | Standing::Receiving | Standing::Frozen => None,
        _unknown => None,
    }
}

/// The sections of the new program that the old one cannot have back.
fn lacking(old: &[Reads], new: &[Reads]) -> Vec<String> {
    let common = |section: &str| {
        let of = |reads: &[Reads]| -> BTreeSet<u32> {
            let of_it = reads.iter().filter(|one| one.section == section);
            of_it.map(|one| one.version).collect()
        };
        !of(old).is_disjoint(&of(new))
    };
    let sections: BTreeSet<&str> = new.iter().map(|one| one.section.as_str()).collect();
    let lacking = sections.into_iter().filter(|section| !common(section));
    lacking.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(all: &[(&str, u32)]) -> Vec<Reads> {
        let one = |(section, version): &(&str, u32)| Reads {
            section: (*section).to_owned(),
            schema: "schema".to_owned(),
            version: *version,
            fingerprint: 0,
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn what_has_no_version_in_common_is_lacking_and_what_only_the_old_one_has_is_not() {
        let old = reads(&[("a", 1), ("b", 1), ("gone", 1)]);
        let new = reads(&[("a", 2), ("a", 1), ("b", 2), ("c", 1)]);
        assert_eq!(lacking(&old, &new), ["b", "c"]);
        assert!(lacking(&new, &old).contains(&"gone".to_owned()));
    }
}
