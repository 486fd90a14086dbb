//! The handovers of one service, one after the other.
//!
//! Owns the queue in which requests wait and merge, looking a program up, binding listeners for one,
//! and beginning it. How it ended is in [`super::reports`].

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::migrations::Moved;
use super::reports::{milliseconds, unbegun};
use super::{Runner, Waiter, What, policy};
use crate::config::service::{Service, Strategy};
use crate::control::protocol::{EventKind, Report};
use crate::core::generation::Phase;
use crate::core::reserve;
use crate::core::service::{self as machine, Event, Generation, Kind, PlanId};
use crate::daemon::input::{Input, ServiceInput};
use crate::daemon::listeners::{self, CannotListen, Listener, Set};
use crate::daemon::memory::{self, TooLittle};
use crate::daemon::plan::{self, Plan, Unusable};
use crate::daemon::process::{Custody, Process};
use crate::daemon::timer::Timer;

/// So many handovers may wait; those that are alike count as one.
const MOST_WAITING: usize = 16;

/// A handover that was asked for.
#[derive(Debug)]
pub(crate) struct Job {
    pub(super) what: What,
    /// The settings to take on; those that hold if none.
    pub(super) service: Option<Service>,
    /// The command to use from then on.
    pub(super) command: Option<Vec<String>>,
    pub(super) waiters: Vec<Waiter>,
    pub(super) asked: Instant,
}

/// The handover that is under way.
#[derive(Debug)]
pub(crate) struct Active {
    pub(super) job: Job,
    pub(super) plan: PlanId,
    pub(super) service: Service,
    pub(super) listeners: Set,
    /// How the sockets were before the new program had them.
    pub(super) flags: Vec<(Arc<Listener>, bool)>,
    /// When the first process of before was told to go.
    pub(super) first_retired: Option<Instant>,
    /// What the handovers of state within it came to.
    pub(super) moved: Moved,
    /// What would be lost if the new program failed after it has taken over.
    pub(super) warning: Option<String>,
}

/// A handover that has committed: its report waits until no new connection reaches the programs it
/// replaced, so that whoever acts on it meets the new one.
#[derive(Debug)]
pub(crate) struct Parting {
    pub(super) job: Job,
    pub(super) plan: PlanId,
    pub(super) report: Report,
    pub(super) _watch: Timer,
    /// Runs while the report waits for counts of connections, and for nothing else.
    pub(super) counts: Option<Timer>,
}

/// A client that waits for the end of a probation.
#[derive(Debug)]
pub(crate) struct Proving {
    pub(super) plan: PlanId,
    pub(super) report: Report,
    pub(super) answer: oneshot::Sender<Report>,
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
        if busy || self.machine.is_handing_over() || self.is_returning() {
            return;
        }
        // What would take over next takes over from one whose state does not go back any more; only a
        // rollback lets it, and a trial changes nothing.
        match self.jobs.front().map(|job| job.what) {
            Some(What::Rollback) if !self.reserves.is_empty() => {
                match self.may_return() {
                    Some(new) => {
                        self.returning = self.jobs.pop_front();
                        self.reserve(new, reserve::Event::GiveBack);
                    }
                    None => self.dismiss_reserves(),
                }
                return;
            }
            Some(What::Reload | What::Start) if !self.reserves.is_empty() => {
                self.dismiss_reserves();
                return;
            }
            Some(What::Start | What::Reload | What::Rollback | What::DryRun) | None => {}
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
        for warning in &plan.warnings {
            tracing::warn!(service = self.service.name, "{warning}");
        }
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
            warning: None,
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
}

impl Active {
    /// A new program that made a shared socket wait, and is not to serve, must not leave the old one
    /// hanging in it.
    pub(super) fn restore_flags(&self) {
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
