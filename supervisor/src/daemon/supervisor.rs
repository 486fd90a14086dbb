//! The loop that answers every input, and the supervisor's own life: start, reload of the
//! configuration, end.
//!
//! It knows services by name and leaves what happens within one to its runner.

mod requests;
mod succession;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot};

use super::adoption::{self, FromStore};
use super::control_groups::Delegated;
use super::family::Bond;
use super::history::History;
use super::input::{Input, Inputs, QUEUE, ServiceInput, Signal};
use super::listeners::{Inherited, Returning};
use super::record::{Handle, handles::Found, slots::Slots};
use super::runner::{Context, Runner, What};
use super::server::{Before, Desk, Server};
use super::signals;
use super::strays::Strays;
use super::systemd::{self, Systemd};
use super::timer::Timer;
use super::upgrade::{self, Passed};
use crate::cli::exit;
use crate::config::file::Configuration;
use crate::config::listen::{Address, ListenSpec, Options};
use crate::control::place::ControlSocket;
use crate::control::protocol::{Status, Upgraded};
use crate::log::Log;
use succession::{Keeping, Succession, Upgrade};

/// So many threads at most read files, and measure, while the loop goes on.
const MOST_THREADS: usize = 4;

/// After so many inputs the record is brought up to date, even if more are waiting.
const MOST_UNRECORDED: u32 = 64;

/// What a supervisor is started with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) origin: Origin,
    /// Taken before there were threads.
    pub(crate) signals: SignalFd,
    pub(crate) log: Log,
}

/// What a supervisor comes of.
#[derive(Debug)]
pub(crate) enum Origin {
    /// Somebody started it.
    First(Box<First>),
    /// It is what another has become.
    Successor(Box<Passed>),
}

/// A supervisor that somebody started.
#[derive(Debug)]
pub(crate) struct First {
    pub(crate) configuration: Configuration,
    /// The file it came from, to be read again at each reload.
    pub(crate) file: Option<PathBuf>,
    pub(crate) control: PathBuf,
    /// What systemd passed, taken before there were threads.
    pub(crate) inherited: Inherited,
    /// What systemd kept for one that is gone.
    pub(crate) from_store: FromStore,
}

/// Runs a supervisor to its end.
pub(crate) fn run(start: Start) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MOST_THREADS)
        // A thread that cannot be started would be the end of the supervisor; with one that never ends,
        // what cannot be done at once waits for it.
        .thread_keep_alive(Duration::MAX)
        .build();
    if let Ok(runtime) = &runtime {
        drop(runtime.spawn_blocking(|| ()));
    }
    match runtime {
        Ok(runtime) => runtime.block_on(supervise(start)),
        Err(error) => {
            tracing::error!("cannot start: {error}");
            exit::FAILED.into()
        }
    }
}

/// Whether the threads a supervisor needs from its start on can be had: the log's, and one that reads
/// files.
///
/// # Errors
///
/// The system's; most likely a limit on processes.
pub(crate) fn check_threads() -> std::io::Result<()> {
    // Each lives until the lock is let go of, so that both are there at once.
    let lock = std::sync::Mutex::new(());
    std::thread::scope(|scope| {
        let held = lock.lock();
        for _ in 0..2 {
            std::thread::Builder::new().spawn_scoped(scope, || drop(lock.lock()))?;
        }
        drop(held);
        Ok(())
    })
}

fn bind_control(first: &First) -> Result<ControlSocket, String> {
    ControlSocket::bind(&first.control).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "a supervisor named {} is running already ({error}); it was left alone",
            first.configuration.name
        ),
        _other => {
            format!(
                "cannot bind the control socket {}: {error}",
                first.control.display()
            )
        }
    })
}

/// A supervisor holds descriptors for every generation; it takes what it may, and hands its
/// programs the limits it was started with.
fn raise_open_files() -> (u64, u64) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return (1024, 4096);
    };
    if let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        tracing::warn!("the limit on open files stays at {soft}: {errno}");
    }
    (soft, hard)
}

/// A supervisor that is about to answer its first input.
struct Begun {
    supervisor: Supervisor,
    server: Server,
}

