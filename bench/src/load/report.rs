//! The result of a load, and its latencies. No I/O.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::load::failure::{Failure, FailureKind};
use crate::load::series::Bucket;

/// Longest latency told apart, in microseconds. Longer ones count as this.
const LONGEST_US: u64 = 600_000_000;

/// How long requests took that were answered: from being due or sent to the last byte of the answer.
#[derive(Debug, Clone)]
pub struct Latency {
    histogram: Histogram<u64>,
}

impl Latency {
    /// Exact to three digits.
    pub(crate) fn fine() -> Self {
        Self::with_digits(3)
    }

    /// Exact to two digits, at an eighth of the memory.
    pub(crate) fn coarse() -> Self {
        Self::with_digits(2)
    }

    fn with_digits(digits: u8) -> Self {
        // Made this way it grows to hold whatever is recorded.
        Self {
            histogram: Histogram::new(digits).expect("at most five digits are asked for"),
        }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.histogram
            .record(latency_us.clamp(1, LONGEST_US))
            .expect("the histogram grows by itself, and the value is bounded");
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        self.histogram
            .add(&other.histogram)
            .expect("the histogram grows by itself, and counts do not overflow");
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The latency that this share of the answers, from 0 to 1, did not exceed. Zero if there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        if self.histogram.is_empty() {
            return Duration::ZERO;
        }
        Duration::from_micros(self.histogram.value_at_quantile(share))
    }

    /// The longest. Zero if there are none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.histogram.max())
    }
}

/// What became of the idle connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Idle {
    /// Opened before the load, each used for one request.
    pub opened: u64,
    /// Still open when the load had ended.
    pub alive: u64,
    /// Of those, answered one more request.
    pub answered: u64,
}

impl Idle {
    /// Connections that did not survive.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.opened.saturating_sub(self.answered)
    }
}

/// What a load saw. [`Load::report`](crate::load::Load::report) gives it while the load runs,
/// [`Load::finish`](crate::load::Load::finish) at the end.
#[derive(Debug, Clone)]
pub struct Report {
    /// Time since the load started, without the idle connections' last request.
    pub elapsed: Duration,
    /// Requests that ended, answered or failed; those of idle connections not counted.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests of a fixed rate that were due but not sent when the load ended: the server was
    /// slower than the rate.
    pub unsent: u64,
    /// Failed requests by kind.
    pub failures: BTreeMap<FailureKind, u64>,
    /// The first failures in full, those of idle connections included.
    pub first_failures: Vec<Failure>,
    /// Connections opened, idle ones not counted.
    pub connections_opened: u64,
    /// Keep-alive connections that a checked client found closed before it used them again.
    pub connections_closed_by_server: u64,
    /// Keep-alive connections that the server ended in HTTP's own way, by `Connection: close` on a
    /// good answer. Not an error; the client opens another.
    pub connections_told_to_close: u64,
    /// Keep-alive clients that have ended and used the connection they began with to the end.
    pub connections_lasting: u64,
    /// Connections on which bytes were found that nobody had asked for.
    pub connections_unsolicited: u64,
    /// The idle connections. Only `opened` is known while the load runs.
    pub idle: Idle,
    /// Answers by the generation that gave them, to two digits; how many is their
    /// [`count`](Latency::count). At most 1,000 generations are told apart.
    pub generations: BTreeMap<u64, Latency>,
    /// Latencies of the answers.
    pub latency: Latency,
    /// Counts over time, if the plan asked for them.
    pub series: Vec<Bucket>,
}

impl Report {
    /// Whether nobody noticed anything: no failure, no connection closed or told to close, no
    /// stray byte, no idle connection lost.
    #[must_use]
    pub fn is_spotless(&self) -> bool {
        self.failed == 0
            && self.connections_closed_by_server == 0
            && self.connections_told_to_close == 0
            && self.connections_unsolicited == 0
            && self.idle.lost() == 0
    }

    /// Requests that `generation` answered.
    #[must_use]
    pub fn answered_by(&self, generation: u64) -> u64 {
        self.generations.get(&generation).map_or(0, Latency::count)
    }

    /// Failed requests of one kind.
    #[must_use]
    pub fn failed_by(&self, kind: FailureKind) -> u64 {
        self.failures.get(&kind).copied().unwrap_or(0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        write!(
            formatter,
            "{} requests in {:.1} s, {} failed",
            self.requests,
            self.elapsed.as_secs_f64(),
            self.failed
        )?;
        for (kind, count) in &self.failures {
            write!(formatter, ", {count} {kind}")?;
        }
        if self.unsent > 0 {
            write!(formatter, ", {} due but not sent", self.unsent)?;
        }
        write!(
            formatter,
            "; {} connections opened, {} closed by the server, {} told to close",
            self.connections_opened,
            self.connections_closed_by_server,
            self.connections_told_to_close
        )?;
        if self.connections_unsolicited > 0 {
            write!(
                formatter,
                ", {} with stray bytes",
                self.connections_unsolicited
            )?;
        }
        write!(
            formatter,
            "; p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            milliseconds(self.latency.quantile(0.5)),
            milliseconds(self.latency.quantile(0.99)),
            milliseconds(self.latency.max())
        )?;
        if self.idle.opened > 0 {
            write!(
                formatter,
                "; of {} idle connections {} alive, {} answered",
                self.idle.opened, self.idle.alive, self.idle.answered
            )?;
        }
        for failure in &self.first_failures {
            write!(formatter, "\n  {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact_to_three_digits() {
        let mut latency = Latency::fine();
        for millisecond in 1..=1000 {
            latency.record(Duration::from_millis(millisecond));
        }
        let close = |found: Duration, wanted_ms: f64| {
            let found_ms = found.as_secs_f64() * 1e3;
            assert!(
                (found_ms / wanted_ms - 1.0).abs() < 0.002,
                "{found_ms} for {wanted_ms}"
            );
        };
        close(latency.quantile(0.5), 500.0);
        close(latency.quantile(0.99), 990.0);
        close(latency.max(), 1000.0);
        assert_eq!(latency.count(), 1000);
    }

    #[test]
    fn no_answer_has_no_latency() {
        assert_eq!(Latency::fine().quantile(0.5), Duration::ZERO);
        assert_eq!(Latency::fine().max(), Duration::ZERO);
    }
}
