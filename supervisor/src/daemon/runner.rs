//! One service as it runs.
//!
//! Owns its processes, listeners, plans and deadlines, and carries what happens to them into the
//! pure machines and their actions out into the world.
//!
//! * Handovers: which comes next is in [`handovers`], what a client is told of it in [`reports`].
//! * Processes: their life is in [`lives`], their time in [`deadlines`], how they are started in
//!   [`starts`], what they say in [`notices`], how they are told to go in [`partings`].
//! * Native programs: they are spoken with in [`natives`]; their state moves in [`migrations`], to
//!   [`outcomes`], is saved in [`saves`] and taken up in [`restores`].

mod connections;
mod deadlines;
mod handovers;
mod health;
mod inquiries;
mod lives;
mod migrations;
mod natives;
mod notices;
mod outcomes;
mod partings;
mod recording;
mod reports;
mod reserves;
mod restores;
mod saves;
mod starts;

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::control_groups::Delegated;
use super::family::Family;
use super::history::History;
use super::input::{Input, Inputs, ServiceInput};
use super::listeners::{self, CannotListen, Inherited, Set};
use super::plan::Plan;
use super::process::Process;
use super::record::Handle;
use super::store::Store;
use super::timer::Timer;
use crate::config::service::{Service, Strategy};
use crate::control::protocol::{
    EventKind, GenerationStatus, ListenerStatus, Report, ServiceStatus,
};
use crate::core::generation::Phase;
use crate::core::service::{self as machine, Action, Event, PlanId, Policy, ProcessId, State};
use handovers::{Active, Job, Parting, Proving};
use lives::Failure;
use migrations::Migration;
use reserves::Reserve;
use saves::Save;
use starts::Command;

/// What every service shares.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) inputs: Inputs,
    pub(crate) history: History,
    /// The limits on open files that programs get: those the supervisor was started with.
    pub(crate) open_files: (u64, u64),
    pub(crate) inherited: Rc<Inherited>,
    /// Where control groups can be made; nowhere if none.
    pub(crate) groups: Option<Rc<Delegated>>,
    /// What marks the processes of this supervisor and of those it follows.
    pub(crate) lineage: Rc<str>,
}

impl Context {
    /// Where the next process can be spoken to once its supervisor is gone: an abstract name that no
    /// other process has.
    pub(crate) fn rendezvous(&self) -> String {
        let Handle(number) = Handle::new();
        format!("@heirloom-{}-{number}", self.lineage)
    }
}

/// What is wanted of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    Start,
    Reload,
    Rollback,
    DryRun,
}

/// A client that waits for a handover.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) answer: oneshot::Sender<Report>,
    pub(crate) until_proven: bool,
}

/// One service.
#[derive(Debug)]
pub(crate) struct Runner {
    context: Context,
    machine: machine::Service,
    /// The settings that hold.
    service: Service,
    /// The command a client gave, in place of the configuration's.
    command: Option<Vec<String>>,
    listeners: Set,
    store: Store,
    plans: BTreeMap<PlanId, Rc<Plan>>,
    processes: BTreeMap<ProcessId, Process>,
    failures: VecDeque<Failure>,
    /// Commands that test processes, by their own.
    commands: BTreeMap<i32, Command>,
    /// Handovers still to come.
    jobs: VecDeque<Job>,
    /// The one whose program is being looked up.
    looking_up: Option<(Job, Timer)>,
    active: Option<Active>,
    backoffs: BTreeMap<usize, Timer>,
    /// States that are moving, by the process that is to own them.
    migrations: BTreeMap<ProcessId, Migration>,
    /// Processes that stay to take their state back, by the process that has it.
    reserves: BTreeMap<ProcessId, Reserve>,
    /// A rollback that gives a state back; and one that has, and is not answered yet.
    returning: Option<Job>,
    returned: Option<Job>,
    /// The last number of a migration, a snapshot or a state that was saved or taken up.
    last_migration: u64,
    /// A state that is being saved.
    saving: Option<Save>,
    /// What could not be saved.
    unsaved: Vec<String>,
    /// It is to stop as soon as it is known who owns a state.
    stop_wanted: bool,
    /// A handover that has committed and is not reported yet.
    parting: Option<Parting>,
    proving: Vec<Proving>,
    /// The listeners of a plan of before that is being brought back.
    restoring: Option<(PlanId, Set)>,
    failed_starts: u32,
    starting_again: Option<Timer>,
    last_handover: Option<Report>,
    last_plan: u64,
    /// Whether it came up at first; not known yet if none.
    came_up: Option<bool>,
    stopped: bool,
}

