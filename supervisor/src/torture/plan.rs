//! What is wanted of a torture, with every default filled in.

use std::time::Duration;

use clap::ValueEnum;

use crate::config::service::Service;

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The program, as a supervisor is to run it.
    pub(crate) service: Service,
    /// A program that every second handover is to, with the same arguments.
    pub(crate) alternate: Option<String>,
    pub(crate) until: Until,
    /// From one handover to the next.
    pub(crate) every: Duration,
    /// Whom SIGKILL may meet.
    pub(crate) kill: Aim,
    /// Who may be stopped.
    pub(crate) stall: Aim,
    /// For how long.
    pub(crate) stall_for: Duration,
    /// Of a hundred handovers, so many are disturbed.
    pub(crate) share: u8,
    /// From which all chance comes.
    pub(crate) seed: u64,
    pub(crate) work: Work,
    pub(crate) crowd: Crowd,
    /// Whether a connection that the program closes counts as lost.
    pub(crate) strict: bool,
}

/// When it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// After so long.
    For(Duration),
    /// After so many handovers.
    Handovers(u64),
}

/// Which of the two generations of a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Aim {
    /// Neither.
    None,
    /// The one that takes over.
    New,
    /// The one that is replaced.
    Old,
    /// One of the two, by chance.
    Both,
}

/// What clients do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// GET this path.
    Get(String),
    /// POST to this path, in which `KEY` is each client's own; each answer is the number of times so far.
    Count(String),
    /// Connect, and wait for what the program does.
    Connect,
}

/// How many clients of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// They keep their connection.
    pub(crate) keeping: usize,
    /// They connect anew for each request.
    pub(crate) fresh: usize,
    /// They keep their connection and hardly ever use it.
    pub(crate) idle: usize,
    /// From one request of a client to its next.
    pub(crate) pace: Duration,
}