async fn supervise(start: Start) -> ExitCode {
    let (inputs, mut queue) = mpsc::channel(QUEUE);
    drop(tokio::spawn(signals::forward(
        start.signals,
        inputs.clone(),
    )));
    // Whatever fails, why is written before this ends.
    let log = Rc::new(start.log);
    let begun = match start.origin {
        Origin::First(first) => begin(*first, Rc::clone(&log), inputs),
        Origin::Successor(passed) => succeed(*passed, Rc::clone(&log), inputs),
    };
    let Begun {
        mut supervisor,
        server,
    } = match begun {
        Ok(begun) => begun,
        Err(reason) => {
            tracing::error!("{reason}");
            return exit::FAILED.into();
        }
    };
    let mut unrecorded = 0;
    while let Some(input) = queue.recv().await {
        supervisor.answer(input);
        unrecorded += 1;
        if supervisor.settle() {
            supervisor.strays.end().await;
            if let Some(groups) = &supervisor.context.groups {
                groups.sweep();
            }
            let code = supervisor.end();
            drop(supervisor);
            server.end().await;
            return code;
        }
        let is_idle = queue.is_empty();
        if is_idle || unrecorded >= MOST_UNRECORDED {
            supervisor.keep_record();
            unrecorded = 0;
        }
        if is_idle {
            supervisor.follow_if_at_rest();
        }
    }
    exit::FAILED.into()
}

/// Begins with what somebody has asked for.
fn begin(mut first: First, log: Rc<Log>, inputs: Inputs) -> Result<Begun, String> {
    // Orphans of a generation become ours, so that none outlives it unseen.
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|errno| format!("cannot adopt orphans: {errno}"))?;
    let control = bind_control(&first)?;
    // What a supervisor has left may take more than the limit of before.
    let open_files = raise_open_files();
    let record_path = record_path(&first.control);
    let mut by_systemd = std::mem::take(&mut first.from_store.handles);
    let kept_file = first.from_store.record.is_some();
    let left = adoption::left_behind(
        &record_path,
        &first.configuration.name,
        &succession::boot(),
        first.from_store,
    )?;
    let (record, slots, mut found) = match left {
        Some(left) => {
            let slots = Slots::with(left.file, &record_path);
            (Some(left.record), Ok(slots), left.found)
        }
        None => (None, Slots::create(&record_path), Found::default()),
    };
    for handle in &by_systemd {
        Handle::begin_after(*handle);
    }
    let file = Handle::new();
    if kept_file && record.is_some() {
        by_systemd.insert(file);
    }
    let generation = record.as_ref().map_or(1, |record| record.generation + 1);
    let lineage = record
        .as_ref()
        .map_or_else(succession::new_lineage, |record| record.lineage.clone());
    let history = History::new();
    let desk = Desk::new();
    let name = first.configuration.name.clone();
    let before = Before {
        clients: Vec::new(),
        found: &mut found,
        upgraded: upgraded(&name, generation),
    };
    let listener = control.listener.try_clone();
    let server = listener
        .and_then(|one| Server::start(one, &inputs, &history, &desk, before))
        .map_err(|error| format!("the control socket cannot be used: {error}"))?;
    let keeping = Keeping::new(slots, Some(file), by_systemd);
    let mut supervisor = Supervisor {
        systemd: Systemd::new(&inputs),
        context: Context {
            inputs,
            history,
            open_files,
            inherited: Rc::new(first.inherited),
            groups: Delegated::take().map(Rc::new),
            lineage: lineage.into(),
        },
        name,
        generation,
        program: upgrade::own_program(),
        control: (Handle::new(), control),
        desk,
        keeping,
        upgrade: None,
        strays: Strays::spare_those_there_are(),
        file: first.file,
        log,
        services: BTreeMap::new(),
        removed: Vec::new(),
        stage: Stage::Starting,
        reloading: false,
        refused: None,
        stop_waiters: Vec::new(),
        unsaved: Vec::new(),
        stop_limit: None,
    };
    if kept_file && record.is_none() {
        supervisor.keeping.has_useless_record();
    }
    match record {
        Some(record) => {
            supervisor.adopt(record, first.configuration, &mut found)?;
        }
        None => {
            // Whoever died in the middle of a stop may have left programs that hold the ports.
            if let Some(groups) = supervisor.context.groups.as_ref()
                && systemd::has_started_us()
            {
                groups.end_left_behind();
            }
            supervisor.start(first.configuration)?;
        }
    }
    Ok(Begun { supervisor, server })
}

