//! A keyed store takes up entries that another generation gave away.
//!
//! Owns the rules by which records apply, and the digest of what they lead to. Attic records wait here
//! until their entry comes.

use std::{collections::HashMap, sync::atomic::Ordering};

use heirloom_state_codec::{
    ApplyError, AtticRecord, Change, Context, EntryHash, Record, Records, SectionDescriptor,
    SectionId, SectionKind, SectionTotal, StateDigest, read_entry,
};

use super::{
    Keyed, Kind,
    shard::{Received, Shard},
};
use crate::state::{declared::accept, error::StoreError, turn::lock};

/// A copy on its way in.
#[derive(Debug)]
pub(super) struct Taking {
    entries: Totals,
    /// The version in which entries come.
    version: u32,
    attic: Option<Totals>,
    attics: HashMap<Vec<u8>, HeldAttic>,
    context: Context,
}

/// What is held of a section.
#[derive(Debug)]
struct Totals {
    section: SectionId,
    state: StateDigest,
}

impl Totals {
    fn new(section: SectionId) -> Self {
        Self {
            section,
            state: StateDigest::default(),
        }
    }

    /// Whether a record may follow what is held under its key, and counts that out.
    fn follow(
        &mut self,
        base: bool,
        record: &Record<'_>,
        held: Option<(u64, EntryHash)>,
    ) -> Result<(), ApplyError> {
        let Some((version, hash)) = held else {
            return Ok(());
        };
        let section = self.section;
        if base {
            return Err(ApplyError::Duplicate { section });
        }
        if record.version <= version {
            return Err(ApplyError::Stale {
                section,
                held: version,
                found: record.version,
            });
        }
        self.state.remove(hash);
        Ok(())
    }
}

/// An attic record and what it adds to the digest.
#[derive(Debug)]
struct HeldAttic {
    version: u64,
    hash: EntryHash,
    /// None if it is damaged, which is no reason to refuse its entry.
    record: Option<AtticRecord>,
}

impl<T: Kind> Keyed<T> {
    /// A copy in which the store has no section leaves it as it was made.
    pub(super) fn begin_taking(&self, sections: &[&SectionDescriptor]) -> Result<(), StoreError> {
        let key_shape = T::key_shape();
        let accepted = accept::<T::Codec, T::Value>(self.identity(&key_shape), sections)?;
        let Some((section, attic)) = accepted else {
            return Ok(());
        };
        self.stored.store(false, Ordering::Relaxed);
        for shard in 0..T::SHARDS {
            *self.lock(shard) = Shard::default();
        }
        *lock(&self.taking) = Some(Taking {
            entries: Totals::new(section.id),
            version: section.schema.version,
            attic: attic.map(Totals::new),
            attics: HashMap::new(),
            context: Context::default(),
        });
        Ok(())
    }

    pub(super) fn apply(
        &self,
        section: &SectionDescriptor,
        base: bool,
        records: Records<'_>,
    ) -> Result<(), StoreError> {
        let mut taking = lock(&self.taking);
        let Some(taking) = taking.as_mut() else {
            return Err(StoreError::Other(format!(
                "{} was not declared; the program that wrote it is at fault",
                section.name
            )));
        };
        for record in records {
            if section.kind == SectionKind::Attic {
                taking.apply_attic(base, &record)?;
            } else {
                self.apply_entry(taking, base, &record)?;
            }
        }
        Ok(())
    }

    fn apply_entry(
        &self,
        taking: &mut Taking,
        base: bool,
        record: &Record<'_>,
    ) -> Result<(), StoreError> {
        let key = T::decode_key(record.key)?;
        let hash = self.hash(&key);
        let mut shard = self.lock_for(hash);
        let held = shard
            .get(hash, &key)
            .map(|slot| (slot.version, slot.hash()));
        taking.entries.follow(base, record, held)?;
        match record.change {
            Change::Put(bytes) => {
                // Kept here as well: the entry may come again and the attic record not.
                let attic = taking.attics.get(record.key);
                let attic = attic.and_then(|held| held.record.clone());
                let (version, context) = (taking.version, &mut taking.context);
                let entry = read_entry::<T::Codec, T::Value>(version, bytes, attic, context)?;
                let received = Received {
                    version: record.version,
                    hash: record.hash(),
                    stored: entry.attic,
                };
                if received.stored.is_some() {
                    self.stored.store(true, Ordering::Relaxed);
                }
                taking.entries.state.add(received.hash);
                shard.receive(hash, key, entry.value, received);
            }
            Change::Remove => shard.receive_removal(hash, &key, record.version),
        }
        Ok(())
    }

    pub(super) fn end_taking(&self) -> Vec<SectionTotal> {
        let Some(taking) = lock(&self.taking).take() else {
            return Vec::new();
        };
        super::report(&self.name, &taking.context);
        let each = std::iter::once(taking.entries).chain(taking.attic);
        each.map(|Totals { section, state }| SectionTotal { section, state })
            .collect()
    }
}

impl Taking {
    fn apply_attic(&mut self, base: bool, record: &Record<'_>) -> Result<(), StoreError> {
        let Some(totals) = &mut self.attic else {
            return Ok(());
        };
        let held = self.attics.get(record.key);
        totals.follow(base, record, held.map(|held| (held.version, held.hash)))?;
        match record.change {
            Change::Put(bytes) => {
                let hash = record.hash();
                totals.state.add(hash);
                self.attics.insert(
                    record.key.to_vec(),
                    HeldAttic {
                        version: record.version,
                        hash,
                        record: AtticRecord::parse(bytes),
                    },
                );
            }
            Change::Remove => {
                self.attics.remove(record.key);
            }
        }
        Ok(())
    }
}
