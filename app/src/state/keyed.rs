//! Entries by key, the common ground of [`Map`](super::Map), [`Set`](super::Set) and
//! [`Cell`](super::Cell): kept in shards, each under a lock of its own.
//!
//! Owns the operations in this process. [`shard`] holds the entries, [`copying`] gives them away,
//! [`taking`] takes them up,
//! [`serving`] answers a generation that has given the state away, [`staged`] commits several at once.

mod copying;
mod serving;
mod shard;
mod staged;
mod taking;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicBool},
};

use heirloom_state_codec::{Codec, Context, Lineage, MigrateError, SectionKind, Shape, Step};

use super::{
    State,
    declared::Identity,
    error::StateError,
    gate::Gate,
    incoming::Incoming,
    link::Link,
    remote,
    turn::{Turn, changing, lock, reading},
    way_back::Record,
};
use shard::{Shard, Slot, Stored};
pub(crate) use staged::Staged;

/// Shards of a store with many entries: so many that threads rarely meet, and that a lock is held over
/// few entries whatever is done.
pub(crate) const MANY_SHARDS: usize = 256;

/// What can be a key: it has a shape and stays the same as long as the program runs.
pub trait Key: Eq + Hash + Clone + Shape + Send + Sync + 'static {}

impl<T: Eq + Hash + Clone + Shape + Send + Sync + 'static> Key for T {}

/// What can be a value: it has versions, all of which `C` codes.
pub trait Value<C>: Step + Lineage<C> + Clone + Send + Sync + 'static {}

impl<C, T: Step + Lineage<C> + Clone + Send + Sync + 'static> Value<C> for T {}

/// What one kind of store is made of.
pub(crate) trait Kind: fmt::Debug + 'static {
    /// Its keys.
    type Key: Key;
    /// Its values.
    type Value: Value<Self::Codec>;
    /// How values are coded.
    type Codec: Codec<Self::Value> + 'static;
    /// What it is in the stream.
    const SECTION: SectionKind;
    /// How many shards it has: a power of two, at most [`MANY_SHARDS`].
    const SHARDS: usize;

    /// The canonical text of the keys' shape.
    fn key_shape() -> String;

    /// Appends a key's bytes.
    ///
    /// # Errors
    ///
    /// If the codec cannot express it.
    fn encode_key(key: &Self::Key, out: &mut Vec<u8>) -> Result<(), MigrateError>;

    /// Reads a key's bytes.
    ///
    /// # Errors
    ///
    /// If they are none.
    fn decode_key(bytes: &[u8]) -> Result<Self::Key, MigrateError>;
}

type ShardOf<T> = Shard<<T as Kind>::Key, <T as Kind>::Value>;
type SlotOf<T> = Slot<<T as Kind>::Key, <T as Kind>::Value>;
type Locked<'a, T> = MutexGuard<'a, ShardOf<T>>;

/// Keeps neighbouring locks out of each other's cache lines, which processors fetch in pairs.
#[repr(align(128))]
struct Apart<T>(T);

/// The entries of one store.
pub(crate) struct Keyed<T: Kind> {
    name: String,
    gate: Arc<Gate>,
    /// Random, for keys may come from clients.
    hasher: RandomState,
    shards: Box<[Apart<Mutex<ShardOf<T>>>]>,
    copies: Mutex<copying::Copies>,
    taking: Mutex<Option<Incoming>>,
    /// Something may be kept for a newer program. Only taking brings such things.
    stored: AtomicBool,
}

/// A handle to the entries of one store.
pub(crate) struct Handle<T: Kind>(Arc<Keyed<T>>);

impl<T: Kind> fmt::Debug for Keyed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<T: Kind> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Kind> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Kind> Keyed<T> {
    fn new(gate: Arc<Gate>, name: &str) -> Self {
        const {
            assert!(T::SHARDS.is_power_of_two() && T::SHARDS <= MANY_SHARDS);
        }
        let shard = || Apart(Mutex::new(Shard::default()));
        Self {
            name: name.to_owned(),
            gate,
            hasher: RandomState::new(),
            shards: std::iter::repeat_with(shard).take(T::SHARDS).collect(),
            copies: Mutex::default(),
            taking: Mutex::new(None),
            stored: AtomicBool::new(false),
        }
    }

    /// What it is in a manifest.
    fn identity<'a>(&'a self, key_shape: &'a str) -> Identity<'a> {
        Identity {
            name: &self.name,
            kind: T::SECTION,
            key_shape,
        }
    }

