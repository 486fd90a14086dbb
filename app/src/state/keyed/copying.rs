//! A keyed store gives its entries away: the base slab by slab, then in rounds what has changed.
//!
//! Owns the order of records. Entries are put into bytes in small batches under their shard's lock, so
//! nobody waits for longer than a batch takes. Three rules make the stream right whatever is done
//! meanwhile:
//!
//! * What has gone is told before anything else of its shard, so a key that came back is new.
//! * An attic record, or that there is none any more, comes before its entry.
//! * Everything of a key is written under its lock, so the order of the stream is the order of changes.
//!
//! All records bear shard 0: a round of few changes is then one frame and not one a shard.

use std::{ops::Range, sync::atomic::Ordering};

use heirloom_state_codec::{
    AtticRecord, Codec, Context, EntryHash, MigrateError, Schema, SectionDescriptor, SectionId,
    SnapshotWriter, write_entry,
};

use super::{Keyed, Kind, ShardOf, SlotOf};
use crate::state::{
    declared::{Declared, declare},
    error::StoreError,
    outgoing::Beside,
    store::{Budget, Form, Outlet, Pending, Progress},
    turn::lock,
};

/// A batch ends with this many entries, or bytes, or slots looked at: some microseconds.
const BATCH_ENTRIES: usize = 16;
const BATCH_BYTES: usize = 16 * 1024;
const BATCH_SLOTS: usize = 256;

/// The bytes of a record beside key and value.
const RECORD_BYTES: u64 = 16;

/// The copies of a store: the one under way, and how many there were.
#[derive(Debug)]
pub(super) struct Copies {
    last: u32,
    now: Option<Copying>,
    pub(super) batch_entries: usize,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            last: super::shard::NO_COPY,
            now: None,
            batch_entries: BATCH_ENTRIES,
        }
    }
}

/// A copy under way.
#[derive(Debug)]
pub(super) struct Copying {
    number: u32,
    section: SectionId,
    attic: Option<SectionId>,
    /// The version of the values in the stream.
    version: u32,
    /// The shard the base has come to.
    base: usize,
    /// The shard the round has come to, and whether it has begun there.
    round: usize,
    entered: bool,
    batch_entries: usize,
    context: Context,
    /// For the average length of a record.
    sent_entries: u64,
    sent_bytes: u64,
    scratch: Scratch,
}

/// The entries of a batch as bytes.
#[derive(Debug, Default)]
struct Scratch {
    bytes: Vec<u8>,
    entries: Vec<Coded>,
}

/// One of them.
#[derive(Debug)]
struct Coded {
    slot: usize,
    key: Range<usize>,
    value: Range<usize>,
    attic: Option<Vec<u8>>,
}

impl<T: Kind> Keyed<T> {
    pub(super) fn begin_copy(&self, form: &Form<'_>) -> Result<Vec<SectionDescriptor>, StoreError> {
        self.end_copy();
        let key_shape = T::key_shape();
        let identity = self.identity(&key_shape);
        let stored = self.stored.load(Ordering::Relaxed);
        let declared = declare::<T::Codec, T::Value>(identity, form, self.count(), stored);
        let mut copies = lock(&self.copies);
        copies.last = copies.last.wrapping_add(1).max(1);
        copies.now = Some(Copying::new(copies.last, &declared, copies.batch_entries));
        Ok(declared.into_sections())
    }

    pub(super) fn copy_base(
        &self,
        out: &mut Outlet<'_>,
        budget: &Budget,
    ) -> Result<Progress, StoreError> {
        let mut copies = lock(&self.copies);
        let Some(copying) = &mut copies.now else {
            return Ok(Progress::Done);
        };
        while copying.base < T::SHARDS {
            let shard = &mut *self.lock(copying.base);
            if copying.base_batch::<T>(shard, out.writer)? == Progress::Done {
                copying.base += 1;
            }
            if budget.is_spent(out.writer) && copying.base < T::SHARDS {
                return Ok(Progress::More);
            }
        }
        Ok(Progress::Done)
    }

