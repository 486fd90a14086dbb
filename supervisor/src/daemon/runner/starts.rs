//! Starting the processes of one service, and finding out that they are ready.
//!
//! Owns executing a plan's program, again while it is being written, and each way of seeing that it
//! is ready, the command that tests it among them. What follows is the table's, in [`super::lives`].

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::time::Instant;

use super::Runner;
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

/// How long a program that somebody has open for writing is tried again, and how often.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const TRY_AGAIN_EVERY: Duration = Duration::from_millis(50);

/// A command that tests readiness runs this long at most, and this often.
const LONGEST_COMMAND: Duration = Duration::from_secs(10);
const COMMAND_EVERY: Duration = Duration::from_millis(200);

/// A running command that tests the readiness of a process.
#[derive(Debug)]
pub(crate) struct ReadyCommand {
    pub(super) process: ProcessId,
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
            native: Native::default(),
            reason: None,
            status: None,
            watchdog: plan.service.watchdog.map(|watchdog| watchdog.0),
            wishes: Vec::new(),
            deadlines: Deadlines::default(),
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
        let user = plan.user.as_ref().map(|user| user.user);
        let notify = NotifySocket::bind(&self.context.inputs, name, id, user).map_err(system)?;
        let (native, theirs) =
            NativeSocket::pair(&self.context.inputs, name, id).map_err(system)?;
        let (output, standard) = output::capture(name, generation).map_err(system)?;
        let open_files = self.context.open_files;
        let number = process::Number {
            generation,
            instance,
        };
        let rendezvous = self.context.rendezvous();
        let pid = process::start(
            &plan,
            number,
            &listeners,
            &self.store,
            Ends {
                rendezvous: &rendezvous,
                notify: &notify,
                native: theirs,
                standard,
            },
            open_files,
        )?;
        let family = Family {
            main: pid,
            main_is_reaped: false,
            service: name.clone(),
            generation,
            instance,
            rendezvous,
            // It is not reaped before the next turn of the loop, so the pid is its own.
            start_time: family::stat_of(pid).map_or(0, |stat| stat.started),
            pidfd: pidfd::open(pid)
                .ok()
                .map(|pidfd| (Handle::new(), Arc::new(pidfd))),
            bond: Bond::Child,
        };
        if let Some(process) = self.processes.get_mut(&id) {
            process.since = SystemTime::now();
            process.family = Some(family);
            process.output = Some(output);
            process.notify = Some(notify);
            process.native.socket = Some(native);
        }
        let text = format!("started {} as process {pid}", plan.resolved.display());
        self.note(Some(generation), EventKind::Started, &text);
        Ok(())
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
    /// What a command would say of a process that is ready, or failed, nobody wants to know.
    pub(super) fn end_ready_command(&self, id: ProcessId) {
        let running = self.ready_commands.iter();
        for (pid, _) in running.filter(|(_, command)| command.process == id) {
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
