//! The handovers of one service, one after the other.
//!
//! Owns the queue in which requests wait and merge, looking a program up and binding listeners for
//! one, bringing both into force once it has committed, and the report of how it ended.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::migrations::Moved;
use super::{Runner, Waiter, What, policy};
use crate::config::service::{Service, Strategy};
use crate::control::protocol::{EventKind, Outcome as Told, Report};
use crate::core::backoff;
use crate::core::generation::Phase;
use crate::core::service::{self as machine, Event, Finish, Generation, Kind, Outcome, PlanId};
use crate::daemon::family::Family;
use crate::daemon::input::{Input, ServiceInput};
use crate::daemon::listeners::{self, CannotListen, Listener, Set};
use crate::daemon::memory::{self, TooLittle};
use crate::daemon::plan::{self, Plan, Unusable};
use crate::daemon::process::{Custody, Process};
use crate::daemon::readiness;
use crate::daemon::timer::Timer;

/// So many handovers may wait; those that are alike count as one.
const MOST_WAITING: usize = 16;

/// A handover that was asked for.
#[derive(Debug)]
pub(crate) struct Job {
    what: What,
    /// The settings to take on; those that hold if none.
    service: Option<Service>,
    /// The command to use from then on.
    command: Option<Vec<String>>,
    waiters: Vec<Waiter>,
    asked: Instant,
}

/// The handover that is under way.
#[derive(Debug)]
pub(crate) struct Active {
    job: Job,
    plan: PlanId,
    service: Service,
    listeners: Set,
    /// How the sockets were before the new program had them.
    flags: Vec<(Arc<Listener>, bool)>,
    /// When the first process of before was told to go.
    pub(super) first_retired: Option<Instant>,
    /// What the handovers of state within it came to.
    moved: Moved,
}

/// A handover that has committed: its report waits until no new connection reaches the programs it
/// replaced, so that whoever acts on it meets the new one.
#[derive(Debug)]
pub(crate) struct Parting {
    job: Job,
    plan: PlanId,
    report: Report,
    _watch: Timer,
}

/// A client that waits for the end of a probation.
#[derive(Debug)]
pub(crate) struct Proving {
    plan: PlanId,
    report: Report,
    answer: oneshot::Sender<Report>,
}

/// Why a request is not taken on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Declined {
    #[error("the service is being stopped")]
    Stopping,
    #[error("{MOST_WAITING} handovers of it are waiting already; wait for one to end")]
    TooMany,
    #[error(
        "there is no proven program other than the one that serves, so nothing to roll back to"
    )]
    NothingProven,
}

impl Job {
    /// Whether a request for the same thing may share this handover's outcome.
    fn takes(&self, what: What) -> bool {
        self.what == what && what != What::DryRun
    }

    pub(super) fn answer(self, report: &Report) {
        for waiter in self.waiters {
            // The client may have gone.
            let _gone = waiter.answer.send(report.clone());
        }
    }

    /// A report of a handover that did not come to begin.
    pub(super) fn report(&self, service: &Service, reason: &str) -> Report {
        Report {
            total_ms: milliseconds(self.asked.elapsed()),
            ..unbegun(service, reason)
        }
    }
}

/// A report of something that failed before a handover had begun.
pub(super) fn unbegun(service: &Service, reason: &str) -> Report {
    Report {
        service: service.name.clone(),
        from: 0,
        to: 0,
        strategy: strategy_word(service).to_owned(),
        outcome: Told::Aborted,
        reason: Some(reason.to_owned()),
        total_ms: 0.0,
        pause_ms: 0.0,
        stall_ms: 0.0,
        entries: 0,
        snapshot_bytes: 0,
        delta_rounds: 0,
        connections_moved: 0,
        stderr: Vec::new(),
    }
}

