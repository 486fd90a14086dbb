//! The socket on which one process speaks the handover protocol with the supervisor.
//!
//! Owns our end of it: messages become inputs, orders are sent without waiting. What they mean is
//! decided in [`super::runner`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use heirloom_handover::fds;
use heirloom_handover::message::{LARGEST_BYTES, Order, Report};

use super::input::{Input, Inputs, ProcessInput, ServiceInput};
use super::record::{Handle, Held};
use super::timer::Timer;
use crate::core::service::ProcessId;

/// After so many messages that cannot be read a process is no longer listened to: it will not come to
/// its senses, and each of them is a line of the log.
const MOST_GARBLED: usize = 16;

/// Our end; its messages are put into the queue as long as this lives. A process that floods it is held
/// back by the queue.
#[derive(Debug)]
pub(crate) struct NativeSocket {
    handle: Handle,
    fd: Arc<AsyncFd<OwnedFd>>,
    _reader: Timer,
}

impl NativeSocket {
    /// Makes a socket for one process, and the end that the process inherits.
    ///
    /// # Errors
    ///
    /// No descriptor or no memory was left.
    pub(crate) fn pair(
        inputs: &Inputs,
        service: &str,
        process: ProcessId,
    ) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let ours = Self::resume(inputs, service, process, Handle::new(), ours)?;
        Ok((ours, theirs))
    }

    /// Goes on with our end of a socket that there was before, or with one that takes its place.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(crate) fn resume(
        inputs: &Inputs,
        service: &str,
        process: ProcessId,
        handle: Handle,
        ours: OwnedFd,
    ) -> io::Result<Self> {
        // Ours alone: how it waits on its own end is the process's matter.
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let fd = Arc::new(crate::sys::watch(ours, Interest::READABLE)?);
        let reader = Reader {
            inputs: inputs.clone(),
            service: service.to_owned(),
            process,
        };
        Ok(Self {
            handle,
            _reader: Timer::task(reader.read(Arc::clone(&fd))),
            fd,
        })
    }

    /// What the record says of it.
    pub(crate) fn record<'a>(&'a self, held: &mut Held<'a>) -> Handle {
        held.hold(self.handle, self.fd.get_ref().as_fd())
    }

    /// Sends an order, with descriptors, without waiting.
    ///
    /// # Errors
    ///
    /// The system's: the process has closed its end, or has not read for so long that the queue is
    /// full (`WouldBlock`). The order was not sent then.
    pub(crate) fn tell(&self, order: &Order, along: &[BorrowedFd<'_>]) -> io::Result<()> {
        fds::send(self.fd.get_ref(), &order.to_bytes(), along)
    }

    /// Whether the process has closed its end, also when that was not read yet.
    pub(crate) fn is_closed(&self) -> bool {
        let mut polled = [PollFd::new(self.fd.get_ref().as_fd(), PollFlags::empty())];
        let looked = poll(&mut polled, PollTimeout::ZERO);
        let events = polled[0].revents().unwrap_or(PollFlags::empty());
        looked.is_ok() && events.contains(PollFlags::POLLHUP)
    }
}

struct Reader {
    inputs: Inputs,
    service: String,
    process: ProcessId,
}

impl Reader {
    async fn read(self, fd: Arc<AsyncFd<OwnedFd>>) {
        let mut garbled = 0;
        while let Ok(mut ready) = fd.readable().await {
            // There is room for what is taken from the socket before it is: nothing is ever in between.
            let Ok(place) = self.inputs.reserve().await else {
                return;
            };
            let input = match ready.try_io(|fd| fds::receive(fd.get_ref(), LARGEST_BYTES)) {
                Err(_would_block) => continue,
                // An empty message cannot be told from the end, and is no message either.
                Ok(Ok(received)) if received.bytes.is_empty() => break,
                // What came along is closed here: nobody sends the supervisor descriptors.
                Ok(Ok(received)) => match Report::parse(&received.bytes) {
                    Ok(report) => ProcessInput::Reported(report),
                    Err(error) => ProcessInput::Garbled(error.to_string()),
                },
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    ProcessInput::Garbled(error.to_string())
                }
                Ok(Err(_reset)) => break,
            };
            if matches!(input, ProcessInput::Garbled(_)) {
                garbled += 1;
            }
            place.send(self.input(input));
            if garbled == MOST_GARBLED {
                break;
            }
        }
        // The queue is closed only when the supervisor ends.
        let _ended = self.inputs.send(self.input(ProcessInput::Deaf)).await;
    }

    fn input(&self, input: ProcessInput) -> Input {
        Input::Service(
            self.service.clone(),
            ServiceInput::Process(self.process, input),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use nix::sys::socket::{MsgFlags, send};
    use tokio::sync::mpsc;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn next(queue: &mut mpsc::Receiver<Input>) -> ProcessInput {
        let input = tokio::time::timeout(PATIENCE, queue.recv()).await.unwrap();
        match input {
            Some(Input::Service(_, ServiceInput::Process(_, input))) => input,
            other => panic!("{other:?}"),
        }
    }

    fn say(theirs: &OwnedFd, bytes: &[u8]) {
        send(theirs.as_raw_fd(), bytes, MsgFlags::empty()).unwrap();
    }

    #[tokio::test]
    async fn reports_and_the_end_are_told_in_their_order() {
        let (inputs, mut queue) = mpsc::channel(8);
        let (_ours, theirs) = NativeSocket::pair(&inputs, "shop", ProcessId(1)).unwrap();
        say(&theirs, b"MESSAGE=COMMITTED\nMIGRATION=3\nAT_USEC=9\n");
        say(&theirs, b"MESSAGE=DANCE\n");
        drop(theirs);
        let report = Report::Committed {
            migration: 3,
            at_usec: 9,
        };
        assert!(matches!(next(&mut queue).await, ProcessInput::Reported(found) if found == report));
        assert!(matches!(next(&mut queue).await, ProcessInput::Garbled(_)));
        assert!(matches!(next(&mut queue).await, ProcessInput::Deaf));
    }

    #[tokio::test]
    async fn whoever_talks_nonsense_is_no_longer_listened_to() {
        let (inputs, mut queue) = mpsc::channel(64);
        let (_ours, theirs) = NativeSocket::pair(&inputs, "shop", ProcessId(1)).unwrap();
        for _ in 0..MOST_GARBLED + 4 {
            say(&theirs, b"\xff");
        }
        for _ in 0..MOST_GARBLED {
            assert!(matches!(next(&mut queue).await, ProcessInput::Garbled(_)));
        }
        assert!(matches!(next(&mut queue).await, ProcessInput::Deaf));
    }

    #[tokio::test]
    async fn an_order_never_waits_for_its_reader() {
        let (inputs, _queue) = mpsc::channel(8);
        let (ours, theirs) = NativeSocket::pair(&inputs, "shop", ProcessId(1)).unwrap();
        let order = Order::Abort {
            migration: 1,
            reason: "x".repeat(1000),
        };
        let full = (0..100_000).find_map(|_| ours.tell(&order, &[]).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
        assert!(!ours.is_closed());
        drop(theirs);
        assert!(ours.is_closed());
        let gone = ours.tell(&Order::Begin, &[]).unwrap_err();
        assert_ne!(gone.kind(), io::ErrorKind::WouldBlock);
    }
}
