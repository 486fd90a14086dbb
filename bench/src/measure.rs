//! The measurements. Each compares two sides within one run, and says what it must hold.

pub mod adoption;
pub mod comparison;
pub mod connections;
pub mod idle;
pub mod latency;
pub mod probation;
pub mod reload_time;
pub mod state;
pub mod throughput;

use std::time::Duration;

use crate::publish::markdown::Table;

/// What came out of one measurement.
#[derive(Debug)]
pub struct Outcome {
    /// The section of bench/README.md it belongs to.
    pub section: &'static str,
    /// What was measured, as a table.
    pub table: Table,
    /// What must hold and does not, in sentences.
    pub missed: Vec<String>,
}

/// The middle of `values`, or the mean of the two in the middle. `None` if there are none.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        Some((sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0)
    } else {
        sorted.get(middle).copied()
    }
}

/// The ratios of two sides that were measured in pairs.
#[derive(Debug, Clone, Default)]
pub struct Pairs {
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Pairs {
    /// Adds one pair.
    pub fn add(&mut self, first: f64, second: f64) {
        self.first.push(first);
        self.second.push(second);
    }

    /// How many pairs there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.first.len()
    }

    /// The median of the first side.
    #[must_use]
    pub fn first(&self) -> f64 {
        median(&self.first).unwrap_or(f64::NAN)
    }

    /// The median of the second side.
    #[must_use]
    pub fn second(&self) -> f64 {
        median(&self.second).unwrap_or(f64::NAN)
    }

    /// The median of the pairs' ratios, first to second. What disturbs the machine for longer than
    /// one pair disturbs both sides of a pair, and so not this.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        median(&self.ratios()).unwrap_or(f64::NAN)
    }

    /// The range in which the middle half of the ratios lies.
    #[must_use]
    pub fn spread(&self) -> (f64, f64) {
        let mut ratios = self.ratios();
        ratios.sort_by(f64::total_cmp);
        let at = |index: usize| ratios.get(index).copied().unwrap_or(f64::NAN);
        (at(ratios.len() / 4), at(ratios.len() * 3 / 4))
    }

    fn ratios(&self) -> Vec<f64> {
        self.first
            .iter()
            .zip(&self.second)
            .map(|(first, second)| first / second)
            .collect()
    }
}

/// As text, in milliseconds.
fn milliseconds(duration: Duration) -> String {
    let value = duration.as_secs_f64() * 1e3;
    if value < 10.0 {
        format!("{value:.2} ms")
    } else {
        format!("{value:.0} ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_disturbance_of_one_pair_does_not_move_the_ratio() {
        let mut pairs = Pairs::default();
        for _ in 0..5 {
            pairs.add(2.0, 1.0);
        }
        pairs.add(900.0, 450.0);
        pairs.add(2.0, 100.0);
        assert_eq!(pairs.ratio(), 2.0);
    }
}