impl Runner {
    /// Takes a request on: it begins now, or after the handover that runs.
    ///
    /// # Errors
    ///
    /// [`Declined`]; nothing happens then.
    pub(crate) fn request(
        &mut self,
        what: What,
        service: Option<Service>,
        command: Option<Vec<String>>,
        waiter: Option<Waiter>,
    ) -> Result<(), Declined> {
        if self.machine.is_stopping() || self.stop_wanted {
            return Err(Declined::Stopping);
        }
        if what == What::Rollback && self.machine.rollback_target().is_none() && !self.is_busy() {
            return Err(Declined::NothingProven);
        }
        let full = self.jobs.len() == MOST_WAITING;
        match self.jobs.back_mut() {
            // Requests while a handover runs become one more handover: never none, never many.
            Some(last) if last.takes(what) => {
                last.service = service.or_else(|| last.service.take());
                last.command = command.or_else(|| last.command.take());
                last.waiters.extend(waiter);
            }
            Some(_) | None if full => return Err(Declined::TooMany),
            Some(_) | None => {
                if what != What::Start {
                    self.note(None, EventKind::Asked, what.text());
                }
                self.jobs.push_back(Job {
                    what,
                    service,
                    command,
                    waiters: waiter.into_iter().collect(),
                    asked: Instant::now(),
                });
            }
        }
        self.begin_next();
        Ok(())
    }

    /// Whether a request would be taken on.
    ///
    /// # Errors
    ///
    /// [`Declined`], as [`request`](Self::request) would.
    pub(crate) fn would_take(&self, what: What) -> Result<(), Declined> {
        if self.machine.is_stopping() || self.stop_wanted {
            return Err(Declined::Stopping);
        }
        let merges = self.jobs.back().is_some_and(|last| last.takes(what));
        if self.jobs.len() == MOST_WAITING && !merges {
            return Err(Declined::TooMany);
        }
        Ok(())
    }

    /// Begins the next handover if none is under way.
    pub(super) fn begin_next(&mut self) {
        let busy = self.looking_up.is_some() || self.active.is_some() || self.parting.is_some();
        if busy || self.machine.is_handing_over() {
            return;
        }
        let Some(job) = self.jobs.pop_front() else {
            return;
        };
        if job.what == What::Rollback {
            match self.machine.rollback_target() {
                Some(plan) => self.begin_rollback(job, plan),
                None => self.fail(job, &Declined::NothingProven.to_string()),
            }
            return;
        }
        let service = self.service_of(&job);
        let inputs = self.context.inputs.clone();
        let lookup = Timer::task(async move {
            let name = service.name.clone();
            let result = plan::look_up_patiently(&service).await;
            let input = ServiceInput::LookedUp(Box::new(result));
            // The queue is closed only when the supervisor ends.
            let _ended = inputs.send(Input::Service(name, input)).await;
        });
        self.looking_up = Some((job, lookup));
    }

    /// The settings a job leads to.
    fn service_of(&self, job: &Job) -> Service {
        let mut service = job.service.clone().unwrap_or_else(|| self.service.clone());
        if let Some(command) = job.command.as_ref().or(self.command.as_ref()) {
            service.command.clone_from(command);
        }
        service
    }

    pub(super) fn looked_up(&mut self, result: Result<Plan, Unusable>) {
        let Some((job, _)) = self.looking_up.take() else {
            return;
        };
        let plan = match result {
            Ok(plan) => plan,
            Err(unusable) => return self.fail(job, &unusable.to_string()),
        };
        let service = plan.service.clone();
        let listeners =
            match listeners::prepare(&service.listen, &self.listeners, &self.context.inherited) {
                Ok(listeners) => listeners,
                Err(error) => return self.fail(job, &error.to_string()),
            };
        let kind = match job.what {
            What::Start => {
                let plan = self.keep(plan);
                self.drive(Event::Start(plan));
                return;
            }
            What::DryRun if service.strategy == Strategy::Sequential => {
                return self.rehearsed_without_starting(job);
            }
            What::DryRun => Kind::DryRun,
            What::Reload | What::Rollback => Kind::Reload,
        };
        let plan = self.keep(plan);
        self.begin(job, kind, plan, service, listeners);
    }

