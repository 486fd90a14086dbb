//! One shard of a keyed store: its entries, and what a copy under way must know of each change.
//!
//! Entries stand in a slab and keep their position for life, so a copy's place is a number and the
//! list of what has changed is one too. The index holds positions and half of each key's hash: it
//! grows without looking at a key.
//!
//! Pure: no lock, no stream. Who locks it is [`super::Keyed`], who writes it out is
//! [`super::copying`].

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use hashbrown::HashTable;
use heirloom_state_codec::{AtticRecord, EntryHash};

use crate::state::incoming::Received;

/// The number of no copy.
pub(super) const NO_COPY: u32 = 0;

/// An entry.
#[derive(Debug)]
pub(super) struct Slot<K, V> {
    pub(super) key: K,
    /// None only while a change is under way.
    value: Option<V>,
    /// Grows with each change, and never repeats for a key.
    pub(super) version: u64,
    /// The record under which it was last sent or received, as two words to need no more alignment.
    hash: [u64; 2],
    /// The copy in which it was sent.
    sent_in: u32,
    /// It stands in the list of what has changed.
    dirty: bool,
    /// Few entries have anything here.
    beside: Option<Box<Beside>>,
}

/// What stands beside an entry in the attic.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// What a newer version than this program's put aside.
    pub(super) stored: Option<AtticRecord>,
    /// The attic record that was sent, and in which copy.
    sent: Option<(u32, EntryHash)>,
}

/// An entry that was sent and is gone.
#[derive(Debug)]
pub(super) struct Grave<K> {
    pub(super) key: K,
    pub(super) version: u64,
    pub(super) replaced: EntryHash,
    /// The attic record that was sent beside it.
    pub(super) attic: Option<EntryHash>,
}

/// A position, under half of the hash of the key that stands there.
#[derive(Clone, Copy, Debug)]
struct Place {
    slot: u32,
    hash: u32,
}

/// The entries of one shard.
#[derive(Debug)]
pub(super) struct Shard<K, V> {
    index: HashTable<Place>,
    pub(super) slots: Vec<Option<Slot<K, V>>>,
    free: Vec<u32>,
    /// Grows with each change.
    clock: u64,
    /// The copy that has reached this shard.
    copy: u32,
    /// Slots before this one have been looked at by the copy.
    pub(super) cursor: usize,
    /// Slots that have changed since.
    dirty: Vec<u32>,
    /// Slots that the round under way has yet to send.
    pub(super) sending: Vec<u32>,
    pub(super) graves: Vec<Grave<K>>,
}

impl<K, V> Default for Shard<K, V> {
    fn default() -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            clock: 0,
            copy: NO_COPY,
            cursor: 0,
            dirty: Vec::new(),
            sending: Vec::new(),
            graves: Vec::new(),
        }
    }
}