/// Where the record of a supervisor is that is spoken to at this path.
fn record_path(control: &std::path::Path) -> PathBuf {
    control.with_extension("record")
}

fn upgraded(name: &str, generation: u64) -> Upgraded {
    Upgraded {
        name: name.to_owned(),
        pid: std::process::id().cast_signed(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        supervisor_generation: generation,
    }
}

/// Goes on from where a predecessor in place has left off.
fn succeed(passed: Passed, log: Rc<Log>, inputs: Inputs) -> Result<Begun, String> {
    let Passed { passage, mut found } = passed;
    // The kernel names a process that was executed by descriptor after the descriptor.
    let _unnamed = nix::sys::prctl::set_name(c"heirloom");
    let record = passage.record;
    let lost = |what: &str| format!("the predecessor did not hand its {what} over");
    let listener = found
        .take(passage.control)
        .ok_or_else(|| lost("control socket"))?;
    let control =
        ControlSocket::resume(listener.into(), passage.control_path, passage.control_inode);
    let slots = passage.slots.and_then(|handle| found.take(handle));
    let keeping = Keeping::resume(
        slots.map(|file| Slots::with(file.into(), &record_path(control.place().0))),
        passage.slots,
        passage.kept_by_systemd,
    );
    let history = History::resume(passage.history);
    let desk = Desk::new();
    let generation = record.generation + 1;
    let before = Before {
        clients: passage.clients,
        found: &mut found,
        upgraded: upgraded(&record.name, generation),
    };
    let listener = control.listener.try_clone();
    let server = listener
        .and_then(|one| Server::start(one, &inputs, &history, &desk, before))
        .map_err(|error| format!("the control socket cannot be used: {error}"))?;
    let mut sockets = Returning::default();
    let inherited = Inherited::restore(&passage.inherited, &mut sockets, &mut found)
        .map_err(|error| error.to_string())?;
    let mut supervisor = Supervisor {
        systemd: Systemd::new(&inputs),
        context: Context {
            inputs,
            history,
            open_files: passage.open_files,
            inherited: Rc::new(inherited),
            groups: Delegated::take().map(Rc::new),
            lineage: record.lineage.as_str().into(),
        },
        name: record.name.clone(),
        generation,
        program: record.program.clone(),
        control: (passage.control, control),
        desk,
        keeping,
        upgrade: None,
        strays: Strays::resume(passage.spared),
        file: record.file.clone(),
        log,
        services: BTreeMap::new(),
        removed: Vec::new(),
        stage: Stage::Running,
        reloading: false,
        refused: record.refused.clone(),
        stop_waiters: Vec::new(),
        unsaved: record.unsaved.clone(),
        stop_limit: None,
    };
    // The predecessor's watchdog goes on.
    supervisor.systemd.heartbeat();
    supervisor.restore(record, Bond::Child, &mut found, &mut sockets)?;
    sockets.were_taken_over();
    tracing::info!(
        "this is version {} now, generation {generation} of the supervisor; nothing was interrupted",
        env!("CARGO_PKG_VERSION")
    );
    supervisor.resume();
    if passage.reload {
        supervisor.reload_by_signal();
    }
    // Something may have ended in between.
    supervisor.reap();
    Ok(Begun { supervisor, server })
}

/// How far a supervisor is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Some service has neither come up nor failed to.
    Starting,
    Running,
    /// It was told to end.
    Stopping,
    /// No service came up.
    GivingUp,
}

struct Supervisor {
    context: Context,
    systemd: Systemd,
    name: String,
    /// How often the supervisor has replaced itself, from 1.
    generation: u64,
    /// The path it was started by.
    program: Option<PathBuf>,
    control: (Handle, ControlSocket),
    desk: Desk,
    keeping: Keeping,
    /// It is about to make way for another.
    upgrade: Option<Upgrade>,
    strays: Strays,
    file: Option<PathBuf>,
    log: Rc<Log>,
    services: BTreeMap<String, Runner>,
    /// Services the configuration no longer has, on their way out.
    removed: Vec<Runner>,
    stage: Stage,
    /// Whether systemd was told of a reload that is not over.
    reloading: bool,
    /// Why the last reload by a signal was refused.
    refused: Option<String>,
    stop_waiters: Vec<oneshot::Sender<Vec<String>>>,
    /// States that could not be saved when their processes were stopped.
    unsaved: Vec<String>,
    stop_limit: Option<Timer>,
}