    fn begin_rollback(&mut self, job: Job, plan: PlanId) {
        let Some(service) = self.plans.get(&plan).map(|kept| kept.service.clone()) else {
            return self.fail(job, &Declined::NothingProven.to_string());
        };
        let listeners = match self.listeners_for(plan) {
            Ok(listeners) => listeners,
            Err(error) => return self.fail(job, &error.to_string()),
        };
        self.begin(job, Kind::Rollback, plan, service, listeners);
    }

    /// Hands what was looked up and bound to the machine.
    fn begin(&mut self, job: Job, kind: Kind, plan: PlanId, service: Service, listeners: Set) {
        if let Err(error) = self.has_memory_for(&service) {
            return self.fail(job, &error.to_string());
        }
        let policy = policy(&service);
        self.active = Some(Active {
            job,
            plan,
            service,
            listeners,
            flags: self.flags(),
            first_retired: None,
            moved: Moved::default(),
        });
        self.drive(Event::Handover(machine::Job { kind, plan, policy }));
    }

    /// Whether a second copy of what the native processes hold would fit: they are replaced one at a
    /// time, so the largest counts.
    fn has_memory_for(&self, service: &Service) -> Result<(), TooLittle> {
        let moves = match service.strategy {
            Strategy::Auto | Strategy::Handover => service.memory_check,
            Strategy::Overlap | Strategy::Sequential => false,
        };
        let owners = self.processes.values().filter(|process| {
            process.phase == Phase::Serving && process.native.custody == Custody::Owner
        });
        let source = memory::Source::default();
        for pid in owners.filter_map(Process::pid).filter(|_| moves) {
            memory::check(&source, pid)?;
        }
        Ok(())
    }

    /// What the handovers of state come to of the handover to this plan.
    pub(super) fn moved(&mut self, plan: PlanId) -> Option<&mut Moved> {
        let active = self.active.as_mut().filter(|active| active.plan == plan);
        active.map(|active| &mut active.moved)
    }

    /// The handover that is about to commit is known to be undone: whoever waits for it waits for that.
    pub(super) fn expect_undoing(&mut self) {
        let waiters = self.active.iter_mut().flat_map(|one| &mut one.job.waiters);
        for waiter in waiters {
            waiter.until_proven = true;
        }
    }

    /// The settings that hold, or are to hold once the handover that runs has committed.
    pub(super) fn settings_in_force(&self) -> &Service {
        let active = self.active.as_ref();
        active.map_or(&self.service, |active| &active.service)
    }

    /// Which sockets make calls wait.
    fn flags(&self) -> Vec<(Arc<Listener>, bool)> {
        let known = |listener: &Arc<Listener>| {
            let nonblocking = listener.is_nonblocking().ok()?;
            Some((Arc::clone(listener), nonblocking))
        };
        self.listeners.iter().filter_map(known).collect()
    }

    fn keep(&mut self, plan: Plan) -> PlanId {
        self.last_plan += 1;
        let id = PlanId(self.last_plan);
        self.plans.insert(id, Rc::new(plan));
        id
    }

    /// The listeners that a process of this plan inherits: those its service asks for, also when
    /// others have come into force since.
    pub(super) fn listeners_for(&mut self, plan: PlanId) -> Result<Set, CannotListen> {
        if let Some(active) = self.active.as_ref().filter(|active| active.plan == plan) {
            return Ok(active.listeners.clone());
        }
        let Some(kept) = self.plans.get(&plan) else {
            return Ok(self.listeners.clone());
        };
        if kept.service.listen == self.service.listen {
            return Ok(self.listeners.clone());
        }
        if let Some((_, listeners)) = self.restoring.as_ref().filter(|(of, _)| *of == plan) {
            return Ok(listeners.clone());
        }
        let specs = &kept.service.listen;
        let listeners = listeners::prepare(specs, &self.listeners, &self.context.inherited)?;
        self.restoring = Some((plan, listeners.clone()));
        Ok(listeners)
    }

