//! The keeper: the one thread that speaks the handover protocol for this process.
//!
//! It says hello, takes the state over ([`taker`]), and from then on waits for orders: to give the state
//! to the next generation, to save it, to finish ([`giver`]). What follows what is decided by the two
//! machines of [`heirloom_handover`]; there the world becomes their events, and their actions become
//! calls. Between two calls the keeper waits for whichever descriptor speaks first, so nothing of it is
//! polled. Here is what both sides share: the socket, and waiting for it.

mod giver;
mod taker;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use heirloom_handover::{
    environment::HEIRLOOM_RENDEZVOUS,
    fds,
    message::{self, Order, Report},
    rendezvous::Rendezvous,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{setsockopt, sockopt::SendTimeout},
        time::{TimeVal, TimeValLike},
    },
    time::{ClockId, clock_gettime},
};
use tokio::{runtime::Handle, sync::oneshot};

use super::{Core, Origin, Tenure, error::TakeError, turn::lock};
use crate::Drain;

/// How long the supervisor may take no report. Its loop never waits, so this is a sick one.
const REPORT_LIMIT_MS: i64 = 5000;

/// Everything the keeper needs of its process.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) supervisor: Supervisor,
    pub(super) core: Arc<Core>,
    pub(super) tenure: Tenure,
    pub(super) generation: u64,
    pub(super) drain: Drain,
    pub(super) runtime: Handle,
    /// Told once: that the state is this generation's, or why it never will be.
    pub(super) owned: Option<oneshot::Sender<Result<Origin, TakeError>>>,
    /// Where the state could go back to; the way itself is the gate's.
    pub(super) way_back: Option<Back>,
}

/// The socket to the supervisor. Clones lead to the one that is there now, also if it is another.
#[derive(Clone, Debug)]
pub(super) struct Supervisor(Arc<Mutex<Arc<OwnedFd>>>);

impl Supervisor {
    /// # Errors
    ///
    /// The system's.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(patient(socket)?))))
    }

    fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&lock(&self.0))
    }

    /// From now on it is this one.
    fn succeeded_by(&self, socket: OwnedFd) -> io::Result<()> {
        *lock(&self.0) = patient(socket)?;
        Ok(())
    }

    /// Tells it something; that it does not take it is seen where it is waited for.
    fn tell(&self, report: &Report) {
        if let Err(error) = fds::send(&*self.socket(), &report.to_bytes(), &[] as &[OwnedFd]) {
            tracing::debug!(%error, "the supervisor did not take a report");
        }
    }
}

/// A supervisor that takes nothing must not hold anybody up for ever.
fn patient(socket: OwnedFd) -> io::Result<Arc<OwnedFd>> {
    let limit = TimeVal::milliseconds(REPORT_LIMIT_MS);
    setsockopt(&socket, SendTimeout, &limit)?;
    Ok(Arc::new(socket))
}

/// What a way back needs beside the way.
#[derive(Debug)]
pub(super) struct Back {
    /// The migration in which the state came.
    migration: u64,
    /// Where operations are carried out once the state has gone back.
    link: OwnedFd,
}

/// What a wait came to.
enum Heard {
    Order(Order, Vec<OwnedFd>),
    /// The supervisor closed its end.
    SupervisorGone,
    /// Something else than the supervisor is ready, or time has passed.
    Other,
}

impl Keeper {
    /// Runs to the end of the process, or until the state cannot be taken.
    pub(super) fn run(mut self) {
        if taker::take_over(&mut self) {
            giver::serve(self);
        }
    }

    fn tell(&self, report: &Report) {
        self.supervisor.tell(report);
    }

    /// Where the next supervisor can be met, now that this one is gone; none if that cannot be.
    fn await_next_supervisor(&self) -> Option<Rendezvous> {
        let name = std::env::var(HEIRLOOM_RENDEZVOUS).ok()?;
        match Rendezvous::open(&name, self.supervisor.socket()) {
            Ok(rendezvous) => {
                tracing::warn!(
                    "the supervisor is gone; the app serves on and waits for the next one"
                );
                Some(rendezvous)
            }
            Err(error) => {
                tracing::error!(%error, "the supervisor is gone, and no other can be waited for; the app serves on");
                None
            }
        }
    }

    /// Waits for an order, and for `others` as well, until `end`.
    fn wait(&self, others: &[PollFd<'_>], end: Option<Instant>) -> io::Result<Heard> {
        let socket = self.supervisor.socket();
        let mut all = vec![PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        all.extend_from_slice(others);
        wait_for(&mut all, end)?;
        if all[0].any() != Some(true) {
            return Ok(Heard::Other);
        }
        loop {
            let received = match fds::receive(&*socket, message::LARGEST_BYTES) {
                Ok(received) => received,
                Err(error) => match error.kind() {
                    io::ErrorKind::ConnectionReset => return Ok(Heard::SupervisorGone),
                    io::ErrorKind::Interrupted => continue,
                    // What came is closed already; the supervisor waits in vain and says so.
                    io::ErrorKind::InvalidData => {
                        tracing::warn!(%error, "an order of the supervisor was passed over");
                        return Ok(Heard::Other);
                    }
                    _other => return Err(error),
                },
            };
            if received.bytes.is_empty() {
                return Ok(Heard::SupervisorGone);
            }
            match Order::parse(&received.bytes) {
                Ok(order) => return Ok(Heard::Order(order, received.fds)),
                Err(error) => {
                    tracing::warn!(%error, "an order of the supervisor was passed over");
                    return Ok(Heard::Other);
                }
            }
        }
    }
}

/// Waits for one of these, until `end`.
fn wait_for(others: &mut [PollFd<'_>], end: Option<Instant>) -> io::Result<()> {
    match poll(others, limit(end)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The time until `end`, rounded up, so that a wait does not end just before it.
fn limit(end: Option<Instant>) -> PollTimeout {
    end.map_or(PollTimeout::NONE, |end| {
        let left = end.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
    })
}

fn usec(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Now, on the clock that all processes of this machine share.
fn monotonic_usec() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| usec(now.into()))
}
