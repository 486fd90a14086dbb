//! A service in the record of its supervisor, and back.
//!
//! Owns what of a runner is recorded, and rebuilding it: what ran goes on, with the time it had left. A
//! successor in place finds everything as it was; after a death the world has gone on meanwhile, and what
//! follows from that comes as events, like everything else (see [`super::inquiries`]).

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heirloom_handover::message::{PROTOCOL, Report};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::handovers::{Active, Job};
use super::migrations::{Migration, Moved};
use super::reserves::Reserve;
use super::{Context, Runner};
use crate::config::service::Service;
use crate::core::generation::{Event as Life, Phase};
use crate::core::service::ProcessId;
use crate::daemon::family::{self, Bond, Family};
use crate::daemon::input::{ProcessInput, ServiceInput};
use crate::daemon::listeners::{CannotListen, Returning, Set};
use crate::daemon::native_socket::NativeSocket;
use crate::daemon::notify_socket::NotifySocket;
use crate::daemon::output::Output;
use crate::daemon::plan::{Plan, Unusable};
use crate::daemon::process::{Deadlines, Hello, Native, Process};
use crate::daemon::record::{self, Held, Settings, handles::Found};
use crate::daemon::store::Store;
use crate::daemon::timer::{Timer, until};

/// Why a service cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error(transparent)]
    Listener(#[from] CannotListen),
    #[error(transparent)]
    Program(#[from] Unusable),
    #[error("the record does not say what generation {0} runs")]
    NoPlan(u64),
}

impl Runner {
    /// Whether nothing of it is in the middle of something: only then can a successor in place take over.
    pub(crate) fn is_at_rest(&self) -> bool {
        let in_between = |process: &Process| {
            process.phase == Phase::Starting
                || !process.wishes.is_empty()
                || process.deadlines.bereft.is_some()
        };
        !self.is_busy()
            && self.active.is_none()
            && self.migrations.is_empty()
            && self.reserves.values().all(Reserve::is_at_rest)
            && self.saving.is_none()
            && self.commands.is_empty()
            && !self.is_returning()
            && self.proving.is_empty()
            && !self.stop_wanted
            && !self.processes.values().any(in_between)
    }

    /// What the record says of it.
    pub(crate) fn record<'a>(&'a self, held: &mut Held<'a>) -> record::Runner {
        let looking_up = self.looking_up.iter().map(|(job, _)| job);
        let jobs = looking_up.chain(&self.jobs).map(Job::record).collect();
        record::Runner {
            settings: Settings::of(&self.service),
            command: self.command.clone(),
            machine: self.machine.clone(),
            listeners: record_set(&self.listeners, held),
            stored: self.store.record(held),
            // What still runs may be of a plan that nothing returns to any more.
            plans: self
                .processes
                .values()
                .map(|process| (process.plan_id, &process.plan))
                .chain(self.plans.iter().map(|(id, plan)| (*id, plan)))
                .collect::<BTreeMap<_, _>>()
                .into_iter()
                .map(|(id, plan)| (id, plan.record(held)))
                .collect(),
            processes: self
                .processes
                .values()
                .map(|process| record_process(process, held))
                .collect(),
            migrations: self
                .migrations
                .iter()
                .map(|(new, migration)| migration.record(*new))
                .collect(),
            reserves: self
                .reserves
                .iter()
                .map(|(new, reserve)| reserve.record(*new))
                .collect(),
            active: self.active.as_ref().map(|active| record::Active {
                job: active.job.record(),
                plan: active.plan,
                settings: Settings::of(&active.service),
                listeners: record_set(&active.listeners, held),
            }),
            jobs,
            backoffs: self
                .backoffs
                .iter()
                .map(|(slot, timer)| (*slot, timer.ends_ms().unwrap_or(0)))
                .collect(),
            failed_starts: self.failed_starts,
            starting_again: self.starting_again.is_some(),
            last_handover: self.last_handover.clone(),
            last_migration: self.last_migration,
            last_plan: self.last_plan,
            came_up: self.came_up,
            stopped: self.stopped,
        }
    }

    /// Takes a service over as a record has it. What its processes do, and whether they still live, is
    /// looked at by [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// [`Lost`]; nothing was changed then.
    pub(crate) fn take_over(
        context: Context,
        listed: record::Runner,
        bond: Bond,
        found: &mut Found,
        sockets: &mut Returning,
    ) -> Result<Self, Lost> {
        let listeners = sockets.set(&listed.listeners, found)?;
        let service = listed.settings.into_service();
        let mut store = Store::default();
        let missing = store.restore(&context.inputs, &service.name, &listed.stored, found);
        if missing > 0 {
            tracing::warn!(
                service = service.name,
                "{missing} stored descriptors were not found"
            );
        }
        let mut runner = Self {
            machine: listed.machine,
            command: listed.command,
            listeners,
            store,
            plans: BTreeMap::new(),
            processes: BTreeMap::new(),
            failures: VecDeque::new(),
            commands: BTreeMap::new(),
            returning: None,
            returned: None,
            jobs: listed.jobs.into_iter().map(Job::restore).collect(),
            looking_up: None,
            active: None,
            backoffs: BTreeMap::new(),
            migrations: BTreeMap::new(),
            reserves: BTreeMap::new(),
            last_migration: listed.last_migration,
            saving: None,
            unsaved: Vec::new(),
            stop_wanted: false,
            parting: None,
            proving: Vec::new(),
            restoring: None,
            failed_starts: listed.failed_starts,
            starting_again: None,
            last_handover: listed.last_handover,
            last_plan: listed.last_plan,
            came_up: listed.came_up,
            stopped: listed.stopped,
            context,
            service,
        };
        let mut plans = BTreeMap::new();
        for (id, plan) in listed.plans {
            let runs = |process: &&record::Process| process.plan == id;
            let running = listed.processes.iter().filter(runs);
            let running: Vec<Pid> = running
                .filter_map(|process| process.running.as_ref())
                .filter(|running| !running.reaped && family::is_alive(running))
                .map(|running| Pid::from_raw(running.pid))
                .collect();
            let plan = Rc::new(Plan::restore(plan, found, &running)?);
            if let Some(reason) = plan.lost() {
                let service = &runner.service.name;
                tracing::warn!(
                    service,
                    "a program goes on where it runs, and cannot be started again: {reason}"
                );
            }
            if runner.machine.needs(id) {
                runner.plans.insert(id, Rc::clone(&plan));
            }
            plans.insert(id, plan);
        }
        if let Some(active) = listed.active {
            runner.active = Some(Active {
                job: Job::restore(active.job),
                plan: active.plan,
                service: active.settings.into_service(),
                listeners: sockets.set(&active.listeners, found)?,
                flags: Vec::new(),
                warning: None,
                first_retired: None,
                moved: Moved::default(),
            });
        }
        for process in listed.processes {
            let plan = plans.get(&process.plan).map(Rc::clone);
            let plan = plan.ok_or(Lost::NoPlan(process.generation))?;
            runner.restore_process(process, plan, bond, found);
        }
        for migration in listed.migrations {
            let new = migration.new;
            let migration = Migration::restore(&migration);
            runner.migrations.insert(new, migration);
        }
        for reserve in listed.reserves {
            let restored = Reserve::restore(&reserve);
            runner.reserves.insert(reserve.new, restored);
        }
        for (slot, point_ms) in listed.backoffs {
            let timer = runner.timer(until(point_ms), ServiceInput::BackoffOver(slot));
            runner.backoffs.insert(slot, timer);
        }
        if listed.starting_again {
            runner.starting_again = Some(runner.timer(Duration::ZERO, ServiceInput::StartAgain));
        }
        Ok(runner)
    }

    fn restore_process(
        &mut self,
        listed: record::Process,
        plan: Rc<Plan>,
        bond: Bond,
        found: &mut Found,
    ) {
        let id = listed.id;
        let mut process = Process {
            id,
            plan_id: listed.plan,
            generation: listed.generation,
            slot: listed.slot,
            phase: listed.phase,
            since: SystemTime::UNIX_EPOCH + Duration::from_millis(listed.since_ms),
            asked: Instant::now(),
            family: None,
            output_over: listed.output_over,
            output: None,
            notify: None,
            native: Native {
                hello: listed.hello.as_deref().and_then(parse_hello),
                custody: listed.custody,
                connections: listed.connections,
                deaf: listed.deaf,
                restored: listed.restored,
                thawed: listed.thawed,
                ..Native::default()
            },
            reason: listed.reason,
            status: listed.status,
            watchdog: listed.watchdog_ms.map(Duration::from_millis),
            wishes: Vec::new(),
            unhealthy: 0,
            deadlines: Deadlines::default(),
            plan,
        };
        if let Some(running) = listed.running {
            self.restore_running(&mut process, running, bond, found);
        }
        let timer = |point_ms: Option<u64>, input: ProcessInput| {
            let point_ms = point_ms?;
            let input = ServiceInput::Process(id, input);
            Some((until(point_ms), self.timer(until(point_ms), input)))
        };
        let deadline = |(left, timer): (Duration, Timer)| (Instant::now() + left, timer);
        process.deadlines.ready = timer(
            listed.ready_until_ms,
            ProcessInput::Life(Life::NotReadyInTime),
        )
        .map(deadline);
        process.deadlines.drain =
            timer(listed.drain_until_ms, ProcessInput::Life(Life::DrainOver)).map(deadline);
        process.deadlines.probation =
            timer(listed.proved_at_ms, ProcessInput::Proved).map(|(_, timer)| timer);
        process.deadlines.settled =
            timer(listed.settled_at_ms, ProcessInput::Settled).map(|(_, timer)| timer);
        self.processes.insert(id, process);
        self.feed_watchdog(id);
    }

    fn restore_running(
        &self,
        process: &mut Process,
        running: record::Running,
        bond: Bond,
        found: &mut Found,
    ) {
        let (inputs, name, id) = (&self.context.inputs, &self.service.name, process.id);
        let failed = |what: &str, error: std::io::Error| {
            let generation = process.generation;
            tracing::error!(
                service = name,
                generation,
                "its {what} cannot be used any more: {error}"
            );
        };
        let user = process.plan.privileges.identity.as_ref();
        let user = user.map(|user| user.user);
        let rate = process.plan.service.log_rate;
        let notify = running.notify.and_then(|(handle, address)| {
            let fd = found.take(handle)?;
            NotifySocket::resume(inputs, name, id, user, handle, address, fd)
                .map_err(|error| failed("notify socket", error))
                .ok()
        });
        let native = running.native.and_then(|handle| {
            let fd = found.take(handle)?;
            NativeSocket::resume(inputs, name, id, handle, fd)
                .map_err(|error| failed("socket of the handover protocol", error))
                .ok()
        });
        let output = running.output.and_then(|listed| {
            let ends = [found.take(listed.stdout)?, found.take(listed.stderr)?];
            Output::resume(name, process.generation, rate, listed, ends)
                .map_err(|error| failed("output", error))
                .ok()
        });
        let bond = if running.child { bond } else { Bond::Adopted };
        process.family = Some(Family {
            main: Pid::from_raw(running.pid),
            main_is_reaped: running.reaped,
            service: name.clone(),
            generation: process.generation,
            instance: process.slot,
            rendezvous: running.rendezvous,
            group: running.group,
            start_time: running.start_time,
            pidfd: running
                .pidfd
                .and_then(|handle| Some((handle, Arc::new(found.take(handle)?)))),
            bond,
        });
        process.notify = notify;
        process.native.socket = native;
        process.output = output;
    }

    /// Goes on, once everything is in its place: what is told by nothing else is looked at.
    pub(crate) fn resume(&mut self) {
        let ids: Vec<ProcessId> = self.processes.keys().copied().collect();
        for id in ids {
            self.watch_adopted(id);
            let proving = |process: &Process| process.deadlines.probation.is_some();
            if self.processes.get(&id).is_some_and(proving) {
                self.begin_health(id);
            }
            let Some(process) = self.processes.get(&id) else {
                continue;
            };
            let reaped = process
                .family
                .as_ref()
                .is_some_and(|family| family.main_is_reaped);
            let starting = process.phase == Phase::Starting;
            if starting && process.family.is_none() {
                let input = ServiceInput::Process(id, ProcessInput::TryAgain);
                let timer = self.timer(Duration::ZERO, input);
                if let Some(process) = self.processes.get_mut(&id) {
                    process.deadlines.again = Some(timer);
                }
            } else if starting && !self.migrations.contains_key(&id) {
                self.look_for_readiness(id);
            } else if reaped && !process.output_over {
                // Whoever waited for the end of its output is gone.
                let input = ServiceInput::Process(id, ProcessInput::OutputOver);
                let timer = self.timer(Duration::ZERO, input);
                if let Some(process) = self.processes.get_mut(&id) {
                    process.deadlines.deaf = Some(timer);
                }
            }
        }
        self.begin_next();
    }

    /// Asks the processes that were taken over from a supervisor that is gone.
    pub(crate) fn inquire_all(&mut self) {
        for new in self.reserves.keys().copied().collect::<Vec<_>>() {
            self.resume_reserve(new);
        }
        for id in self.processes.keys().copied().collect::<Vec<_>>() {
            self.inquire(id);
        }
    }

    /// Whether what it runs differs from this, which a configuration has now.
    pub(crate) fn differs_from(&self, service: &Service) -> bool {
        let mut wanted = service.clone();
        if let Some(command) = &self.command {
            wanted.command.clone_from(command);
        }
        wanted != self.service
    }
}

