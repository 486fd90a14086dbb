//! Counts over time, for plots: one bucket per stretch of the load. No I/O.

use std::time::Duration;

use crate::load::report::Latency;

/// Most buckets kept; what comes later is counted in the last one. At 50 ms, 30 minutes.
const BUCKET_LIMIT: usize = 36_000;

/// What happened in one stretch of time, by the moment at which a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Start of the stretch, since the load started.
    pub start: Duration,
    /// Requests answered.
    pub answered: u64,
    /// Requests failed.
    pub failed: u64,
    /// Latency that 99 % of the answers did not exceed; zero if there was none.
    pub p99: Duration,
    /// Longest latency; zero if there was no answer.
    pub max: Duration,
}

#[derive(Debug, Clone)]
struct Slot {
    latency: Latency,
    failed: u64,
}

/// Collects buckets of one length.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    length: Duration,
    slots: Vec<Slot>,
}

impl Series {
    pub(crate) fn new(length: Duration) -> Self {
        Self {
            length,
            slots: Vec::new(),
        }
    }

    pub(crate) fn answered(&mut self, at: Duration, latency: Duration) {
        self.slot(at).latency.record(latency);
    }

    pub(crate) fn failed(&mut self, at: Duration) {
        self.slot(at).failed += 1;
    }

    pub(crate) fn buckets(&self) -> Vec<Bucket> {
        let mut start = Duration::ZERO;
        let mut buckets = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            buckets.push(Bucket {
                start,
                answered: slot.latency.count(),
                failed: slot.failed,
                p99: slot.latency.quantile(0.99),
                max: slot.latency.max(),
            });
            start += self.length;
        }
        buckets
    }

    fn slot(&mut self, at: Duration) -> &mut Slot {
        let index = (at.as_nanos() / self.length.as_nanos().max(1))
            .try_into()
            .unwrap_or(usize::MAX)
            .min(BUCKET_LIMIT - 1);
        while self.slots.len() <= index {
            self.slots.push(Slot {
                latency: Latency::coarse(),
                failed: 0,
            });
        }
        &mut self.slots[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_without_answers_is_in_the_series() {
        let mut series = Series::new(Duration::from_millis(50));
        series.answered(Duration::from_millis(10), Duration::from_millis(1));
        series.failed(Duration::from_millis(120));
        series.answered(Duration::from_millis(149), Duration::from_millis(4));
        let buckets = series.buckets();
        let counts: Vec<_> = buckets
            .iter()
            .map(|one| (one.answered, one.failed))
            .collect();
        assert_eq!(counts, [(1, 0), (0, 0), (1, 1)]);
        assert_eq!(buckets[1].max, Duration::ZERO);
        assert!(buckets[2].max >= Duration::from_millis(4));
        assert_eq!(buckets[2].start, Duration::from_millis(100));
    }
}
