//! What the keeper and other generations ask of a log.

use std::{marker::PhantomData, sync::MutexGuard};

use heirloom_state_codec::{
    Change, Codec, Lineage, Records, SchemaRef, SectionDescriptor, SectionTotal,
};

use super::{Entries, Log, moving::ENTRY_VERSION};
use crate::state::{
    error::{StateError, StoreError},
    keyed::Value,
    link::{Fate, Link, Part, WantedChange},
    remote::{lowered, raised},
    store::{Boxed, Budget, Followed, Form, Outlet, Pair, Pending, Progress, Seen, Store, Wanted},
    transaction::{Draft, Group, LockedGroup},
    turn::lock,
    way_back::Record,
};

/// The key under which the log itself stands.
const ITSELF: &[u8] = &[];

impl<T, C> Store for Log<T, C>
where
    T: Value<C>,
    C: Codec<T> + 'static,
{
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn reads(&self) -> Vec<SchemaRef> {
        <T as Lineage<C>>::schemas()
    }

    fn entries(&self) -> u64 {
        lock(&self.shared.entries).values.len() as u64
    }

    fn begin_copy(&self, form: &Form<'_>) -> Result<Vec<SectionDescriptor>, StoreError> {
        Ok(self.give(form))
    }

    fn copy_base(&self, out: &mut Outlet<'_>, budget: &Budget) -> Result<Progress, StoreError> {
        self.give_slice(out, budget, true)
    }

    fn pending(&self) -> Pending {
        self.left()
    }

    fn copy_changes(&self, out: &mut Outlet<'_>, budget: &Budget) -> Result<Progress, StoreError> {
        self.give_slice(out, budget, false)
    }

    fn settle(&self) {
        drop(lock(&self.shared.entries));
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
        _base: bool,
        records: Records<'_>,
    ) -> Result<(), StoreError> {
        self.take_records(section, records)
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
            if key == ITSELF {
                let length = self.len().await?;
                return Ok(Some(Seen {
                    version: length + 1,
                    value: Vec::new(),
                }));
            }
            let Some(value) = self.get(position(key)?).await? else {
                return Ok(None);
            };
            Ok(Some(Seen {
                version: ENTRY_VERSION,
                value: lowered::<C, T>(version, &value)?,
            }))
        })
    }

    fn see_all(&self, version: u32) -> Boxed<'_, Result<Vec<Pair>, StateError>> {
        Box::pin(async move {
            // The entries there are when this begins: later ones only follow.
            let length = self.len().await?;
            let values = self.range(0..length).await?;
            let first = length - values.len() as u64;
            let each = (first..).zip(&values).map(|(position, value)| {
                Ok((
                    position.to_le_bytes().to_vec(),
                    lowered::<C, T>(version, value)?,
                ))
            });
            each.collect()
        })
    }

    fn stage(&self, version: u32, wanted: &[Wanted<'_>]) -> Result<Box<dyn Group>, StateError> {
        let mut appended = Appended::new(self);
        for one in wanted {
            match one.change {
                Some(Change::Put(bytes)) if one.key == ITSELF => {
                    if one.expected > 0 && appended.values.is_empty() {
                        appended.expected = Some(one.expected - 1);
                    }
                    appended.values.push(raised::<C, T>(version, bytes)?);
                }
                // What was read of a log stays as it was.
                None => {}
                Some(Change::Put(_) | Change::Remove) => {
                    let text = format!("an entry of {} cannot be changed", self.shared.name);
                    return Err(StateError::Refused(text));
                }
            }
        }
        Ok(Box::new(appended))
    }

    fn follow(&self, change: Followed<'_>) -> Result<(), StoreError> {
        self.follow_entry(&change)
    }
}

/// Reads a position.
fn position(key: &[u8]) -> Result<u64, StateError> {
    let bytes = key
        .try_into()
        .map_err(|_| StateError::Refused("the position in a log is not of 8 bytes".to_owned()))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Entries to be added by one commit.
pub(crate) struct Appended<T, C>
where
    T: Value<C>,
    C: Codec<T> + 'static,
{
    log: Log<T, C>,
    /// The length it must have, if that matters.
    expected: Option<u64>,
    pub(crate) values: Vec<T>,
}

impl<T, C> Appended<T, C>
where
    T: Value<C>,
    C: Codec<T> + 'static,
{
    pub(crate) fn new(log: &Log<T, C>) -> Self {
        Self {
            log: log.clone(),
            expected: None,
            values: Vec::new(),
        }
    }
}

impl<T, C> Group for Appended<T, C>
where
    T: Value<C>,
    C: Codec<T> + 'static,
{
    fn id(&self) -> usize {
        std::sync::Arc::as_ptr(&self.log.shared).addr()
    }

    fn lock(&mut self) -> Box<dyn LockedGroup + '_> {
        Box::new(LockedAppended {
            name: &self.log.shared.name,
            entries: lock(&self.log.shared.entries),
            expected: self.expected,
            values: &mut self.values,
            codec: PhantomData::<C>,
        })
    }

    fn draft(&self, link: &Link) -> Result<Draft, StateError> {
        let section = self.log.shared.name.clone();
        let version = link.version_of(&section);
        let mut changes = Vec::new();
        for value in &self.values {
            changes.push(WantedChange {
                key: ITSELF.to_vec(),
                expected: self.expected.map_or(0, |length| length + 1),
                change: Fate::Put(lowered::<C, T>(version, value)?),
            });
        }
        Ok(Draft {
            part: Part { section, changes },
            unseen: Vec::new(),
        })
    }
}

/// The same under the lock.
struct LockedAppended<'a, T, C> {
    name: &'a str,
    entries: MutexGuard<'a, Entries<T>>,
    expected: Option<u64>,
    values: &'a mut Vec<T>,
    codec: PhantomData<C>,
}

impl<T, C> LockedGroup for LockedAppended<'_, T, C>
where
    T: Value<C>,
    C: Codec<T> + 'static,
{
    fn prepare(&mut self) -> Result<bool, StateError> {
        let length = self.entries.next();
        Ok(self.expected.is_none_or(|expected| expected == length))
    }

    fn apply(&mut self, record: Option<&mut Record>) {
        let first = self.entries.next();
        self.entries.values.append(self.values);
        if let Some(record) = record {
            for position in first..self.entries.next() {
                self.entries.record::<C>(record, self.name, position);
            }
        }
    }
}
