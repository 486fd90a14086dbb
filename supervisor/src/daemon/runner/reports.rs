//! How the handovers of one service ended.
//!
//! Owns the report of a handover, whom it is told and when, and bringing into force what the
//! handover prepared once it has committed.

use std::time::Duration;

use heirloom_handover::fault::{self, Point};
use tokio::time::Instant;

use super::handovers::{Active, Job, Parting, Proving, is_sequential};
use super::{Runner, What, policy};
use crate::config::service::Service;
use crate::control::protocol::{EventKind, Outcome as Told, Report};
use crate::core::backoff;
use crate::core::generation::Phase;
use crate::core::service::{self as machine, Finish, Outcome, PlanId};
use crate::daemon::family::Family;
use crate::daemon::input::ServiceInput;
use crate::daemon::listeners::Set;
use crate::daemon::readiness;

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
        connections: None,
        warning: None,
        stderr: Vec::new(),
    }
}

impl Runner {
    pub(super) fn finished(&mut self, finish: Finish) {
        fault::reached(Point::Finished);
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
            Outcome::RolledBack { .. } if self.is_returning() => {
                reason = Some("a rollback was asked for".to_owned());
                Told::RolledBack
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
            connections: None,
            warning: active.as_ref().and_then(|active| active.warning.clone()),
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
            .filter(|process| matches!(process.phase, Phase::Draining | Phase::Reserve))
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
            counts: None,
        });
    }

    /// Sends the report that waits, if one does.
    pub(super) fn report_parting(&mut self) {
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
        fault::reached(Point::Answer);
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
    pub(super) fn fail(&mut self, job: Job, reason: &str) {
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
    pub(super) fn rehearsed_without_starting(&mut self, job: Job) {
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

fn strategy_word(service: &Service) -> &'static str {
    match policy(service).strategy {
        machine::Strategy::Overlap => "overlap",
        machine::Strategy::Sequential => "sequential",
    }
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