    pub(super) fn copy_changes(
        &self,
        out: &mut Outlet<'_>,
        budget: &Budget,
    ) -> Result<Progress, StoreError> {
        let mut copies = lock(&self.copies);
        let Some(copying) = &mut copies.now else {
            return Ok(Progress::Done);
        };
        while copying.round < T::SHARDS {
            let shard = &mut *self.lock(copying.round);
            if copying.round_batch::<T>(shard, out.writer)? == Progress::Done {
                copying.round += 1;
            }
            if budget.is_spent(out.writer) && copying.round < T::SHARDS {
                return Ok(Progress::More);
            }
        }
        copying.round = 0;
        Ok(Progress::Done)
    }

    pub(super) fn pending(&self) -> Pending {
        let copies = lock(&self.copies);
        let Some(copying) = &copies.now else {
            return Pending::default();
        };
        let each = (0..T::SHARDS).map(|shard| self.lock(shard).pending() as u64);
        let entries = each.sum();
        let average = copying.sent_bytes / copying.sent_entries.max(1) + RECORD_BYTES;
        Pending {
            entries,
            bytes: entries * average,
        }
    }

    pub(super) fn settle(&self) {
        if let Some(copying) = &mut lock(&self.copies).now {
            // The rest begins at the first shard, whatever a round under way had come to.
            copying.round = 0;
            copying.entered = false;
        }
        for shard in 0..T::SHARDS {
            drop(self.lock(shard));
        }
    }

    pub(super) fn end_copy(&self) {
        let Some(copying) = lock(&self.copies).now.take() else {
            return;
        };
        for shard in 0..T::SHARDS {
            self.lock(shard).disarm();
        }
        super::report(&self.name, &copying.context);
    }
}

impl Copying {
    pub(super) fn new(number: u32, declared: &Declared, batch_entries: usize) -> Self {
        Self {
            number,
            section: declared.section.id,
            attic: declared.attic.as_ref().map(|attic| attic.id),
            version: declared.section.schema.version,
            base: 0,
            round: 0,
            entered: false,
            batch_entries,
            context: Context::default(),
            sent_entries: 0,
            sent_bytes: 0,
            scratch: Scratch::default(),
        }
    }

    /// Writes some entries of the base; done once it has come to the shard's end.
    pub(super) fn base_batch<T: Kind>(
        &mut self,
        shard: &mut ShardOf<T>,
        writer: &mut SnapshotWriter,
    ) -> Result<Progress, StoreError> {
        shard.arm(self.number);
        if self.bury::<T>(shard, writer)? == Progress::More {
            return Ok(Progress::More);
        }
        let end = shard
            .slots
            .len()
            .min(shard.cursor.saturating_add(BATCH_SLOTS));
        while shard.cursor < end && !self.is_full() {
            let at = shard.cursor;
            shard.cursor += 1;
            if let Some(slot) = shard.slot_mut(at) {
                self.code::<T>(at, slot)?;
            }
        }
        self.write::<T>(shard, writer, true)?;
        if shard.cursor < shard.slots.len() {
            return Ok(Progress::More);
        }
        // Whatever comes from now on has not been looked at.
        shard.cursor = usize::MAX;
        Ok(Progress::Done)
    }

    /// Writes some of what has changed; done once all that had when the round came here is written.
    pub(super) fn round_batch<T: Kind>(
        &mut self,
        shard: &mut ShardOf<T>,
        writer: &mut SnapshotWriter,
    ) -> Result<Progress, StoreError> {
        if !self.entered {
            shard.begin_round();
            self.entered = true;
        }
        if self.bury::<T>(shard, writer)? == Progress::More {
            return Ok(Progress::More);
        }
        while !self.is_full() {
            let Some(at) = shard.sending.pop() else { break };
            // A slot that was left stands on the list and is not dirty, or is there twice.
            let slot = shard.slot_mut(at as usize);
            if let Some(slot) = slot.filter(|slot| slot.is_dirty()) {
                self.code::<T>(at as usize, slot)?;
            }
        }
        self.write::<T>(shard, writer, false)?;
        if !shard.sending.is_empty() {
            return Ok(Progress::More);
        }
        self.entered = false;
        Ok(Progress::Done)
    }

