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
    kept: VecDeque<String>,
    /// Whether it was said that it cannot be told something.
    complained: bool,
    watchdog: Option<Duration>,
    busy: bool,
    heartbeat: Option<Timer>,
}

impl Systemd {
    pub(crate) fn new(inputs: &Inputs) -> Self {
        let mut systemd = Self {
            inputs: inputs.clone(),
            socket: connect(),
            kept: VecDeque::new(),
            complained: false,
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
        if self.kept.len() >= MOST_KEPT {
            self.kept.pop_front();
        }
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        self.kept.push_back(lines.join("\n"));
        self.send_kept();
    }

    /// Whether there is a systemd to speak to.
    pub(crate) fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// Whether systemd has taken everything that it was told so far.
    pub(crate) fn is_told(&self) -> bool {
        self.kept.is_empty()
    }

    /// Has systemd keep a descriptor, for the next supervisor should this one die. It is never polled: what
    /// is to be forgotten is said.
    ///
    /// # Errors
    ///
    /// Systemd was not told. Nothing is kept here for later: whoever asks knows what is missing. If it was
    /// only that systemd does not listen now (`WouldBlock`), a heartbeat comes soon.
    pub(crate) fn keep(&mut self, name: &str, fd: &OwnedFd) -> io::Result<()> {
        let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        self.about_store(&text, std::slice::from_ref(fd))
    }

    /// Has systemd forget a descriptor.
    ///
    /// # Errors
    ///
    /// As for [`keep`](Self::keep).
    pub(crate) fn forget(&mut self, name: &str) -> io::Result<()> {
        self.about_store(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    fn about_store(&mut self, text: &str, fds: &[OwnedFd]) -> io::Result<()> {
        self.send_kept();
        if !self.is_told() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let sent = fds::send(socket, text.as_bytes(), fds);
        match &sent {
            Ok(()) => self.complained = false,
            Err(error) => self.could_not_be_told(error),
        }
        sent
    }

    fn send_kept(&mut self) {
        while let (Some(socket), Some(message)) = (&self.socket, self.kept.front()) {
            let none: &[OwnedFd] = &[];
            if let Err(error) = fds::send(socket, message.as_bytes(), none) {
                self.could_not_be_told(&error);
                if error.kind() == io::ErrorKind::WouldBlock {
                    return;
                }
            }
            self.kept.pop_front();
        }
    }

    fn could_not_be_told(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::WouldBlock {
            tracing::debug!("systemd does not listen; it is told again later");
            self.heartbeat = Some(Timer::start(
                &self.inputs,
                TRY_AGAIN_AFTER,
                Input::Heartbeat,
            ));
        } else if !self.complained {
            self.complained = true;
            tracing::warn!("systemd could not be told: {error}");
        }
    }
}

/// Whether systemd (248 or later) started this very process: then nobody else manages what is below its unit.
pub(crate) fn has_started_us() -> bool {
    let pid = std::env::var("SYSTEMD_EXEC_PID").ok();
    pid.and_then(|pid| pid.parse().ok()) == Some(std::process::id())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::input::QUEUE;

    #[tokio::test]
    async fn what_systemd_does_not_take_waits_and_a_descriptor_is_not_said_to_be_kept() {
        let (socket, peer) = UnixDatagram::pair().unwrap();
        for one in [&socket, &peer] {
            one.set_nonblocking(true).unwrap();
        }
        while socket.send(b"full").is_ok() {}
        let (inputs, _queue) = tokio::sync::mpsc::channel(QUEUE);
        let mut systemd = Systemd {
            inputs,
            socket: Some(socket),
            kept: VecDeque::new(),
            complained: false,
            watchdog: None,
            busy: false,
            heartbeat: None,
        };
        systemd.ready("serves");
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let kind = |told: io::Result<()>| told.map_err(|error| error.kind());
        assert_eq!(kind(systemd.keep("x", &fd)), Err(io::ErrorKind::WouldBlock));
        assert!(!systemd.is_told());
        assert!(systemd.heartbeat.is_some(), "it is told again");
        let mut buffer = [0; 4096];
        while peer.recv(&mut buffer).is_ok() {}
        assert_eq!(kind(systemd.keep("x", &fd)), Ok(()));
        assert!(systemd.is_told());
        let mut heard = || {
            let length = peer.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert!(heard().contains("READY=1"));
        assert!(heard().contains("FDSTORE=1\nFDNAME=x\n"));
    }
}
