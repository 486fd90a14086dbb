//! The processes of one service: starting them, what they say, how they end.
//!
//! Owns carrying the table of `core::generation` out: signals, deadlines, the watchdog, and the
//! commands that test readiness.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use tokio::time::Instant;

use heirloom_handover::fds::Received;
use heirloom_handover::notify::{self, Store as StoreRequest, Watchdog};

use super::Runner;
use crate::config::service::{Ready, Service};
use crate::control::protocol::EventKind;
use crate::core::generation::{self, Event as Life, Patience, Phase};
use crate::core::service::{Event, Generation, PlanId, ProcessId};
use crate::daemon::family::Family;
use crate::daemon::input::{Input, ProcessInput, ServiceInput};
use crate::daemon::notify_socket::NotifySocket;
use crate::daemon::output;
use crate::daemon::plan;
use crate::daemon::process::{self, Deadlines, Process};
use crate::daemon::readiness::{self, Seen};
use crate::daemon::timer::Timer;

/// What a process that never served, or left others behind, gets to end; its drain timeout if that
/// is shorter.
const SHORT: Duration = Duration::from_secs(5);

/// How long a program that somebody has open for writing is tried again, and how often.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const TRY_AGAIN_EVERY: Duration = Duration::from_millis(50);

/// A command that tests readiness runs this long at most, and this often.
const LONGEST_COMMAND: Duration = Duration::from_secs(10);
const COMMAND_EVERY: Duration = Duration::from_millis(200);

/// A program may not put off its own deadlines by more than this at a time.
const LONGEST_EXTENSION: Duration = Duration::from_secs(3600);

/// So many failures are remembered for a report.
const KEPT_FAILURES: usize = 32;

/// Why a process failed, and the last it wrote to its error output.
#[derive(Debug)]
pub(crate) struct Failure {
    process: ProcessId,
    pub(crate) reason: String,
    pub(crate) stderr: Vec<String>,
}

/// A running command that tests the readiness of a process.
#[derive(Debug)]
pub(crate) struct ReadyCommand {
    process: ProcessId,
    _limit: Timer,
}

impl Runner {
    pub(super) fn spawn(
        &mut self,
        id: ProcessId,
        plan_id: PlanId,
        generation: Generation,
        slot: usize,
        events: &mut VecDeque<Event>,
    ) {
        let Some(plan) = self.plans.get(&plan_id).map(Rc::clone) else {
            // The machine names only plans it has not given up.
            events.extend([Event::FailedToStart(id), Event::Gone(id)]);
            return;
        };
        let process = Process {
            id,
            plan_id,
            generation,
            slot,
            phase: Phase::Starting,
            since: SystemTime::now(),
            asked: Instant::now(),
            family: None,
            output_over: false,
            output: None,
            notify: None,
            reason: None,
            status: None,
            watchdog: plan.service.watchdog.map(|watchdog| watchdog.0),
            deadlines: Deadlines::default(),
            plan,
        };
        self.processes.insert(id, process);
        self.allow_to_become_ready(id, None);
        self.execute(id, events);
    }

    /// Tries to execute a process's program; a file that is being written is tried again.
    fn execute(&mut self, id: ProcessId, events: &mut VecDeque<Event>) {
        match self.try_to_execute(id) {
            Ok(()) => self.look_for_readiness(id),
            Err(error) => self.could_not_execute(id, &error, events),
        }
    }

