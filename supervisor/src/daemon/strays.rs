//! Processes that services left behind and no generation answers for.
//!
//! A program can start a process in a group of its own, with an environment of its own, and end
//! before it: nothing tells then whose it is (see [`super::family`]). It is handed to the supervisor
//! all the same, which must not leave it behind with a port it holds.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};

use super::family;

/// How long killed processes may take to be gone.
const LONGEST_END: Duration = Duration::from_secs(2);

/// How often it is looked whether they are.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What to spare: who was there before any service was.
#[derive(Debug)]
pub(crate) struct Strays {
    before: BTreeSet<i32>,
}

impl Strays {
    /// To be called before anything is started: a shell that became the supervisor may have
    /// children of its own.
    pub(crate) fn spare_those_there_are() -> Self {
        let before = family::below(getpid(), &BTreeSet::new());
        Self {
            before: before.iter().map(|pid| pid.as_raw()).collect(),
        }
    }

    /// Goes on sparing those that a predecessor spared.
    pub(crate) fn resume(before: BTreeSet<i32>) -> Self {
        Self { before }
    }

    /// Whom it spares.
    pub(crate) fn spared(&self) -> &BTreeSet<i32> {
        &self.before
    }

    /// Kills everything that is left, when every service has ended.
    pub(crate) async fn end(&self) {
        let deadline = tokio::time::Instant::now() + LONGEST_END;
        let mut told = BTreeSet::new();
        loop {
            let left = family::below(getpid(), &self.before);
            if left.is_empty() || tokio::time::Instant::now() >= deadline {
                return;
            }
            for pid in left {
                if told.insert(pid) {
                    tracing::warn!("process {pid}, which a program had left behind, is killed");
                }
                // It may have ended since it was listed; nobody but us or its parent reaps it.
                let _ended = kill(pid, Signal::SIGKILL);
            }
            while waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG))
                .is_ok_and(|status| status.pid().is_some())
            {}
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
