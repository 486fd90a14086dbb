//! The lifeline: the socket between old and new generation on which a commit is decided.
//!
//! It is one end of a `SOCK_SEQPACKET` pair each. `COMMITTED` in the old one's queue is the point of
//! no return. Whoever wants the opposite first shuts its receiving side down and only then reads what
//! is queued ([`Lifeline::resolve`]): a `COMMITTED` that was sent is found there, and one that
//! comes later fails at its sender. The kernel takes both under one lock (`unix_dgram_sendmsg` checks the
//! receiver's shutdown where it queues), so exactly one of the two learns that it owns the state, even
//! if nobody else lives.
//!
//! Owns these calls and the few messages; when they are made is decided by [`crate::source`] and
//! [`crate::target`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair,
};

use crate::datagram;

/// The largest message on a lifeline, in bytes.
pub const LARGEST_BYTES: usize = 512;

/// One end of a lifeline.
#[derive(Debug)]
pub struct Lifeline {
    socket: OwnedFd,
}

/// What the new generation says on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Said {
    /// All changes of this round have been applied.
    Applied {
        /// The round; 0 is the base.
        round: u32,
    },
    /// It owns the state.
    Committed,
    /// The other end is closed and everything it said has been read.
    Closed,
    /// Nothing is queued.
    Nothing,
}

/// What became of a `COMMITTED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sent {
    /// It is in the old generation's queue: the new one owns the state.
    Queued,
    /// The old generation has taken the state back, or is dead.
    Refused,
}

