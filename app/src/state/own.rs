//! An app's own store, tracked: whatever it is made of, its entries move to the next generation.
//!
//! Owns the operations, and a lock over every few keys under which they take place. [`stripe`] is what is
//! remembered of them, [`moving`] gives entries away and takes them up, [`serving`] is what the keeper and
//! other generations ask.
//!
//! The store has no room for versions of its entries. Where another generation needs one, to see that
//! nobody else has changed an entry, the hash of its value serves as well.

mod moving;
mod serving;
mod stripe;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard},
};

use heirloom_state_codec::{Bincode, Codec, MigrateError};

use self::stripe::Stripe;
use super::{
    State,
    error::StateError,
    gate::Gate,
    keyed::{Key, Value},
    remote,
    turn::{Turn, changing, lock, reading},
    way_back::Record,
};

/// So many locks: threads rarely meet at one.
const STRIPES: usize = 64;

/// Keys that are asked for at a time where all of them are walked.
const KEYS: usize = 256;

/// A store of an app's own that is to move to the next generation, as [`Tracked`].
///
/// The methods are called under a lock over the key, so that what one sees is what the last one left. None
/// of them may touch the state in turn.
pub trait Own: Send + Sync + 'static {
    /// Its keys.
    type Key: Key;
    /// Its values.
    type Value: Clone + Send + Sync + 'static;

    /// The value under a key.
    fn get(&self, key: &Self::Key) -> Option<Self::Value>;

    /// Puts a value under a key, or removes what is there.
    fn put(&self, key: &Self::Key, value: Option<Self::Value>);

    /// The next keys behind `after`, or the first ones; as many as there are, but `most` at most.
    ///
    /// The order is any that is the same for every call: that of the keys, or of their hashes. A key that is
    /// there all the while must come; one that comes or goes meanwhile may or may not.
    fn keys(&self, after: Option<&Self::Key>, most: usize) -> Vec<Self::Key>;

    /// How many entries there are, about.
    fn count(&self) -> u64;

    /// Removes every entry.
    fn clear(&self);
}

/// An app's own store, whose entries move to the next generation. Clones are handles to the same store.
/// For what its operations have in common, see [`Map`](super::Map).
///
/// Every change must be made through this handle; one that goes past it is not in the copy.
pub struct Tracked<S, C = Bincode>
where
    S: Own<Value: Value<C>>,
    C: Codec<S::Key> + Codec<S::Value> + 'static,
{
    shared: Arc<Shared<S>>,
    codec: PhantomData<Codes<C>>,
}

/// Keeps it free of the auto traits of its codec, which it does not hold.
type Codes<C> = fn() -> C;

/// The store, its locks and its gate.
struct Shared<S: Own> {
    name: String,
    gate: Arc<Gate>,
    store: S,
    /// Random, for keys may come from clients.
    hasher: RandomState,
    stripes: [Mutex<Stripe<S::Key>>; STRIPES],
    moving: Mutex<moving::Moving<S::Key>>,
}

impl<S: Own> Shared<S> {
    fn stripe_of(&self, key: &S::Key) -> usize {
        (self.hasher.hash_one(key) >> 32) as usize % STRIPES
    }

    fn lock(&self, key: &S::Key) -> MutexGuard<'_, Stripe<S::Key>> {
        lock(&self.stripes[self.stripe_of(key)])
    }

    /// All locks, in the one order in which several may be taken.
    fn lock_all(&self) -> Vec<MutexGuard<'_, Stripe<S::Key>>> {
        self.stripes.iter().map(lock).collect()
    }

    /// Changes an entry under its lock.
    fn put(&self, stripe: &mut Stripe<S::Key>, key: S::Key, value: Option<S::Value>) {
        if value.is_none() {
            stripe.stored.remove(&key);
        }
        self.store.put(&key, value);
        stripe.note(key);
    }

    /// Every entry, to be called under all locks.
    fn entries(&self) -> Vec<(S::Key, S::Value)> {
        let mut entries: Vec<(S::Key, S::Value)> = Vec::new();
        let mut after = None;
        loop {
            let keys = self.store.keys(after.as_ref(), KEYS);
            let Some(last) = keys.last().cloned() else {
                return entries;
            };
            after = Some(last);
            let each = keys.into_iter();
            entries.extend(each.filter_map(|key| {
                let value = self.store.get(&key)?;
                Some((key, value))
            }));
        }
    }
}

impl<S: Own> fmt::Debug for Shared<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<S, C> fmt::Debug for Tracked<S, C>
where
    S: Own<Value: Value<C>>,
    C: Codec<S::Key> + Codec<S::Value> + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl<S, C> Clone for Tracked<S, C>
