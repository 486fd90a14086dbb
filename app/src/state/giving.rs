//! The copy of the state on its way to the next generation: slices into a pipe that nobody waits for.
//!
//! Owns the stream, the lifeline and how far the copy is. It never blocks: what the pipe does not take
//! waits here, and meanwhile nothing is encoded, so a slow reader only slows the handover. When to
//! freeze and what follows is decided by [`heirloom_handover::source`], carried out by
//! [`super::keeper`].

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use heirloom_handover::{
    fault::{self, Point},
    fds,
    lifeline::{Lifeline, Said},
    message::Purpose,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    convergence::{Convergence, IfItDoesNotConverge, Round, Verdict},
    copy::Copy,
    error::StoreError,
    store::{Budget, Progress},
};

/// What a slice may take while the app serves: about as long as a request takes.
const SLICE: Duration = Duration::from_micros(200);

/// What a slice may take while the state stands still and nobody is held up by it.
const FROZEN_SLICE: Duration = Duration::from_millis(5);

/// Bytes that may wait here for the pipe before encoding waits too: a frame, and another one.
const SLICE_BYTES: usize = 512 * 1024;

/// How long descriptors may wait for room on the lifeline.
const ATTACH_LIMIT: Duration = Duration::from_secs(5);

/// What goes with descriptors on the lifeline.
pub(super) const DESCRIPTORS: &[u8] = b"MESSAGE=DESCRIPTORS\n";

/// How far it is.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Base {
        began: Instant,
        before: u64,
    },
    Round {
        began: Instant,
        before: u64,
    },
    /// The round's end is written; the other side has yet to say that it applied it.
    Unapplied {
        round: u32,
        began: Instant,
        bytes: u64,
    },
    /// Waits for the freeze.
    Converged,
    /// The state stands still.
    Rest,
    /// The end mark is written and not yet sent.
    Ending,
    /// Everything is sent.
    Complete,
}

/// What came of going on.
#[derive(Debug)]
pub(super) enum Went {
    /// There is more to do at once.
    On,
    /// The stream takes no more now.
    Blocked,
    /// Nothing is to be done until somebody says something.
    Waiting,
    /// A freeze would be short.
    Converged,
    /// The end mark is sent.
    Complete,
}

/// Why a copy cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the new generation stopped reading the state ({0})")]
    Stream(io::Error),
    #[error("the lifeline to the new generation broke ({0})")]
    Lifeline(io::Error),
    #[error(
        "the state changes faster than it can be copied ({rounds} rounds, {bytes} bytes sent); \
         try again at a quieter time, or let the app choose to slow changes down or to pause longer"
    )]
    NotConverging { rounds: u32, bytes: u64 },
}

/// One copy on its way.
#[derive(Debug)]
pub(super) struct Giving {
    pub(super) migration: u64,
    pub(super) purpose: Purpose,
    pub(super) copy: Copy,
    /// None once everything is sent: its end tells the reader so.
    stream: Option<File>,
    pub(super) lifeline: Lifeline,
    convergence: Convergence,
    stage: Stage,
    /// The longest that the state may stand still.
    pub(super) freeze_limit: Duration,
}

/// What a copy needs beside the state.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) migration: u64,
    pub(super) purpose: Purpose,
    pub(super) stream: OwnedFd,
    pub(super) lifeline: OwnedFd,
    pub(super) pause: Duration,
    pub(super) policy: IfItDoesNotConverge,
    pub(super) freeze_limit: Duration,
}

impl Giving {
    pub(super) fn begin(copy: Copy, way: Way) -> Result<Self, Broken> {
        for socket in [way.stream.as_fd(), way.lifeline.as_fd()] {
            fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                .map_err(|errno| Broken::Stream(errno.into()))?;
        }
        Ok(Self {
            migration: way.migration,
            purpose: way.purpose,
            copy,
            stream: Some(File::from(way.stream)),
            lifeline: Lifeline::new(way.lifeline),
            convergence: Convergence::new(way.pause, way.policy),
            stage: Stage::Base {
                began: Instant::now(),
                before: 0,
            },
            freeze_limit: way.freeze_limit,
        })
    }

    /// The stream, as long as bytes for it wait here.
    pub(super) fn blocked_on(&self) -> Option<&File> {
        self.stream
            .as_ref()
            .filter(|_| !self.copy.writer.ready().is_empty())
    }

