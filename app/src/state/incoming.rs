//! Entries on their way in: the rules by which records apply, and the digest of what they lead to.
//!
//! Attic records wait here until their entry comes. Where an entry is put, and its version and hash
//! beside it, is the store's affair.

use std::collections::HashMap;

use heirloom_state_codec::{
    ApplyError, AtticRecord, Change, Codec, Context, EntryHash, Record, SectionDescriptor,
    SectionId, SectionTotal, StateDigest, read_entry,
};

use super::{error::StoreError, keyed::Value};

/// A copy of one store on its way in.
#[derive(Debug)]
pub(crate) struct Incoming {
    entries: Totals,
    /// The version in which entries come.
    version: u32,
    attic: Option<Totals>,
    attics: HashMap<Vec<u8>, HeldAttic>,
    pub(crate) context: Context,
}

/// What comes with an entry.
#[derive(Debug)]
pub(crate) struct Received {
    /// Its version.
    pub(crate) version: u64,
    /// What it adds to the digest.
    pub(crate) hash: EntryHash,
    /// What a newer version than this program's put aside.
    pub(crate) stored: Option<AtticRecord>,
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

impl Incoming {
    /// For a section and its attic.
    pub(crate) fn new(section: &SectionDescriptor, attic: Option<SectionId>) -> Self {
        Self {
            entries: Totals::new(section.id),
            version: section.schema.version,
            attic: attic.map(Totals::new),
            attics: HashMap::new(),
            context: Context::default(),
        }
    }

    /// Reads a record of the section. `held` is the version and hash of what the store has under its key,
    /// which this replaces or, with none, removes.
    ///
    /// # Errors
    ///
    /// If it breaks a rule or cannot be understood.
    pub(crate) fn entry<C: Codec<V>, V: Value<C>>(
        &mut self,
        base: bool,
        record: &Record<'_>,
        held: Option<(u64, EntryHash)>,
    ) -> Result<Option<(V, Received)>, StoreError> {
        self.entries.follow(base, record, held)?;
        let Change::Put(bytes) = record.change else {
            return Ok(None);
        };
        // Kept here as well: the entry may come again and the attic record not.
        let attic = self.attics.get(record.key);
        let attic = attic.and_then(|held| held.record.clone());
        let entry = read_entry::<C, V>(self.version, bytes, attic, &mut self.context)?;
        let received = Received {
            version: record.version,
            hash: record.hash(),
            stored: entry.attic,
        };
        self.entries.state.add(received.hash);
        Ok(Some((entry.value, received)))
    }

    /// Reads a record of the attic.
    ///
    /// # Errors
    ///
    /// If it breaks a rule.
    pub(crate) fn attic(&mut self, base: bool, record: &Record<'_>) -> Result<(), StoreError> {
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

    /// What is held of both sections.
    pub(crate) fn into_totals(self) -> Vec<SectionTotal> {
        let each = std::iter::once(self.entries).chain(self.attic);
        each.map(|Totals { section, state }| SectionTotal { section, state })
            .collect()
    }
}
