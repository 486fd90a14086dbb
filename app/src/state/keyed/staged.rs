//! Several changes to the entries of one keyed store, to be committed together with those of others.
//!
//! Owns what was seen and what is wanted. In which order stores are locked, and whether the commit takes
//! place here, is [`crate::state::transaction`]'s.

use std::{collections::HashMap, sync::Arc};

use heirloom_state_codec::AtticRecord;

use super::{Handle, Keyed, Kind, Locked, Stored};
use crate::state::{
    error::StateError,
    link::{self, Link, Part, WantedChange},
    remote::{lowered, raised, raised_over},
    transaction::{Draft, Group, LockedGroup},
    way_back::Record,
};

/// What was seen of entries, and what they are to become.
#[derive(Debug)]
pub(crate) struct Staged<T: Kind> {
    keyed: Arc<Keyed<T>>,
    entries: HashMap<T::Key, Entry<T::Value>>,
}

#[derive(Debug)]
struct Entry<V> {
    hash: u64,
    /// The version and value that were seen; the version is 0 if it was not there. None for a change
    /// that was made without a look.
    seen: Option<(u64, Option<V>)>,
    fate: Fate<V>,
}

#[derive(Debug)]
enum Fate<V> {
    /// It was only seen.
    Stay,
    Put(V),
    /// It gets a value that another generation wrote in this version.
    PutFrom(u32, Vec<u8>),
    /// The same, raised to this program's version, with what a still newer one put aside.
    PutRaised(V, Option<AtticRecord>),
    Remove,
}

impl<T: Kind> Staged<T> {
    pub(crate) fn new(handle: &Handle<T>) -> Self {
        Self {
            keyed: Arc::clone(&handle.0),
            entries: HashMap::new(),
        }
    }

    /// What the transaction itself knows of an entry; none if it has not asked yet.
    pub(crate) fn known(&self, key: &T::Key) -> Option<Option<T::Value>> {
        let entry = self.entries.get(key)?;
        match &entry.fate {
            Fate::Stay => entry.seen.as_ref().map(|(_, value)| value.clone()),
            Fate::Put(value) | Fate::PutRaised(value, _) => Some(Some(value.clone())),
            Fate::PutFrom(..) => None,
            Fate::Remove => Some(None),
        }
    }

    /// Remembers what was seen.
    pub(crate) fn saw(&mut self, key: T::Key, version: u64, value: Option<T::Value>) {
        self.entry(key).seen = Some((version, value));
    }

    /// Lets an entry get a value, or go.
    pub(crate) fn want(&mut self, key: T::Key, value: Option<T::Value>) {
        self.entry(key).fate = value.map_or(Fate::Remove, Fate::Put);
    }

    /// Adds what another generation wants of an entry; `value` is in this version of the schema.
    ///
    /// # Errors
    ///
    /// If the entry was named before, or the value is none.
    pub(super) fn want_from(
        &mut self,
        key: T::Key,
        expected: u64,
        version: u32,
        value: Option<Option<&[u8]>>,
    ) -> Result<(), StateError> {
        if self.entries.contains_key(&key) {
            let text = format!("one commit names an entry of {} twice", self.keyed.name);
            return Err(StateError::Refused(text));
        }
        let fate = match value {
            None => Fate::Stay,
            Some(None) => Fate::Remove,
            Some(Some(bytes)) => {
                // Whether it can be read is known before any lock is taken.
                raised::<T::Codec, T::Value>(version, bytes)?;
                Fate::PutFrom(version, bytes.to_vec())
            }
        };
        let entry = self.entry(key);
        entry.seen = Some((expected, None));
        entry.fate = fate;
        Ok(())
    }

    fn entry(&mut self, key: T::Key) -> &mut Entry<T::Value> {
        let hash = self.keyed.hash(&key);
        self.entries.entry(key).or_insert(Entry {
            hash,
            seen: None,
            fate: Fate::Stay,
        })
    }
}

impl<T: Kind> Group for Staged<T> {
    fn id(&self) -> usize {
        Arc::as_ptr(&self.keyed).addr()
    }

