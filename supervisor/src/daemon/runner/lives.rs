//! The processes of one service: how they live and end.
//!
//! Owns carrying the table of `core::generation` out: signals, deadlines, the watchdog, and the
//! commands that test readiness.

use std::collections::VecDeque;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

use super::Runner;
use crate::config::service::Ready;
use crate::control::protocol::EventKind;
use crate::core::generation::{self, Event as Life, Patience, Phase};
use crate::core::service::{Event, ProcessId};
use crate::core::transfer;
use crate::daemon::family::Family;
use crate::daemon::input::{Input, ProcessInput, ServiceInput};
use crate::daemon::native_socket::NativeSocket;
use crate::daemon::output;
use crate::daemon::process::{self, Custody, Process};
use crate::daemon::readiness::Seen;

/// What a process that never served, or left others behind, gets to end; its drain timeout if that
/// is shorter.
const SHORT: Duration = Duration::from_secs(5);

/// A process that was killed gets at least this long before it is killed again.
const SHORTEST: Duration = Duration::from_secs(1);

/// How soon it is looked again whether a dead process's last words have been read.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// So many failures are remembered for a report.
const KEPT_FAILURES: usize = 32;

/// Why a process failed, and the last it wrote to its error output.
#[derive(Debug)]
pub(crate) struct Failure {
    process: ProcessId,
    pub(crate) reason: String,
    pub(crate) stderr: Vec<String>,
}

impl Runner {
    /// A process was reaped; says whether it was one of this service.
    pub(crate) fn child_ended(&mut self, pid: Pid, status: &WaitStatus) -> bool {
        if let Some(command) = self.commands.remove(&pid.as_raw()) {
            let succeeded = matches!(status, WaitStatus::Exited(_, 0));
            self.command_ended(&command, succeeded, status);
            return true;
        }
        // A process that was reaped before may have had the number.
        let ours = |process: &&mut Process| {
            let family = process.family.as_ref();
            family.is_some_and(|family| family.main == pid && !family.main_is_reaped)
        };
        let Some(process) = self.processes.values_mut().find(ours) else {
            return false;
        };
        let id = process.id;
        let well = matches!(status, WaitStatus::Exited(_, 0));
        self.process_ended(id, &process::describe(status), well);
        true
    }

