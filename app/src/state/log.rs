//! The tracked log: entries that are only ever added, by position.
//!
//! Owns the public operations. [`moving`] gives the entries away and takes them up, [`serving`] is what
//! the keeper and other generations ask.
//!
//! Between generations the log itself stands under the empty key: its version is its length and one more,
//! and to put a value there is to append it.

mod moving;
mod serving;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    ops::Range,
    sync::{Arc, Mutex},
};

use heirloom_state_codec::{AtticRecord, Bincode, Codec};

pub(super) use serving::Appended;

use super::{
    State,
    error::StateError,
    gate::Gate,
    keyed::Value,
    link::{Fate, Link, Part, WantedChange},
    remote::{lowered, raised},
    turn::{Turn, changing, lock, reading},
    way_back::Record,
};

/// A log whose entries move to the next generation. Clones are handles to the same log. For what its
/// operations have in common, see [`Map`](super::Map).
pub struct Log<T, C = Bincode>
where
    T: Value<C>,
    C: Codec<T> + 'static,
{
    shared: Arc<Shared<T>>,
    codec: PhantomData<Codes<C>>,
}

/// Keeps a log free of the auto traits of its codec, which it does not hold.
type Codes<C> = fn() -> C;

/// The log and its gate.
struct Shared<T> {
    name: String,
    gate: Arc<Gate>,
    entries: Mutex<Entries<T>>,
    moving: Mutex<moving::Moving>,
}

/// The entries.
#[derive(Debug)]
struct Entries<T> {
    /// The position of the first.
    first: u64,
    values: Vec<T>,
    /// What newer versions than this program's put aside, by position. An entry never changes, so it
    /// never becomes void.
    stored: BTreeMap<u64, AtticRecord>,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self {
            first: 0,
            values: Vec::new(),
            stored: BTreeMap::new(),
        }
    }
}

impl<T> Entries<T> {
    /// The position of the next entry.
    fn next(&self) -> u64 {
        self.first + self.values.len() as u64
    }

    fn at(&self, position: u64) -> Option<&T> {
        let index = position.checked_sub(self.first)?;
        self.values.get(usize::try_from(index).ok()?)
    }

    /// The entries at these positions, as far as there are any.
    fn range(&self, positions: Range<u64>) -> &[T] {
        let index = |position: u64| {
            let position = position.clamp(self.first, self.next()) - self.first;
            // No more than there are values, so it fits.
            position as usize
        };
        let (start, end) = (index(positions.start), index(positions.end));
        self.values.get(start..end).unwrap_or_default()
    }

    /// What was added at a position, for a generation in reserve.
    fn record<C>(&self, record: &mut Record, name: &str, position: u64)
    where
        T: Value<C>,
        C: Codec<T> + 'static,
    {
        let key = || Ok(position.to_le_bytes().to_vec());
        let stored = self.stored.get(&position);
        let value = self.at(position).map(|value| (value, stored));
        record.change::<C, T>(name, key, moving::ENTRY_VERSION, value);
    }

    fn push(&mut self, value: T) -> u64 {
        let position = self.next();
        self.values.push(value);
        position
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<T, C> fmt::Debug for Log<T, C>
where
    T: Value<C>,
    C: Codec<T> + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl<T, C> Clone for Log<T, C>
where
    T: Value<C>,
    C: Codec<T> + 'static,
{
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            codec: PhantomData,
        }
    }
}

