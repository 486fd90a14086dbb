//! How much one process may write into the log: a rate, and some seconds of it at once.

use std::time::Duration;

use tokio::time::Instant;

/// So many seconds' worth may be written at once: a program that tells much at its start loses nothing.
const BURST_SECONDS: u64 = 10;

/// What a line counts beside its own bytes: time, service, generation and their names.
const LINE_BYTES: u64 = 128;

const SECOND_US: u128 = 1_000_000;

#[derive(Debug)]
pub(super) struct Allowance {
    /// Bytes a second.
    rate: u64,
    left: u64,
    since: Instant,
}

impl Allowance {
    /// All of it is there at first.
    pub(super) fn new(rate: u64, now: Instant) -> Self {
        Self {
            rate,
            left: rate.saturating_mul(BURST_SECONDS),
            since: now,
        }
    }

    /// Whether a line of so many bytes may be written; it counts then.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_micros();
        let earned = u128::from(self.rate) * passed / SECOND_US;
        if earned > 0 {
            let most = self.rate.saturating_mul(BURST_SECONDS);
            let all = u128::from(self.left).saturating_add(earned);
            self.left = u64::try_from(all).map_or(most, |all| all.min(most));
            // What is not worth a whole byte yet counts the next time.
            let unspent = passed - (earned * SECOND_US).div_ceil(u128::from(self.rate));
            let unspent = u64::try_from(unspent).unwrap_or(0);
            self.since = now - Duration::from_micros(unspent);
        }
        let wanted = bytes.saturating_add(LINE_BYTES);
        match self.left.checked_sub(wanted) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_seconds_worth_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut allowance = Allowance::new(1024, start);
        let take = |allowance: &mut Allowance, at: Duration| {
            (0..100)
                .filter(|_| allowance.take(1024 - LINE_BYTES, start + at))
                .count()
        };
        assert_eq!(take(&mut allowance, Duration::ZERO), 10);
        assert_eq!(take(&mut allowance, Duration::from_millis(999)), 0);
        assert_eq!(take(&mut allowance, Duration::from_secs(3)), 3);
        assert_eq!(take(&mut allowance, Duration::from_secs(1000)), 10);
    }

    #[test]
    fn small_pieces_of_time_add_up() {
        let start = Instant::now();
        let mut allowance = Allowance::new(1000, start);
        while allowance.take(0, start) {}
        let taken = (1..=10_000)
            .filter(|step| allowance.take(0, start + Duration::from_micros(100 * step)));
        assert!((6..=8).contains(&taken.count()));
    }

    #[test]
    fn a_line_longer_than_all_of_it_is_never_allowed() {
        let start = Instant::now();
        let mut allowance = Allowance::new(1024, start);
        assert!(!allowance.take(10 * 1024, start));
        assert!(allowance.take(1, start));
    }
}