    /// Whether processes of this plan are only tried.
    pub(super) fn is_rehearsed(&self, plan: PlanId) -> bool {
        let active = self.active.as_ref();
        active.is_some_and(|active| active.plan == plan && active.job.what == What::DryRun)
    }

    pub(super) fn begun(&self, from: Generation, to: Generation) {
        let text = match from {
            0 => format!("generation {to} is to serve"),
            _ => format!("generation {to} is to take over from generation {from}"),
        };
        self.note(Some(to), EventKind::Begun, &text);
    }

    pub(super) fn finished(&mut self, finish: Finish) {
        let active = match &self.active {
            Some(active) if finish.concludes == Some(active.plan) => self.active.take(),
            Some(_) | None => None,
        };
        let culprit = match finish.outcome {
            Outcome::Aborted { culprit } | Outcome::RolledBack { culprit, .. } => Some(culprit),
            Outcome::Committed | Outcome::Rehearsed | Outcome::Interrupted => None,
        };
        let failure = culprit.and_then(|culprit| self.failure_of(culprit));
        let mut reason = failure.map(|failure| failure.reason.clone());
        let stderr = failure.map(|failure| failure.stderr.clone());
        let told = match finish.outcome {
            Outcome::Committed => Told::Committed,
            Outcome::Rehearsed => Told::Rehearsed,
            Outcome::Aborted { .. } => Told::Aborted,
            Outcome::Interrupted => {
                reason = Some("the service is being stopped".to_owned());
                Told::Aborted
            }
            Outcome::RolledBack { restored, .. } => {
                if !restored {
                    let why = reason.unwrap_or_default();
                    reason = Some(format!(
                        "{why}; and the program before it did not come up either, it is tried again"
                    ));
                }
                Told::RolledBack
            }
        };
        let now: Instant = Instant::now();
        let asked: Instant = active.as_ref().map_or(now, |active| active.job.asked);
        let paused = active.as_ref().and_then(|active| {
            active
                .first_retired
                .filter(|_| is_sequential(&active.service))
        });
        let moved = active
            .as_ref()
            .map(|active| active.moved)
            .unwrap_or_default();
        let strategy = match &active {
            Some(_) if moved.begun => "handover",
            Some(active) => strategy_word(&active.service),
            None => strategy_word(&self.service),
        };
        let report = Report {
            service: self.service.name.clone(),
            from: finish.from,
            to: finish.to,
            strategy: strategy.to_owned(),
            outcome: told,
            reason,
            total_ms: milliseconds(now.duration_since(asked)),
            pause_ms: paused.map_or(moved.pause_ms, |since| {
                milliseconds(now.duration_since(since))
            }),
            stall_ms: moved.stall_ms,
            entries: moved.entries,
            snapshot_bytes: moved.bytes,
            delta_rounds: moved.rounds,
            connections_moved: 0,
            stderr: stderr.unwrap_or_default(),
        };
        self.tell_end(&report);
        if told != Told::Rehearsed && !active.as_ref().is_some_and(|a| a.job.what == What::DryRun) {
            self.last_handover = Some(report.clone());
        }
        let Some(active) = active else {
            return self.undone(&report);
        };
        if matches!(told, Told::Aborted | Told::Rehearsed) {
            active.restore_flags();
        }
        let Active {
            job,
            plan,
            service,
            listeners,
            ..
        } = active;
        if told != Told::Committed {
            return self.answer(job, plan, report);
        }
        // Also those that are given up: the programs that are replaced still have them.
        let both = self.listeners.iter().chain(&listeners);
        let inodes = both.map(|listener| listener.inode).collect();
        self.take_on(service, job.command.is_some(), listeners);
        let parting: Vec<Family> = self
            .processes
            .values()
            .filter(|process| process.phase == Phase::Draining)
            .filter_map(|process| process.family.clone())
            .collect();
        if parting.is_empty() || job.waiters.is_empty() {
            return self.answer(job, plan, report);
        }
        let (inputs, name) = (&self.context.inputs, &self.service.name);
        let watch = readiness::watch_parting(inputs, name, parting, inodes);
        self.parting = Some(Parting {
            job,
            plan,
            report,
            _watch: watch,
        });
    }