impl<T, C> Log<T, C>
where
    T: Value<C>,
    C: Codec<T> + 'static,
{
    /// A new log of this state, as [`Map::new`](super::Map::new).
    ///
    /// # Panics
    ///
    /// As there.
    #[must_use]
    pub fn new(state: &State, name: &str) -> Self {
        const {
            assert!(
                size_of::<T>() != 0,
                "entries of no size cannot be part of a snapshot; store their number"
            );
        }
        let log = Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                gate: Arc::clone(&state.core.gate),
                entries: Mutex::default(),
                moving: Mutex::default(),
            }),
            codec: PhantomData,
        };
        state.core.add(Arc::new(log.clone()));
        log
    }

    /// Adds an entry and returns its position.
    ///
    /// # Errors
    ///
    /// As [`Map::get`](super::Map::get), as all operations here.
    pub async fn push(&self, value: T) -> Result<u64, StateError> {
        let turn = changing(&self.shared.gate, value, |value| {
            let mut entries = lock(&self.shared.entries);
            if !self.shared.gate.lets_pass() {
                return Err(value);
            }
            let position = entries.push(value);
            if let Some(mut record) = self.shared.gate.record() {
                entries.record::<C>(&mut record, &self.shared.name, position);
                record.write();
            }
            Ok(position)
        });
        match turn.await? {
            Turn::Here(position) => Ok(position),
            Turn::There(link, value) => self.push_there(&link, &value).await,
        }
    }

    /// How many entries there are; the position of the next one.
    ///
    /// # Errors
    ///
    /// As [`Self::push`].
    pub async fn len(&self) -> Result<u64, StateError> {
        let turn = reading(&self.shared.gate, (), |()| {
            let entries = lock(&self.shared.entries);
            if !self.shared.gate.lets_pass() {
                return Err(());
            }
            Ok(entries.next())
        });
        match turn.await? {
            Turn::Here(length) => Ok(length),
            Turn::There(link, ()) => self.len_there(&link).await,
        }
    }

    /// Whether there is no entry.
    ///
    /// # Errors
    ///
    /// As [`Self::push`].
    pub async fn is_empty(&self) -> Result<bool, StateError> {
        Ok(self.len().await? == 0)
    }

    /// The entry at a position.
    ///
    /// # Errors
    ///
    /// As [`Self::push`].
    pub async fn get(&self, position: u64) -> Result<Option<T>, StateError> {
        Ok(self
            .range(position..position.saturating_add(1))
            .await?
            .pop())
    }

    /// The entries at these positions, as far as there are any, in order.
    ///
    /// # Errors
    ///
    /// As [`Self::push`].
    pub async fn range(&self, positions: Range<u64>) -> Result<Vec<T>, StateError> {
        let turn = reading(&self.shared.gate, (), |()| {
            let entries = lock(&self.shared.entries);
            if !self.shared.gate.lets_pass() {
                return Err(());
            }
            Ok(entries.range(positions.clone()).to_vec())
        });
        match turn.await? {
            Turn::Here(values) => Ok(values),
            Turn::There(link, ()) => self.range_there(&link, positions).await,
        }
    }

    /// Whether it is part of the state with this gate.
    pub(super) fn is_of(&self, gate: &Arc<Gate>) -> bool {
        Arc::ptr_eq(&self.shared.gate, gate)
    }

    async fn len_there(&self, link: &Link) -> Result<u64, StateError> {
        let seen = link.see(&self.shared.name, &[]).await?;
        Ok(seen.map_or(0, |seen| seen.version.saturating_sub(1)))
    }

    async fn push_there(&self, link: &Link, value: &T) -> Result<u64, StateError> {
        let bytes = lowered::<C, T>(link.version_of(&self.shared.name), value)?;
        // Whoever was quicker has got on, so to try again without a limit gets everybody on.
        loop {
            let position = self.len_there(link).await?;
            let append = WantedChange {
                key: Vec::new(),
                expected: position + 1,
                change: Fate::Put(bytes.clone()),
            };
            let part = Part {
                section: self.shared.name.clone(),
                changes: vec![append],
            };
            if link.commit(vec![part]).await? {
                return Ok(position);
            }
            tokio::task::yield_now().await;
        }
    }

    async fn range_there(&self, link: &Link, positions: Range<u64>) -> Result<Vec<T>, StateError> {
        let version = link.version_of(&self.shared.name);
        let end = positions.end.min(self.len_there(link).await?);
        let mut values = Vec::new();
        for position in positions.start..end {
            let seen = link.see(&self.shared.name, &position.to_le_bytes()).await?;
            if let Some(seen) = seen {
                values.push(raised::<C, T>(version, &seen.value)?);
            }
        }
        Ok(values)
    }
}