    /// A process has ended, `well` if with status 0.
    pub(super) fn process_ended(&mut self, id: ProcessId, how: &str, well: bool) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let custody = process.native.custody;
        let receiving = matches!(custody, Custody::Receiving | Custody::Dismissed);
        // A reason known by now is the cause; this is its effect.
        let served = process.phase == Phase::Serving;
        let remark = process.native.remark.take();
        let remark = remark
            .map(|remark| format!("; {remark}"))
            .unwrap_or_default();
        process.reason.get_or_insert_with(|| match (served, well) {
            (false, _) if receiving => {
                format!("the new program {how} while it took the state over{remark}")
            }
            (false, true) => format!(
                "the new program {how} before it was ready (does it go into the background? it must stay in the foreground)"
            ),
            (false, false) => format!("the new program {how} before it was ready"),
            (true, _) => format!("the program {how}"),
        });
        if let Some(family) = &mut process.family {
            family.main_is_reaped = true;
        }
        // What it left behind may look ready; it is not what was started.
        process.deadlines.readiness = None;
        let deaf = process.native.deaf;
        let tail = process.output.as_mut().map(output::Output::tail);
        let inputs = self.context.inputs.clone();
        let service = self.service.name.clone();
        drop(tokio::spawn(async move {
            if let Some(tail) = tail {
                tail.await;
            }
            let input = ServiceInput::Process(id, ProcessInput::OutputOver);
            // The queue is closed only when the supervisor ends.
            let _ended = inputs.send(Input::Service(service, input)).await;
        }));
        if deaf {
            self.heard_its_death(id);
        }
    }

    /// Some orphan was reaped: a generation may have become empty.
    pub(crate) fn check_for_empty(&mut self) {
        let waiting = self
            .processes
            .values()
            .filter(|process| process.output_over);
        let empty: Vec<ProcessId> = waiting
            .filter(|process| process.is_empty())
            .map(|process| process.id)
            .collect();
        for id in empty {
            self.feed(id, Life::Empty);
        }
    }

    pub(super) fn on_process(&mut self, id: ProcessId, input: ProcessInput) {
        match input {
            ProcessInput::Life(event) => {
                if event == Life::NotReadyInTime {
                    if self.transfer_timed_out(id) {
                        return;
                    }
                    self.explain_lateness(id);
                }
                self.feed(id, event);
                // Nobody tells of the end of processes that are not ours to reap.
                if event == Life::DrainOver {
                    self.check_for_empty();
                }
            }
            ProcessInput::AdoptedEnded => self.adopted_ended(id),
            ProcessInput::Seen(Seen::Waiting | Seen::Alive) => self.is_ready(id),
            ProcessInput::Seen(Seen::Deaf) => {
                let text =
                    "the new program has closed every listener it was given, so it cannot serve";
                self.fail_with(id, text.to_owned());
            }
            ProcessInput::Notified(message) => self.notified(id, message),
            ProcessInput::Reported(report) => self.reported(id, report),
            ProcessInput::CatchUp => self.catch_up(id),
            ProcessInput::Garbled(what) => self.garbled(id, &what),
            ProcessInput::Deaf => self.deafened(id),
            ProcessInput::StillDeaf => self.lives_deaf(id),
            ProcessInput::AnswerOver(number) => self.answer_over(id, number),
            ProcessInput::CheckHealth => self.start_health_command(id),
            ProcessInput::StepOver(number) => self.step_over(id, number),
            ProcessInput::TryAgain => {
                let mut events = VecDeque::new();
                self.execute_again(id, &mut events);
                self.drive_all(events);
            }
            ProcessInput::TestAgain => self.start_ready_command(id),
            ProcessInput::OutputOver if self.has_more_to_say(id) => {
                let input = ServiceInput::Process(id, ProcessInput::OutputOver);
                let again = self.timer(LISTEN_AGAIN_AFTER, input);
                if let Some(process) = self.processes.get_mut(&id) {
                    process.deadlines.deaf = Some(again);
                }
            }
            ProcessInput::OutputOver => {
                if let Some(process) = self.processes.get_mut(&id) {
                    process.output_over = true;
                }
                self.heard_its_death(id);
                self.ended_saving(id);
                // As long as it is open whether it owned a state, so is what its death means.
                if !self.migrations.contains_key(&id) {
                    self.feed(id, Life::Exited);
                    self.check_for_empty();
                }
            }
            ProcessInput::Proved => {
                self.end_health(id);
                self.reserve(id, crate::core::reserve::Event::Dismiss);
                self.drive(Event::Proved(id));
            }
            ProcessInput::Settled => self.drive(Event::Settled(id)),
            ProcessInput::WatchdogOver => {
                self.fail_with(id, "the program missed its watchdog".to_owned());
            }
        }
    }

    /// Whether a dead process's last words are still to come: its socket is closed, and its end has not
    /// been read.
    fn has_more_to_say(&self, id: ProcessId) -> bool {
        let native = self.processes.get(&id).map(|process| &process.native);
        native.is_some_and(|native| {
            let socket = native.socket.as_ref();
            !native.deaf && socket.is_some_and(NativeSocket::is_closed)
        })
    }

    /// It is ready, by its word or by sight; unless it has ended meanwhile.
    pub(super) fn is_ready(&mut self, id: ProcessId) {
        let family = self
            .processes
            .get(&id)
            .and_then(|process| process.family.as_ref());
        if family.is_some_and(|family| !family.main_is_reaped)
            && self.may_become_ready(id)
            && self.plain_may_follow(id)
        {
            self.feed(id, Life::Ready);
        }
    }

    pub(super) fn explain_lateness(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let limit = process.plan.service.ready_timeout;
        let missing = match &process.plan.service.ready {
            _any if matches!(process.native.custody, Custody::Restoring { .. }) => {
                "it has not taken the saved state up"
            }
            _any if process.native.custody == Custody::Waiting => {
                "the state it is to take up was not in its place"
            }
            Ready::Auto => "it neither said READY=1 nor waited on a listener",
            Ready::Notify => "it did not say READY=1",
            Ready::After(_) => "it was to live longer than ready_timeout allows",
            Ready::Exec(_) => "the command that tests it did not succeed",
        };
        process.reason.get_or_insert_with(|| {
            format!("the new program was not ready within {limit}: {missing}; see ready and ready_timeout")
        });
    }

    pub(super) fn fail_with(&mut self, id: ProcessId, reason: String) {
        if let Some(process) = self.processes.get_mut(&id)
            && matches!(process.phase, Phase::Starting | Phase::Serving)
        {
            process.reason.get_or_insert(reason);
            self.feed(id, Life::Failed);
        }
    }

    // The table.

    pub(super) fn feed(&mut self, id: ProcessId, event: Life) {
        let mut events = VecDeque::new();
        self.life(id, event, &mut events);
        self.drive_all(events);
    }

    pub(super) fn drive_all(&mut self, events: VecDeque<Event>) {
        for event in events {
            self.drive(event);
        }
    }

    /// Something happened in the life of a process: carries out what the table says.
    pub(super) fn life(&mut self, id: ProcessId, event: Life, events: &mut VecDeque<Event>) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let before = process.phase;
        let (phase, actions) = generation::step(before, event);
        process.phase = phase;
        if before == Phase::Starting && phase != Phase::Starting {
            process.deadlines.ready = None;
            process.deadlines.readiness = None;
            process.deadlines.again = None;
        }
        if before == Phase::Serving && phase != Phase::Serving {
            process.deadlines.probation = None;
            process.deadlines.settled = None;
            process.deadlines.watchdog = None;
            process.deadlines.health = None;
            process.unhealthy = 0;
        }
        if before == Phase::Starting && phase != Phase::Starting {
            self.end_ready_command(id);
            if event != Life::Ready && self.migrations.contains_key(&id) {
                let why = "the new process is not wanted any more".to_owned();
                self.transfer(id, transfer::Event::Cancel, Some(why));
            }
        }
        for action in actions {
            self.live(id, event, *action, events);
        }
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let leaves = before == Phase::Starting && phase != Phase::Starting;
        if leaves && process.family.is_none() {
            // Nothing was ever executed, so nothing will be reaped.
            self.life(id, Life::Exited, events);
            self.life(id, Life::Empty, events);
        } else if phase == Phase::Gone {
            self.processes.remove(&id);
            self.sweep_groups();
        }
    }

    pub(super) fn live(
        &mut self,
        id: ProcessId,
        event: Life,
        action: generation::Action,
        events: &mut VecDeque<Event>,
    ) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let generation = Some(process.generation);
        let stop_signal = process.plan.service.stop_signal;
        match action {
            generation::Action::Tell => {
                self.tell_to_end(id, event);
            }
            generation::Action::TellRest => process.tell_all(stop_signal.0),
            generation::Action::Kill => {
                process.tell(Signal::SIGKILL);
                process.tell_all(Signal::SIGKILL);
                if event == Life::DrainOver {
                    let text = "killed: it did not end in time";
                    self.note(generation, EventKind::Killed, text);
                }
            }
            generation::Action::Allow(patience) => {
                let drain = process.plan.service.drain_timeout.0;
                let limit = match patience {
                    Patience::Drain => drain,
                    Patience::Short => drain.min(SHORT).max(SHORTEST),
                };
                self.allow_to_drain(id, limit);
            }
            generation::Action::Report(report) => self.report_of(id, report, events),
        }
    }

    pub(super) fn report_of(
        &mut self,
        id: ProcessId,
        report: generation::Report,
        events: &mut VecDeque<Event>,
    ) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let generation = Some(process.generation);
        let reason = process.reason.clone().unwrap_or_default();
        match report {
            generation::Report::Ready => {
                let took = process.asked.elapsed().as_secs_f64() * 1e3;
                self.note(
                    generation,
                    EventKind::Ready,
                    &format!("ready after {took:.1} ms"),
                );
                self.came_up = Some(true);
                self.hold_dear(id);
                self.feed_watchdog(id);
                self.grant_wishes(id);
                events.push_back(Event::Ready(id));
            }
            generation::Report::FailedToStart => {
                self.note(generation, EventKind::Failed, &reason);
                self.keep_failure(id);
                self.note_failed_start(id);
                events.push_back(Event::FailedToStart(id));
            }
            generation::Report::Died => {
                self.note(generation, EventKind::Died, &reason);
                self.keep_failure(id);
                if self.reserves.contains_key(&id) {
                    // The one in reserve knows what that means.
                    self.reserve_within(id, crate::core::reserve::Event::NewDied, events);
                } else {
                    events.push_back(Event::Died(id));
                }
            }
            generation::Report::Returned => {
                let text = "it serves again";
                self.note(generation, EventKind::Ready, text);
                self.feed_watchdog(id);
            }
            generation::Report::Gone => {
                self.note(generation, EventKind::Gone, "nothing of it is left");
                events.push_back(Event::Gone(id));
            }
        }
    }

    /// What serves is no longer the first to be killed where memory runs out.
    fn hold_dear(&self, id: ProcessId) {
        let process = self.processes.get(&id);
        let family = process.and_then(|process| process.family.as_ref());
        if let Some(Err(error)) = family.map(Family::hold_dear) {
            tracing::warn!(
                service = self.service.name,
                generation = process.map(|process| process.generation),
                "it stays the first to be killed where memory runs out, /proc/PID/oom_score_adj cannot be written: {error}"
            );
        }
    }

    /// The first generation ever did not come up, and nothing else is about to: that is what a start
    /// fails with.
    pub(super) fn note_failed_start(&mut self, id: ProcessId) {
        if self.came_up.is_some() {
            return;
        }
        let on_its_way =
            |process: &Process| matches!(process.phase, Phase::Starting | Phase::Serving);
        if self.processes.values().any(on_its_way) {
            return;
        }
        self.came_up = Some(false);
        let Some(failure) = self.failure_of(id) else {
            return;
        };
        let mut report = super::reports::unbegun(&self.service, &failure.reason);
        report.stderr.clone_from(&failure.stderr);
        self.last_handover = Some(report);
    }

    /// Keeps why a process failed: a report may come when nothing of it is left.
    pub(super) fn keep_failure(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let stderr = process
            .output
            .as_ref()
            .map(output::Output::last_lines)
            .unwrap_or_default();
        let reason = process.reason.clone().unwrap_or_default();
        if self.failures.len() == KEPT_FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back(Failure {
            process: id,
            reason,
            stderr,
        });
    }

    /// Why a process failed.
    pub(super) fn failure_of(&self, id: ProcessId) -> Option<&Failure> {
        self.failures
            .iter()
            .rev()
            .find(|failure| failure.process == id)
    }
}
