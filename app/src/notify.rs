//! Reports to the supervisor, in the words of sd_notify(3).
//!
//! The grammar is the crate `sd-notify`'s. The sending is done here, because that crate's socket
//! blocks without a limit when the receiver does not read, and does not know abstract names.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    io::{self, IoSlice},
    os::{
        fd::{AsRawFd, BorrowedFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use sd_notify::NotifyState;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

/// How long a report waits for room in the supervisor's queue.
const SEND_LIMIT: Duration = Duration::from_secs(1);

/// How often it looks for room.
const SEND_RETRY: Duration = Duration::from_millis(10);

/// The longest name of a stored descriptor, as sd_notify(3) fixes it.
const STORED_NAME_BYTES_MAX: usize = 255;

/// The way to the supervisor, or to nobody: without NOTIFY_SOCKET every report succeeds and does
/// nothing. One whose supervisor has died is such a one, too: that nobody listens any more is no reason to
/// stop serving.
#[derive(Debug, Clone)]
pub struct Notifier {
    socket: Option<OsString>,
}

impl Notifier {
    /// Reports to the socket with this path, or abstract name if it begins with `@`.
    pub(crate) fn to(socket: Option<OsString>) -> Self {
        Self { socket }
    }

    /// Whether there is somebody to report to.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Says that this generation serves. Call it once its listeners are accepted from: from here
    /// on the former generation may be told to go.
    ///
    /// # Errors
    ///
    /// The system's, or [`io::ErrorKind::TimedOut`] after a second without room in the queue.
    pub async fn ready(&self, status: &str) -> io::Result<()> {
        let status = one_line(status);
        self.say(&[NotifyState::Ready, NotifyState::Status(&status)])
            .await
    }

    /// Says in words what the process is doing.
    ///
    /// # Errors
    ///
    /// As [`Self::ready`].
    pub async fn status(&self, status: &str) -> io::Result<()> {
        let status = one_line(status);
        self.say(&[NotifyState::Status(&status)]).await
    }

    /// Says that this generation has begun to end.
    ///
    /// # Errors
    ///
    /// As [`Self::ready`].
    pub async fn stopping(&self, status: &str) -> io::Result<()> {
        let status = one_line(status);
        self.say(&[NotifyState::Stopping, NotifyState::Status(&status)])
            .await
    }

    /// Leaves a descriptor with the supervisor; the next generation finds it by this name, with
    /// [`Inherited::take_descriptor`](crate::Inherited::take_descriptor).
    ///
    /// # Errors
    ///
    /// As [`Self::ready`], the system's also if the supervisor is gone, and
    /// [`io::ErrorKind::InvalidInput`] for a name that is empty, longer
    /// than 255 bytes, or has a colon or a control character in it.
    pub async fn store(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let fits = !name.is_empty()
            && name.len() <= STORED_NAME_BYTES_MAX
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b':');
        if !fits {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{name:?} cannot name a stored descriptor: \
                     use 1 to 255 printable ASCII characters without a colon"
                ),
            ));
        }
        self.send(
            &[NotifyState::FdStore, NotifyState::FdName(name)],
            &[descriptor],
        )
        .await
    }

    /// Starts a task that says "still alive" at half the interval the supervisor asked for with
    /// WATCHDOG_USEC; none if it did not ask. It pings for as long as the runtime gets round to
    /// it, which is what a watchdog wants to know; abort the handle to end it.
    #[must_use = "abort the task to stop the pings"]
    pub fn start_watchdog(&self) -> Option<JoinHandle<()>> {
        let interval = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero())?;
        let notifier = self.clone();
        Some(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(interval / 2);
            loop {
                ticks.tick().await;
                if let Err(error) = notifier.send(&[NotifyState::Watchdog], &[]).await {
                    tracing::warn!(%error, "the watchdog's ping did not get through");
                }
            }
        }))
    }

    /// Reports to whoever is there.
    async fn say(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        match self.send(states, &[]).await {
            Err(error) if is_gone(&error) => {
                tracing::warn!(%error, "the supervisor is gone; a report reached nobody");
                Ok(())
            }
            result => result,
        }
    }

    /// Sends one datagram, waiting for room if need be.
    async fn send(
        &self,
        states: &[NotifyState<'_>],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let Some(path) = &self.socket else {
            return Ok(());
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let deadline = Instant::now() + SEND_LIMIT;
        let mut message = String::new();
        for state in states {
            // Writing to a String cannot fail.
            let _ = writeln!(message, "{state}");
        }
        loop {
            match send_once(&socket, path, &message, descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the supervisor has not read its notifications for a second",
                        ));
                    }
                    sleep(SEND_RETRY).await;
                }
                result => return result,
            }
        }
    }
}

/// Whether nobody has the socket any more: its path is gone, or what it leads to is closed.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

/// Connects and sends one datagram, without waiting.
fn send_once(
    socket: &UnixDatagram,
    path: &OsStr,
    message: &str,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    socket.connect_addr(&address)?;
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(message.as_bytes())],
        if raw.is_empty() { &[] } else { &control },
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// A status is one line: a line break in it would begin another assignment.
fn one_line(status: &str) -> String {
    status.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    fn supervisor(name: &str) -> (UnixDatagram, Notifier) {
        let name = format!("heirloom-notify-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        (socket, Notifier::to(Some(format!("@{name}").into())))
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn reports_are_the_datagrams_of_sd_notify() {
        let (socket, notifier) = supervisor("reports");
        notifier.ready("serving").await.unwrap();
        assert_eq!(receive(&socket), "READY=1\nSTATUS=serving\n");
        notifier.stopping("draining\nREADY=1").await.unwrap();
        assert_eq!(receive(&socket), "STOPPING=1\nSTATUS=draining READY=1\n");
    }

    #[tokio::test]
    async fn a_stored_descriptor_travels_with_its_name() {
        let (socket, notifier) = supervisor("store");
        let file = std::fs::File::open("/dev/null").unwrap();
        notifier.store("sessions", file.as_fd()).await.unwrap();

        let mut buffer = [0; 256];
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let mut parts = [io::IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .unwrap();
        let received = message.cmsgs().unwrap().next().unwrap();
        assert!(matches!(received, ControlMessageOwned::ScmRights(fds) if fds.len() == 1));
        let length = message.bytes;
        assert_eq!(&buffer[..length], b"FDSTORE=1\nFDNAME=sessions\n");

        let refused = notifier.store("a:b", file.as_fd()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_does_not_read_costs_a_second_at_most() {
        let (_socket, notifier) = supervisor("deaf");
        let started = Instant::now();
        let error = loop {
            if let Err(error) = notifier.status("again").await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() <= SEND_LIMIT + SEND_RETRY);
    }

    #[tokio::test]
    async fn a_supervisor_that_is_gone_does_not_stop_a_program() {
        let (socket, notifier) = supervisor("gone");
        drop(socket);
        notifier.ready("serving").await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let notifier = Notifier::to(Some(directory.path().join("notify").into()));
        notifier.stopping("draining").await.unwrap();
        // What was to be kept is not.
        let file = std::fs::File::open("/dev/null").unwrap();
        notifier.store("kept", file.as_fd()).await.unwrap_err();
    }

    #[tokio::test]
    async fn without_a_supervisor_reports_succeed() {
        Notifier::to(None).ready("serving").await.unwrap();
    }
}
