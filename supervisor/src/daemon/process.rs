//! One process of a service, from the attempt to start it to its end.
//!
//! Owns what exists once a process: its pid, phase, output, notify socket and deadlines; and how a
//! plan, listeners and stored descriptors become a command with exactly the designed environment
//! and descriptors. When it is started and told to go is decided in `core`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use heirloom_handover::environment as names;
use heirloom_handover::message::{Order, Reads};

use super::family::Family;
use super::listeners::Set;
use super::native_socket::NativeSocket;
use super::notify_socket::NotifySocket;
use super::output::{Output, Standard};
use super::plan::{Plan, Unusable};
use super::store::Store;
use super::timer::Timer;
use crate::control::protocol::Connections;
use crate::core::generation::Phase;
use crate::core::service::{Generation, PlanId, ProcessId};
use crate::sys::spawn::{self, Command, Environment, Started};

/// One process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    pub(crate) plan_id: PlanId,
    pub(crate) plan: Rc<Plan>,
    pub(crate) generation: Generation,
    pub(crate) slot: usize,
    pub(crate) phase: Phase,
    pub(crate) since: SystemTime,
    pub(crate) asked: Instant,
    /// None until its program could be executed.
    pub(crate) family: Option<Family>,
    /// Whether its output was read to the end, or long enough, after it was reaped.
    pub(crate) output_over: bool,
    pub(crate) output: Option<Output>,
    pub(crate) notify: Option<NotifySocket>,
    pub(crate) native: Native,
    /// Why it failed, if it did.
    pub(crate) reason: Option<String>,
    /// What it says of itself.
    pub(crate) status: Option<String>,
    pub(crate) watchdog: Option<Duration>,
    /// What it asked of the descriptor store before it was ready: carried out once it is, so that one
    /// that fails has changed nothing.
    pub(crate) wishes: Vec<Wish>,
    pub(crate) deadlines: Deadlines,
    /// So often in a row the command that tests its health has failed.
    pub(crate) unhealthy: u32,
}

/// A request to the descriptor store, with the descriptors that came along.
pub(crate) type Wish = (heirloom_handover::notify::Store, Vec<OwnedFd>);

/// What runs for a process; each is void once dropped.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    /// To become ready, and when that is.
    pub(crate) ready: Option<(Instant, Timer)>,
    /// To end, and when that is.
    pub(crate) drain: Option<(Instant, Timer)>,
    /// What tells that it is ready: a look, a time, a command's next try.
    pub(crate) readiness: Option<Timer>,
    pub(crate) probation: Option<Timer>,
    /// The next look at its health; there is none outside its probation.
    pub(crate) health: Option<Timer>,
    /// Until it has lived long enough for its failures to be forgotten.
    pub(crate) settled: Option<Timer>,
    pub(crate) watchdog: Option<Timer>,
    /// The next attempt to execute its program.
    pub(crate) again: Option<Timer>,
    /// Until it is ended because its state is gone.
    pub(crate) bereft: Option<Timer>,
    /// What tells of its end, if it is not ours to reap.
    pub(crate) adopted: Option<Timer>,
    /// Until it is clear that it is deaf and not dying.
    pub(crate) deaf: Option<Timer>,
}

/// What a process has to do with the handover protocol.
#[derive(Debug, Default)]
pub(crate) struct Native {
    pub(crate) socket: Option<NativeSocket>,
    /// What it said of itself; none as long as it may be a plain program.
    pub(crate) hello: Option<Hello>,
    pub(crate) custody: Custody,
    /// What became of its connections, once it has given its state away and said so.
    pub(crate) connections: Option<Connections>,
    /// Whether nothing more will be heard of it.
    pub(crate) deaf: bool,
    /// Whether its state comes from a file.
    pub(crate) restored: bool,
    /// What the other side said of a migration that its death ended.
    pub(crate) remark: Option<String>,
    /// The number of the last migration it said to have taken its state back from.
    pub(crate) thawed: u64,
    /// Whether it has said that there is no way back from it any more.
    pub(crate) way_lost: bool,
}

/// Why a process cannot be given an order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Untold {
    #[error("it does not read its messages")]
    Full,
    #[error("it has closed its socket of the handover protocol")]
    Closed,
    #[error("the supervisor is short: {0}")]
    System(io::Error),
}

impl Untold {
    /// What it means, where a death or a deafness that is told by itself means more.
    pub(crate) fn unless_closed(self) -> Option<String> {
        match self {
            Self::Closed => None,
            Self::Full | Self::System(_) => Some(self.to_string()),
        }
    }
}

