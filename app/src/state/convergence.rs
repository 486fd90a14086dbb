//! When a copy is close enough to freeze, and when it never will be.
//!
//! Pure: figures in, a verdict out. The rules are those of live migration of virtual machines: freeze
//! when what is still to be sent takes no longer than the pause that is aimed at, as measured. When
//! rounds do not bring it nearer, a pause of ten times that is still taken, for a state whose every
//! entry changes all the time never gets nearer, and a small one is copied in a moment all the same.
//! Beyond that it does not converge.

use std::time::Duration;

/// What to do when the state changes faster than it can be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IfItDoesNotConverge {
    /// Give the handover up; this generation serves on.
    #[default]
    Abort,
    /// Slow changes down, more from round to round, and only then give up.
    Throttle,
    /// Freeze all the same, if the pause stays below this.
    Pause(Duration),
}

/// Most rounds, and how often the state may be sent: the limits of live migration in Xen.
const ROUNDS_MAX: u32 = 30;
const SENT_MAX: u64 = 3;

/// How many times the pause that is aimed at may be taken when rounds do not bring it nearer.
const PAUSE_AT_WORST: u32 = 10;

/// Two rounds that leave more than this share of what was to be sent do not converge.
const SHRINKS_TO: f64 = 0.9;

/// The first and the longest wait of a change that is slowed down.
const THROTTLE_MIN: Duration = Duration::from_millis(1);
const THROTTLE_MAX: Duration = Duration::from_millis(50);

/// A rate that nothing measured may fall below or exceed, in bytes a second.
const RATE_MIN: f64 = 1e3;
const RATE_MAX: f64 = 1e10;

/// Rounds with fewer bytes say more about the way than about the rate.
const TELLING_BYTES: u64 = 64 * 1024;

/// A round that is over: sent, and applied on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    /// Its bytes.
    pub(crate) sent_bytes: u64,
    /// From its beginning until the other side had applied it.
    pub(crate) took: Duration,
    /// What has changed meanwhile, in bytes.
    pub(crate) pending_bytes: u64,
}

/// What follows from a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A freeze would be short.
    Converged,
    /// Another round, while each change waits as [`Convergence::throttle`] says.
    Again,
    /// It will not converge.
    GiveUp,
}

/// The rounds so far.
#[derive(Clone, Debug)]
pub(crate) struct Convergence {
    pause: Duration,
    policy: IfItDoesNotConverge,
    rounds: u32,
    base_bytes: u64,
    sent_bytes: u64,
    /// Bytes a second, decoding included.
    rate: f64,
    /// The quickest round: the way there and back.
    way: Duration,
    pending_before: Option<u64>,
    stuck: u32,
    throttle: Option<Duration>,
    throttled_from: u32,
}

impl Convergence {
    /// The rules for a pause that is aimed at.
    pub(crate) fn new(pause: Duration, policy: IfItDoesNotConverge) -> Self {
        Self {
            pause,
            policy,
            rounds: 0,
            base_bytes: 0,
            sent_bytes: 0,
            rate: RATE_MAX,
            way: Duration::ZERO,
            pending_before: None,
            stuck: 0,
            throttle: None,
            throttled_from: 0,
        }
    }

    /// Judges after a round; the first is the base.
    pub(crate) fn after(&mut self, round: &Round) -> Verdict {
        self.note(round);
        let pause = self.pause_for(round.pending_bytes);
        if pause <= self.pause {
            return Verdict::Converged;
        }
        // Slowing down gets as many rounds as there were before it.
        let rounds = self.rounds - self.throttled_from;
        let sent_too_often = self.throttle.is_none()
            && self.sent_bytes > self.base_bytes.max(TELLING_BYTES).saturating_mul(SENT_MAX);
        if self.stuck < 2 && rounds <= ROUNDS_MAX && !sent_too_often {
            return Verdict::Again;
        }
        if pause <= self.pause * PAUSE_AT_WORST {
            return Verdict::Converged;
        }
        match self.policy {
            IfItDoesNotConverge::Abort => Verdict::GiveUp,
            IfItDoesNotConverge::Pause(longest) if pause <= longest => Verdict::Converged,
            IfItDoesNotConverge::Pause(_) => Verdict::GiveUp,
            IfItDoesNotConverge::Throttle => self.throttle_more(),
        }
    }

    /// How long each change is to wait; zero for not at all.
    pub(crate) fn throttle(&self) -> Duration {
        self.throttle.unwrap_or_default()
    }

    fn note(&mut self, round: &Round) {
        if self.rounds == 0 {
            self.base_bytes = round.sent_bytes;
            self.way = round.took;
        }
        self.rounds += 1;
        self.sent_bytes = self.sent_bytes.saturating_add(round.sent_bytes);
        self.way = self.way.min(round.took);
        if round.sent_bytes >= TELLING_BYTES || self.rounds == 1 {
            let seconds = round.took.as_secs_f64().max(1e-6);
            // A base of no bytes tells nothing; it is then quick enough whatever it is.
            let bytes = round.sent_bytes.max(TELLING_BYTES) as f64;
            self.rate = (bytes / seconds).clamp(RATE_MIN, RATE_MAX);
        }
        let shrinks = self
            .pending_before
            .is_none_or(|before| (round.pending_bytes as f64) <= before as f64 * SHRINKS_TO);
        self.stuck = if shrinks { 0 } else { self.stuck + 1 };
        self.pending_before = Some(round.pending_bytes);
    }