impl Runner {
    /// Binds a service's listeners; nothing runs yet.
    ///
    /// # Errors
    ///
    /// [`CannotListen`]; nothing is bound then.
    pub(crate) fn new(context: Context, service: Service) -> Result<Self, CannotListen> {
        let listeners = listeners::prepare(&service.listen, &Set::new(), &context.inherited)?;
        for listener in &listeners {
            let text = format!("{} listens on {}", listener.spec.name, listener.bound);
            context
                .history
                .note(&service.name, None, EventKind::Listener, &text);
        }
        Ok(Self {
            context,
            machine: machine::Service::new(policy(&service)),
            service,
            command: None,
            listeners,
            store: Store::default(),
            plans: BTreeMap::new(),
            processes: BTreeMap::new(),
            failures: VecDeque::new(),
            commands: BTreeMap::new(),
            jobs: VecDeque::new(),
            looking_up: None,
            active: None,
            backoffs: BTreeMap::new(),
            migrations: BTreeMap::new(),
            reserves: BTreeMap::new(),
            returning: None,
            returned: None,
            last_migration: 0,
            saving: None,
            unsaved: Vec::new(),
            stop_wanted: false,
            parting: None,
            proving: Vec::new(),
            restoring: None,
            failed_starts: 0,
            starting_again: None,
            last_handover: None,
            last_plan: 0,
            came_up: None,
            stopped: false,
        })
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.service.name
    }

    /// Whether it came up at first; none as long as that is open.
    pub(crate) fn came_up(&self) -> Option<bool> {
        self.came_up
    }

