//! What the supervisor tells systemd of itself (`sd_notify(3)`).
//!
//! Only the supervisor speaks to systemd; its children have sockets of their own. Without
//! `NOTIFY_SOCKET` every call does nothing. No call waits: what systemd does not take at once is
//! kept, in order, and tried again, for a stalled systemd must not stall the services.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use heirloom_handover::fds;
use sd_notify::NotifyState;

use super::input::{Input, Inputs};
use super::timer::Timer;

/// How much more time is asked for while something takes long; asked again well before it is over.
const EXTENSION: Duration = Duration::from_secs(30);

/// How often it is asked for.
const EXTEND_EVERY: Duration = Duration::from_secs(10);

/// How soon what systemd did not take is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// So many messages are kept; the oldest go first.
const MOST_KEPT: usize = 32;

/// The way to systemd.
#[derive(Debug)]
pub(crate) struct Systemd {
    inputs: Inputs,
    socket: Option<UnixDatagram>,
    kept: VecDeque<Message>,
    watchdog: Option<Duration>,
    busy: bool,
    heartbeat: Option<Timer>,
}

/// A message, with the descriptor that goes along.
#[derive(Debug)]
struct Message {
    text: String,
    /// It is about a descriptor: none of these is ever dropped, for the next supervisor depends on them.
    /// There are as many as there are descriptors.
    of_store: bool,
    fd: Option<OwnedFd>,
}

impl Systemd {
    pub(crate) fn new(inputs: &Inputs) -> Self {
        let mut systemd = Self {
            inputs: inputs.clone(),
            socket: connect(),
            kept: VecDeque::new(),
            watchdog: sd_notify::watchdog_enabled().map(|interval| interval / 2),
            busy: false,
            heartbeat: None,
        };
        systemd.schedule();
        systemd
    }

    /// Everything that could be started has been; or a reload is over.
    pub(crate) fn ready(&mut self, status: &str) {
        let pid = std::process::id();
        self.tell(&[
            NotifyState::Ready,
            NotifyState::MainPid(pid),
            NotifyState::Status(status),
        ]);
        self.set_busy(false);
    }

    /// A reload was asked for. Said for each request, also while another runs: systemd waits for one
    /// that is later than its own.
    pub(crate) fn reloading(&mut self, status: &str) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now, NotifyState::Status(status)]),
            Err(error) => tracing::warn!("the monotonic clock cannot be read: {error}"),
        }
        self.set_busy(true);
    }

    /// The end has begun.
    pub(crate) fn stopping(&mut self, status: &str) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
        self.set_busy(true);
    }

    /// Something takes its time: a start, a reload, the end.
    pub(crate) fn set_busy(&mut self, busy: bool) {
        if self.busy != busy {
            self.busy = busy;
            self.heartbeat();
        }
    }

    /// It is time to ask for more time, or to say that we are alive.
    pub(crate) fn heartbeat(&mut self) {
        self.send_kept();
        if !self.kept.is_empty() {
            return;
        }
        if self.watchdog.is_some() {
            self.tell(&[NotifyState::Watchdog]);
        }
        if self.busy {
            let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
            self.tell(&[NotifyState::ExtendTimeoutUsec(extension)]);
        }
        self.schedule();
    }

    /// An idle supervisor without a watchdog does not wake up at all.
    fn schedule(&mut self) {
        let every = match (self.watchdog, self.busy) {
            (Some(watchdog), true) => Some(watchdog.min(EXTEND_EVERY)),
            (Some(watchdog), false) => Some(watchdog),
            (None, true) => Some(EXTEND_EVERY),
            (None, false) => None,
        };
        let every = match every {
            Some(every) if self.kept.is_empty() => Some(every),
            None if self.kept.is_empty() => None,
            Some(_) | None => Some(TRY_AGAIN_AFTER),
        };
        self.heartbeat = every.map(|every| Timer::start(&self.inputs, every, Input::Heartbeat));
    }
}

impl Systemd {
    fn tell(&mut self, states: &[NotifyState<'_>]) {
        if self.socket.is_none() {
            return;
        }
        let droppable = |message: &Message| !message.of_store;
        if self.kept.iter().filter(|one| droppable(one)).count() >= MOST_KEPT
            && let Some(oldest) = self.kept.iter().position(droppable)
        {
            self.kept.remove(oldest);
        }
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        self.kept.push_back(Message {
            text: lines.join("\n"),
            of_store: false,
            fd: None,
        });
        self.send_kept();
    }

    /// Whether there is a systemd to speak to.
    pub(crate) fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// Has systemd keep a descriptor, for the next supervisor should this one die. It is never polled: what
    /// is to be forgotten is said.
    pub(crate) fn keep(&mut self, name: &str, fd: OwnedFd) {
        self.about_store(format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(fd));
    }

    /// Has systemd forget a descriptor.
    pub(crate) fn forget(&mut self, name: &str) {
        self.about_store(format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
    }

    fn about_store(&mut self, text: String, fd: Option<OwnedFd>) {
        if self.socket.is_some() {
            self.kept.push_back(Message {
                text,
                of_store: true,
                fd,
            });
            self.send_kept();
        }
    }

    fn send_kept(&mut self) {
        let Some(socket) = &self.socket else { return };
        while let Some(message) = self.kept.front() {
            match fds::send(socket, message.text.as_bytes(), message.fd.as_slice()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tracing::debug!("systemd does not listen; it is told again later");
                    self.heartbeat = Some(Timer::start(
                        &self.inputs,
                        TRY_AGAIN_AFTER,
                        Input::Heartbeat,
                    ));
                    return;
                }
                Err(error) => tracing::warn!("systemd could not be told: {error}"),
            }
            self.kept.pop_front();
        }
    }
}

/// The socket systemd named, if it did: a path, or an abstract name behind `@`.
fn connect() -> Option<UnixDatagram> {
    let named = std::env::var("NOTIFY_SOCKET")
        .ok()
        .filter(|named| !named.is_empty())?;
    let address = match named.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&named),
    };
    let connected = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    match connected {
        Ok(socket) => Some(socket),
        Err(error) => {
            tracing::warn!("NOTIFY_SOCKET={named} cannot be reached: {error}");
            None
        }
    }
}
