//! The rules by which deltas apply, and the digest of what they lead to.
//!
//! [`EntryLedger`] remembers for each live entry its version and hash, not its value. A reader that
//! keeps these two beside its own entries needs no ledger; one that does not, and the inspector,
//! use it.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_128;

use crate::digest::{EntryHash, StateDigest};
use crate::envelope::{Manifest, SectionDescriptor, SectionId, SectionKind};
use crate::event::Event;
use crate::frame::control::SectionTotal;
use crate::frame::record::{Change, Record};
use crate::limits::Limits;

/// A record cannot be applied; the program that wrote it is at fault, or the limit is too low.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The base has a key twice.
    #[error(
        "{section}: the base has a key twice; the program that wrote this snapshot is at fault"
    )]
    Duplicate {
        /// The section.
        section: SectionId,
    },
    /// A change is not newer than what it changes.
    #[error(
        "{section}: a change with version {found} comes after version {held}; the program that wrote this snapshot is at fault"
    )]
    Stale {
        /// The section.
        section: SectionId,
        /// Version of the entry held.
        held: u64,
        /// Version of the change.
        found: u64,
    },
    /// A log goes on at another position than the next.
    #[error(
        "{section}: position {found} comes where {expected} should; the program that wrote this snapshot is at fault"
    )]
    LogGap {
        /// The section.
        section: SectionId,
        /// The next position.
        expected: u64,
        /// The position found.
        found: u64,
    },
    /// A log entry is changed or removed.
    #[error(
        "{section}: a log only grows, but an entry of it is removed; the program that wrote this snapshot is at fault"
    )]
    LogRemoval {
        /// The section.
        section: SectionId,
    },
    /// More entries than this process is willing to keep.
    #[error("over {limit} entries; raise the limit if the state is really that large")]
    TooMany {
        /// The limit.
        limit: u64,
    },
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    version: u64,
    hash: EntryHash,
}

#[derive(Debug)]
struct Section {
    id: SectionId,
    kind: SectionKind,
    /// By XXH3-128 of the key.
    entries: HashMap<u128, Entry>,
    next_position: Option<u64>,
    state: StateDigest,
}

/// Version and hash of every live entry of one snapshot.
#[derive(Debug)]
pub struct EntryLedger {
    sections: Vec<Section>,
    entries: u64,
    entries_max: u64,
}

impl EntryLedger {
    /// An empty ledger for the manifest's sections.
    #[must_use]
    pub fn new(manifest: &Manifest, limits: &Limits) -> Self {
        let with_records = manifest
            .sections
            .iter()
            .filter(|section| section.kind.has_records());
        let sections = with_records.map(|section| Section {
            id: section.id,
            kind: section.kind,
            entries: HashMap::new(),
            next_position: None,
            state: StateDigest::default(),
        });
        Self {
            sections: sections.collect(),
            entries: 0,
            entries_max: limits.entries_max,
        }
    }

    /// Applies the records of an event; other events change nothing.
    ///
    /// # Errors
    /// The first record that breaks a rule. Those before it are applied.
    pub fn apply(&mut self, event: &Event<'_>) -> Result<(), ApplyError> {
        let (section, records, base) = match event {
            Event::Bulk {
                section, records, ..
            } => (section, records, true),
            Event::Delta {
                section, records, ..
            } => (section, records, false),
            Event::Opened { .. }
            | Event::Memfd { .. }
            | Event::Connection { .. }
            | Event::RoundEnd(_)
            | Event::Freeze(_)
            | Event::End(_) => return Ok(()),
        };
        records
            .clone()
            .try_for_each(|record| self.apply_record(section, &record, base))
    }

    fn apply_record(
        &mut self,
        section: &SectionDescriptor,
        record: &Record<'_>,
        base: bool,
    ) -> Result<(), ApplyError> {
        let limit = self.entries_max;
        let Some(held) = self.sections.iter_mut().find(|held| held.id == section.id) else {
            return Ok(());
        };
        if held.kind == SectionKind::Log {
            held.follow_log(record)?;
        }
        let key = xxh3_128(record.key);
        let id = held.id;
        if let Some(old) = held.entries.get(&key).copied() {
            if base {
                return Err(ApplyError::Duplicate { section: id });
            }
            if record.version <= old.version {
                let (held, found) = (old.version, record.version);
                return Err(ApplyError::Stale {
                    section: id,
                    held,
                    found,
                });
            }
            held.entries.remove(&key);
            held.state.remove(old.hash);
            self.entries -= 1;
        }
        if record.change != Change::Remove {
            if self.entries >= limit {
                return Err(ApplyError::TooMany { limit });
            }
            let hash = record.hash();
            held.entries.insert(
                key,
                Entry {
                    version: record.version,
                    hash,
                },
            );
            held.state.add(hash);
            self.entries += 1;
        }
        Ok(())
    }

    /// Entries and digest per section, to be compared by [`End::verify`](crate::End::verify).
    #[must_use]
    pub fn totals(&self) -> Vec<SectionTotal> {
        let totals = self.sections.iter();
        totals
            .map(|held| SectionTotal {
                section: held.id,
                state: held.state,
            })
            .collect()
    }
}

impl Section {
    fn follow_log(&mut self, record: &Record<'_>) -> Result<(), ApplyError> {
        if record.change == Change::Remove {
            return Err(ApplyError::LogRemoval { section: self.id });
        }
        let mut position = [0; 8];
        let length = record.key.len().min(position.len());
        position[..length].copy_from_slice(&record.key[..length]);
        let found = u64::from_le_bytes(position);
        if let Some(expected) = self.next_position
            && found != expected
        {
            return Err(ApplyError::LogGap {
                section: self.id,
                expected,
                found,
            });
        }
        self.next_position = Some(found.wrapping_add(1));
        Ok(())
    }
}