where
    S: Own<Value: Value<C>>,
    C: Codec<S::Key> + Codec<S::Value> + 'static,
{
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            codec: PhantomData,
        }
    }
}

impl<S, C> Tracked<S, C>
where
    S: Own<Value: Value<C>>,
    C: Codec<S::Key> + Codec<S::Value> + 'static,
{
    /// Makes a store a part of this state, as [`Map::new`](super::Map::new).
    ///
    /// # Panics
    ///
    /// As there.
    #[must_use]
    pub fn new(state: &State, name: &str, store: S) -> Self {
        const {
            assert!(
                size_of::<S::Key>() != 0 && size_of::<S::Value>() != 0,
                "keys and values of no size cannot be part of a snapshot"
            );
        }
        let tracked = Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                gate: Arc::clone(&state.core.gate),
                store,
                hasher: RandomState::new(),
                stripes: std::array::from_fn(|_| Mutex::default()),
                moving: Mutex::default(),
            }),
            codec: PhantomData,
        };
        state.core.add(Arc::new(tracked.clone()));
        tracked
    }

    /// The store itself, past all of this: to look at where what is seen need not be the latest, for in a
    /// generation that has handed its state over it is what was there then.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.shared.store
    }

    /// The value under a key.
    ///
    /// # Errors
    ///
    /// As [`Map::get`](super::Map::get), as all operations here.
    pub async fn get(&self, key: &S::Key) -> Result<Option<S::Value>, StateError> {
        let turn = reading(&self.shared.gate, (), |()| {
            let _stripe = self.shared.lock(key);
            if !self.shared.gate.lets_pass() {
                return Err(());
            }
            Ok(self.shared.store.get(key))
        });
        match turn.await? {
            Turn::Here(value) => Ok(value),
            Turn::There(link, ()) => {
                let key = Self::key_bytes(key)?;
                let seen = remote::see::<C, S::Value>(&link, &self.shared.name, &key).await?;
                Ok(seen.map(|(_, value)| value))
            }
        }
    }

    /// Lets `change` do as it likes with the entry under a key, as [`Map::update`](super::Map::update).
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn change<R>(
        &self,
        key: S::Key,
        mut change: impl FnMut(&mut Option<S::Value>) -> R,
    ) -> Result<R, StateError> {
        let turn = changing(&self.shared.gate, key, |key| {
            let mut stripe = self.shared.lock(&key);
            if !self.shared.gate.lets_pass() {
                return Err(key);
            }
            let mut value = self.shared.store.get(&key);
            let was_there = value.is_some();
            let result = change(&mut value);
            if was_there || value.is_some() {
                let changed = self
                    .shared
                    .gate
                    .record()
                    .map(|record| (record, key.clone()));
                self.shared.put(&mut stripe, key, value);
                if let Some((mut record, key)) = changed {
                    self.record(&mut record, &stripe, &key);
                    record.write();
                }
            }
            Ok(result)
        });
        match turn.await? {
            Turn::Here(result) => Ok(result),
            Turn::There(link, key) => {
                let key = Self::key_bytes(&key)?;
                remote::update::<C, S::Value, R>(&link, &self.shared.name, key, change).await
            }
        }
    }

    /// Every entry at one instant, as [`Map::entries`](super::Map::entries).
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn entries(&self) -> Result<Vec<(S::Key, S::Value)>, StateError> {
        let turn = reading(&self.shared.gate, (), |()| {
            let _stripes = self.shared.lock_all();
            if !self.shared.gate.lets_pass() {
                return Err(());
            }
            Ok(self.shared.entries())
        });
        match turn.await? {
            Turn::Here(entries) => Ok(entries),
            Turn::There(link, ()) => {
                let entries = remote::see_all::<C, S::Value>(&link, &self.shared.name).await?;
                let each = entries.into_iter();
                each.map(|(key, value)| Ok((C::decode(&key).map_err(MigrateError::from)?, value)))
                    .collect()
            }
        }
    }

    /// What has become of an entry, for a generation in reserve.
    fn record(&self, record: &mut Record, stripe: &Stripe<S::Key>, key: &S::Key) {
        let value = self.shared.store.get(key);
        let value = value.as_ref().map(|value| (value, stripe.stored.get(key)));
        let bytes = || Self::key_bytes(key);
        record.change::<C, S::Value>(&self.shared.name, bytes, 0, value);
    }

    fn key_bytes(key: &S::Key) -> Result<Vec<u8>, MigrateError> {
        let mut bytes = Vec::new();
        C::encode(key, &mut bytes)?;
        Ok(bytes)
    }
}
