//! A log gives its entries away and takes them up: those there are first, then the tail.
//!
//! Owns how far it is. What has been written never changes, so a position is all there is to remember.

use std::{collections::HashMap, sync::MutexGuard};

use heirloom_state_codec::{
    ApplyError, AtticRecord, Change, Codec, Context, Record, Records, SectionDescriptor, SectionId,
    SectionKind, SectionTotal, StateDigest, read_entry, write_entry,
};

use super::{Entries, Log};
use crate::state::{
    declared::{Identity, accept, declare, undeclared},
    error::StoreError,
    keyed::{Value, report},
    store::{Budget, Followed, Form, Outlet, Pending, Progress},
    turn::lock,
    way_back::record::Fate,
};

/// A batch under the lock ends with this many entries, or bytes: some microseconds.
const BATCH_ENTRIES: usize = 16;
const BATCH_BYTES: usize = 16 * 1024;

/// The version of every entry: none ever changes.
pub(super) const ENTRY_VERSION: u64 = 1;

/// The bytes of a record beside its value.
const RECORD_BYTES: u64 = 16 + 8;

/// What is under way.
#[derive(Debug, Default)]
pub(super) enum Moving {
    #[default]
    Nothing,
    Giving(Giving),
    Taking(Taking),
}

/// A copy on its way out.
#[derive(Debug)]
pub(super) struct Giving {
    section: SectionId,
    attic: Option<SectionId>,
    version: u32,
    /// The position of the next entry to be written, and of the first that came after the beginning.
    next: u64,
    base_end: u64,
    sent_entries: u64,
    sent_bytes: u64,
    context: Context,
}

/// A copy on its way in.
#[derive(Debug)]
pub(super) struct Taking {
    section: SectionId,
    version: u32,
    state: StateDigest,
    attic: Option<(SectionId, StateDigest)>,
    /// Attic records whose entry has yet to come.
    ahead: HashMap<Vec<u8>, Option<AtticRecord>>,
    context: Context,
}

impl<T, C> Log<T, C>
where
    T: Value<C>,
    C: Codec<T> + 'static,
{
    fn moving(&self) -> MutexGuard<'_, Moving> {
        lock(&self.shared.moving)
    }

    fn entries_now(&self) -> MutexGuard<'_, Entries<T>> {
        lock(&self.shared.entries)
    }

    pub(super) fn give(&self, form: &Form<'_>) -> Vec<SectionDescriptor> {
        let mut moving = self.moving();
        let entries = self.entries_now();
        let stored = !entries.stored.is_empty();
        let count = entries.values.len() as u64;
        let declared = declare::<C, T>(self.identity(), form, count, stored);
        *moving = Moving::Giving(Giving {
            section: declared.section.id,
            attic: declared.attic.as_ref().map(|attic| attic.id),
            version: declared.section.schema.version,
            next: entries.first,
            base_end: entries.next(),
            sent_entries: 0,
            sent_bytes: 0,
            context: Context::default(),
        });
        declared.into_sections()
    }

    /// What it is in a manifest.
    fn identity(&self) -> Identity<'_> {
        Identity {
            name: &self.shared.name,
            kind: SectionKind::Log,
            key_shape: "",
        }
    }

    pub(super) fn give_slice(
        &self,
        out: &mut Outlet<'_>,
        budget: &Budget,
        base: bool,
    ) -> Result<Progress, StoreError> {
        let mut moving = self.moving();
        let Moving::Giving(giving) = &mut *moving else {
            return Ok(Progress::Done);
        };
        loop {
            let done = giving.batch::<T, C>(&self.entries_now(), out, base)?;
            if done == Progress::Done || budget.is_spent(out.writer) {
                return Ok(done);
            }
        }
    }

    pub(super) fn left(&self) -> Pending {
        let Moving::Giving(giving) = &*self.moving() else {
            return Pending::default();
        };
        let entries = self.entries_now().next() - giving.next;
        let average = giving.sent_bytes / giving.sent_entries.max(1) + RECORD_BYTES;
        Pending {
            entries,
            bytes: entries * average,
        }
    }

    pub(super) fn end_giving(&self) {
        let mut moving = self.moving();
        if let Moving::Giving(giving) = &*moving {
            report(&self.shared.name, &giving.context);
            *moving = Moving::Nothing;
        }
    }

    /// A copy in which the log has no section leaves it as it was made.
    pub(super) fn take(&self, sections: &[&SectionDescriptor]) -> Result<(), StoreError> {
        let Some((section, attic)) = accept::<C, T>(self.identity(), sections)? else {
            return Ok(());
        };
        let mut moving = self.moving();
        *self.entries_now() = Entries::default();
        *moving = Moving::Taking(Taking {
            section: section.id,
            version: section.schema.version,
            state: StateDigest::default(),
            attic: attic.map(|attic| (attic, StateDigest::default())),
            ahead: HashMap::new(),
            context: Context::default(),
        });
        Ok(())
    }

    pub(super) fn take_records(
        &self,
        section: &SectionDescriptor,
        records: Records<'_>,
    ) -> Result<(), StoreError> {
        let mut moving = self.moving();
        let Moving::Taking(taking) = &mut *moving else {
            return Err(undeclared(section));
        };
        let mut entries = self.entries_now();
        for record in records {
            if section.kind == SectionKind::Attic {
                taking.attic_record(&record)?;
            } else {
                taking.entry::<T, C>(&mut entries, &record)?;
            }
        }
        Ok(())
    }

    /// Adds an entry that the owner of the state has added.
    pub(super) fn follow_entry(&self, change: &Followed<'_>) -> Result<(), StoreError> {
        let wrong = || change.is_none_of(&self.shared.name);
        let Fate::Put { value, attic } = change.fate else {
            return Err(wrong());
        };
        let position = change.key.try_into().map_err(|_| wrong())?;
        let position = u64::from_le_bytes(position);
        let mut entries = self.entries_now();
        if entries.next() != position {
            return Err(wrong());
        }
        let attic = AtticRecord::parse(attic);
        let context = &mut Context::default();
        let read = read_entry::<C, T>(change.version, value, attic, context)?;
        if let Some(stored) = read.attic {
            entries.stored.insert(position, stored);
        }
        entries.push(read.value);
        Ok(())
    }

    pub(super) fn end_take(&self) -> Vec<SectionTotal> {
        let mut moving = self.moving();
        let Moving::Taking(taking) = &*moving else {
            return Vec::new();
        };
        report(&self.shared.name, &taking.context);
        let own = std::iter::once((taking.section, taking.state));
        let each = own.chain(taking.attic);
        let totals = each.map(|(section, state)| SectionTotal { section, state });
        let totals = totals.collect();
        *moving = Moving::Nothing;
        totals
    }
}

