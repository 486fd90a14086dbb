//! An app's own store gives its entries away and takes them up.
//!
//! Owns how far it is. An entry is read, coded and written under its lock, and whether it is still there
//! is seen then, so all that a change has to leave behind is its key.

use std::collections::HashMap;

use heirloom_state_codec::{
    AtticRecord, Codec, Context, EntryHash, MigrateError, Record, Records, SectionDescriptor,
    SectionId, SectionKind, SectionTotal, SnapshotWriter, read_entry, shape_of, write_entry,
};

use super::{
    KEYS, Own, STRIPES, Tracked,
    stripe::{Sent, Stripe},
};
use crate::state::{
    declared::{Declared, Identity, accept, declare, undeclared},
    error::StoreError,
    incoming::Incoming,
    keyed::{Key, Value, report},
    outgoing::Beside,
    store::{Budget, Followed, Form, Outlet, Pending, Progress},
    turn::lock,
    way_back::record::Fate,
};

/// Entries that are written under one lock, one after the other: some microseconds.
const BATCH_ENTRIES: usize = 16;

/// The bytes of a record beside key and value.
const RECORD_BYTES: u64 = 16;

/// What is under way.
#[derive(Debug, Default)]
pub(super) enum Moving<K> {
    #[default]
    Nothing,
    Giving(Giving<K>),
    Taking(Taking),
}