impl Supervisor {
    fn start(&mut self, mut configuration: Configuration) -> Result<(), String> {
        self.systemd.set_busy(true);
        self.give_unclaimed(&mut configuration);
        for (name, service) in configuration.services {
            let runner = Runner::new(self.context.clone(), service)
                .map_err(|error| format!("service {name}: {error}"))?;
            self.services.insert(name, runner);
        }
        for runner in self.services.values_mut() {
            runner
                .request(What::Start, None, None, None)
                .map_err(|declined| declined.to_string())?;
        }
        Ok(())
    }

    /// A supervisor of one service gives it every socket systemd passed.
    fn give_unclaimed(&self, configuration: &mut Configuration) {
        let specs = configuration
            .services
            .values()
            .flat_map(|service| &service.listen);
        let unclaimed = self.context.inherited.unclaimed(specs);
        if unclaimed.is_empty() {
            return;
        }
        if configuration.services.len() > 1 {
            tracing::warn!(
                "systemd passed {}, which no service takes; add listen = [\"fd:NAME\"] to one",
                unclaimed.join(", ")
            );
            return;
        }
        for service in configuration.services.values_mut() {
            let taken: Vec<String> = service
                .listen
                .iter()
                .map(|listen| listen.name.clone())
                .collect();
            let free = unclaimed.iter().filter(|name| !taken.contains(name));
            service.listen.extend(free.map(|name| ListenSpec {
                name: name.clone(),
                address: Address::Inherited(name.clone()),
                options: Options::default(),
            }));
        }
    }

    fn answer(&mut self, input: Input) {
        match input {
            Input::Signal(Signal::Reload { sender }) => {
                tracing::info!(
                    "told to reload by a signal of process {}",
                    sender.unwrap_or(0)
                );
                match &mut self.upgrade {
                    // It is not lost: the successor begins it, or this one if there is none.
                    Some(upgrade) => upgrade.reload = true,
                    None => self.reload_by_signal(),
                }
            }
            Input::Signal(Signal::Stop) => match self.stage {
                Stage::Starting | Stage::Running => self.stop(None),
                Stage::Stopping | Stage::GivingUp => self.stop_at_once(),
            },
            Input::Signal(Signal::Reopen) => {
                self.log.reopen();
                tracing::info!("log files are opened anew");
            }
            Input::Signal(Signal::Upgrade) => {
                tracing::info!("told to upgrade by a signal");
                self.make_way(Succession::InPlace, None, None);
            }
            Input::Signal(Signal::ChildEnded) => self.reap(),
            Input::Asked(asked) => self.asked(asked),
            Input::Service(name, input) => self.of_service(&name, input),
            Input::StopOver => self.stop_at_once(),
            Input::Tried(result) => self.tried(result),
            // It is looked at after every input.
            Input::MayUpgrade => {}
            Input::UpgradeOver => self.upgrade_took_too_long(),
            Input::Heartbeat => self.systemd.heartbeat(),
        }
    }

    fn of_service(&mut self, name: &str, input: ServiceInput) {
        // A removed service and a new one of the same name do not exist at once.
        if let Some(runner) = self.services.get_mut(name) {
            runner.handle(input);
        } else if let Some(runner) = self.removed.iter_mut().find(|runner| runner.name() == name) {
            runner.handle(input);
        }
    }

