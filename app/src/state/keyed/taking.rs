//! A keyed store takes up entries that another generation gave away.

use std::sync::atomic::Ordering;

use heirloom_state_codec::{
    AtticRecord, Context, EntryHash, Record, Records, SectionDescriptor, SectionKind, SectionTotal,
    read_entry,
};

use super::{Keyed, Kind, shard::Shard};
use crate::state::{
    declared::{accept, undeclared},
    error::StoreError,
    incoming::{Incoming, Received},
    store::Followed,
    turn::lock,
    way_back::record::Fate,
};

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
        *lock(&self.taking) = Some(Incoming::new(section, attic));
        Ok(())
    }

    pub(super) fn apply(
        &self,
        section: &SectionDescriptor,
        base: bool,
        mut records: Records<'_>,
    ) -> Result<(), StoreError> {
        let mut taking = lock(&self.taking);
        let incoming = taking.as_mut().ok_or_else(|| undeclared(section))?;
        if section.kind == SectionKind::Attic {
            return records.try_for_each(|record| incoming.attic(base, &record));
        }
        records.try_for_each(|record| self.apply_entry(incoming, base, &record))
    }

    fn apply_entry(
        &self,
        incoming: &mut Incoming,
        base: bool,
        record: &Record<'_>,
    ) -> Result<(), StoreError> {
        let key = T::decode_key(record.key)?;
        let hash = self.hash(&key);
        let mut shard = self.lock_for(hash);
        let held = shard
            .get(hash, &key)
            .map(|slot| (slot.version, slot.hash()));
        match incoming.entry::<T::Codec, T::Value>(base, record, held)? {
            Some((value, received)) => {
                if received.stored.is_some() {
                    self.stored.store(true, Ordering::Relaxed);
                }
                shard.receive(hash, key, value, received);
            }
            None => shard.receive_removal(hash, &key, record.version),
        }
        Ok(())
    }

    /// Makes a change that the owner of the state has made.
    pub(super) fn follow(&self, change: &Followed<'_>) -> Result<(), StoreError> {
        let key = T::decode_key(change.key)?;
        let hash = self.hash(&key);
        match change.fate {
            Fate::Put { value, attic } => {
                let context = &mut Context::default();
                let attic = AtticRecord::parse(attic);
                let entry =
                    read_entry::<T::Codec, T::Value>(change.version, value, attic, context)?;
                if entry.attic.is_some() {
                    self.stored.store(true, Ordering::Relaxed);
                }
                let received = Received {
                    version: change.entry_version,
                    // Only a copy under way asks for it, and there is none.
                    hash: EntryHash(0),
                    stored: entry.attic,
                };
                self.lock_for(hash)
                    .receive(hash, key, entry.value, received);
            }
            Fate::Remove => {
                let mut shard = self.lock_for(hash);
                shard.receive_removal(hash, &key, change.entry_version);
            }
            Fate::Object { .. } => return Err(change.is_none_of(&self.name)),
        }
        Ok(())
    }

    pub(super) fn end_taking(&self) -> Vec<SectionTotal> {
        let Some(incoming) = lock(&self.taking).take() else {
            return Vec::new();
        };
        super::report(&self.name, &incoming.context);
        incoming.into_totals()
    }
}