    pub(super) fn parted(&mut self) {
        if let Some(Parting {
            job, plan, report, ..
        }) = self.parting.take()
        {
            self.answer(job, plan, report);
            self.begin_next();
        }
    }

    /// What a handover prepared comes into force.
    fn take_on(&mut self, service: Service, commanded: bool, listeners: Set) {
        self.restoring = None;
        if commanded || (self.command.is_some() && self.command.as_ref() != Some(&service.command))
        {
            self.command = Some(service.command.clone());
        }
        for listener in &listeners {
            if let Err(error) = listener.apply_options() {
                let text = format!(
                    "{}: its options could not be changed: {error}",
                    listener.spec
                );
                self.note(None, EventKind::Listener, &text);
            }
        }
        let holds = |set: &Set, inode| set.iter().any(|listener| listener.inode == inode);
        for new in listeners
            .iter()
            .filter(|new| !holds(&self.listeners, new.inode))
        {
            let text = format!("{} listens on {}", new.spec.name, new.bound);
            self.note(None, EventKind::Listener, &text);
        }
        for old in self
            .listeners
            .iter()
            .filter(|old| !holds(&listeners, old.inode))
        {
            let text = format!("{} no longer listens on {}", old.spec.name, old.bound);
            self.note(None, EventKind::Listener, &text);
        }
        self.listeners = listeners;
        self.service = service;
    }

    fn tell_end(&self, report: &Report) {
        let Report {
            from, to, total_ms, ..
        } = report;
        let why = report.reason.as_deref().unwrap_or("no reason is known");
        let (kind, text) = match report.outcome {
            Told::Committed => (
                EventKind::Committed,
                format!("generation {to} has taken over, {total_ms:.1} ms after it was asked for"),
            ),
            Told::Rehearsed => (
                EventKind::Rehearsed,
                format!("generation {to} became ready and is let go again"),
            ),
            Told::Aborted => (EventKind::Aborted, format!("the handover failed: {why}")),
            Told::RolledBack => (
                EventKind::RolledBack,
                format!(
                    "generation {to} was undone, the program of generation {from} is back: {why}"
                ),
            ),
        };
        self.note(Some(*to), kind, &text);
    }

    fn answer(&mut self, job: Job, plan: PlanId, report: Report) {
        // A handover that went beyond a probation's waiters ends their wait.
        if report.outcome == Told::Committed {
            for proving in std::mem::take(&mut self.proving) {
                // The client may have gone.
                let _gone = proving.answer.send(proving.report);
            }
        }
        let proven = self.machine.is_proven(plan);
        for waiter in job.waiters {
            if waiter.until_proven && report.outcome == Told::Committed && !proven {
                let report = report.clone();
                self.proving.push(Proving {
                    plan,
                    report,
                    answer: waiter.answer,
                });
            } else {
                // The client may have gone.
                let _gone = waiter.answer.send(report.clone());
            }
        }
    }

    pub(super) fn proven(&mut self, plan: PlanId) {
        if let Some(proven) = self.plans.get(&plan) {
            let text = format!("{} is proven", proven.resolved.display());
            self.note(None, EventKind::Proven, &text);
        }
        let (done, waiting) = std::mem::take(&mut self.proving)
            .into_iter()
            .partition(|proving: &Proving| proving.plan == plan);
        self.proving = waiting;
        for proving in done {
            // The client may have gone.
            let _gone = proving.answer.send(proving.report);
        }
    }