    /// Whether nothing of it runs after it was told to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped && !self.is_keeping()
    }

    /// Whether a handover runs, waits or is being prepared.
    pub(crate) fn is_busy(&self) -> bool {
        self.machine.is_handing_over()
            || self.looking_up.is_some()
            || self.parting.is_some()
            || self.is_returning()
            || !self.jobs.is_empty()
    }

    /// Why its last handover failed, if it did, with the last lines of the program's error output.
    pub(crate) fn last_failure(&self) -> Option<(&str, &[String])> {
        let report = self.last_handover.as_ref()?;
        Some((report.reason.as_deref()?, &report.stderr))
    }

    /// Lets everything finish and end, or ends it now.
    pub(crate) fn stop(&mut self, at_once: bool) {
        if !at_once && self.is_undecided() {
            // A commit is under way: a moment later it is known whose state is to be saved.
            self.stop_wanted = true;
            return;
        }
        if !at_once && !self.reserves.is_empty() {
            // A moment later it is known that nobody but the one that serves has the state.
            self.stop_wanted = true;
            return self.dismiss_reserves();
        }
        self.stop_wanted = false;
        self.report_parting();
        self.starting_again = None;
        for job in self
            .jobs
            .drain(..)
            .chain(self.returning.take())
            .chain(self.looking_up.take().map(|(job, _)| job))
        {
            let report = job.report(&self.service, "the service is being stopped");
            job.answer(&report);
        }
        self.drive(if at_once {
            Event::StopAtOnce
        } else {
            Event::Stop
        });
    }

    /// Something concerns this service.
    pub(crate) fn handle(&mut self, input: ServiceInput) {
        match input {
            ServiceInput::LookedUp(result) => self.looked_up(*result),
            ServiceInput::BackoffOver(slot) => {
                self.backoffs.remove(&slot);
                self.drive(Event::BackoffOver(slot));
            }
            ServiceInput::Process(process, input) => self.on_process(process, input),
            ServiceInput::StoredClosed(key) => self.store.closed(key),
            ServiceInput::Parted => self.parted(),
            ServiceInput::Uncounted => self.report_parting(),
            ServiceInput::StartAgain => self.start_anew(),
            ServiceInput::Drafted(number, made) => self.drafted(number, *made),
            ServiceInput::SaveOver(number) => self.save_took_too_long(number),
            ServiceInput::Kept(number, kept) => self.kept(number, kept),
        }
    }

    /// Feeds the machine and carries out what it answers, until there is nothing left to do.
    fn drive(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.machine.handle(event) {
                self.act(action, &mut events);
            }
        }
        self.reserves_changed();
    }

    fn act(&mut self, action: Action, events: &mut VecDeque<Event>) {
        use crate::core::generation::Event as Life;
        match action {
            Action::Spawn {
                process,
                plan,
                generation,
                slot,
            } => {
                self.spawn(process, plan, generation, slot, events);
            }
            Action::Retire(process) => {
                if let Some(active) = &mut self.active {
                    active.first_retired.get_or_insert_with(Instant::now);
                }
                let stays = self.reserve_with(process).is_some();
                let event = if stays { Life::Reserve } else { Life::Retire };
                self.life(process, event, events);
            }
            Action::Discard(process) => self.life(process, Life::Discard, events),
            Action::Kill(process) => self.life(process, Life::Kill, events),
            Action::StartProbation(process) => self.start_probation(process),
            Action::StartBackoff { slot, delay } => {
                let text = format!(
                    "the next attempt is in {}",
                    humantime::format_duration(delay)
                );
                self.note(None, EventKind::BackingOff, &text);
                let timer = self.timer(delay, ServiceInput::BackoffOver(slot));
                self.backoffs.insert(slot, timer);
            }
            Action::Begun { from, to } => self.begun(from, to),
            Action::WaitingForRoom => {
                let text =
                    "waiting for a former generation to end: as many drain as most_draining allows";
                self.note(None, EventKind::Waiting, text);
            }
            Action::Finished(finish) => self.finished(finish),
            Action::Proven(plan) => self.proven(plan),
            Action::Forget(plan) => {
                self.plans.remove(&plan);
            }
            Action::Stopped => {
                self.stopped = true;
                self.note(
                    None,
                    EventKind::Stopped,
                    "nothing of the service runs any more",
                );
            }
        }
    }

    fn note(&self, generation: Option<u64>, kind: EventKind, text: &str) {
        self.context
            .history
            .note(&self.service.name, generation, kind, text);
    }

    fn timer(&self, delay: std::time::Duration, input: ServiceInput) -> Timer {
        let input = Input::Service(self.service.name.clone(), input);
        Timer::start(&self.context.inputs, delay, input)
    }

    /// What runs, without what has to be measured.
    pub(crate) fn status(&self) -> ServiceStatus {
        let listeners = self.listeners.iter().map(|listener| ListenerStatus {
            name: listener.spec.name.clone(),
            address: listener.bound.clone(),
            queued: listener.queued(),
        });
        let generations = self.processes.values().map(|process| GenerationStatus {
            generation: process.generation,
            pid: process.pid().map(nix::unistd::Pid::as_raw),
            phase: phase_word(process.phase).to_owned(),
            instance: process.slot,
            program: process.plan.program.clone(),
            resolved: process.plan.resolved.display().to_string(),
            since: humantime::format_rfc3339_seconds(process.since).to_string(),
            connections: 0,
            rss_bytes: 0,
            memory_bytes: None,
            status: process.status.clone(),
            native: process.native.hello.is_some(),
            version: process
                .native
                .hello
                .as_ref()
                .map(|hello| hello.version.clone()),
        });
        ServiceStatus {
            name: self.service.name.clone(),
            state: self.state_word().to_owned(),
            listeners: listeners.collect(),
            generations: generations.collect(),
            last_handover: self.last_handover.clone(),
            stored: self.store.iter().map(|(name, _)| name.to_owned()).collect(),
        }
    }

    /// Its families, by the pid of their main process.
    pub(crate) fn families(&self) -> Vec<(i32, Family)> {
        let families = self.processes.values();
        families
            .filter_map(|process| process.family.clone())
            .map(|family| (family.main.as_raw(), family))
            .collect()
    }

    /// Its state in one word.
    pub(crate) fn state_word(&self) -> &'static str {
        match self.machine.state() {
            State::Starting => "starting",
            State::Serving => "serving",
            State::HandingOver => "handing-over",
            State::Draining => "draining",
            State::BackingOff => "backing-off",
            State::Stopped if self.looking_up.is_some() => "starting",
            State::Stopped => "stopped",
        }
    }

    /// The highest generation that serves.
    pub(crate) fn serving_generation(&self) -> Option<u64> {
        let serving = self
            .processes
            .values()
            .filter(|process| process.phase == Phase::Serving);
        serving.map(|process| process.generation).max()
    }
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Serving => "serving",
        Phase::Reserve => "reserve",
        Phase::Draining => "draining",
        Phase::Killed => "killed",
        Phase::Clearing => "clearing",
        Phase::Gone => "gone",
    }
}

/// A service's settings as the machine needs them.
fn policy(service: &Service) -> Policy {
    Policy {
        strategy: match service.strategy {
            Strategy::Auto | Strategy::Handover | Strategy::Overlap => machine::Strategy::Overlap,
            Strategy::Sequential => machine::Strategy::Sequential,
        },
        instances: service.instances.0,
        most_draining: service.most_draining.0,
    }
}
