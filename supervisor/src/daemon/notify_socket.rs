//! The socket one generation sends its `sd_notify` messages to.
//!
//! An abstract unix socket: it works in a chroot, leaves no file behind and has no permissions, so
//! every message is checked to come from the service's user, from ours or from root.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::sockopt::PassCred;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, getsockname, setsockopt, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use heirloom_handover::datagram::LARGEST_BYTES;
use heirloom_handover::fds;

use super::input::{Input, Inputs, ProcessInput, ServiceInput};
use super::record::{Handle, Held};
use super::timer::Timer;
use crate::core::service::ProcessId;

/// A bound socket whose messages are put into the queue as long as this lives.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    /// The value of `NOTIFY_SOCKET`.
    pub(crate) address: String,
    handle: Handle,
    fd: Arc<AsyncFd<OwnedFd>>,
    _reader: Timer,
}

impl NotifySocket {
    /// Binds a socket of its own for one process.
    ///
    /// # Errors
    ///
    /// No descriptor or no memory was left.
    pub(crate) fn bind(
        inputs: &Inputs,
        service: &str,
        process: ProcessId,
        user: Option<u32>,
    ) -> io::Result<Self> {
        let fd = make()?;
        // The kernel chooses a free abstract name for an address without one (unix(7), autobind).
        bind(fd.as_fd().as_raw_fd(), &UnixAddr::new_unnamed())?;
        let bound: UnixAddr = getsockname(fd.as_fd().as_raw_fd())?;
        let name = bound.as_abstract().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let address = format!("@{}", String::from_utf8_lossy(name));
        Self::resume(inputs, service, process, user, Handle::new(), address, fd)
    }

    /// Goes on with a socket that was bound before.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(crate) fn resume(
        inputs: &Inputs,
        service: &str,
        process: ProcessId,
        user: Option<u32>,
        handle: Handle,
        address: String,
        fd: OwnedFd,
    ) -> io::Result<Self> {
        let fd = Arc::new(crate::sys::watch(fd, Interest::READABLE)?);
        let reader = Reader {
            inputs: inputs.clone(),
            service: service.to_owned(),
            process,
            user: user.unwrap_or_else(|| nix::unistd::geteuid().as_raw()),
        };
        Ok(Self {
            address,
            handle,
            _reader: Timer::task(reader.read(Arc::clone(&fd))),
            fd,
        })
    }

    /// What the record says of it.
    pub(crate) fn record<'a>(&'a self, held: &mut Held<'a>) -> (Handle, String) {
        let handle = held.hold(self.handle, self.fd.get_ref().as_fd());
        (handle, self.address.clone())
    }
}

/// Binds the address of a socket that is gone: whoever was told to send there goes on doing so.
///
/// # Errors
///
/// Somebody else has it by now, or the system's error.
pub(crate) fn bind_again(address: &str) -> io::Result<OwnedFd> {
    let name = address
        .strip_prefix('@')
        .ok_or(io::ErrorKind::InvalidInput)?;
    let fd = make()?;
    bind(
        fd.as_fd().as_raw_fd(),
        &UnixAddr::new_abstract(name.as_bytes())?,
    )?;
    Ok(fd)
}

fn make() -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    setsockopt(&fd, PassCred, &true)?;
    Ok(fd)
}

struct Reader {
    inputs: Inputs,
    service: String,
    process: ProcessId,
    user: u32,
}

impl Reader {
    async fn read(self, fd: Arc<AsyncFd<OwnedFd>>) {
        while let Ok(mut ready) = fd.readable().await {
            // There is room for what is taken from the socket before it is: nothing is ever in between.
            let Ok(place) = self.inputs.reserve().await else {
                return;
            };
            let received = match ready.try_io(|fd| fds::receive(fd.get_ref(), LARGEST_BYTES)) {
                Err(_would_block) => continue,
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::warn!(
                        service = self.service,
                        "a notification was dropped: {error}"
                    );
                    continue;
                }
                Ok(Err(error)) => {
                    tracing::error!(service = self.service, "the notify socket failed: {error}");
                    return;
                }
                Ok(Ok(received)) => received,
            };
            let own = nix::unistd::geteuid().as_raw();
            match received.sender {
                Some(sender) if [0, own, self.user].contains(&sender.uid) => {
                    let input =
                        ServiceInput::Process(self.process, ProcessInput::Notified(received));
                    place.send(Input::Service(self.service.clone(), input));
                }
                Some(_) | None => {
                    tracing::warn!(
                        service = self.service,
                        "a notification of a stranger was dropped"
                    );
                }
            }
        }
    }
}
