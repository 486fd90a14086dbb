//! The same map without tracking: what a tracked write is compared with.
//!
//! [`Untracked`] is built as the tracked map is, of shards with a slab and an index into it, and lacks
//! all that a handover needs. [`Plain`] is what one would write without a thought: a `HashMap` a shard.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

/// As many shards as the tracked map has.
const SHARDS: usize = 256;

/// Keeps neighbouring locks apart, as the tracked map does.
#[derive(Debug)]
#[repr(align(128))]
struct Apart<T>(Mutex<T>);

fn shards<T: Default>() -> Box<[Apart<T>]> {
    let shard = || Apart(Mutex::new(T::default()));
    std::iter::repeat_with(shard).take(SHARDS).collect()
}

fn lock<T>(shards: &[Apart<T>], hash: u64) -> MutexGuard<'_, T> {
    let shard = &shards[(hash >> 32) as usize & (SHARDS - 1)];
    shard.0.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Slab<V> {
    index: HashTable<(u32, u32)>,
    slots: Vec<(u64, Option<V>)>,
}

impl<V> Default for Slab<V> {
    fn default() -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
        }
    }
}

/// Fibonacci hashing of the half of a hash that the index keeps.
fn spread(half: u32) -> u64 {
    u64::from(half).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Slabs and indexes.
#[derive(Debug)]
pub struct Untracked<V> {
    hasher: RandomState,
    shards: Box<[Apart<Slab<V>>]>,
}

impl<V> Default for Untracked<V> {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: shards(),
        }
    }
}

impl<V> Untracked<V> {
    /// Lets `change` do as it likes with the value under a key; it stays in its place.
    pub fn update<R>(&self, key: u64, mut change: impl FnMut(&mut Option<V>) -> R) -> R {
        let hash = self.hasher.hash_one(key);
        let half = hash as u32;
        let mut shard = lock(&self.shards, hash);
        let Slab { index, slots } = &mut *shard;
        let is_it = |place: &(u32, u32)| place.0 == half && slots[place.1 as usize].0 == key;
        let at = match index.find(spread(half), is_it) {
            Some(place) => place.1 as usize,
            None => {
                let at = slots.len();
                slots.push((key, None));
                index.insert_unique(spread(half), (half, at as u32), |place| spread(place.0));
                at
            }
        };
        change(&mut slots[at].1)
    }
}

/// One shard, on cache lines of its own.
type Shard<V> = Apart<HashMap<u64, Option<V>>>;

/// Hash maps.
#[derive(Debug)]
pub struct Plain<V> {
    hasher: RandomState,
    shards: Box<[Shard<V>]>,
}

impl<V> Default for Plain<V> {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: shards(),
        }
    }
}

impl<V> Plain<V> {
    /// Lets `change` do as it likes with the value under a key.
    pub fn update<R>(&self, key: u64, mut change: impl FnMut(&mut Option<V>) -> R) -> R {
        let hash = self.hasher.hash_one(key);
        change(lock(&self.shards, hash).entry(key).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hold_what_they_were_given() {
        let (slabs, maps) = (Untracked::default(), Plain::default());
        for key in 0..2000_u64 {
            slabs.update(key, |value| *value = Some(key * 3));
            maps.update(key, |value| *value = Some(key * 3));
        }
        for key in 0..2000 {
            assert_eq!(slabs.update(key, |value| *value), Some(key * 3));
            assert_eq!(maps.update(key, |value| *value), Some(key * 3));
        }
    }
}