/// What a native program says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) version: String,
    pub(crate) reads: Vec<Reads>,
    /// Whether it knows the way back.
    pub(crate) way_back: bool,
}

/// Whether a process has the service's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Custody {
    /// Nothing was said of it yet; a plain program has whatever it has.
    #[default]
    Unasked,
    /// It waits until a state is in its place: one that is being saved, or taken up by another process.
    Waiting,
    /// It takes the state over from another process.
    Receiving,
    /// It takes a saved state up, by an order of this number; `ready` once it has verified it.
    Restoring { number: u64, ready: bool },
    /// It has it.
    Owner,
    /// It was let go before it had it.
    Dismissed,
    /// Another has it, by a migration of this number, and it has not said that it knows; `retire` if it
    /// is to be told to end once it does.
    Parting { number: u64, retire: bool },
    /// Another has it, and it knows.
    Yielded,
}

impl Process {
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.family.as_ref().map(|family| family.main)
    }

    /// Sends a signal to the process that was started, if it still is there.
    pub(crate) fn tell(&self, signal: Signal) {
        if let Some(family) = &self.family {
            family.signal_main(signal);
        }
    }

    /// Sends a signal to every process of the generation.
    pub(crate) fn tell_all(&self, signal: Signal) {
        if let Some(family) = &self.family {
            family.signal(signal);
        }
    }

    /// Sends an order of the handover protocol, without waiting.
    ///
    /// # Errors
    ///
    /// [`Untold`]; the order was not sent.
    pub(crate) fn order(&self, order: &Order, along: &[BorrowedFd<'_>]) -> Result<(), Untold> {
        let Some(socket) = &self.native.socket else {
            return Err(Untold::Closed);
        };
        socket
            .tell(order, along)
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => Untold::Full,
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Untold::Closed,
                _other => Untold::System(error),
            })
    }

    /// Whether its main process has ended, also when that was not told yet.
    pub(crate) fn is_dead(&self) -> bool {
        let family = self.family.as_ref();
        family.is_some_and(|family| !family.main_is_alive())
    }

    /// Whether it has ended or seems to: a process that ends closes its socket first.
    pub(crate) fn is_ending(&self) -> bool {
        let socket = self.native.socket.as_ref();
        self.is_dead() || socket.is_some_and(NativeSocket::is_closed)
    }

    /// Whether nothing of it is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.family
            .as_ref()
            .is_none_or(|family| family.main_is_reaped && family.members().is_empty())
    }
}

/// Which of a service's processes one is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number {
    pub(crate) generation: Generation,
    pub(crate) instance: usize,
}

/// How a process is heard and spoken to.
#[derive(Debug)]
pub(crate) struct Ends<'a> {
    /// Where it is to be spoken to once the supervisor is gone.
    pub(crate) rendezvous: &'a str,
    pub(crate) notify: &'a NotifySocket,
    /// Its end of the socket of the handover protocol.
    pub(crate) native: OwnedFd,
    pub(crate) standard: Standard,
    /// Whether it is the first to be killed where memory runs out.
    pub(crate) expendable: bool,
    /// Where its family is kept together.
    pub(crate) group: Option<spawn::Group>,
}

/// Starts a plan's program once.
///
/// # Errors
///
/// [`Unusable`] with the reason; `passing` if another try may succeed.
pub(crate) fn start(
    plan: &Plan,
    number: Number,
    listeners: &Set,
    store: &Store,
    ends: Ends<'_>,
    open_files: (u64, u64),
) -> Result<Started, Unusable> {
    let system = |error: io::Error| plan.explain_system(&error);
    let mut inherited = Vec::new();
    for listener in listeners {
        inherited.push(listener.fd.try_clone().map_err(system)?);
    }
    for (_, fd) in store.iter() {
        inherited.push(fd.try_clone_to_owned().map_err(system)?);
    }
    // Behind all that LISTEN_FDS counts.
    inherited.push(ends.native.try_clone().map_err(system)?);
    let command = Command {
        program: plan.program()?,
        arguments: arguments(plan)?,
        environment: environment(plan, number, listeners, store, &ends),
        directory: plan
            .directory
            .as_fd()
            .try_clone_to_owned()
            .map_err(system)?,
        standard: ends.standard,
        inherited,
        privileges: plan.privileges.clone(),
        open_files,
        expendable: ends.expendable,
        group: ends.group,
    };
    spawn::spawn(command).map_err(|failure| explain(plan, failure))
}