    /// Writes a slice, or sends what was written.
    pub(super) fn go_on(&mut self) -> Result<Went, Broken> {
        let held_up = !self.encodes() || self.copy.writer.backlog_bytes() >= SLICE_BYTES;
        if !self.send()? && held_up {
            return Ok(Went::Blocked);
        }
        let slice = Budget::new(SLICE, SLICE_BYTES);
        match self.stage {
            Stage::Base { began, before } => {
                let progress = self.copy.base(&slice)?;
                fault::reached(Point::OldSlice);
                if progress == Progress::Done {
                    self.end_round(began, before)?;
                }
                Ok(after_a_slice())
            }
            Stage::Round { began, before } => {
                if self.copy.changes(&slice)? == Progress::Done {
                    self.end_round(began, before)?;
                }
                Ok(after_a_slice())
            }
            Stage::Unapplied { .. } | Stage::Converged => Ok(Went::Waiting),
            Stage::Rest => {
                if self.copy.changes(&Budget::new(FROZEN_SLICE, SLICE_BYTES))? == Progress::Done {
                    self.copy.end()?;
                    fault::reached(Point::OldEnding);
                    self.stage = Stage::Ending;
                }
                Ok(Went::On)
            }
            Stage::Ending => {
                // The end of the stream, which only now can come, tells that nothing follows.
                self.stream = None;
                self.stage = Stage::Complete;
                Ok(Went::Complete)
            }
            Stage::Complete => Ok(Went::Waiting),
        }
    }

    /// Whether the next thing to do is to encode.
    fn encodes(&self) -> bool {
        match self.stage {
            Stage::Base { .. } | Stage::Round { .. } | Stage::Rest => true,
            Stage::Unapplied { .. } | Stage::Converged | Stage::Ending | Stage::Complete => false,
        }
    }

    fn end_round(&mut self, began: Instant, before: u64) -> Result<(), Broken> {
        let round = self.copy.rounds;
        self.copy.end_round()?;
        fault::reached(Point::OldRound);
        let bytes = self.copy.writer.stream_bytes() - before;
        self.stage = Stage::Unapplied {
            round,
            began,
            bytes,
        };
        Ok(())
    }

    /// Sends what is ready; whether all of it went.
    fn send(&mut self) -> Result<bool, Broken> {
        let attached = self.copy.take_attached();
        self.attach(&attached)?;
        let Some(stream) = &mut self.stream else {
            return Ok(true);
        };
        while !self.copy.writer.ready().is_empty() {
            match stream.write(self.copy.writer.ready()) {
                Ok(count) => self.copy.writer.consume(count),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(false),
                    io::ErrorKind::Interrupted => {}
                    _other => return Err(Broken::Stream(error)),
                },
            }
        }
        Ok(true)
    }

    /// Lets descriptors go before the bytes that speak of them.
    fn attach(&self, attached: &[OwnedFd]) -> Result<(), Broken> {
        let end = Instant::now() + ATTACH_LIMIT;
        for batch in attached.chunks(fds::MOST_FDS) {
            while let Err(error) = fds::send(&self.lifeline, DESCRIPTORS, batch) {
                if error.kind() != io::ErrorKind::WouldBlock || Instant::now() >= end {
                    return Err(Broken::Lifeline(error));
                }
                let mut wait = [PollFd::new(self.lifeline.as_fd(), PollFlags::POLLOUT)];
                poll(&mut wait, PollTimeout::from(100_u8))
                    .map_err(|errno| Broken::Lifeline(errno.into()))?;
            }
        }
        Ok(())
    }

    /// The other side says that it has applied a round.
    pub(super) fn applied(&mut self, applied: u32) -> Result<Went, Broken> {
        let Stage::Unapplied {
            round,
            began,
            bytes,
        } = self.stage
        else {
            return Ok(Went::On);
        };
        if applied != round {
            return Ok(Went::On);
        }
        fault::reached(Point::OldApplied);
        let (_, pending_bytes) = self.copy.pending();
        let verdict = self.convergence.after(&Round {
            sent_bytes: bytes,
            took: began.elapsed(),
            pending_bytes,
        });
        match verdict {
            Verdict::Converged => {
                self.stage = Stage::Converged;
                Ok(Went::Converged)
            }
            Verdict::Again => {
                self.stage = Stage::Round {
                    began: Instant::now(),
                    before: self.copy.writer.stream_bytes(),
                };
                Ok(Went::On)
            }
            Verdict::GiveUp => Err(Broken::NotConverging {
                rounds: self.copy.rounds,
                bytes: self.copy.writer.stream_bytes(),
            }),
        }
    }

    /// How long each change is to wait, as the last round left it.
    pub(super) fn throttle(&self) -> Duration {
        self.convergence.throttle()
    }

    /// The state stands still, for the gate is closed: write the rest.
    pub(super) fn freeze(&mut self) -> Result<(), Broken> {
        self.copy.freeze()?;
        self.stage = Stage::Rest;
        Ok(())
    }

    /// What the other side says next.
    pub(super) fn hear(&self) -> Result<Said, Broken> {
        self.lifeline.hear().map_err(Broken::Lifeline)
    }
}

/// With no lock held, it is the best moment to lose the processor.
fn after_a_slice() -> Went {
    std::thread::yield_now();
    Went::On
}
