//! What the keeper and other generations ask of an app's own store.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard},
};

use heirloom_state_codec::{
    AtticRecord, Change, Codec, EntryHash, Lineage, MigrateError, Records, SchemaRef,
    SectionDescriptor, SectionTotal,
};

use super::{Own, Tracked, stripe::Stripe};
use crate::state::{
    error::{StateError, StoreError},
    keyed::Value,
    link::{Fate, Link, Part, WantedChange},
    remote::{lowered, raised, raised_over},
    store::{Boxed, Budget, Followed, Form, Outlet, Pair, Pending, Progress, Seen, Store, Wanted},
    transaction::{Draft, Group, LockedGroup},
    turn::lock,
    way_back::Record,
};

/// What stands for an entry's version: a hash of its value, never 0.
fn version_of<C: Codec<V>, V: Value<C>>(value: Option<&V>) -> Result<u64, MigrateError> {
    let Some(value) = value else { return Ok(0) };
    let mut bytes = Vec::new();
    C::encode(value, &mut bytes)?;
    let EntryHash(hash) = EntryHash::of(0, &[], &bytes);
    Ok((hash as u64).max(1))
}

impl<S, C> Store for Tracked<S, C>
where
    S: Own<Value: Value<C>>,
    C: Codec<S::Key> + Codec<S::Value> + 'static,
{
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn reads(&self) -> Vec<SchemaRef> {
        <S::Value as Lineage<C>>::schemas()
    }

    fn entries(&self) -> u64 {
        self.shared.store.count()
    }

    fn begin_copy(&self, form: &Form<'_>) -> Result<Vec<SectionDescriptor>, StoreError> {
        Ok(self.give(form))
    }

    fn copy_base(&self, out: &mut Outlet<'_>, budget: &Budget) -> Result<Progress, StoreError> {
        self.give_base(out, budget)
    }

    fn pending(&self) -> Pending {
        self.left()
    }

    fn copy_changes(&self, out: &mut Outlet<'_>, budget: &Budget) -> Result<Progress, StoreError> {
        self.give_changes(out, budget)
    }

    fn settle(&self) {
        self.settled();
    }

    fn end_copy(&self) {
        self.end_giving();
    }

    fn begin_taking(&self, sections: &[&SectionDescriptor]) -> Result<(), StoreError> {
        self.take(sections)
    }

    fn apply(
        &self,
        section: &SectionDescriptor,
        base: bool,
        records: Records<'_>,
    ) -> Result<(), StoreError> {
        self.take_records(section, base, records)
    }

    fn end_taking(&self) -> Vec<SectionTotal> {
        self.end_take()
    }

    fn see<'a>(
        &'a self,
        version: u32,
        key: &'a [u8],
    ) -> Boxed<'a, Result<Option<Seen>, StateError>> {
        Box::pin(async move {
            let key: S::Key = C::decode(key).map_err(MigrateError::from)?;
            let Some(value) = self.get(&key).await? else {
                return Ok(None);
            };
            Ok(Some(Seen {
                version: version_of::<C, S::Value>(Some(&value))?,
                value: lowered::<C, S::Value>(version, &value)?,
            }))
        })
    }

    fn see_all(&self, version: u32) -> Boxed<'_, Result<Vec<Pair>, StateError>> {
        Box::pin(async move {
            let entries = Self::entries(self).await?;
            let each = entries.iter().map(|(key, value)| {
                let key = Self::key_bytes(key)?;
                Ok((key, lowered::<C, S::Value>(version, value)?))
            });
            each.collect()
        })
    }

    fn stage(&self, version: u32, wanted: &[Wanted<'_>]) -> Result<Box<dyn Group>, StateError> {
        let mut entries = HashMap::new();
        for one in wanted {
            let key: S::Key = C::decode(one.key).map_err(MigrateError::from)?;
            let fate = match one.change {
                None => Wish::Stay,
                Some(Change::Remove) => Wish::Remove,
                Some(Change::Put(bytes)) => {
                    // Whether it can be read is known before any lock is taken.
                    raised::<C, S::Value>(version, bytes)?;
                    Wish::PutFrom(bytes.to_vec())
                }
            };
            if entries.insert(key, (one.expected, fate)).is_some() {
                let text = format!("one commit names an entry of {} twice", self.shared.name);
                return Err(StateError::Refused(text));
            }
        }
        Ok(Box::new(Staged {
            tracked: self.clone(),
            version,
            entries,
        }))
    }

    fn follow(&self, change: Followed<'_>) -> Result<(), StoreError> {
        self.follow_entry(&change)
    }
}

/// What another generation wants of entries.
struct Staged<S, C>
where
    S: Own<Value: Value<C>>,
    C: Codec<S::Key> + Codec<S::Value> + 'static,
{
    tracked: Tracked<S, C>,
    /// The version of the values.
    version: u32,
    entries: HashMap<S::Key, (u64, Wish<S::Value>)>,
}