    /// Tells what has gone.
    fn bury<T: Kind>(
        &mut self,
        shard: &mut ShardOf<T>,
        writer: &mut SnapshotWriter,
    ) -> Result<Progress, StoreError> {
        let few = shard.graves.len().saturating_sub(self.batch_entries);
        let graves = shard.graves.split_off(few);
        for grave in &graves {
            let key = Keyed::<T>::key_bytes(&grave.key)?;
            if let (Some(attic), Some(replaced)) = (self.attic, grave.attic) {
                writer.tombstone(attic, grave.version, &key, Some(replaced))?;
            }
            writer.tombstone(self.section, grave.version, &key, Some(grave.replaced))?;
            self.count(key.len());
        }
        Ok(if shard.graves.is_empty() {
            Progress::Done
        } else {
            Progress::More
        })
    }

    fn is_full(&self) -> bool {
        self.scratch.entries.len() >= self.batch_entries || self.scratch.bytes.len() >= BATCH_BYTES
    }

    fn count(&mut self, bytes: usize) {
        self.sent_entries += 1;
        self.sent_bytes += bytes as u64;
    }

    /// Puts an entry into bytes.
    fn code<T: Kind>(&mut self, at: usize, slot: &mut SlotOf<T>) -> Result<(), StoreError> {
        let Some(value) = slot.value() else {
            return Ok(());
        };
        let bytes = &mut self.scratch.bytes;
        let start = bytes.len();
        T::encode_key(&slot.key, bytes)?;
        let middle = bytes.len();
        let stored = slot.stored();
        let attic = if stored.is_none() && self.version == <T::Value as Schema>::VERSION {
            <T::Codec as Codec<T::Value>>::encode(value, bytes).map_err(MigrateError::from)?;
            None
        } else {
            let context = &mut self.context;
            write_entry::<T::Codec, T::Value>(value, self.version, stored, bytes, context)?
        };
        let end = bytes.len();
        slot.clean();
        self.scratch.entries.push(Coded {
            slot: at,
            key: start..middle,
            value: middle..end,
            attic: attic.as_ref().map(AtticRecord::to_bytes),
        });
        self.count(end - start);
        Ok(())
    }

    /// Writes the batch out.
    fn write<T: Kind>(
        &mut self,
        shard: &mut ShardOf<T>,
        writer: &mut SnapshotWriter,
        base: bool,
    ) -> Result<(), StoreError> {
        let Scratch { bytes, entries } = &mut self.scratch;
        if let Some(attic) = self.attic {
            for entry in entries.iter() {
                if let Some(slot) = shard.slot_mut(entry.slot) {
                    let key = &bytes[entry.key.clone()];
                    let version = slot.version;
                    let beside = Beside {
                        key,
                        version,
                        record: entry.attic.as_deref(),
                        replaced: slot.attic_sent(self.number),
                    };
                    let sent = beside.write(writer, attic, base)?;
                    slot.set_attic_sent(self.number, sent);
                }
            }
        }
        for entry in entries.drain(..) {
            if let Some(slot) = shard.slot_mut(entry.slot) {
                let (key, value) = (&bytes[entry.key], &bytes[entry.value]);
                let replaced: Option<EntryHash> = slot.sent(self.number);
                let hash = if base {
                    writer.bulk(self.section, slot.version, key, value)?
                } else {
                    writer.upsert(self.section, slot.version, key, value, replaced)?
                };
                slot.set_sent(self.number, hash);
            }
        }
        bytes.clear();
        Ok(())
    }
}