    /// Reaps everything that has ended: children of ours and orphans that were handed to us.
    fn reap(&mut self) {
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        self.runners()
                            .any(|runner| runner.child_ended(pid, &status));
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::error!("children cannot be reaped: {errno}");
                    break;
                }
            }
        }
        for runner in self.runners() {
            runner.check_for_empty();
        }
    }

    fn runners(&mut self) -> impl Iterator<Item = &mut Runner> {
        self.services.values_mut().chain(&mut self.removed)
    }

    fn stop(&mut self, limit: Option<Duration>) {
        if let Some(limit) = limit {
            self.stop_limit = Some(Timer::start(&self.context.inputs, limit, Input::StopOver));
        }
        if matches!(self.stage, Stage::Stopping | Stage::GivingUp) {
            return;
        }
        self.give_upgrade_up("the supervisor is being stopped");
        tracing::info!("stopping: every service finishes what it has begun");
        self.stage = Stage::Stopping;
        self.systemd.stopping("finishing what was begun");
        for runner in self.runners() {
            runner.stop(false);
        }
    }

    fn stop_at_once(&mut self) {
        self.give_upgrade_up("the supervisor is being stopped");
        tracing::warn!("stopping at once");
        self.stage = Stage::Stopping;
        for runner in self.runners() {
            runner.stop(true);
        }
    }

    /// After each input: what follows from the state of all services together. Says whether this is
    /// the end.
    fn settle(&mut self) -> bool {
        let unsaved: Vec<String> = self.runners().flat_map(Runner::take_unsaved).collect();
        self.unsaved.extend(unsaved);
        self.removed.retain(|runner| !runner.is_stopped());
        if self.stage == Stage::Starting {
            let known: Option<Vec<bool>> = self.services.values().map(Runner::came_up).collect();
            if let Some(came_up) = known {
                self.started(&came_up);
            }
        }
        match self.stage {
            Stage::Starting => false,
            Stage::Running => {
                if self.reloading && !self.services.values().any(Runner::is_busy) {
                    self.reloading = false;
                    let status = self.summary();
                    self.systemd.ready(&status);
                }
                false
            }
            Stage::Stopping | Stage::GivingUp => {
                let mut all = self.services.values().chain(&self.removed);
                all.all(Runner::is_stopped)
            }
        }
    }

    fn started(&mut self, came_up: &[bool]) {
        if came_up.contains(&true) {
            self.stage = Stage::Running;
            let status = self.summary();
            self.systemd.ready(&status);
            tracing::info!("{status}");
            return;
        }
        for (name, runner) in &self.services {
            if let Some((reason, stderr)) = runner.last_failure() {
                tracing::error!(service = name, "it did not come up: {reason}");
                for line in stderr {
                    tracing::error!(service = name, "its error output: {line}");
                }
            }
        }
        tracing::error!("no service came up; giving up");
        self.stage = Stage::GivingUp;
        for runner in self.runners() {
            runner.stop(false);
        }
    }

    /// Tells those who wait for the end that it has come; the exit status.
    fn end(&mut self) -> ExitCode {
        // What a program of a supervisor that is gone has left behind descends from nobody here.
        adoption::end_strays(&self.context.lineage, &BTreeSet::new());
        self.forget_record();
        for waiter in self.stop_waiters.drain(..) {
            // The client may have gone.
            let _gone = waiter.send(self.unsaved.clone());
        }
        match self.stage {
            Stage::GivingUp => exit::FAILED.into(),
            Stage::Starting | Stage::Running | Stage::Stopping => {
                tracing::info!("nothing runs any more; ending");
                ExitCode::SUCCESS
            }
        }
    }

    fn summary(&self) -> String {
        let each = self
            .services
            .iter()
            .map(|(name, runner)| match runner.serving_generation() {
                Some(generation) => format!("{name}: generation {generation} serves"),
                None => format!("{name}: {}", runner.state_word()),
            });
        let mut text = each.collect::<Vec<_>>().join(", ");
        if text.len() > 200 {
            text = format!("{} services", self.services.len());
        }
        let failures = self.services.values().filter_map(Runner::last_failure);
        let reasons = self
            .refused
            .iter()
            .map(String::as_str)
            .chain(failures.map(|(why, _)| why));
        if let Some(reason) = reasons.into_iter().next() {
            text.push_str(&format!("; the last reload failed: {reason}"));
        }
        text
    }

    fn status(&self) -> Status {
        Status {
            name: self.name.clone(),
            pid: std::process::id().cast_signed(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            supervisor_generation: self.generation,
            services: self
                .services
                .values()
                .chain(&self.removed)
                .map(Runner::status)
                .collect(),
        }
    }
}