    fn could_not_execute(
        &mut self,
        id: ProcessId,
        error: &plan::Unusable,
        events: &mut VecDeque<Event>,
    ) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        if error.passing && process.asked.elapsed() < BUSY_LIMIT {
            let input = ServiceInput::Process(id, ProcessInput::TryAgain);
            let again = self.timer(TRY_AGAIN_EVERY, input);
            if let Some(process) = self.processes.get_mut(&id) {
                process.deadlines.again = Some(again);
            }
        } else {
            process.reason = Some(error.to_string());
            self.life(id, Life::Failed, events);
        }
    }

    /// Whoever was writing the program may have changed it since it was checked, so a new program is
    /// looked up once more; one that is proven stays what it is.
    fn execute_again(&mut self, id: ProcessId, events: &mut VecDeque<Event>) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        if !self.machine.is_proven(process.plan_id) {
            match plan::look_up(&process.plan.service) {
                Ok(plan) => {
                    process.plan = Rc::new(plan);
                    let plan = Rc::clone(&process.plan);
                    self.plans.insert(process.plan_id, plan);
                }
                Err(error) => return self.could_not_execute(id, &error, events),
            }
        }
        self.execute(id, events);
    }

    fn try_to_execute(&mut self, id: ProcessId) -> Result<(), plan::Unusable> {
        let Some(process) = self.processes.get(&id) else {
            return Ok(());
        };
        let (plan, generation) = (Rc::clone(&process.plan), process.generation);
        let instance = process.slot;
        let listeners = self.listeners_for(process.plan_id);
        let system = |error| plan.explain_system(&error);
        let name = &self.service.name;
        let user = plan.user.as_ref().map(|user| user.user);
        let notify = NotifySocket::bind(&self.context.inputs, name, id, user).map_err(system)?;
        let (output, standard) = output::capture(name, generation).map_err(system)?;
        let open_files = self.context.open_files;
        let number = process::Number {
            generation,
            instance,
        };
        let pid = process::start(
            &plan,
            number,
            &listeners,
            &self.store,
            &notify,
            standard,
            open_files,
        )?;
        let family = Family {
            main: pid,
            main_is_reaped: false,
            service: name.clone(),
            generation,
            instance,
        };
        if let Some(process) = self.processes.get_mut(&id) {
            process.since = SystemTime::now();
            process.family = Some(family);
            process.output = Some(output);
            process.notify = Some(notify);
        }
        let text = format!("started {} as process {pid}", plan.resolved.display());
        self.note(Some(generation), EventKind::Started, &text);
        Ok(())
    }

    fn look_for_readiness(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let Some(family) = process.family.clone() else {
            return;
        };
        let settings = process.plan.service.clone();
        let seen = |seen| ServiceInput::Process(id, ProcessInput::Seen(seen));
        let timer = match &settings.ready {
            Ready::Notify => None,
            Ready::After(time) => Some(self.timer(time.0, seen(Seen::Alive))),
            Ready::Exec(_) => {
                self.start_ready_command(id);
                None
            }
            Ready::Auto => {
                let listeners = self.listeners_for(process.plan_id);
                let inodes: BTreeSet<u64> =
                    listeners.iter().map(|listener| listener.inode).collect();
                Some(readiness::watch(&self.context.inputs, family, id, inodes))
            }
        };
        if let Some(process) = self.processes.get_mut(&id)
            && timer.is_some()
        {
            process.deadlines.readiness = timer;
        }
    }

    fn start_ready_command(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let (Ready::Exec(words), Some(tested)) = (&process.plan.service.ready, process.pid())
        else {
            return;
        };
        let command = Service {
            command: words.clone(),
            ..process.plan.service.clone()
        };
        let generation = process.generation;
        let started = plan::look_up(&command).and_then(|command| {
            let captured = output::capture(&self.service.name, generation);
            let (_, standard) = captured.map_err(|error| command.explain_system(&error))?;
            process::start_ready_command(&command, standard, tested, self.context.open_files)
        });
        match started {
            Ok(pid) => {
                let limit = Timer::task(async move {
                    tokio::time::sleep(LONGEST_COMMAND).await;
                    // Its own group: it is reaped by us, so the number is still its own.
                    let _dead = nix::sys::signal::killpg(pid, Signal::SIGKILL);
                });
                self.ready_commands.insert(
                    pid.as_raw(),
                    ReadyCommand {
                        process: id,
                        _limit: limit,
                    },
                );
            }
            Err(error) => {
                let text = format!("the command that tests readiness: {error}");
                if let Some(process) = self.processes.get_mut(&id) {
                    process.reason = Some(text);
                }
                self.feed(id, Life::Failed);
            }
        }
    }

    /// A process was reaped; says whether it was one of this service.
    pub(crate) fn child_ended(&mut self, pid: Pid, status: &WaitStatus) -> bool {
        if let Some(command) = self.ready_commands.remove(&pid.as_raw()) {
            let succeeded = matches!(status, WaitStatus::Exited(_, 0));
            self.ready_command_ended(command.process, succeeded);
            return true;
        }
        let ours = |process: &&mut Process| process.pid() == Some(pid);
        let Some(process) = self.processes.values_mut().find(ours) else {
            return false;
        };
        let how = process::describe(status);
        // A reason known by now is the cause; this is its effect.
        let served = process.phase == Phase::Serving;
        process.reason.get_or_insert_with(|| match (served, status) {
            (false, WaitStatus::Exited(_, 0)) => format!(
                "the new program {how} before it was ready (does it go into the background? it must stay in the foreground)"
            ),
            (false, _) => format!("the new program {how} before it was ready"),
            (true, _) => format!("the program {how}"),
        });
        if let Some(family) = &mut process.family {
            family.main_is_reaped = true;
        }
        let id = process.id;
        if let Some(output) = &mut process.output {
            let tail = output.tail();
            let inputs = self.context.inputs.clone();
            let service = self.service.name.clone();
            drop(tokio::spawn(async move {
                tail.await;
                let input = ServiceInput::Process(id, ProcessInput::OutputOver);
                // The queue is closed only when the supervisor ends.
                let _ended = inputs.send(Input::Service(service, input)).await;
            }));
        }
        true
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

    /// What a command would say of a process that is ready, or failed, nobody wants to know.
    fn end_ready_command(&self, id: ProcessId) {
        let running = self.ready_commands.iter();
        for (pid, _) in running.filter(|(_, command)| command.process == id) {
            // Its own group, and not reaped as long as it is known here.
            let _dead = nix::sys::signal::killpg(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }

    fn ready_command_ended(&mut self, id: ProcessId, succeeded: bool) {
        let Some(process) = self
            .processes
            .get(&id)
            .filter(|p| p.phase == Phase::Starting)
        else {
            return;
        };
        if succeeded {
            self.feed(process.id, Life::Ready);
        } else {
            let again = self.timer(
                COMMAND_EVERY,
                ServiceInput::Process(id, ProcessInput::TestAgain),
            );
            if let Some(process) = self.processes.get_mut(&id) {
                process.deadlines.readiness = Some(again);
            }
        }
    }

    pub(super) fn on_process(&mut self, id: ProcessId, input: ProcessInput) {
        match input {
            ProcessInput::Life(event) => {
                if event == Life::NotReadyInTime {
                    self.explain_lateness(id);
                }
                self.feed(id, event);
            }
            ProcessInput::Seen(Seen::Waiting | Seen::Alive) => self.feed(id, Life::Ready),
            ProcessInput::Seen(Seen::Deaf) => {
                let text =
                    "the new program has closed every listener it was given, so it cannot serve";
                self.fail_with(id, text.to_owned());
            }
            ProcessInput::Notified(message) => self.notified(id, message),
            ProcessInput::TryAgain => {
                let mut events = VecDeque::new();
                self.execute_again(id, &mut events);
                self.drive_all(events);
            }
            ProcessInput::TestAgain => self.start_ready_command(id),
            ProcessInput::OutputOver => {
                if let Some(process) = self.processes.get_mut(&id) {
                    process.output_over = true;
                }
                self.feed(id, Life::Exited);
                self.check_for_empty();
            }
            ProcessInput::Proved => self.drive(Event::Proved(id)),
            ProcessInput::WatchdogOver => {
                self.fail_with(id, "the program missed its watchdog".to_owned());
            }
        }
    }

    fn explain_lateness(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let limit = process.plan.service.ready_timeout;
        let missing = match &process.plan.service.ready {
            Ready::Auto => "it neither said READY=1 nor waited on a listener",
            Ready::Notify => "it did not say READY=1",
            Ready::After(_) => "it was to live longer than ready_timeout allows",
            Ready::Exec(_) => "the command that tests it did not succeed",
        };
        process.reason.get_or_insert_with(|| {
            format!("the new program was not ready within {limit}: {missing}; see ready and ready_timeout")
        });
    }

    fn fail_with(&mut self, id: ProcessId, reason: String) {
        if let Some(process) = self.processes.get_mut(&id)
            && matches!(process.phase, Phase::Starting | Phase::Serving)
        {
            process.reason.get_or_insert(reason);
            self.feed(id, Life::Failed);
        }
    }

    // The table.

    fn feed(&mut self, id: ProcessId, event: Life) {
        let mut events = VecDeque::new();
        self.life(id, event, &mut events);
        self.drive_all(events);
    }

    fn drive_all(&mut self, events: VecDeque<Event>) {
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
            process.deadlines.watchdog = None;
        }
        if before == Phase::Starting && phase != Phase::Starting {
            self.end_ready_command(id);
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
        }
    }

    fn live(
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
                process.tell(stop_signal.0);
                if process.family.is_some() {
                    let text = format!("told to finish and end ({stop_signal})");
                    self.note(generation, EventKind::Draining, &text);
                }
            }
            generation::Action::TellRest => process.tell_all(stop_signal.0),
            generation::Action::Kill => {
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
                    Patience::Short => drain.min(SHORT),
                };
                self.allow_to_drain(id, limit);
            }
            generation::Action::Report(report) => self.report_of(id, report, events),
        }
    }

    fn report_of(
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
                self.feed_watchdog(id);
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
                events.push_back(Event::Died(id));
            }
            generation::Report::Gone => {
                self.note(generation, EventKind::Gone, "nothing of it is left");
                events.push_back(Event::Gone(id));
            }
        }
    }

    /// The first generation ever did not come up: that is what a start fails with.
    fn note_failed_start(&mut self, id: ProcessId) {
        if self.came_up.is_some() {
            return;
        }
        self.came_up = Some(false);
        let Some(failure) = self.failure_of(id) else {
            return;
        };
        let mut report = super::handovers::unbegun(&self.service, &failure.reason);
        report.stderr.clone_from(&failure.stderr);
        self.last_handover = Some(report);
    }

    /// Keeps why a process failed: a report may come when nothing of it is left.
    fn keep_failure(&mut self, id: ProcessId) {
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

    // Deadlines.

    fn allow_to_become_ready(&mut self, id: ProcessId, longer: Option<Duration>) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let limit = longer.unwrap_or(process.plan.service.ready_timeout.0);
        let until = Instant::now() + limit;
        if process
            .deadlines
            .ready
            .as_ref()
            .is_some_and(|(before, _)| *before >= until)
        {
            return;
        }
        let input = ServiceInput::Process(id, ProcessInput::Life(Life::NotReadyInTime));
        let timer = self.timer(limit, input);
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.ready = Some((until, timer));
        }
    }

    fn allow_to_drain(&mut self, id: ProcessId, limit: Duration) {
        let input = ServiceInput::Process(id, ProcessInput::Life(Life::DrainOver));
        let timer = self.timer(limit, input);
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.drain = Some((Instant::now() + limit, timer));
        }
    }

    pub(super) fn start_probation(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let window = process.plan.service.probation.0;
        let timer = self.timer(window, ServiceInput::Process(id, ProcessInput::Proved));
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.probation = Some(timer);
        }
    }

    fn feed_watchdog(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let timer = process
            .watchdog
            .filter(|_| process.phase == Phase::Serving)
            .map(|interval| {
                self.timer(
                    interval,
                    ServiceInput::Process(id, ProcessInput::WatchdogOver),
                )
            });
        if let Some(process) = self.processes.get_mut(&id) {
            process.deadlines.watchdog = timer;
        }
    }

    // What it says.

    fn notified(&mut self, id: ProcessId, message: Received) {
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
        match said.store {
            Some(StoreRequest::Keep { name, poll }) => {
                self.keep_descriptors(generation, &name, poll, message.fds);
            }
            Some(StoreRequest::Remove { name }) => {
                self.store.remove(&name);
            }
            // Descriptors that came along, a barrier's among them, are closed here.
            Some(_) | None => drop(message.fds),
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
            self.feed(id, Life::Ready);
        }
    }

    fn allow_to_drain_longer(&mut self, id: ProcessId, more: Duration) {
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

    fn keep_descriptors(
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