/// A hash for the table, which looks at the lowest bits and the highest, out of the half that is kept.
fn spread(half: u32) -> u64 {
    // 2^64 divided by the golden ratio: Fibonacci hashing.
    u64::from(half).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The half of a hash that is kept.
fn half_of(hash: u64) -> u32 {
    hash as u32
}

impl<K: Eq, V> Shard<K, V> {
    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// The entry under this key.
    pub(super) fn get(&self, hash: u64, key: &K) -> Option<&Slot<K, V>> {
        self.slots.get(self.find(hash, key)?)?.as_ref()
    }

    /// Every entry.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot<K, V>> {
        self.slots.iter().flatten()
    }

    /// Lets `change` do as it likes with the entry under this key. What it did counts also if it
    /// panicked.
    pub(super) fn update<R>(
        &mut self,
        hash: u64,
        key: K,
        change: impl FnOnce(&mut Option<V>) -> R,
    ) -> R {
        let Some((at, slot)) = self.find_mut(hash, &key) else {
            let mut value = None;
            let result = change(&mut value);
            if let Some(value) = value {
                self.add(hash, key, value);
            }
            return result;
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| change(&mut slot.value)));
        if slot.value.is_some() {
            self.changed(at);
        } else {
            self.vacate(hash, at);
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Puts an entry under this key.
    pub(super) fn put(&mut self, hash: u64, key: K, value: V, stored: Stored) -> Option<V> {
        let (at, before) = match self.find_mut(hash, &key) {
            Some((at, slot)) => {
                let before = slot.value.replace(value);
                self.changed(at);
                (at, before)
            }
            None => (self.add(hash, key, value), None),
        };
        if let (Stored::Now(record), Some(slot)) = (stored, self.slot_mut(at)) {
            slot.set_stored(record);
        }
        before
    }

    /// Removes the entry under this key.
    pub(super) fn remove(&mut self, hash: u64, key: &K) -> Option<V> {
        let at = self.find(hash, key)?;
        self.vacate(hash, at)
    }

    /// Puts an entry as it was received.
    pub(super) fn receive(&mut self, hash: u64, key: K, value: V, received: Received) {
        self.clock = self.clock.max(received.version);
        let at = match self.find_mut(hash, &key) {
            Some((at, slot)) => {
                slot.value = Some(value);
                at
            }
            None => self.add(hash, key, value),
        };
        if let Some(slot) = self.slot_mut(at) {
            slot.version = received.version;
            slot.set_hash(received.hash);
            slot.set_stored(received.stored);
        }
    }

    /// The version of the last change.
    pub(super) fn clock(&self) -> u64 {
        self.clock
    }

    /// Removes an entry as it was received that it is gone.
    pub(super) fn receive_removal(&mut self, hash: u64, key: &K, version: u64) {
        self.remove(hash, key);
        self.clock = self.clock.max(version);
    }

    fn find(&self, hash: u64, key: &K) -> Option<usize> {
        let half = half_of(hash);
        let is_it = |place: &Place| {
            let slot = self.slots.get(place.slot as usize);
            place.hash == half && slot.and_then(Option::as_ref).is_some_and(|s| s.key == *key)
        };
        let place = self.index.find(spread(half), is_it)?;
        Some(place.slot as usize)
    }

    fn find_mut(&mut self, hash: u64, key: &K) -> Option<(usize, &mut Slot<K, V>)> {
        let at = self.find(hash, key)?;
        self.slots.get_mut(at)?.as_mut().map(|slot| (at, slot))
    }

    /// The entry at a position.
    pub(super) fn slot_mut(&mut self, at: usize) -> Option<&mut Slot<K, V>> {
        self.slots.get_mut(at)?.as_mut()
    }

    fn add(&mut self, hash: u64, key: K, value: V) -> usize {
        self.clock += 1;
        let slot = Slot {
            key,
            value: Some(value),
            version: self.clock,
            hash: [0; 2],
            sent_in: NO_COPY,
            dirty: false,
            beside: None,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = Some(slot);
                at as usize
            }
            None => {
                self.slots.push(Some(slot));
                self.slots.len() - 1
            }
        };
        let place = Place {
            // A shard of 2^32 entries would need more memory than a machine has.
            slot: at as u32,
            hash: half_of(hash),
        };
        self.index
            .insert_unique(spread(place.hash), place, |place| spread(place.hash));
        self.note(at);
        at
    }

    /// Counts a change to the entry at a position.
    fn changed(&mut self, at: usize) {
        self.clock += 1;
        let clock = self.clock;
        if let Some(slot) = self.slot_mut(at) {
            slot.version = clock;
        }
        self.note(at);
    }

    /// Remembers a change, if the copy has been here and does not know it.
    fn note(&mut self, at: usize) {
        if self.copy == NO_COPY || at >= self.cursor {
            return;
        }
        if let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut)
            && !slot.dirty
        {
            slot.dirty = true;
            self.dirty.push(at as u32);
        }
    }

    fn vacate(&mut self, hash: u64, at: usize) -> Option<V> {
        let slot = self.slots.get_mut(at)?.take()?;
        let is_it = |place: &Place| place.slot as usize == at;
        if let Ok(place) = self.index.find_entry(spread(half_of(hash)), is_it) {
            place.remove();
        }
        self.free.push(at as u32);
        self.clock += 1;
        if let Some(replaced) = slot.sent(self.copy) {
            self.graves.push(Grave {
                replaced,
                attic: slot.attic_sent(self.copy),
                key: slot.key,
                version: self.clock,
            });
        }
        slot.value
    }
}