impl Lifeline {
    /// A lifeline's two ends.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?)
    }

    /// An end that arrived with a message.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// The next that the other end said, without waiting.
    ///
    /// # Errors
    ///
    /// The system's; `InvalidData` for what is no message of a lifeline.
    pub fn hear(&self) -> io::Result<Said> {
        let mut bytes = [0; LARGEST_BYTES];
        let flags = MsgFlags::MSG_DONTWAIT;
        let length = loop {
            match recv(self.socket.as_raw_fd(), &mut bytes, flags) {
                Ok(length) => break length,
                Err(Errno::EAGAIN) => return Ok(Said::Nothing),
                // A reset is told once, and ahead of what the other end has said.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        if length == 0 {
            return Ok(Said::Closed);
        }
        read(&bytes[..length]).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the other generation said something on the lifeline that is no message of it",
            )
        })
    }

    /// Says that a round's changes have been applied. That the other end is gone is no error here.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn applied(&self, round: u32) -> io::Result<()> {
        say(&self.socket, &format!("MESSAGE=APPLIED\nROUND={round}\n")).map(drop)
    }

    /// Says that the new generation owns the state. It does if and only if this returns
    /// [`Sent::Queued`].
    ///
    /// # Errors
    ///
    /// The system's; the message has not been queued then.
    pub fn commit(&self) -> io::Result<Sent> {
        say_committed(&self.socket)
    }

    /// Decides on the old generation's side that there will be no commit, unless there was one. Returns
    /// whether there was: then the new generation owns the state, and the lifeline goes on, unless the commit
    /// came in the very instant of this.
    ///
    /// # Errors
    ///
    /// The system's; nothing is decided then.
    pub fn resolve(&self) -> io::Result<bool> {
        // One that is there already needs no shutdown, behind which no answer to a connection could come.
        if self.has_committed()? {
            return Ok(true);
        }
        match shutdown(self.socket.as_raw_fd(), Shutdown::Read) {
            // Without a peer nobody can send any more either.
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.has_committed()
    }

    /// Whether there is a commit among what is queued.
    fn has_committed(&self) -> io::Result<bool> {
        loop {
            match self.hear() {
                Ok(Said::Committed) => return Ok(true),
                Ok(Said::Applied { .. }) => {}
                Ok(Said::Closed | Said::Nothing) => return Ok(false),
                // What is no message is no commit either.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Lifeline {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Lifeline> for OwnedFd {
    fn from(lifeline: Lifeline) -> Self {
        lifeline.socket
    }
}

/// Queues a message for the other end of a lifeline or a fate, without waiting.
///
/// # Errors
///
/// The system's, unless it is that nobody is there any more; the message has not been queued then.
pub(crate) fn say(socket: &OwnedFd, text: &str) -> io::Result<Sent> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    loop {
        match send(socket.as_raw_fd(), text.as_bytes(), flags) {
            Ok(_) => return Ok(Sent::Queued),
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(Sent::Refused),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Says that the state is owned at this end from now on.
///
/// # Errors
///
/// As [`say`].
pub(crate) fn say_committed(socket: &OwnedFd) -> io::Result<Sent> {
    say(socket, "MESSAGE=COMMITTED\n")
}

fn read(bytes: &[u8]) -> Option<Said> {
    let lines = datagram::parse(bytes).ok()?;
    let first = lines.first().filter(|line| line.key == "MESSAGE")?;
    match first.value {
        "COMMITTED" => Some(Said::Committed),
        "APPLIED" => {
            let round = lines.iter().find(|line| line.key == "ROUND")?;
            let round = round.value.parse().ok()?;
            Some(Said::Applied { round })
        }
        _other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Lifeline, Lifeline) {
        let (old, new) = Lifeline::pair().unwrap();
        (Lifeline::new(old), Lifeline::new(new))
    }

    #[test]
    fn rounds_and_a_commit_are_heard() {
        let (old, new) = pair();
        assert_eq!(old.hear().unwrap(), Said::Nothing);
        new.applied(3).unwrap();
        assert_eq!(new.commit().unwrap(), Sent::Queued);
        assert_eq!(old.hear().unwrap(), Said::Applied { round: 3 });
        assert_eq!(old.hear().unwrap(), Said::Committed);
        drop(new);
        assert_eq!(old.hear().unwrap(), Said::Closed);
    }

    #[test]
    fn a_commit_that_was_sent_is_found() {
        let (old, new) = pair();
        new.applied(1).unwrap();
        assert_eq!(new.commit().unwrap(), Sent::Queued);
        drop(new);
        assert!(old.resolve().unwrap());
    }

    #[test]
    fn a_commit_that_was_there_before_leaves_the_lifeline_whole() {
        let (old, new) = pair();
        assert_eq!(new.commit().unwrap(), Sent::Queued);
        assert!(old.resolve().unwrap());
        say(&new.socket, "MESSAGE=TAKEN\n").unwrap();
    }

    #[test]
    fn a_commit_of_one_that_left_something_unread_is_found() {
        for resolves in [false, true] {
            let (old, new) = pair();
            send(old.socket.as_raw_fd(), b"unread", MsgFlags::empty()).unwrap();
            assert_eq!(new.commit().unwrap(), Sent::Queued);
            drop(new);
            if resolves {
                assert!(old.resolve().unwrap());
            } else {
                assert_eq!(old.hear().unwrap(), Said::Committed);
            }
            assert_eq!(old.hear().unwrap(), Said::Closed);
        }
    }

    #[test]
    fn a_commit_that_comes_too_late_fails() {
        let (old, new) = pair();
        new.applied(1).unwrap();
        assert!(!old.resolve().unwrap());
        assert_eq!(new.commit().unwrap(), Sent::Refused);
        new.applied(2).unwrap();
        let (old, new) = pair();
        drop(old);
        assert_eq!(new.commit().unwrap(), Sent::Refused);
    }

    #[test]
    fn a_dead_new_generation_that_said_nothing_did_not_commit() {
        let (old, new) = pair();
        drop(new);
        assert!(!old.resolve().unwrap());
    }

    #[test]
    fn garbage_is_told_and_is_no_commit() {
        let (old, new) = pair();
        send(new.socket.as_raw_fd(), b"COMMITTED", MsgFlags::empty()).unwrap();
        send(
            new.socket.as_raw_fd(),
            b"MESSAGE=DANCE\nMESSAGE=COMMITTED",
            MsgFlags::empty(),
        )
        .unwrap();
        assert_eq!(old.hear().unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(!old.resolve().unwrap());
    }

    /// Both at once, many times: exactly one of them has the state.
    #[test]
    fn exactly_one_of_both_owns_the_state() {
        let mut commits = 0;
        for turn in 0..2000 {
            let (old, new) = pair();
            let barrier = std::sync::Barrier::new(2);
            let (committed, seen) = std::thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    barrier.wait();
                    for _ in 0..(turn % 40) {
                        std::hint::spin_loop();
                    }
                    new.commit().unwrap() == Sent::Queued
                });
                barrier.wait();
                let seen = old.resolve().unwrap();
                (sender.join().unwrap(), seen)
            });
            assert_eq!(committed, seen, "turn {turn}");
            commits += u32::from(committed);
        }
        assert!(commits > 0, "the race never went the sender's way");
    }
}
