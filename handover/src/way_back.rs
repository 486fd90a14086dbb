//! The way back: how a generation that has taken a state over keeps the one it took it from able to take it
//! back.
//!
//! It is a pipe with every change, written before the change is acknowledged, and a `SOCK_SEQPACKET` pair,
//! the *fate*, that says why there are no more. What is in a pipe outlives its writer, and its end comes when
//! nobody is left who could write. The fate says what a mere end cannot: that the pipe does not hold
//! everything ([`Fate::lose`]), or that the writer lives and offers the state ([`Fate::offer`]). Who takes the
//! offer says so as a commit is said, and who takes the offer back resolves as a frozen generation does
//! ([`crate::lifeline`]).
//!
//! Owns these calls and the few messages; what follows from them is decided by [`crate::reserve`] and
//! [`crate::source`]. The records are the library's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::lifeline::{self, Lifeline, Sent};
use crate::{datagram, fds};

/// The largest message on a fate, in bytes: a reason fits.
const LARGEST_BYTES: usize = 2048;

/// The longest reason, in bytes; the rest is cut.
const LONGEST_REASON_BYTES: usize = 1024;

/// One end of a fate.
#[derive(Debug)]
pub struct Fate {
    socket: OwnedFd,
}

/// What the writing end says.
#[derive(Debug)]
#[non_exhaustive]
pub enum Said {
    /// There is no way back any more.
    Lost {
        /// Why.
        reason: String,
    },
    /// The state is offered: the last record is in the pipe.
    Offered,
    /// A descriptor that a record speaks of.
    Descriptor(OwnedFd),
    /// The other end is closed, and everything it said has been read.
    Closed,
    /// Nothing is queued.
    Nothing,
}

impl Fate {
    /// A fate's two ends.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?)
    }

    /// An end that arrived with a message.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// The next that the writing end said, without waiting.
    ///
    /// # Errors
    ///
    /// The system's; `InvalidData` for what is no message of a fate.
    pub fn hear(&self) -> io::Result<Said> {
        let received = loop {
            match fds::receive(&self.socket, LARGEST_BYTES) {
                Ok(received) => break received,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(Said::Nothing),
                    // A reset is told once, and ahead of what the other end has said.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset => {}
                    _other => return Err(error),
                },
            }
        };
        if received.bytes.is_empty() {
            return Ok(Said::Closed);
        }
        let nonsense = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the new generation said something on the way back that is no message of it",
            )
        };
        let lines = datagram::parse(&received.bytes).map_err(|_| nonsense())?;
        let value = |key| lines.iter().find(|line| line.key == key);
        match value("MESSAGE").map(|line| line.value) {
            Some("LOST") => Ok(Said::Lost {
                reason: value("REASON").map_or_else(String::new, |line| line.value.to_owned()),
            }),
            Some("YOURS") => Ok(Said::Offered),
            Some("DESCRIPTOR") => {
                let mut descriptors = received.fds.into_iter();
                descriptors
                    .next()
                    .map(Said::Descriptor)
                    .ok_or_else(nonsense)
            }
            Some(_) | None => Err(nonsense()),
        }
    }

    /// Says that there is no way back any more. That nobody is there to hear it is no error.
    ///
    /// # Errors
    ///
    /// The system's; nothing was said then.
    pub fn lose(&self, reason: &str) -> io::Result<()> {
        let mut end = reason.len().min(LONGEST_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = reason[..end].replace(['\n', '\r'], " ");
        lifeline::say(&self.socket, &format!("MESSAGE=LOST\nREASON={reason}\n")).map(drop)
    }

    /// Offers the state to the other generation.
    ///
    /// # Errors
    ///
    /// The system's; nothing was said then.
    pub fn offer(&self) -> io::Result<Sent> {
        lifeline::say(&self.socket, "MESSAGE=YOURS\n")
    }

    /// Sends a descriptor, ahead of the record that speaks of it.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn send(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        fds::send(&self.socket, b"MESSAGE=DESCRIPTOR\n", &[descriptor])
    }

    /// Takes an offer, at the reading end.
    ///
    /// # Errors
    ///
    /// The system's; the offer is not taken then.
    pub fn accept(&self) -> io::Result<Sent> {
        lifeline::say_committed(&self.socket)
    }

    /// The same end as a lifeline, on which the one that has made an offer hears whether it is taken, and both
    /// move connections once it is.
    #[must_use]
    pub fn into_lifeline(self) -> Lifeline {
        Lifeline::new(self.socket)
    }

    /// Another handle to the same end.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
        })
    }
}

impl AsFd for Fate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Fate, Fate) {
        let (old, new) = Fate::pair().unwrap();
        (Fate::new(old), Fate::new(new))
    }

    #[test]
    fn a_loss_is_heard_after_the_writer_has_died_and_before_the_end() {
        let (old, new) = pair();
        assert!(matches!(old.hear().unwrap(), Said::Nothing));
        let (file, _other) = Fate::pair().unwrap();
        new.send(file.as_fd()).unwrap();
        new.lose("the reader is\ntoo slow").unwrap();
        drop(new);
        assert!(matches!(old.hear().unwrap(), Said::Descriptor(_)));
        let Said::Lost { reason } = old.hear().unwrap() else {
            panic!("it was not heard");
        };
        assert_eq!(reason, "the reader is too slow");
        assert!(matches!(old.hear().unwrap(), Said::Closed));
    }

    #[test]
    fn an_offer_is_taken_once_or_taken_back() {
        let (old, new) = pair();
        assert_eq!(new.offer().unwrap(), Sent::Queued);
        assert!(matches!(old.hear().unwrap(), Said::Offered));
        assert_eq!(old.accept().unwrap(), Sent::Queued);
        assert!(new.into_lifeline().resolve().unwrap());

        let (old, new) = pair();
        assert_eq!(new.offer().unwrap(), Sent::Queued);
        let offered = new.try_clone().unwrap();
        assert!(!new.into_lifeline().resolve().unwrap());
        assert_eq!(old.accept().unwrap(), Sent::Refused);
        offered.lose("it was taken back").unwrap();
        drop(offered);
        assert!(matches!(old.hear().unwrap(), Said::Offered));
        assert!(matches!(old.hear().unwrap(), Said::Lost { .. }));
    }

    #[test]
    fn nobody_to_hear_is_no_error_and_no_taker() {
        let (old, new) = pair();
        drop(old);
        new.lose("nobody listens").unwrap();
        assert_eq!(new.offer().unwrap(), Sent::Refused);
    }
}