    fn hash(&self, key: &T::Key) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The number of the shard where the keys of this hash are. The shard itself uses the other half.
    fn shard_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize & (T::SHARDS - 1)
    }

    fn lock(&self, shard: usize) -> Locked<'_, T> {
        lock(&self.shards[shard].0)
    }

    fn lock_for(&self, hash: u64) -> Locked<'_, T> {
        self.lock(self.shard_of(hash))
    }

    /// All locks, in the one order in which several may be taken.
    fn lock_all(&self) -> Vec<Locked<'_, T>> {
        (0..T::SHARDS).map(|shard| self.lock(shard)).collect()
    }

    /// How many entries there are, shard by shard.
    fn count(&self) -> u64 {
        (0..T::SHARDS)
            .map(|shard| self.lock(shard).len() as u64)
            .sum()
    }

    async fn see_there(
        &self,
        link: &Link,
        key: &T::Key,
    ) -> Result<Option<(u64, T::Value)>, StateError> {
        let key = Self::key_bytes(key)?;
        remote::see::<T::Codec, T::Value>(link, &self.name, &key).await
    }

    async fn update_there<R>(
        &self,
        link: &Link,
        key: &T::Key,
        change: impl FnMut(&mut Option<T::Value>) -> R,
    ) -> Result<R, StateError> {
        let key = Self::key_bytes(key)?;
        remote::update::<T::Codec, T::Value, R>(link, &self.name, key, change).await
    }

    /// What has become of an entry, for a generation in reserve.
    fn record(&self, record: &mut Record, shard: &ShardOf<T>, hash: u64, key: &T::Key) {
        let slot = shard.get(hash, key);
        let version = slot.map_or(shard.clock(), |slot| slot.version);
        let value = slot.and_then(|slot| Some((slot.value()?, slot.stored())));
        let bytes = || Self::key_bytes(key);
        record.change::<T::Codec, T::Value>(&self.name, bytes, version, value);
    }

    /// Carries a change of one entry out under its shard's lock, and writes it for a generation in reserve if
    /// there is one. What `change` did counts also if it panicked.
    fn change<R>(
        &self,
        shard: &mut ShardOf<T>,
        hash: u64,
        key: T::Key,
        change: impl FnOnce(&mut ShardOf<T>, T::Key) -> R,
    ) -> R {
        let Some(mut record) = self.gate.record() else {
            return change(shard, key);
        };
        let changed = key.clone();
        let outcome = catch_unwind(AssertUnwindSafe(|| change(shard, key)));
        self.record(&mut record, shard, hash, &changed);
        record.write();
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The bytes of a key.
    fn key_bytes(key: &T::Key) -> Result<Vec<u8>, MigrateError> {
        let mut bytes = Vec::new();
        T::encode_key(key, &mut bytes)?;
        Ok(bytes)
    }
}

impl<T: Kind> Handle<T> {
    /// A new store of this state, known by its name to every generation.
    ///
    /// # Panics
    ///
    /// If the state has a store of that name, or it is no name.
    pub(super) fn new(state: &State, name: &str) -> Self {
        let handle = Self::part_of(state, name);
        state.core.add(Arc::new(handle.clone()));
        handle
    }

    /// A new store that another one keeps as a part of itself, under a name of its own.
    pub(super) fn part_of(state: &State, name: &str) -> Self {
        Self(Arc::new(Keyed::new(Arc::clone(&state.core.gate), name)))
    }

    /// Puts an entry without asking the gate: its holder has, or nobody else has the store yet.
    pub(super) fn preset(&self, key: T::Key, value: T::Value) {
        let hash = self.0.hash(&key);
        let mut shard = self.0.lock_for(hash);
        shard.put(hash, key, value, Stored::AsItIs);
    }

    /// Removes an entry without asking the gate: its holder has.
    pub(super) fn discard(&self, key: &T::Key) {
        let hash = self.0.hash(key);
        self.0.lock_for(hash).remove(hash, key);
    }

    /// Every entry, without asking the gate: its holder has.
    pub(super) fn held(&self) -> Vec<(T::Key, T::Value)> {
        let shards = self.0.lock_all();
        let slots = shards.iter().flat_map(|shard| shard.iter());
        let entry = |slot: &SlotOf<T>| Some((slot.key.clone(), slot.value()?.clone()));
        slots.filter_map(entry).collect()
    }

    /// Whether it is part of the state with this gate.
    pub(super) fn is_of(&self, gate: &Arc<Gate>) -> bool {
        Arc::ptr_eq(&self.0.gate, gate)
    }

    /// Looks at an entry, in place if it is here.
    pub(super) async fn read<R>(
        &self,
        key: &T::Key,
        look: impl FnOnce(Option<&T::Value>) -> R,
    ) -> Result<R, StateError> {
        let hash = self.0.hash(key);
        let turn = reading(&self.0.gate, look, |look| {
            let shard = self.0.lock_for(hash);
            if !self.0.gate.lets_pass() {
                return Err(look);
            }
            Ok(look(shard.get(hash, key).and_then(Slot::value)))
        });
        match turn.await? {
            Turn::Here(result) => Ok(result),
            Turn::There(link, look) => {
                let seen = Box::pin(self.0.see_there(&link, key)).await?;
                Ok(look(seen.as_ref().map(|(_, value)| value)))
            }
        }
    }

