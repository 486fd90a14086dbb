//! Each process of a handover dies, stops or is slow at each of its steps, under load; what must hold then
//! is looked at from outside.
//!
//! The steps are [`heirloom_handover::fault`]'s, so that none is forgotten: every one of them has its case,
//! and a case whose step is not reached fails. [`verdict`] is the one place that says what each may cost,
//! [`load`] is the work that goes on meanwhile, [`handovers`] does it to one of the two programs,
//! [`supervisors`] to the supervisor.
//!
//! The ordinary run kills. With `HEIRLOOM_FAULTS=all` in the environment everything is also stopped, for
//! longer than others wait for it, and slowed down; `scripts/soak` runs that.

mod handovers;
mod load;
mod supervisors;
mod verdict;

use std::fs;

use heirloom_handover::fault::{Point, Role};
use nix::unistd::Pid;

/// What is done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Kill,
    /// Until others have stopped waiting for it.
    Stop,
    /// For [`SLOW_MS`].
    Slow,
}

/// So long a thread is held up that is slow: a pause that somebody notices and no deadline does.
const SLOW_MS: u64 = 200;

impl Deed {
    /// What is to be done in this run.
    fn wanted() -> &'static [Self] {
        match std::env::var("HEIRLOOM_FAULTS").as_deref() {
            Ok("all") => &[Self::Kill, Self::Stop, Self::Slow],
            Ok(other) => panic!("HEIRLOOM_FAULTS is {other:?}; it is \"all\" or not there"),
            Err(_) => &[Self::Kill],
        }
    }

    /// How `HEIRLOOM_FAULT` says it.
    fn word(self) -> String {
        match self {
            Self::Kill => "kill".to_owned(),
            Self::Stop => "stop".to_owned(),
            Self::Slow => format!("slow={SLOW_MS}"),
        }
    }

    /// What the process says before.
    fn line(self, point: Point) -> String {
        let what = match self {
            Self::Kill => "SIGKILL",
            Self::Stop => "SIGSTOP",
            Self::Slow => "slow",
        };
        format!("fault: {}: {what}\n", point.name())
    }
}

/// Whether a process is stopped.
fn stands_still(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| state.starts_with('T'))
}

/// The steps of one role.
fn steps(role: Role) -> Vec<Point> {
    let all = Point::ALL.iter().copied();
    all.filter(|point| point.role() == role).collect()
}

/// One part of several that are alike long.
fn part<T: Copy>(all: &[T], number: usize, of: usize) -> Vec<T> {
    all.iter().copied().skip(number).step_by(of).collect()
}