    /// A handover that had committed was undone: what it had brought into force goes with it, and
    /// those who wait for its report or for the end of its probation hear of it.
    fn undone(&mut self, report: &Report) {
        if let Some(plan) = self.machine.current()
            && let Some(restored) = self.plans.get(&plan).map(|kept| kept.service.clone())
            && restored != self.service
        {
            let listeners = self
                .listeners_for(plan)
                .unwrap_or_else(|_| self.listeners.clone());
            self.take_on(restored, false, listeners);
        }
        if let Some(Parting { job, .. }) = self.parting.take() {
            job.answer(report);
        }
        for proving in std::mem::take(&mut self.proving) {
            // The client may have gone.
            let _gone = proving.answer.send(report.clone());
        }
    }

    /// A handover that did not come to start anything.
    fn fail(&mut self, job: Job, reason: &str) {
        let mut report = job.report(&self.service, reason);
        report.from = self.serving_generation().unwrap_or(0);
        report.to = report.from;
        self.tell_end(&report);
        if job.what == What::Start {
            self.came_up.get_or_insert(false);
            self.start_again();
        }
        if job.what != What::DryRun {
            self.last_handover = Some(report.clone());
        }
        job.answer(&report);
        self.begin_next();
    }

    /// What a start could not find may be there in a moment: a user, a directory, a file system.
    fn start_again(&mut self) {
        self.failed_starts = self.failed_starts.saturating_add(1);
        let delay = backoff::delay(self.failed_starts.saturating_add(1));
        let text = format!(
            "the next attempt is in {}",
            humantime::format_duration(delay)
        );
        self.note(None, EventKind::BackingOff, &text);
        self.starting_again = Some(self.timer(delay, ServiceInput::StartAgain));
    }

    /// The wait before another attempt to start is over; a reload may have come meanwhile.
    pub(super) fn start_anew(&mut self) {
        self.starting_again = None;
        if self.machine.current().is_none() && !self.is_busy() {
            // Declined only when the service is being stopped.
            let _stopping = self.request(What::Start, None, None, None);
        }
    }

    /// A sequential service cannot be tried without stopping it: what was looked up is all that can
    /// be said.
    fn rehearsed_without_starting(&mut self, job: Job) {
        let reason = "the program and its listeners are in order; it was not started, for a sequential service runs once";
        let mut report = job.report(&self.service, reason);
        report.from = self.serving_generation().unwrap_or(0);
        report.to = report.from;
        report.outcome = Told::Rehearsed;
        self.note(None, EventKind::Rehearsed, reason);
        job.answer(&report);
        self.begin_next();
    }
}

impl Active {
    /// A new program that made a shared socket wait, and is not to serve, must not leave the old one
    /// hanging in it.
    fn restore_flags(&self) {
        for (listener, nonblocking) in &self.flags {
            if listener
                .is_nonblocking()
                .is_ok_and(|now| now != *nonblocking)
                && let Err(error) = listener.set_nonblocking(*nonblocking)
            {
                tracing::warn!(
                    "{}: its flags could not be restored: {error}",
                    listener.spec
                );
            }
        }
    }
}

impl What {
    fn text(self) -> &'static str {
        match self {
            Self::Start => "a start was asked for",
            Self::Reload => "a handover was asked for",
            Self::Rollback => "a rollback was asked for",
            Self::DryRun => "a dry run was asked for",
        }
    }
}

pub(super) fn is_sequential(service: &Service) -> bool {
    policy(service).strategy == machine::Strategy::Sequential
}

fn strategy_word(service: &Service) -> &'static str {
    match policy(service).strategy {
        machine::Strategy::Overlap => "overlap",
        machine::Strategy::Sequential => "sequential",
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