impl Giving {
    fn batch<T, C>(
        &mut self,
        entries: &Entries<T>,
        out: &mut Outlet<'_>,
        base: bool,
    ) -> Result<Progress, StoreError>
    where
        T: Value<C>,
        C: Codec<T> + 'static,
    {
        let end = if base { self.base_end } else { entries.next() };
        let mut coded = Vec::new();
        let mut bytes = 0;
        while self.next < end && coded.len() < BATCH_ENTRIES && bytes < BATCH_BYTES {
            let position = self.next;
            let Some(value) = entries.at(position) else {
                break;
            };
            let stored = entries.stored.get(&position);
            let mut value_bytes = Vec::new();
            let context = &mut self.context;
            let attic =
                write_entry::<C, T>(value, self.version, stored, &mut value_bytes, context)?;
            bytes += value_bytes.len();
            coded.push((position.to_le_bytes(), value_bytes, attic));
            self.next += 1;
        }
        let writer = &mut *out.writer;
        if let Some(section) = self.attic {
            for (key, _, attic) in &coded {
                if let Some(record) = attic.as_ref().map(AtticRecord::to_bytes) {
                    if base {
                        writer.bulk(section, ENTRY_VERSION, key, &record)?;
                    } else {
                        writer.upsert(section, ENTRY_VERSION, key, &record, None)?;
                    }
                }
            }
        }
        for (key, value, _) in &coded {
            if base {
                writer.bulk(self.section, ENTRY_VERSION, key, value)?;
            } else {
                writer.upsert(self.section, ENTRY_VERSION, key, value, None)?;
            }
        }
        self.sent_entries += coded.len() as u64;
        self.sent_bytes += bytes as u64;
        Ok(if self.next < end {
            Progress::More
        } else {
            Progress::Done
        })
    }
}

impl Taking {
    fn entry<T, C>(
        &mut self,
        entries: &mut Entries<T>,
        record: &Record<'_>,
    ) -> Result<(), StoreError>
    where
        T: Value<C>,
        C: Codec<T> + 'static,
    {
        let section = self.section;
        let Change::Put(bytes) = record.change else {
            return Err(ApplyError::LogRemoval { section }.into());
        };
        // The reader lets no key of another length into a log.
        let found = record.key.try_into().map_or(0, u64::from_le_bytes);
        if entries.values.is_empty() {
            entries.first = found;
        }
        let expected = entries.next();
        if found != expected || found == u64::MAX {
            return Err(ApplyError::LogGap {
                section,
                expected,
                found,
            }
            .into());
        }
        let attic = self.ahead.remove(record.key).flatten();
        let read = read_entry::<C, T>(self.version, bytes, attic, &mut self.context)?;
        if let Some(stored) = read.attic {
            entries.stored.insert(found, stored);
        }
        entries.push(read.value);
        self.state.add(record.hash());
        Ok(())
    }

    fn attic_record(&mut self, record: &Record<'_>) -> Result<(), StoreError> {
        let Some((section, state)) = &mut self.attic else {
            return Ok(());
        };
        let Change::Put(bytes) = record.change else {
            return Err(ApplyError::LogRemoval { section: *section }.into());
        };
        if self.ahead.contains_key(record.key) {
            return Err(ApplyError::Duplicate { section: *section }.into());
        }
        state.add(record.hash());
        self.ahead
            .insert(record.key.to_vec(), AtticRecord::parse(bytes));
        Ok(())
    }
}