fn explain(plan: &Plan, failure: spawn::Failure) -> Unusable {
    let error = io::Error::from_raw_os_error(failure.errno);
    match failure.stage {
        spawn::Stage::Execute => plan.explain(failure.errno),
        spawn::Stage::Fork | spawn::Stage::Prepare => plan.explain_system(&error),
        spawn::Stage::Directory => plan.explain_step("change to its directory", &error),
        spawn::Stage::Identity => plan.explain_step("become its user", &error),
        spawn::Stage::Privileges => plan.explain_step("limit its privileges", &error),
    }
}

fn arguments(plan: &Plan) -> Result<Vec<CString>, Unusable> {
    let words = plan.service.command.iter();
    words
        .map(|word| {
            CString::new(word.as_str())
                .map_err(|_| plan.explain_step("pass a NUL", &io::ErrorKind::InvalidInput.into()))
        })
        .collect()
}

fn environment(
    plan: &Plan,
    number: Number,
    listeners: &Set,
    store: &Store,
    ends: &Ends<'_>,
) -> Environment {
    use std::os::unix::ffi::OsStrExt;
    let mut environment = Environment::default();
    for (name, value) in &plan.environment {
        environment.set(name.as_bytes(), value.as_bytes());
    }
    let mut set = |name: &str, value: &str| environment.set(name.as_bytes(), value.as_bytes());
    let fd_names: Vec<&str> = listeners
        .iter()
        .map(|listener| listener.spec.name.as_str())
        .chain(store.iter().map(|(name, _)| name))
        .collect();
    if !fd_names.is_empty() {
        set(names::LISTEN_FDS, &fd_names.len().to_string());
        set(names::LISTEN_FDNAMES, &fd_names.join(":"));
    }
    let ports: Vec<String> = listeners
        .iter()
        .zip(names::FIRST_FD..)
        .map(|(listener, fd)| format!("{}={fd}", listener.starter_key))
        .collect();
    set(names::SERVER_STARTER_PORT, &ports.join(";"));
    let generation = number.generation.to_string();
    set(names::SERVER_STARTER_GENERATION, &generation);
    set(names::HEIRLOOM_GENERATION, &generation);
    set(names::HEIRLOOM_INSTANCE, &number.instance.to_string());
    set(names::HEIRLOOM_SERVICE, &plan.service.name);
    set(names::NOTIFY_SOCKET, &ends.notify.address);
    set(names::HEIRLOOM_RENDEZVOUS, ends.rendezvous);
    let native = (names::FIRST_FD..).nth(fd_names.len());
    set(names::HEIRLOOM_FD, &native.unwrap_or_default().to_string());
    if let Some(watchdog) = plan.service.watchdog {
        set(names::WATCHDOG_USEC, &watchdog.0.as_micros().to_string());
        environment.set_to_pid(names::WATCHDOG_PID);
    }
    if !fd_names.is_empty() {
        environment.set_to_pid(names::LISTEN_PID);
    }
    environment
}

/// How a process ended, for people.
pub(crate) fn describe(status: &WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exited with status {code}"),
        WaitStatus::Signaled(_, signal, true) => format!("was killed by {signal} (core dumped)"),
        WaitStatus::Signaled(_, signal, false) => format!("was killed by {signal}"),
        WaitStatus::Stopped(..)
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive => "ended".to_owned(),
    }
}

/// Starts the command that tests readiness; it inherits nothing but the environment.
///
/// # Errors
///
/// [`Unusable`] with the reason.
pub(crate) fn start_ready_command(
    command: &Plan,
    standard: Standard,
    tested: Pid,
    open_files: (u64, u64),
) -> Result<Pid, Unusable> {
    use std::os::unix::ffi::OsStrExt;
    let mut environment = Environment::default();
    for (name, value) in &command.environment {
        environment.set(name.as_bytes(), value.as_bytes());
    }
    environment.set(b"HEIRLOOM_PID", tested.to_string().as_bytes());
    let system = |error: io::Error| command.explain_system(&error);
    let started = spawn::spawn(Command {
        program: command.program()?,
        arguments: arguments(command)?,
        environment,
        directory: command
            .directory
            .as_fd()
            .try_clone_to_owned()
            .map_err(system)?,
        standard,
        inherited: Vec::<OwnedFd>::new(),
        privileges: command.privileges.clone(),
        open_files,
        expendable: false,
        group: None,
    });
    started
        .map(|one| one.pid)
        .map_err(|failure| explain(command, failure))
}
