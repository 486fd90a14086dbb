//! What a holder says at its end about the writes it made, and what a handover did to them.
//!
//! All times are of `CLOCK_MONOTONIC`, which all processes share. No I/O but asking that clock.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Writes at least this long are told one by one.
pub const SLOW: Duration = Duration::from_micros(50);

/// Now, in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    // The clock exists on every Linux; the call cannot fail otherwise.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| Duration::from(time).as_nanos() as u64)
        .unwrap_or_default()
}

/// One generation's account.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Account {
    /// Its number.
    pub generation: u64,
    /// When it came to own the state.
    pub owned_ns: u64,
    /// When its writers began; after that, for the first generation, which filled the map before.
    pub began_ns: u64,
    /// When they had ended.
    pub ended_ns: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes that failed.
    pub failed: u64,
    /// How long a write took in the middle, nanoseconds.
    pub middle_ns: u64,
    /// Writes that took [`SLOW`] or longer, as start and duration in nanoseconds.
    pub slow: Vec<(u64, u64)>,
    /// All writes that the entries know of, if it was asked to count them.
    pub counted: Option<u64>,
}

/// The longest writes around one handover, in nanoseconds; at least [`SLOW`] where there was none as
/// long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Around {
    /// In as long a time as the copying took, before it.
    pub quiet_ns: u64,
    /// From being asked until the freeze.
    pub copying_ns: u64,
    /// Of the writes that the pause held up.
    pub pause_ns: u64,
    /// Of those begun later, which the new generation carried out for the old one.
    pub late_ns: u64,
}

impl Account {
    /// What the handover to the generation that came to own the state at `owned_ns` did, which was
    /// asked for at `asked_ns` and paused for `pause`.
    #[must_use]
    pub fn around(&self, asked_ns: u64, owned_ns: u64, pause: Duration) -> Around {
        let frozen_ns = owned_ns.saturating_sub(pause.as_nanos() as u64);
        let copying_ns = frozen_ns.saturating_sub(asked_ns);
        let longest = |of: &dyn Fn(u64, u64) -> bool| {
            let chosen = self
                .slow
                .iter()
                .filter(|(start, took)| of(*start, start + took));
            let longest = chosen.map(|(_, took)| *took).max();
            longest.unwrap_or_default().max(SLOW.as_nanos() as u64)
        };
        Around {
            quiet_ns: longest(&|start, _| {
                start >= asked_ns.saturating_sub(copying_ns) && start < asked_ns
            }),
            copying_ns: longest(&|start, end| start >= asked_ns && end < frozen_ns),
            pause_ns: longest(&|start, end| start <= owned_ns && end >= frozen_ns),
            late_ns: longest(&|start, _| start > owned_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slow_write_belongs_to_one_stretch() {
        let ms = 1_000_000;
        let account = Account {
            slow: vec![
                (10 * ms, ms),
                (85 * ms, 2 * ms),
                (110 * ms, 3 * ms),
                (119 * ms, 7 * ms),
                (127 * ms, 4 * ms),
            ],
            ..Account::default()
        };
        let around = account.around(100 * ms, 125 * ms, Duration::from_millis(5));
        let expected = Around {
            quiet_ns: 2 * ms,
            copying_ns: 3 * ms,
            pause_ns: 7 * ms,
            late_ns: 4 * ms,
        };
        assert_eq!(around, expected);
    }
}
