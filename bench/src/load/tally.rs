//! The running count that all clients of a load share. No I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::load::failure::{Failure, FailureKind};
use crate::load::report::{Idle, Latency, Report};
use crate::load::series::Series;

/// How many failures are kept as text.
const FIRST_FAILURES: usize = 10;
/// How many generations are told apart. The number comes from the server, so it is bounded here.
const GENERATION_LIMIT: usize = 1000;

#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) opened: u64,
    pub(crate) closed_by_server: u64,
    pub(crate) told_to_close: u64,
    pub(crate) lasting: u64,
    pub(crate) unsolicited: u64,
    pub(crate) unsent: u64,
    pub(crate) idle: Idle,
    answered: u64,
    failures: BTreeMap<FailureKind, u64>,
    first_failures: Vec<Failure>,
    generations: BTreeMap<u64, Latency>,
    latency: Latency,
    series: Option<Series>,
}

impl Tally {
    pub(crate) fn new(bucket: Option<Duration>) -> Self {
        Self {
            opened: 0,
            closed_by_server: 0,
            told_to_close: 0,
            lasting: 0,
            unsolicited: 0,
            unsent: 0,
            idle: Idle::default(),
            answered: 0,
            failures: BTreeMap::new(),
            first_failures: Vec::new(),
            generations: BTreeMap::new(),
            latency: Latency::fine(),
            series: bucket.map(Series::new),
        }
    }

    pub(crate) fn answered(&mut self, at: Duration, latency: Duration, generation: Option<u64>) {
        self.answered += 1;
        self.latency.record(latency);
        if let Some(generation) = generation
            && (self.generations.len() < GENERATION_LIMIT
                || self.generations.contains_key(&generation))
        {
            self.generations
                .entry(generation)
                .or_insert_with(Latency::coarse)
                .record(latency);
        }
        if let Some(series) = &mut self.series {
            series.answered(at, latency);
        }
    }

    pub(crate) fn failed(&mut self, failure: Failure) {
        *self.failures.entry(failure.kind).or_default() += 1;
        if let Some(series) = &mut self.series {
            series.failed(failure.at);
        }
        self.keep(failure);
    }

    /// Keeps the text of a failure without counting it among the requests.
    pub(crate) fn keep(&mut self, failure: Failure) {
        if self.first_failures.len() < FIRST_FAILURES {
            self.first_failures.push(failure);
        }
    }

    pub(crate) fn report(&self, elapsed: Duration) -> Report {
        let failed = self.failures.values().sum();
        Report {
            elapsed,
            requests: self.answered + failed,
            failed,
            unsent: self.unsent,
            failures: self.failures.clone(),
            first_failures: self.first_failures.clone(),
            connections_opened: self.opened,
            connections_closed_by_server: self.closed_by_server,
            connections_told_to_close: self.told_to_close,
            connections_lasting: self.lasting,
            connections_unsolicited: self.unsolicited,
            idle: self.idle,
            generations: self.generations.clone(),
            latency: self.latency.clone(),
            series: self
                .series
                .as_ref()
                .map(Series::buckets)
                .unwrap_or_default(),
        }
    }
}
