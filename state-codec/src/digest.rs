//! The two digests, for two questions.
//!
//! The stream digest (blake3 over every byte) answers "I read what you wrote". The state digest
//! answers "after all the deltas we hold the same state": it is the sum modulo 2^128 of a hash of
//! every live entry, so it does not depend on order and follows a change at the cost of that one
//! entry. It guards against faults, not against an adversary who may choose entries.

use std::fmt;

use xxhash_rust::xxh3::xxh3_128;

/// What one entry adds to its section's state digest: XXH3-128 with seed 0 of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryHash(pub u128);

impl EntryHash {
    /// Hash of the entry with this version, key and value, all as they stand in the stream.
    #[must_use]
    pub fn of(version: u64, key: &[u8], value: &[u8]) -> Self {
        let mut record = Vec::with_capacity(16 + key.len() + value.len());
        record.extend_from_slice(&version.to_le_bytes());
        record.extend_from_slice(&(key.len() as u32).to_le_bytes());
        record.extend_from_slice(&(value.len() as u32).to_le_bytes());
        record.extend_from_slice(key);
        record.extend_from_slice(value);
        Self::of_record(&record)
    }

    pub(crate) fn of_record(record: &[u8]) -> Self {
        Self(xxh3_128(record))
    }
}

/// Digest of the entries of one section.
///
/// ```
/// use heirloom_state_codec::{EntryHash, StateDigest};
/// let (one, two) = (EntryHash::of(1, b"a", b"1"), EntryHash::of(1, b"b", b"2"));
/// let mut left = StateDigest::default();
/// left.add(one);
/// left.add(two);
/// let mut right = StateDigest::default();
/// right.add(two);
/// right.add(EntryHash::of(1, b"a", b"0"));
/// right.remove(EntryHash::of(1, b"a", b"0"));
/// right.add(one);
/// assert_eq!(left, right);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateDigest {
    /// Number of live entries.
    pub entries: u64,
    /// Sum of their hashes modulo 2^128.
    pub sum: u128,
}

impl StateDigest {
    /// Counts an entry in.
    pub fn add(&mut self, entry: EntryHash) {
        self.entries = self.entries.wrapping_add(1);
        self.sum = self.sum.wrapping_add(entry.0);
    }

    /// Counts an entry out that was counted in before.
    pub fn remove(&mut self, entry: EntryHash) {
        self.entries = self.entries.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(entry.0);
    }
}

impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries, digest {:032x}", self.entries, self.sum)
    }
}

/// Digest of the stream so far; both sides update it frame by frame.
#[derive(Debug, Clone, Default)]
pub(crate) struct StreamDigest(blake3::Hasher);

impl StreamDigest {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn value(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_value_are_told_apart() {
        assert_ne!(EntryHash::of(1, b"ab", b"c"), EntryHash::of(1, b"a", b"bc"));
        assert_ne!(EntryHash::of(1, b"a", b"b"), EntryHash::of(2, b"a", b"b"));
    }

    #[test]
    fn the_published_hash_functions_are_used() {
        // XXH3-128 and blake3 of the empty input, from their specifications.
        assert_eq!(
            EntryHash::of_record(b"").0,
            0x99aa_06d3_0147_98d8_6001_c324_468d_497f
        );
        let hex: String = StreamDigest::default()
            .value()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(
            hex,
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }
}