/// A copy on its way out.
#[derive(Debug)]
pub(super) struct Giving<K> {
    section: SectionId,
    attic: Option<SectionId>,
    version: u32,
    /// The base has come behind this key.
    after: Option<K>,
    /// The stripe the round has come to, and whether it has begun there.
    round: usize,
    entered: bool,
    /// Each record is newer than all before it.
    clock: u64,
    context: Context,
    sent_entries: u64,
    sent_bytes: u64,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// A copy on its way in.
#[derive(Debug)]
pub(super) struct Taking {
    incoming: Incoming,
    /// The version and hash of every entry, for which the store has no room.
    held: HashMap<Vec<u8>, (u64, EntryHash)>,
}

impl<S, C> Tracked<S, C>
where
    S: Own<Value: Value<C>>,
    C: Codec<S::Key> + Codec<S::Value> + 'static,
{
    pub(super) fn give(&self, form: &Form<'_>) -> Vec<SectionDescriptor> {
        let mut stored = false;
        for stripe in &self.shared.stripes {
            let mut stripe = lock(stripe);
            stripe.arm();
            stored |= !stripe.stored.is_empty();
        }
        let key_shape = shape_of::<S::Key>();
        let identity = self.identity(&key_shape);
        let count = self.shared.store.count();
        let declared = declare::<C, S::Value>(identity, form, count, stored);
        *lock(&self.shared.moving) = Moving::Giving(Giving::new(&declared));
        declared.into_sections()
    }

    /// What it is in a manifest.
    fn identity<'a>(&'a self, key_shape: &'a str) -> Identity<'a> {
        Identity {
            name: &self.shared.name,
            kind: SectionKind::Map,
            key_shape,
        }
    }

    pub(super) fn give_base(
        &self,
        out: &mut Outlet<'_>,
        budget: &Budget,
    ) -> Result<Progress, StoreError> {
        let mut moving = lock(&self.shared.moving);
        let Moving::Giving(giving) = &mut *moving else {
            return Ok(Progress::Done);
        };
        loop {
            let keys = self.shared.store.keys(giving.after.as_ref(), KEYS);
            if keys.is_empty() {
                return Ok(Progress::Done);
            }
            for key in keys {
                {
                    let stripe = &mut *self.shared.lock(&key);
                    // One that was sent has come twice, which costs nothing.
                    if !stripe.sent.contains_key(&key) {
                        let value = self.shared.store.get(&key);
                        stripe.clean(&key);
                        giving.send::<C, S::Value>(stripe, &key, value, out.writer, true)?;
                    }
                }
                giving.after = Some(key);
                if budget.is_spent(out.writer) {
                    return Ok(Progress::More);
                }
            }
        }
    }

    pub(super) fn give_changes(
        &self,
        out: &mut Outlet<'_>,
        budget: &Budget,
    ) -> Result<Progress, StoreError> {
        let mut moving = lock(&self.shared.moving);
        let Moving::Giving(giving) = &mut *moving else {
            return Ok(Progress::Done);
        };
        while giving.round < STRIPES {
            {
                let stripe = &mut *lock(&self.shared.stripes[giving.round]);
                if !giving.entered {
                    stripe.begin_round();
                    giving.entered = true;
                }
                for _ in 0..BATCH_ENTRIES {
                    let Some(key) = stripe.sending.pop() else {
                        break;
                    };
                    let value = self.shared.store.get(&key);
                    stripe.clean(&key);
                    giving.send::<C, S::Value>(stripe, &key, value, out.writer, false)?;
                }
                if stripe.sending.is_empty() {
                    giving.round += 1;
                    giving.entered = false;
                }
            }
            if budget.is_spent(out.writer) && giving.round < STRIPES {
                return Ok(Progress::More);
            }
        }
        giving.round = 0;
        Ok(Progress::Done)
    }

    pub(super) fn left(&self) -> Pending {
        let Moving::Giving(giving) = &*lock(&self.shared.moving) else {
            return Pending::default();
        };
        let each = self.shared.stripes.iter();
        let entries = each.map(|stripe| lock(stripe).pending() as u64).sum();
        let average = giving.sent_bytes / giving.sent_entries.max(1) + RECORD_BYTES;
        Pending {
            entries,
            bytes: entries * average,
        }
    }

    pub(super) fn settled(&self) {
        if let Moving::Giving(giving) = &mut *lock(&self.shared.moving) {
            // The rest begins at the first stripe, whatever a round under way had come to.
            giving.round = 0;
            giving.entered = false;
        }
        for stripe in &self.shared.stripes {
            drop(lock(stripe));
        }
    }

    pub(super) fn end_giving(&self) {
        let mut moving = lock(&self.shared.moving);
        if let Moving::Giving(giving) = &*moving {
            report(&self.shared.name, &giving.context);
            *moving = Moving::Nothing;
            for stripe in &self.shared.stripes {
                lock(stripe).disarm();
            }
        }
    }

    /// A copy in which the store has no section leaves it as it was made.
    pub(super) fn take(&self, sections: &[&SectionDescriptor]) -> Result<(), StoreError> {
        let key_shape = shape_of::<S::Key>();
        let accepted = accept::<C, S::Value>(self.identity(&key_shape), sections)?;
        let Some((section, attic)) = accepted else {
            return Ok(());
        };
        for stripe in &self.shared.stripes {
            *lock(stripe) = Stripe::default();
        }
        self.shared.store.clear();
        *lock(&self.shared.moving) = Moving::Taking(Taking {
            incoming: Incoming::new(section, attic),
            held: HashMap::new(),
        });
        Ok(())
    }

    pub(super) fn take_records(
        &self,
        section: &SectionDescriptor,
        base: bool,
        mut records: Records<'_>,
    ) -> Result<(), StoreError> {
        let mut moving = lock(&self.shared.moving);
        let Moving::Taking(taking) = &mut *moving else {
            return Err(undeclared(section));
        };
        if section.kind == SectionKind::Attic {
            return records.try_for_each(|record| taking.incoming.attic(base, &record));
        }
        records.try_for_each(|record| self.take_entry(taking, base, &record))
    }

    fn take_entry(
        &self,
        taking: &mut Taking,
        base: bool,
        record: &Record<'_>,
    ) -> Result<(), StoreError> {
        let key: S::Key = C::decode(record.key).map_err(MigrateError::from)?;
        let held = taking.held.get(record.key).copied();
        let entry = taking.incoming.entry::<C, S::Value>(base, record, held)?;
        let stripe = &mut *self.shared.lock(&key);
        let Some((value, received)) = entry else {
            taking.held.remove(record.key);
            stripe.stored.remove(&key);
            self.shared.store.put(&key, None);
            return Ok(());
        };
        let version = (received.version, received.hash);
        taking.held.insert(record.key.to_vec(), version);
        self.shared.store.put(&key, Some(value));
        match received.stored {
            Some(stored) => drop(stripe.stored.insert(key, stored)),
            None => drop(stripe.stored.remove(&key)),
        }
        Ok(())
    }

    /// Makes a change that the owner of the state has made.
    pub(super) fn follow_entry(&self, change: &Followed<'_>) -> Result<(), StoreError> {
        let key: S::Key = C::decode(change.key).map_err(MigrateError::from)?;
        let stripe = &mut *self.shared.lock(&key);
        match change.fate {
            Fate::Put { value, attic } => {
                let attic = AtticRecord::parse(attic);
                let context = &mut Context::default();
                let entry = read_entry::<C, S::Value>(change.version, value, attic, context)?;
                self.shared.store.put(&key, Some(entry.value));
                match entry.attic {
                    Some(stored) => drop(stripe.stored.insert(key, stored)),
                    None => drop(stripe.stored.remove(&key)),
                }
            }
            Fate::Remove => {
                self.shared.store.put(&key, None);
                stripe.stored.remove(&key);
            }
            Fate::Object { .. } => return Err(change.is_none_of(&self.shared.name)),
        }
        Ok(())
    }

    pub(super) fn end_take(&self) -> Vec<SectionTotal> {
        let mut moving = lock(&self.shared.moving);
        match std::mem::take(&mut *moving) {
            Moving::Taking(Taking { incoming, .. }) => {
                report(&self.shared.name, &incoming.context);
                incoming.into_totals()
            }
            other @ (Moving::Nothing | Moving::Giving(_)) => {
                *moving = other;
                Vec::new()
            }
        }
    }
}

impl<K: Key> Giving<K> {
    fn new(declared: &Declared) -> Self {
        Self {
            section: declared.section.id,
            attic: declared.attic.as_ref().map(|attic| attic.id),
            version: declared.section.schema.version,
            after: None,
            round: 0,
            entered: false,
            clock: 0,
            context: Context::default(),
            sent_entries: 0,
            sent_bytes: 0,
            key: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Writes an entry as it is now, or that it has gone.
    fn send<C, V>(
        &mut self,
        stripe: &mut Stripe<K>,
        key: &K,
        value: Option<V>,
        writer: &mut SnapshotWriter,
        base: bool,
    ) -> Result<(), StoreError>
    where
        V: Value<C>,
        C: Codec<K> + Codec<V>,
    {
        let sent = stripe.sent.get(key).copied();
        self.key.clear();
        self.value.clear();
        C::encode(key, &mut self.key).map_err(MigrateError::from)?;
        let attic = match &value {
            Some(value) => {
                let stored = stripe.stored.get(key);
                let (bytes, context) = (&mut self.value, &mut self.context);
                write_entry::<C, V>(value, self.version, stored, bytes, context)?
            }
            None => None,
        };
        let attic = attic.as_ref().map(AtticRecord::to_bytes);
        self.clock += 1;
        let (version, replaced) = (self.clock, sent.map(|sent| sent.hash));
        let mut attic_sent = None;
        if let Some(section) = self.attic {
            let beside = Beside {
                key: &self.key,
                version,
                record: attic.as_deref(),
                replaced: sent.and_then(|sent| sent.attic),
            };
            attic_sent = beside.write(writer, section, base)?;
        }
        let hash = match (&value, replaced) {
            (Some(_), _) if base => writer.bulk(self.section, version, &self.key, &self.value)?,
            (Some(_), _) => {
                writer.upsert(self.section, version, &self.key, &self.value, replaced)?
            }
            (None, None) => return Ok(()),
            (None, Some(_)) => {
                writer.tombstone(self.section, version, &self.key, replaced)?;
                stripe.sent.remove(key);
                return Ok(());
            }
        };
        let attic = attic_sent;
        stripe.sent.insert(key.clone(), Sent { hash, attic });
        self.sent_entries += 1;
        self.sent_bytes += (self.key.len() + self.value.len()) as u64;
        Ok(())
    }
}