    /// An entry's version and value; the version is 0 if it is not there.
    pub(super) async fn see(&self, key: &T::Key) -> Result<(u64, Option<T::Value>), StateError> {
        let hash = self.0.hash(key);
        let turn = reading(&self.0.gate, (), |()| {
            let shard = self.0.lock_for(hash);
            if !self.0.gate.lets_pass() {
                return Err(());
            }
            let slot = shard.get(hash, key);
            Ok(slot.map_or((0, None), |slot| (slot.version, slot.value().cloned())))
        });
        match turn.await? {
            Turn::Here(seen) => Ok(seen),
            Turn::There(link, ()) => {
                let seen = Box::pin(self.0.see_there(&link, key)).await?;
                Ok(seen.map_or((0, None), |(version, value)| (version, Some(value))))
            }
        }
    }

    /// Lets `change` do as it likes with an entry.
    pub(super) async fn update<R>(
        &self,
        key: T::Key,
        mut change: impl FnMut(&mut Option<T::Value>) -> R,
    ) -> Result<R, StateError> {
        let hash = self.0.hash(&key);
        let turn = changing(&self.0.gate, key, |key| {
            let mut shard = self.0.lock_for(hash);
            if !self.0.gate.lets_pass() {
                return Err(key);
            }
            Ok(self.0.change(&mut shard, hash, key, |shard, key| {
                shard.update(hash, key, &mut change)
            }))
        });
        match turn.await? {
            Turn::Here(result) => Ok(result),
            Turn::There(link, key) => Box::pin(self.0.update_there(&link, &key, change)).await,
        }
    }

    /// Puts an entry and returns what was there before.
    pub(super) async fn insert(
        &self,
        key: T::Key,
        value: T::Value,
    ) -> Result<Option<T::Value>, StateError> {
        let hash = self.0.hash(&key);
        let turn = changing(&self.0.gate, (key, value), |(key, value)| {
            let mut shard = self.0.lock_for(hash);
            if !self.0.gate.lets_pass() {
                return Err((key, value));
            }
            Ok(self.0.change(&mut shard, hash, key, |shard, key| {
                shard.put(hash, key, value, Stored::AsItIs)
            }))
        });
        match turn.await? {
            Turn::Here(before) => Ok(before),
            Turn::There(link, (key, value)) => {
                let change = |held: &mut Option<T::Value>| held.replace(value.clone());
                Box::pin(self.0.update_there(&link, &key, change)).await
            }
        }
    }

    /// Removes an entry and returns it.
    pub(super) async fn remove(&self, key: &T::Key) -> Result<Option<T::Value>, StateError> {
        let hash = self.0.hash(key);
        let turn = changing(&self.0.gate, (), |()| {
            let mut shard = self.0.lock_for(hash);
            if !self.0.gate.lets_pass() {
                return Err(());
            }
            let removed = match self.0.gate.record() {
                None => shard.remove(hash, key),
                Some(mut record) => {
                    let removed = shard.remove(hash, key);
                    if removed.is_some() {
                        self.0.record(&mut record, &shard, hash, key);
                        record.write();
                    }
                    removed
                }
            };
            Ok(removed)
        });
        match turn.await? {
            Turn::Here(before) => Ok(before),
            Turn::There(link, ()) => Box::pin(self.0.update_there(&link, key, Option::take)).await,
        }
    }

    /// Every entry at one instant.
    pub(super) async fn entries(&self) -> Result<Vec<(T::Key, T::Value)>, StateError> {
        let turn = reading(&self.0.gate, (), |()| {
            let shards = self.0.lock_all();
            if !self.0.gate.lets_pass() {
                return Err(());
            }
            let slots = shards.iter().flat_map(|shard| shard.iter());
            let entry = |slot: &SlotOf<T>| Some((slot.key.clone(), slot.value()?.clone()));
            Ok(slots.filter_map(entry).collect())
        });
        match turn.await? {
            Turn::Here(entries) => Ok(entries),
            Turn::There(link, ()) => {
                let name = &self.0.name;
                let entries = remote::see_all::<T::Codec, T::Value>(&link, name).await?;
                let each = entries.into_iter();
                each.map(|(key, value)| Ok((T::decode_key(&key)?, value)))
                    .collect()
            }
        }
    }

    /// How many entries there are at one instant.
    pub(super) async fn len(&self) -> Result<u64, StateError> {
        let turn = reading(&self.0.gate, (), |()| {
            let shards = self.0.lock_all();
            if !self.0.gate.lets_pass() {
                return Err(());
            }
            Ok(shards.iter().map(|shard| shard.len() as u64).sum())
        });
        match turn.await? {
            Turn::Here(count) => Ok(count),
            Turn::There(link, ()) => Ok(link.see_all(&self.0.name).await?.len() as u64),
        }
    }
}

/// Tells people what a translation had to say.
pub(super) fn report(store: &str, context: &Context) {
    for note in context.notes() {
        tracing::info!(store, note, "translating the state");
    }
    let Context {
        raised,
        lowered,
        attic_restored,
        attic_dropped,
        ..
    } = *context;
    if raised + lowered + attic_restored + attic_dropped > 0 {
        tracing::info!(
            store,
            raised,
            lowered,
            attic_restored,
            attic_dropped,
            "entries were translated between versions"
        );
    }
}
