//! Starting the processes of one service, and finding out that they are ready.
//!
//! Owns executing a plan's program, again while it is being written, and each way of seeing that it
//! is ready, the command that tests it among them. What follows is the table's, in [`super::lives`].

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heirloom_handover::fault::{self, Point};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::time::Instant;

use super::Runner;
use crate::clock::time_of_day;
use crate::config::service::{Ready, Service};
use crate::control::protocol::EventKind;
use crate::core::generation::{Event as Life, Phase};
use crate::core::service::{Event, Generation, PlanId, ProcessId};
use crate::daemon::family::{self, Bond, Family};
use crate::daemon::input::{ProcessInput, ServiceInput};
use crate::daemon::native_socket::NativeSocket;
use crate::daemon::notify_socket::NotifySocket;
use crate::daemon::output;
use crate::daemon::plan;
use crate::daemon::process::{self, Deadlines, Ends, Native, Process};
use crate::daemon::readiness::{self, Seen};
use crate::daemon::record::Handle;
use crate::daemon::timer::Timer;
use crate::sys::pidfd;
use crate::sys::spawn::Group;

/// How long a program that somebody has open for writing is tried again, and how often.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const TRY_AGAIN_EVERY: Duration = Duration::from_millis(50);

/// A command that tests a process runs this long at most, and one that tests readiness this often.
const LONGEST_COMMAND: Duration = Duration::from_secs(10);
const COMMAND_EVERY: Duration = Duration::from_millis(200);

/// What a command tests of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tests {
    Readiness,
    Health,
}

