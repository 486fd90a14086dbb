//! How a program and the next supervisor find each other once the one between them is gone.
//!
//! The program listens under the abstract name that it was given as
//! [`HEIRLOOM_RENDEZVOUS`](crate::environment::HEIRLOOM_RENDEZVOUS), from the moment it sees that its
//! supervisor is gone. The connection takes the place of the socket of
//! [`HEIRLOOM_FD`](crate::environment::HEIRLOOM_FD). Abstract names have no permissions: either side checks
//! whom it has met.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
};

use crate::fds;

/// One supervisor at a time; another that tries is refused by the first one's record.
const WAITING: i32 = 2;

/// The place where a program waits for its next supervisor.
#[derive(Debug)]
pub struct Rendezvous {
    listener: OwnedFd,
    /// Who the supervisor ran as.
    user: u32,
}

impl Rendezvous {
    /// Listens under a name that begins with `@`, for a supervisor of the same user as the one at the other
    /// end of `former`, or of root.
    ///
    /// # Errors
    ///
    /// The name is no abstract name, or is taken; or the system's error.
    pub fn open(name: &str, former: impl AsFd) -> io::Result<Self> {
        let user = getsockopt(&former, PeerCredentials)?.uid();
        let listener = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        bind(listener.as_raw_fd(), &address(name)?)?;
        listen(&listener, Backlog::new(WAITING)?)?;
        Ok(Self { listener, user })
    }

    /// Takes the supervisor that has come, if one has; a stranger is sent away.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let met = match fds::accept(&self.listener) {
            Ok(met) => met,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted => return Ok(None),
                _other => return Err(error),
            },
        };
        let user = getsockopt(&met, PeerCredentials)?.uid();
        Ok(Some(met).filter(|_| user == 0 || user == self.user))
    }
}

impl AsFd for Rendezvous {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Meets a program under the name it was given; the connection takes the place of the former socket.
///
/// # Errors
///
/// `ConnectionRefused` if it does not listen there (yet); `PermissionDenied` if another process does; or the
/// system's error.
pub fn meet(name: &str, pid: i32) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    connect(socket.as_raw_fd(), &address(name)?)?;
    if getsockopt(&socket, PeerCredentials)?.pid() != pid {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(socket)
}

fn address(name: &str) -> io::Result<UnixAddr> {
    let name = name.strip_prefix('@').ok_or(io::ErrorKind::InvalidInput)?;
    Ok(UnixAddr::new_abstract(name.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_supervisor_is_met_once_the_program_listens_and_by_the_right_process_only() {
        let name = format!("@heirloom-test-rendezvous-{}", std::process::id());
        let pid = std::process::id().cast_signed();
        let refused = meet(&name, pid).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let (former, supervisor) = UnixStream::pair().unwrap();
        drop(supervisor);
        let place = Rendezvous::open(&name, &former).unwrap();
        assert!(place.accept().unwrap().is_none());
        let stranger = meet(&name, 1).unwrap_err();
        assert_eq!(stranger.kind(), io::ErrorKind::PermissionDenied);
        place.accept().unwrap();
        let ours = meet(&name, pid).unwrap();
        let theirs = place.accept().unwrap().unwrap();
        fds::send(&ours, b"MESSAGE=WHO\n", &[] as &[OwnedFd]).unwrap();
        assert_eq!(fds::receive(&theirs, 64).unwrap().bytes, b"MESSAGE=WHO\n");
        Rendezvous::open("no-abstract-name", &former).unwrap_err();
        Rendezvous::open(&name, &former).unwrap_err();
    }
}