fn record_set<'a>(set: &'a Set, held: &mut Held<'a>) -> Vec<record::Listener> {
    set.iter().map(|listener| listener.record(held)).collect()
}

fn record_process<'a>(process: &'a Process, held: &mut Held<'a>) -> record::Process {
    use std::os::fd::AsFd;
    let native = &process.native;
    let running = process.family.as_ref().map(|family| record::Running {
        pid: family.main.as_raw(),
        start_time: family.start_time,
        reaped: family.main_is_reaped,
        pidfd: family
            .pidfd
            .as_ref()
            .map(|(handle, pidfd)| held.hold(*handle, pidfd.as_fd())),
        child: family.bond == Bond::Child,
        notify: process.notify.as_ref().map(|notify| notify.record(held)),
        native: native.socket.as_ref().map(|socket| socket.record(held)),
        rendezvous: family.rendezvous.clone(),
        group: family.group.clone(),
        output: process.output.as_ref().map(|output| output.record(held)),
    });
    let deadlines = &process.deadlines;
    let since = process.since.duration_since(SystemTime::UNIX_EPOCH);
    record::Process {
        id: process.id,
        plan: process.plan_id,
        generation: process.generation,
        slot: process.slot,
        phase: process.phase,
        since_ms: in_ms(since.unwrap_or_default()),
        running,
        output_over: process.output_over,
        reason: process.reason.clone(),
        status: process.status.clone(),
        watchdog_ms: process.watchdog.map(in_ms),
        custody: native.custody,
        hello: native.hello.as_ref().map(hello_text),
        connections: native.connections.clone(),
        deaf: native.deaf,
        restored: native.restored,
        thawed: native.thawed,
        ready_until_ms: deadlines
            .ready
            .as_ref()
            .and_then(|(_, timer)| timer.ends_ms()),
        drain_until_ms: deadlines
            .drain
            .as_ref()
            .and_then(|(_, timer)| timer.ends_ms()),
        proved_at_ms: deadlines.probation.as_ref().and_then(Timer::ends_ms),
        settled_at_ms: deadlines.settled.as_ref().and_then(Timer::ends_ms),
    }
}

