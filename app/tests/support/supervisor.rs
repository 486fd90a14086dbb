//! The supervisor's part in handing state over, played by the test: it starts generations with a socket
//! each, brings two of them together, and decides as the real one does.

use std::{
    fs::File,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use heirloom_handover::{
    fds,
    lifeline::Lifeline,
    message::{self, Order, Purpose, Reads, Report},
};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
    unistd::pipe2,
};

use super::{Generation, PATIENCE, Start};

/// The pause that is aimed at, as by default.
const PAUSE: Duration = Duration::from_millis(5);

/// Longer than any freeze that is to end well on a loaded machine.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// A generation that speaks the handover protocol, and the supervisor's end of it.
#[derive(Debug)]
pub(crate) struct Native {
    pub(crate) generation: Generation,
    number: u64,
    socket: OwnedFd,
    reads: Vec<Reads>,
}

/// What one of the two said.
enum Heard {
    Old(Report),
    New(Report),
}

impl Native {
    /// Starts a generation and waits until it says hello.
    pub(crate) fn start(listener: &TcpListener, start: &Start<'_>) -> Self {
        let (socket, other) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let listener = listener.try_clone().unwrap();
        let mut native = Self {
            generation: Generation::start_native(listener, start, other),
            number: start.generation,
            socket,
            reads: Vec::new(),
        };
        match native.says() {
            Report::Hello { reads, .. } => native.reads = reads,
            other => panic!("{other:?} where a hello should come"),
        }
        native
    }

    /// Starts one that has nothing to take over, and waits until it serves.
    pub(crate) fn first(listener: &TcpListener, start: &Start<'_>) -> Self {
        let native = Self::start(listener, start);
        native.order(&Order::Begin, &[]);
        native.generation.wait_for("READY=1");
        native
    }

    /// Starts one that takes up what was saved, and waits until it serves.
    pub(crate) fn restored(listener: &TcpListener, start: &Start<'_>, file: &File) -> Self {
        let native = Self::start(listener, start);
        native.restore(file).unwrap();
        native.generation.wait_for("READY=1");
        native
    }

    /// Lets it take up what was saved; the reason if it does not.
    pub(crate) fn restore(&self, file: &File) -> Result<(), String> {
        let file = file.try_clone().unwrap().into();
        self.order(
            &Order::Restore {
                migration: 1,
                bytes_max: None,
            },
            &[file],
        );
        match self.says() {
            Report::Ready { .. } => {}
            Report::Reject { reason, .. } => return Err(reason),
            other => panic!("{other:?} where READY should come"),
        }
        let commit = Order::Commit {
            migration: 1,
            alone: true,
        };
        self.order(&commit, &[]);
        assert!(matches!(self.says(), Report::Committed { .. }));
        Ok(())
    }

    pub(crate) fn order(&self, order: &Order, descriptors: &[OwnedFd]) {
        fds::send(&self.socket, &order.to_bytes(), descriptors).unwrap();
    }

