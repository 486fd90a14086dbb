//! What the demo remembers, within limits.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The most counters there are.
pub(super) const COUNTERS_MAX: usize = 1_000_000;

/// The most entries of filling, the most bytes of one, and the most bytes of all.
pub(super) const FILL_ENTRIES_MAX: u64 = 10_000_000;
pub(super) const FILL_BYTES_MAX: u64 = 65_536;
pub(super) const FILL_TOTAL_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// All state of a generation.
#[derive(Debug)]
pub(super) struct State {
    counters_max: usize,
    counters: Mutex<HashMap<String, u64>>,
    filling: Mutex<Vec<Box<[u8]>>>,
}

/// Why a write was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// There are as many counters as there may be.
    Counters,
    /// More than [`FILL_TOTAL_BYTES_MAX`] bytes of filling.
    Filling,
}

impl State {
    /// Nothing yet, with room for at most `counters_max` counters.
    pub(super) fn new(counters_max: usize) -> Self {
        Self {
            counters_max,
            counters: Mutex::default(),
            filling: Mutex::default(),
        }
    }

    /// The value of a counter; 0 if nobody has added to it.
    pub(super) fn counter(&self, key: &str) -> u64 {
        lock(&self.counters).get(key).copied().unwrap_or(0)
    }

    /// Adds one to a counter and gives the new value.
    pub(super) fn add_one(&self, key: &str) -> Result<u64, Full> {
        let mut counters = lock(&self.counters);
        if let Some(value) = counters.get_mut(key) {
            *value = value.saturating_add(1);
            return Ok(*value);
        }
        if counters.len() >= self.counters_max {
            return Err(Full::Counters);
        }
        counters.insert(key.to_owned(), 1);
        Ok(1)
    }

    /// Makes the filling `entries` entries of `bytes` bytes each, whatever it was before.
    pub(super) fn fill(&self, entries: u64, bytes: u64) -> Result<(), Full> {
        entries
            .checked_mul(bytes)
            .filter(|total| *total <= FILL_TOTAL_BYTES_MAX)
            .ok_or(Full::Filling)?;
        let length = usize::try_from(bytes).map_err(|_| Full::Filling)?;
        let filling = (0..entries)
            .map(|entry| {
                // Not all alike, so that nothing is measured that only works on equal entries.
                let pattern = entry.to_le_bytes();
                pattern.iter().copied().cycle().take(length).collect()
            })
            .collect();
        *lock(&self.filling) = filling;
        Ok(())
    }
}

/// No code that holds one of these locks can panic half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_count_by_themselves() {
        let state = State::new(COUNTERS_MAX);
        assert_eq!(state.counter("a"), 0);
        assert_eq!(state.add_one("a"), Ok(1));
        assert_eq!(state.add_one("a"), Ok(2));
        assert_eq!(state.add_one("b"), Ok(1));
        assert_eq!(state.counter("a"), 2);
    }

    #[test]
    fn a_full_map_takes_no_new_counter_but_counts_on() {
        let state = State::new(2);
        state.add_one("a").unwrap();
        state.add_one("b").unwrap();
        assert_eq!(state.add_one("c"), Err(Full::Counters));
        assert_eq!(state.add_one("a"), Ok(2));
    }

    #[test]
    fn filling_replaces_and_is_bounded() {
        let state = State::new(COUNTERS_MAX);
        state.fill(1000, 20).unwrap();
        state.fill(10, 16).unwrap();
        {
            let filling = lock(&state.filling);
            assert_eq!(filling.len(), 10);
            assert!(filling.iter().all(|entry| entry.len() == 16));
            assert_ne!(filling[0], filling[9]);
        }
        assert_eq!(
            state.fill(FILL_ENTRIES_MAX, FILL_BYTES_MAX),
            Err(Full::Filling)
        );
        assert_eq!(state.fill(u64::MAX, 2), Err(Full::Filling));
    }
}
