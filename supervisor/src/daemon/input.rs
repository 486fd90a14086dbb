//! Everything that can happen to the supervisor, in one queue.

use std::path::PathBuf;

use tokio::sync::{mpsc, oneshot};

use super::plan::{Plan, Unusable};
use super::readiness::Seen;
use super::state_file::{Draft, Unsaved};
use crate::control::protocol::{Refusal, Report, Request, Saved, Status};
use crate::core::generation;
use crate::core::service::ProcessId;
use heirloom_handover::fds::Received;

/// How many inputs may wait. Who sends more waits, which holds back a program that floods its
/// notify socket, and nobody else.
pub(crate) const QUEUE: usize = 1024;

/// The sending side of the queue.
pub(crate) type Inputs = mpsc::Sender<Input>;

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// A signal arrived.
    Signal(Signal),
    /// A client asks for something.
    Asked(Asked),
    /// Something concerns one service.
    Service(String, ServiceInput),
    /// The time to stop is over; end everything now.
    StopOver,
    /// The program that is to follow was tried.
    Tried(Result<(), String>),
    /// It may be time to be followed by it.
    MayUpgrade,
    /// The time to wait for that is over.
    UpgradeOver,
    /// systemd is to be told that something still takes its time, or that we are alive.
    Heartbeat,
}

/// A signal that means something to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// HUP, and who sent it.
    Reload { sender: Option<i32> },
    /// TERM or INT.
    Stop,
    /// USR1.
    Reopen,
    /// USR2.
    Upgrade,
    /// CHLD.
    ChildEnded,
}

/// A client's question, with where the answer goes.
#[derive(Debug)]
pub(crate) enum Asked {
    Status(oneshot::Sender<Status>),
    /// A handover: the answer comes for each service by itself.
    Handover {
        request: Request,
        answer: oneshot::Sender<Result<Vec<Awaited>, Refusal>>,
    },
    /// A service's state is to be saved.
    Snapshot {
        service: Option<String>,
        instance: Option<usize>,
        path: PathBuf,
        answer: oneshot::Sender<Result<Saved, Refusal>>,
    },
    /// The supervisor is to replace itself: an answer comes only if it does not.
    Upgrade {
        timeout_ms: Option<u64>,
        answer: oneshot::Sender<Refusal>,
    },
    /// The supervisor is to end alone: an answer comes only if it does not.
    Leave {
        timeout_ms: Option<u64>,
        answer: oneshot::Sender<Refusal>,
    },
    /// The answer comes when everything has ended: what went wrong on the way.
    Stop {
        timeout_ms: Option<u64>,
        answer: oneshot::Sender<Vec<String>>,
    },
}

/// The handover of one service that a client waits for.
#[derive(Debug)]
pub(crate) struct Awaited {
    pub(crate) service: String,
    pub(crate) report: oneshot::Receiver<Report>,
}

/// What concerns one service.
#[derive(Debug)]
pub(crate) enum ServiceInput {
    /// A program was looked up, or could not be.
    LookedUp(Box<Result<Plan, Unusable>>),
    /// The programs that were replaced take no new connections any more, or were waited for long
    /// enough.
    Parted,
    /// The programs that were replaced do not say in time how many connections have moved.
    Uncounted,
    /// A start that found no program is tried again.
    StartAgain,
    /// A slot's wait is over.
    BackoffOver(usize),
    /// What concerns one of its processes.
    Process(ProcessId, ProcessInput),
    /// A file for a state was made, or could not be.
    Drafted(u64, Box<Result<Draft, Unsaved>>),
    /// A state has taken too long to be saved.
    SaveOver(u64),
    /// A saved state was put in its place, or could not be.
    Kept(u64, Result<u64, Unsaved>),
    /// A stored descriptor reported an error or a hang-up.
    StoredClosed(u64),
}

/// What concerns one process.
#[derive(Debug)]
pub(crate) enum ProcessInput {
    /// Its life goes on.
    Life(generation::Event),
    /// Its readiness was looked for.
    Seen(Seen),
    /// It sent a message.
    Notified(Received),
    /// It sent a message of the handover protocol.
    Reported(heirloom_handover::message::Report),
    /// A death that may have led to what was said of its migration has had the time to be seen.
    CatchUp,
    /// It sent what is no message of the handover protocol.
    Garbled(String),
    /// Nothing more of the handover protocol will be heard of it.
    Deaf,
    /// It has had the time to die of what made it deaf.
    StillDeaf,
    /// The answer of its way back that was allowed for under this number has taken its time.
    AnswerOver(u64),
    /// The command that tests its health is to run once more.
    CheckHealth,
    /// The step of its migration that was allowed under this number has taken its time.
    StepOver(u64),
    /// Its program could not be executed yet; try again.
    TryAgain,
    /// The command that tests its readiness is to run once more.
    TestAgain,
    /// Its output has ended, or was waited for long enough, after it was reaped.
    OutputOver,
    /// Its probation is over.
    Proved,
    /// It has lived so long that a death would not be one of a row.
    Settled,
    /// It missed its watchdog.
    WatchdogOver,
    /// It has ended, and was started by a former supervisor.
    AdoptedEnded,
}