/// A running command that tests a process.
#[derive(Debug)]
pub(crate) struct Command {
    pub(super) process: ProcessId,
    pub(super) tests: Tests,
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
            since: time_of_day(),
            asked: Instant::now(),
            family: None,
            output_over: false,
            output: None,
            notify: None,
            native: Native::default(),
            reason: None,
            status: None,
            watchdog: plan.service.watchdog.map(|watchdog| watchdog.0),
            wishes: Vec::new(),
            deadlines: Deadlines::default(),
            unhealthy: 0,
            plan,
        };
        self.processes.insert(id, process);
        self.allow_to_become_ready(id, None);
        self.execute(id, events);
    }

    /// Tries to execute a process's program; a file that is being written is tried again.
    pub(super) fn execute(&mut self, id: ProcessId, events: &mut VecDeque<Event>) {
        match self.try_to_execute(id) {
            Ok(()) => self.look_for_readiness(id),
            Err(error) => self.could_not_execute(id, &error, events),
        }
    }

    pub(super) fn could_not_execute(
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
    pub(super) fn execute_again(&mut self, id: ProcessId, events: &mut VecDeque<Event>) {
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

    pub(super) fn try_to_execute(&mut self, id: ProcessId) -> Result<(), plan::Unusable> {
        let Some(process) = self.processes.get(&id) else {
            return Ok(());
        };
        let (plan, generation) = (Rc::clone(&process.plan), process.generation);
        let instance = process.slot;
        let plan_id = process.plan_id;
        let listeners = self.listeners_for(plan_id).map_err(|error| {
            plan.explain_step("have its listeners", &std::io::Error::other(error))
        })?;
        let system = |error| plan.explain_system(&error);
        let name = &self.service.name;
        let user = plan.privileges.identity.as_ref().map(|user| user.user);
        let notify = NotifySocket::bind(&self.context.inputs, name, id, user).map_err(system)?;
        let (native, theirs) =
            NativeSocket::pair(&self.context.inputs, name, id).map_err(system)?;
        let (output, standard) =
            output::capture(name, generation, plan.service.log_rate).map_err(system)?;
        let (path, group) = self.make_group(generation, instance).unzip();
        let open_files = self.context.open_files;
        let number = process::Number {
            generation,
            instance,
        };
        let rendezvous = self.context.rendezvous();
        fault::reached(Point::Starting);
        let started = process::start(
            &plan,
            number,
            &listeners,
            &self.store,
            Ends {
                rendezvous: &rendezvous,
                notify: &notify,
                native: theirs,
                standard,
                expendable: self.is_expendable(),
                group,
            },
            open_files,
        )
        .inspect_err(|_| self.sweep_groups())?;
        fault::reached(Point::Started);
        let pid = started.pid;
        if let Some(errno) = started.outside {
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::warn!(
                service = name,
                generation,
                "it runs outside of its control group, which it cannot join: {error}"
            );
        }
        let family = Family {
            main: pid,
            main_is_reaped: false,
            service: name.clone(),
            generation,
            instance,
            group: path.filter(|_| started.outside.is_none()),
            rendezvous,
            // It is not reaped before the next turn of the loop, so the pid is its own.
            start_time: family::stat_of(pid).map_or(0, |stat| stat.started),
            pidfd: pidfd::open(pid)
                .ok()
                .map(|pidfd| (Handle::new(), Arc::new(pidfd))),
            bond: Bond::Child,
        };
        if let Some(process) = self.processes.get_mut(&id) {
            process.since = time_of_day();
            process.family = Some(family);
            process.output = Some(output);
            process.notify = Some(notify);
            process.native.socket = Some(native);
        }
        let text = format!("started {} as process {pid}", plan.resolved.display());
        self.note(Some(generation), EventKind::Started, &text);
        Ok(())
    }

    /// A control group for one process, where groups can be made. Without one its family is known by
    /// other signs.
    fn make_group(&self, generation: Generation, instance: usize) -> Option<(PathBuf, Group)> {
        let groups = self.context.groups.as_ref()?;
        match groups.make(&self.service.name, generation, instance) {
            Ok(made) => Some(made),
            Err(error) => {
                let service = &self.service.name;
                tracing::warn!(service, generation, "no control group for it: {error}");
                None
            }
        }
    }

    /// Whether what is being started is worth less than what serves: where memory does not do for both,
    /// the kernel is to kill the new one, and not the larger one, which has the state.
    fn is_expendable(&self) -> bool {
        let mut processes = self.processes.values();
        processes.any(|process| process.phase == Phase::Serving)
    }

    /// Control groups go with the last of their processes.
    pub(super) fn sweep_groups(&self) {
        if let Some(groups) = &self.context.groups {
            groups.sweep();
        }
    }

    pub(super) fn look_for_readiness(&mut self, id: ProcessId) {
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
                let plan_id = process.plan_id;
                // It was started with them, so they are there.
                let listeners = self.listeners_for(plan_id).unwrap_or_default();
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

    pub(super) fn start_ready_command(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        if process.phase != Phase::Starting || !self.may_become_ready(id) {
            return;
        }
        let Ready::Exec(words) = &process.plan.service.ready else {
            return;
        };
        if let Err(error) = self.start_command(id, &words.clone(), Tests::Readiness) {
            let text = format!("the command that tests readiness: {error}");
            if let Some(process) = self.processes.get_mut(&id) {
                process.reason = Some(text);
            }
            self.feed(id, Life::Failed);
        }
    }

    /// Starts a command that tests a process; what it comes to is told when it has ended.
    ///
    /// # Errors
    ///
    /// Why it cannot be started.
    pub(super) fn start_command(
        &mut self,
        id: ProcessId,
        words: &[String],
        tests: Tests,
    ) -> Result<(), String> {
        let Some(process) = self.processes.get(&id) else {
            return Ok(());
        };
        let Some(tested) = process.pid() else {
            return Ok(());
        };
        // What is said of the program's file is not said of this one's.
        let command = Service {
            command: words.to_vec(),
            sha256: None,
            minisign: None,
            ..process.plan.service.clone()
        };
        let generation = process.generation;
        let started = plan::look_up(&command).and_then(|command| {
            let captured =
                output::capture(&self.service.name, generation, command.service.log_rate);
            let (_, standard) = captured.map_err(|error| command.explain_system(&error))?;
            process::start_ready_command(&command, standard, tested, self.context.open_files)
        });
        let pid = started.map_err(|error| error.to_string())?;
        let limit = Timer::task(async move {
            tokio::time::sleep(LONGEST_COMMAND).await;
            // Its own group: it is reaped by us, so the number is still its own.
            let _dead = nix::sys::signal::killpg(pid, Signal::SIGKILL);
        });
        self.commands.insert(
            pid.as_raw(),
            Command {
                process: id,
                tests,
                _limit: limit,
            },
        );
        Ok(())
    }

    /// What a command would say of a process that is ready, or failed, nobody wants to know.
    pub(super) fn end_ready_command(&self, id: ProcessId) {
        let running = self.commands.iter();
        let of_it = |command: &Command| command.process == id && command.tests == Tests::Readiness;
        for (pid, _) in running.filter(|(_, command)| of_it(command)) {
            // Its own group, and not reaped as long as it is known here.
            let _dead = nix::sys::signal::killpg(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }

    pub(super) fn ready_command_ended(&mut self, id: ProcessId, succeeded: bool) {
        let Some(process) = self
            .processes
            .get(&id)
            .filter(|p| p.phase == Phase::Starting)
        else {
            return;
        };
        if succeeded {
            self.is_ready(process.id);
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
}