    /// What it says next.
    pub(crate) fn says(&self) -> Report {
        let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut sockets, limit).unwrap(), 1, "it says nothing");
        self.receive().expect("it closed its socket")
    }

    /// A report; none if the socket is closed.
    fn receive(&self) -> Option<Report> {
        let received = fds::receive(&self.socket, message::LARGEST_BYTES).ok()?;
        (!received.bytes.is_empty()).then(|| Report::parse(&received.bytes).unwrap())
    }

    /// Whether it has nothing to say at the moment.
    pub(crate) fn is_silent(&self) -> bool {
        let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        poll(&mut sockets, PollTimeout::ZERO).unwrap() == 0
    }

    /// Connects both for a copy of the state: from here to `next`.
    fn send_to(&self, next: &Self, migration: u64, purpose: Purpose) {
        let new_ends = self.send(next.number, &next.reads, migration, purpose);
        let receive = Order::Receive {
            migration,
            from: self.number,
            bytes_max: None,
            way_back: None,
        };
        next.order(&receive, &new_ends);
    }

    /// Begins a copy to a new generation that takes nothing: the ends that it would have.
    pub(crate) fn send_to_nobody(&self, migration: u64) -> [OwnedFd; 3] {
        self.send(migration, &self.reads, migration, Purpose::Handover)
    }

    /// Waits until it says that a copy could not be made.
    pub(crate) fn says_that_it_failed(&self, of: u64) {
        match self.says() {
            Report::Failed { migration, .. } if migration == of => {}
            other => panic!("{other:?} where FAILED should come"),
        }
    }

    /// Lets it copy its state; the ends that belong to the reader.
    fn send(&self, to: u64, reads: &[Reads], migration: u64, purpose: Purpose) -> [OwnedFd; 3] {
        let (reading, writing) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (old_life, new_life) = Lifeline::pair().unwrap();
        let (old_link, new_link) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let send = Order::Send {
            migration,
            to,
            purpose,
            pause: PAUSE,
            freeze: FREEZE_LIMIT,
            reads: reads.to_vec(),
            bytes_max: None,
            way_back: None,
        };
        self.order(&send, &[writing, old_life, old_link]);
        [reading, new_life, new_link]
    }

    /// Brings both to where nothing but the commit is missing; the reason if that fails.
    pub(crate) fn agree(&self, next: &Self, purpose: Purpose) -> Result<(), String> {
        let migration = next.number;
        self.send_to(next, migration, purpose);
        let (mut frozen, mut ready) = (false, false);
        loop {
            match self.hear(next) {
                Heard::Old(Report::Converged { .. }) => {
                    self.order(&Order::Freeze { migration }, &[]);
                }
                Heard::Old(Report::Frozen { .. }) => frozen = true,
                // The rehearsal's end, which the old one does not wait for.
                Heard::Old(Report::Thawed { .. }) if purpose == Purpose::Rehearsal => {}
                Heard::New(Report::Ready { .. }) => ready = true,
                Heard::Old(Report::Failed { reason, .. } | Report::Thawed { reason, .. })
                | Heard::New(Report::Reject { reason, .. }) => {
                    // Which of two that wait was said first is not to be seen from here.
                    let others = [self.failure(), next.failure()].into_iter().flatten();
                    let reasons: Vec<String> = [reason].into_iter().chain(others).collect();
                    let reason = reasons.join("; and: ");
                    let abort = Order::Abort {
                        migration,
                        reason: reason.clone(),
                    };
                    self.abort(&abort);
                    next.abort(&abort);
                    return Err(reason);
                }
                Heard::Old(other) | Heard::New(other) => panic!("{other:?} is out of turn"),
            }
            if frozen && ready {
                return Ok(());
            }
        }
    }

    /// Hands the state over to `next`, or only rehearses it; the reason if that fails. The old one is
    /// then told to retire, and the new one serves.
    pub(crate) fn migrate(&self, next: &Self, purpose: Purpose) -> Result<(), String> {
        let migration = next.number;
        self.agree(next, purpose)?;
        if purpose == Purpose::Rehearsal {
            let abort = Order::Abort {
                migration,
                reason: "it was a rehearsal".to_owned(),
            };
            self.abort(&abort);
            next.abort(&abort);
            return Ok(());
        }
        let commit = Order::Commit {
            migration,
            alone: false,
        };
        next.order(&commit, &[]);
        assert!(matches!(next.says(), Report::Committed { .. }));
        assert!(matches!(self.says(), Report::Yielded { .. }));
        next.generation.wait_for("READY=1");
        self.order(&Order::Retire, &[]);
        Ok(())
    }

    /// A reason for a failure that it has given already.
    fn failure(&self) -> Option<String> {
        if self.is_silent() {
            return None;
        }
        match self.receive()? {
            Report::Failed { reason, .. }
            | Report::Thawed { reason, .. }
            | Report::Reject { reason, .. } => Some(reason),
            other => panic!("{other:?} is out of turn"),
        }
    }

    /// Whoever has ended already cannot be told.
    fn abort(&self, abort: &Order) {
        let _gone = fds::send(&self.socket, &abort.to_bytes(), &[] as &[OwnedFd]);
    }

    /// What either says next. A new one that is gone is waited for no longer: the old one sees it too.
    fn hear(&self, next: &Self) -> Heard {
        let mut new_lives = true;
        loop {
            let mut sockets = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if new_lives {
                sockets.push(PollFd::new(next.socket.as_fd(), PollFlags::POLLIN));
            }
            let limit = PollTimeout::try_from(PATIENCE).unwrap();
            assert!(
                poll(&mut sockets, limit).unwrap() > 0,
                "nobody says anything"
            );
            let old_speaks = sockets[0].any() == Some(true);
            let new_speaks = sockets.get(1).is_some_and(|one| one.any() == Some(true));
            // The new one's reason comes first, for it says more than that the old one lost its reader.
            if new_speaks {
                match next.receive() {
                    Some(report) => return Heard::New(report),
                    None => new_lives = false,
                }
            } else if old_speaks {
                return Heard::Old(self.receive().expect("the old one closed its socket"));
            }
        }
    }

    /// Closes the supervisor's end of its socket.
    pub(crate) fn leave(self) -> Generation {
        self.generation
    }

    /// Hands the state over to a new generation, which is returned; this one ends.
    pub(crate) fn hand_over(self, listener: &TcpListener, start: &Start<'_>) -> (Self, Generation) {
        let next = Self::start(listener, start);
        self.migrate(&next, Purpose::Handover).unwrap();
        (next, self.generation)
    }

    /// Stops it, with its state saved in `file`.
    pub(crate) fn stop(self, file: &File) {
        let file = file.try_clone().unwrap().into();
        self.order(
            &Order::Stop {
                migration: 1,
                bytes_max: None,
            },
            &[file],
        );
        match self.says() {
            Report::Saved { .. } => {}
            other => panic!("{other:?} where SAVED should come"),
        }
        let (status, stderr) = self.generation.wait();
        assert!(status.success(), "{stderr}");
    }
}