/// What is to become of an entry.
enum Wish<V> {
    Stay,
    /// It gets the value with these bytes.
    PutFrom(Vec<u8>),
    /// The same as a value of this program, with what a newer one put aside.
    Put(V, Option<AtticRecord>),
    Remove,
}

impl<S, C> Group for Staged<S, C>
where
    S: Own<Value: Value<C>>,
    C: Codec<S::Key> + Codec<S::Value> + 'static,
{
    fn id(&self) -> usize {
        Arc::as_ptr(&self.tracked.shared).addr()
    }

    fn lock(&mut self) -> Box<dyn LockedGroup + '_> {
        let shared = &self.tracked.shared;
        let mut stripes: Vec<usize> = self
            .entries
            .keys()
            .map(|key| shared.stripe_of(key))
            .collect();
        stripes.sort_unstable();
        stripes.dedup();
        let each = stripes.into_iter();
        Box::new(LockedStaged {
            stripes: each.map(|at| (at, lock(&shared.stripes[at]))).collect(),
            tracked: &self.tracked,
            version: self.version,
            entries: &mut self.entries,
        })
    }

    fn draft(&self, link: &Link) -> Result<Draft, StateError> {
        let section = self.tracked.shared.name.clone();
        let version = link.version_of(&section);
        let mut changes = Vec::new();
        for (key, (expected, wish)) in &self.entries {
            let change = match wish {
                Wish::Stay => Fate::Stay,
                Wish::PutFrom(bytes) if self.version == version => Fate::Put(bytes.clone()),
                Wish::PutFrom(bytes) => {
                    let value = raised::<C, S::Value>(self.version, bytes)?;
                    Fate::Put(lowered::<C, S::Value>(version, &value)?)
                }
                Wish::Put(value, _) => Fate::Put(lowered::<C, S::Value>(version, value)?),
                Wish::Remove => Fate::Remove,
            };
            changes.push(WantedChange {
                key: Tracked::<S, C>::key_bytes(key)?,
                expected: *expected,
                change,
            });
        }
        Ok(Draft {
            part: Part { section, changes },
            unseen: Vec::new(),
        })
    }
}

/// The same with every lock that it needs.
struct LockedStaged<'a, S, C>
where
    S: Own<Value: Value<C>>,
    C: Codec<S::Key> + Codec<S::Value> + 'static,
{
    tracked: &'a Tracked<S, C>,
    /// By number, in order.
    stripes: Vec<(usize, MutexGuard<'a, Stripe<S::Key>>)>,
    version: u32,
    entries: &'a mut HashMap<S::Key, (u64, Wish<S::Value>)>,
}

impl<S, C> LockedGroup for LockedStaged<'_, S, C>
where
    S: Own<Value: Value<C>>,
    C: Codec<S::Key> + Codec<S::Value> + 'static,
{
    fn prepare(&mut self) -> Result<bool, StateError> {
        let shared = &self.tracked.shared;
        for (key, (expected, wish)) in self.entries.iter_mut() {
            let present = shared.store.get(key);
            if version_of::<C, S::Value>(present.as_ref())? != *expected {
                return Ok(false);
            }
            if let Wish::PutFrom(bytes) = wish {
                let number = shared.stripe_of(key);
                let stripe = self.stripes.iter().find(|(at, _)| *at == number);
                let stored = stripe.and_then(|(_, stripe)| stripe.stored.get(key));
                let present = present.as_ref().map(|value| (value, stored));
                let (value, stored) = raised_over::<C, S::Value>(present, self.version, bytes)?;
                *wish = Wish::Put(value, stored);
            }
        }
        Ok(true)
    }

    fn apply(&mut self, mut record: Option<&mut Record>) {
        let shared = &self.tracked.shared;
        for (key, (_, wish)) in self.entries.drain() {
            let number = shared.stripe_of(&key);
            let Some((_, stripe)) = self.stripes.iter_mut().find(|(at, _)| *at == number) else {
                continue;
            };
            let changes = !matches!(wish, Wish::Stay | Wish::PutFrom(_));
            let changed = record.is_some().then(|| key.clone()).filter(|_| changes);
            match wish {
                Wish::Put(value, stored) => {
                    match stored {
                        Some(stored) => drop(stripe.stored.insert(key.clone(), stored)),
                        None => drop(stripe.stored.remove(&key)),
                    }
                    shared.put(stripe, key, Some(value));
                }
                Wish::Remove => shared.put(stripe, key, None),
                // `prepare` has raised what came from elsewhere.
                Wish::Stay | Wish::PutFrom(_) => {}
            }
            if let (Some(record), Some(key)) = (record.as_deref_mut(), changed) {
                self.tracked.record(record, stripe, &key);
            }
        }
    }
}