    /// How long a freeze would be now.
    fn pause_for(&self, pending_bytes: u64) -> Duration {
        let seconds = pending_bytes as f64 / self.rate;
        // The way is part of the quickest round already when that was as small as this one.
        Duration::from_secs_f64(seconds) + self.way.min(self.pause / 2)
    }

    fn throttle_more(&mut self) -> Verdict {
        let wait = match self.throttle {
            None => THROTTLE_MIN,
            Some(wait) if wait >= THROTTLE_MAX => return Verdict::GiveUp,
            Some(wait) => (wait * 2).min(THROTTLE_MAX),
        };
        self.throttle = Some(wait);
        self.throttled_from = self.rounds;
        self.stuck = 0;
        self.pending_before = None;
        Verdict::Again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn round(sent_bytes: u64, ms: u64, pending_bytes: u64) -> Round {
        Round {
            sent_bytes,
            took: Duration::from_millis(ms),
            pending_bytes,
        }
    }

    fn five_ms(policy: IfItDoesNotConverge) -> Convergence {
        Convergence::new(Duration::from_millis(5), policy)
    }

    #[test]
    fn a_state_that_nobody_changes_converges_at_once() {
        let mut rules = five_ms(IfItDoesNotConverge::Abort);
        assert_eq!(rules.after(&round(100 * MIB, 400, 0)), Verdict::Converged);
        let mut nothing = five_ms(IfItDoesNotConverge::Abort);
        assert_eq!(nothing.after(&round(300, 0, 0)), Verdict::Converged);
    }

    #[test]
    fn rounds_go_on_until_the_rest_fits_the_pause() {
        let mut rules = five_ms(IfItDoesNotConverge::Abort);
        // 250 MiB a second: the pause holds a little over a megabyte, less the way.
        assert_eq!(
            rules.after(&round(100 * MIB, 400, 10 * MIB)),
            Verdict::Again
        );
        assert_eq!(rules.after(&round(10 * MIB, 40, 2 * MIB)), Verdict::Again);
        assert_eq!(rules.after(&round(2 * MIB, 8, MIB / 4)), Verdict::Converged);
    }

    #[test]
    fn rounds_that_do_not_shrink_end_it() {
        for (left, verdict) in [(9 * MIB, Verdict::Converged), (19 * MIB, Verdict::GiveUp)] {
            let mut rules = five_ms(IfItDoesNotConverge::Abort);
            assert_eq!(rules.after(&round(100 * MIB, 400, left)), Verdict::Again);
            assert_eq!(
                rules.after(&round(left, 4 * left / MIB, left)),
                Verdict::Again
            );
            assert_eq!(rules.after(&round(left, 4 * left / MIB, left)), verdict);
        }
    }

    #[test]
    fn what_shrinks_too_slowly_ends_too() {
        let mut rules = five_ms(IfItDoesNotConverge::Abort);
        let mut pending = 1000 * MIB;
        let mut rounds = 0;
        while rules.after(&round(pending, 4000, pending * 8 / 10)) == Verdict::Again {
            pending = pending * 8 / 10;
            rounds += 1;
            assert!(rounds < 40, "it never ends");
        }
    }

    #[test]
    fn a_longer_pause_is_taken_only_as_far_as_allowed() {
        for (longest_ms, verdict) in [(100, Verdict::Converged), (60, Verdict::GiveUp)] {
            let longest = Duration::from_millis(longest_ms);
            let mut rules = five_ms(IfItDoesNotConverge::Pause(longest));
            rules.after(&round(100 * MIB, 400, 19 * MIB));
            rules.after(&round(19 * MIB, 76, 19 * MIB));
            assert_eq!(rules.after(&round(19 * MIB, 76, 19 * MIB)), verdict);
        }
    }

    #[test]
    fn slowing_down_grows_and_ends() {
        let mut rules = five_ms(IfItDoesNotConverge::Throttle);
        let mut waits = Vec::new();
        for _ in 0..200 {
            match rules.after(&round(19 * MIB, 76, 19 * MIB)) {
                Verdict::Again if rules.throttle().is_zero() => {}
                Verdict::Again => waits.push(rules.throttle()),
                Verdict::GiveUp => break,
                Verdict::Converged => panic!("it did not converge"),
            }
        }
        waits.dedup();
        assert_eq!(waits.first(), Some(&THROTTLE_MIN));
        assert_eq!(waits.last(), Some(&THROTTLE_MAX));
        let mut slowed = five_ms(IfItDoesNotConverge::Throttle);
        for _ in 0..3 {
            slowed.after(&round(19 * MIB, 76, 19 * MIB));
        }
        assert_eq!(
            slowed.after(&round(19 * MIB, 76, MIB / 8)),
            Verdict::Converged
        );
    }
}