    fn lock(&mut self) -> Box<dyn LockedGroup + '_> {
        let keyed = &*self.keyed;
        let each = self
            .entries
            .values()
            .map(|entry| keyed.shard_of(entry.hash));
        let mut shards: Vec<usize> = each.collect();
        shards.sort_unstable();
        shards.dedup();
        Box::new(LockedStaged {
            keyed,
            shards: shards.into_iter().map(|at| (at, keyed.lock(at))).collect(),
            entries: &mut self.entries,
        })
    }

    fn draft(&self, link: &Link) -> Result<Draft, StateError> {
        let section = self.keyed.name.clone();
        let version = link.version_of(&section);
        let mut changes = Vec::new();
        let mut unseen = Vec::new();
        for (key, entry) in &self.entries {
            let change = match &entry.fate {
                Fate::Stay => link::Fate::Stay,
                Fate::Put(value) | Fate::PutRaised(value, _) => {
                    link::Fate::Put(lowered::<T::Codec, T::Value>(version, value)?)
                }
                Fate::PutFrom(from, bytes) if *from == version => link::Fate::Put(bytes.clone()),
                Fate::PutFrom(from, bytes) => {
                    let value = raised::<T::Codec, T::Value>(*from, bytes)?;
                    link::Fate::Put(lowered::<T::Codec, T::Value>(version, &value)?)
                }
                Fate::Remove => link::Fate::Remove,
            };
            if entry.seen.is_none() {
                unseen.push(changes.len());
            }
            changes.push(WantedChange {
                key: Keyed::<T>::key_bytes(key)?,
                expected: entry.seen.as_ref().map_or(0, |(version, _)| *version),
                change,
            });
        }
        Ok(Draft {
            part: Part { section, changes },
            unseen,
        })
    }
}

/// The same with every shard locked that it touches.
struct LockedStaged<'a, T: Kind> {
    keyed: &'a Keyed<T>,
    /// By number, in order.
    shards: Vec<(usize, Locked<'a, T>)>,
    entries: &'a mut HashMap<T::Key, Entry<T::Value>>,
}

impl<T: Kind> LockedGroup for LockedStaged<'_, T> {
    fn prepare(&mut self) -> Result<bool, StateError> {
        let shards = &self.shards;
        for (key, entry) in self.entries.iter_mut() {
            let shard = self.keyed.shard_of(entry.hash);
            let found = shards.binary_search_by_key(&shard, |(at, _)| *at).ok();
            let slot = found.and_then(|at| shards[at].1.get(entry.hash, key));
            let holds = slot.map_or(0, |slot| slot.version);
            if entry.seen.as_ref().is_some_and(|(seen, _)| *seen != holds) {
                return Ok(false);
            }
            if let Fate::PutFrom(version, bytes) = &entry.fate {
                let present = slot.and_then(|slot| Some((slot.value()?, slot.stored())));
                let (value, stored) = raised_over::<T::Codec, T::Value>(present, *version, bytes)?;
                entry.fate = Fate::PutRaised(value, stored);
            }
        }
        Ok(true)
    }

    fn apply(&mut self, mut record: Option<&mut Record>) {
        for (key, entry) in self.entries.drain() {
            let number = self.keyed.shard_of(entry.hash);
            let Some((_, shard)) = self.shards.iter_mut().find(|(at, _)| *at == number) else {
                continue;
            };
            let changes = !matches!(entry.fate, Fate::Stay | Fate::PutFrom(..));
            let changed = record.is_some().then(|| key.clone()).filter(|_| changes);
            match entry.fate {
                Fate::Put(value) => {
                    shard.put(entry.hash, key, value, Stored::AsItIs);
                }
                Fate::PutRaised(value, stored) => {
                    shard.put(entry.hash, key, value, Stored::Now(stored));
                }
                Fate::Remove => {
                    shard.remove(entry.hash, &key);
                }
                // `prepare` has raised what came from elsewhere.
                Fate::Stay | Fate::PutFrom(..) => {}
            }
            if let (Some(record), Some(key)) = (record.as_deref_mut(), changed) {
                self.keyed.record(record, shard, entry.hash, &key);
            }
        }
    }
}