/// What a copy asks and tells.
impl<K, V> Shard<K, V> {
    /// The copy has come here, at the latest now.
    pub(super) fn arm(&mut self, copy: u32) {
        if self.copy != copy {
            self.copy = copy;
            self.cursor = 0;
        }
    }

    /// A round begins here: what has changed so far belongs to it.
    pub(super) fn begin_round(&mut self) {
        self.sending.append(&mut self.dirty);
    }

    /// What has changed since it was sent.
    pub(super) fn pending(&self) -> usize {
        self.dirty.len() + self.sending.len() + self.graves.len()
    }

    /// There is no copy any more. Marks of entries stay: the next copy takes them off as it passes.
    pub(super) fn disarm(&mut self) {
        // The room is given back as well: the next copy may be long in coming.
        self.dirty = Vec::new();
        self.sending = Vec::new();
        self.graves = Vec::new();
        self.copy = NO_COPY;
        self.cursor = 0;
    }
}

/// What is to stand beside an entry that is put.
#[derive(Debug)]
pub(super) enum Stored {
    /// What stands there; it is void by itself if the entry is not the same any more.
    AsItIs,
    /// This.
    Now(Option<AtticRecord>),
}

impl<K, V> Slot<K, V> {
    /// The entry's value.
    pub(super) fn value(&self) -> Option<&V> {
        self.value.as_ref()
    }

    /// What a newer version than this program's put aside.
    pub(super) fn stored(&self) -> Option<&AtticRecord> {
        self.beside.as_ref()?.stored.as_ref()
    }

    fn set_stored(&mut self, stored: Option<AtticRecord>) {
        match &mut self.beside {
            Some(beside) => beside.stored = stored,
            None if stored.is_some() => {
                self.beside = Some(Box::new(Beside { stored, sent: None }));
            }
            None => {}
        }
    }

    /// The record under which it was last sent or received.
    pub(super) fn hash(&self) -> EntryHash {
        let [high, low] = self.hash;
        EntryHash(u128::from(high) << 64 | u128::from(low))
    }

    fn set_hash(&mut self, EntryHash(hash): EntryHash) {
        self.hash = [(hash >> 64) as u64, hash as u64];
    }

    /// The record under which it was sent in this copy.
    pub(super) fn sent(&self, copy: u32) -> Option<EntryHash> {
        (copy != NO_COPY && self.sent_in == copy).then(|| self.hash())
    }

    pub(super) fn set_sent(&mut self, copy: u32, hash: EntryHash) {
        self.sent_in = copy;
        self.set_hash(hash);
    }

    /// The attic record that was sent in this copy.
    pub(super) fn attic_sent(&self, copy: u32) -> Option<EntryHash> {
        let (sent_in, hash) = self.beside.as_ref()?.sent?;
        (sent_in == copy).then_some(hash)
    }

    pub(super) fn set_attic_sent(&mut self, copy: u32, hash: Option<EntryHash>) {
        let sent = hash.map(|hash| (copy, hash));
        match &mut self.beside {
            Some(beside) => beside.sent = sent,
            None if sent.is_some() => {
                self.beside = Some(Box::new(Beside { stored: None, sent }));
            }
            None => {}
        }
    }

    /// Whether it has changed since it was sent.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// It is as it was sent.
    pub(super) fn clean(&mut self) {
        self.dirty = false;
    }
}