fn hello_text(hello: &Hello) -> String {
    let report = Report::Hello {
        protocol: PROTOCOL,
        version: hello.version.clone(),
        reads: hello.reads.clone(),
        way_back: hello.way_back,
    };
    String::from_utf8_lossy(&report.to_bytes()).into_owned()
}

fn parse_hello(text: &str) -> Option<Hello> {
    match Report::parse(text.as_bytes()) {
        Ok(Report::Hello {
            version,
            reads,
            way_back,
            ..
        }) => Some(Hello {
            version,
            reads,
            way_back,
        }),
        Ok(_) | Err(_) => None,
    }
}

fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Job {
    fn record(&self) -> record::Job {
        record::Job {
            what: self.what,
            settings: self.service.as_ref().map(Settings::of),
            command: self.command.clone(),
        }
    }

    fn restore(listed: record::Job) -> Self {
        Self {
            what: listed.what,
            service: listed.settings.map(Settings::into_service),
            command: listed.command,
            waiters: Vec::new(),
            asked: Instant::now(),
        }
    }
}

impl Migration {
    fn record(&self, new: ProcessId) -> record::Migration {
        record::Migration {
            new,
            old: self.old,
            number: self.number,
            purpose: self.purpose,
            state: self.state,
            freeze_ms: in_ms(self.freeze),
            yielded: self.yielded,
            way_back: self.way_back,
        }
    }
}
