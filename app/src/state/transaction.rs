//! Transactions: changes to several entries of several stores, all of them or none.
//!
//! Optimistic. What is read is remembered with its version; the commit locks what it touches in one
//! order for all, looks whether everything is still as it was read, and then changes it. So nobody
//! holds a lock while a transaction is composed, no transaction waits for another, and a commit is
//! whole before a freeze or after it.
//!
//! Owns the composing and the order of locks. What a store's part consists of is the store's affair.

use std::{any::Any, fmt, sync::Arc};

use heirloom_state_codec::Codec;

use super::{
    State,
    cell::Cell,
    error::StateError,
    gate::Gate,
    keyed::{Handle, Key, Kind, Staged, Value},
    link::{Link, Part},
    log::{Appended, Log},
    map::Map,
    set::{Present, Set},
    turn::{Turn, changing},
    way_back::Record,
};

/// What is wrong when a store is used in a transaction of another state.
const OTHER_STATE: &str = "the store and the transaction belong to different states";

/// One store's part of a commit.
pub(crate) trait Group: Any + Send {
    /// What stores are locked by in order; no two of a process have the same.
    fn id(&self) -> usize;

    /// Locks everything it touches.
    fn lock(&mut self) -> Box<dyn LockedGroup + '_>;

    /// The same for the generation at the other end of the link.
    ///
    /// # Errors
    ///
    /// If a value cannot be translated for it.
    fn draft(&self, link: &Link) -> Result<Draft, StateError>;
}

/// The same under its locks.
pub(crate) trait LockedGroup {
    /// Whether everything is still as it was seen. Makes ready whatever could fail later.
    ///
    /// # Errors
    ///
    /// If a change cannot be made.
    fn prepare(&mut self) -> Result<bool, StateError>;

    /// Makes the changes, and adds what they came to to what is written for a generation in reserve.
    fn apply(&mut self, record: Option<&mut Record>);
}

/// A part for another generation.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) part: Part,
    /// Changes that were made without a look: they have yet to be told what to expect.
    pub(crate) unseen: Vec<usize>,
}

/// Commits these parts together. False if something is not as it was seen; nothing is changed then.
///
/// # Errors
///
/// [`StateError`]; nothing is changed then, but with [`StateError::OwnerGone`].
pub(crate) async fn commit_groups(
    gate: &Gate,
    mut groups: Vec<Box<dyn Group>>,
) -> Result<bool, StateError> {
    groups.sort_by_key(|group| group.id());
    let twice = groups.windows(2).any(|two| two[0].id() == two[1].id());
    if twice {
        let text = "one commit names a store twice".to_owned();
        return Err(StateError::Refused(text));
    }
    let turn = changing(gate, groups, |mut groups| {
        try_here(gate, &mut groups).ok_or(groups)
    });
    match turn.await? {
        Turn::Here(done) => done,
        Turn::There(link, groups) => {
            let drafts: Result<Vec<Draft>, StateError> =
                groups.iter().map(|group| group.draft(&link)).collect();
            drop(groups);
            commit_there(&link, drafts?).await
        }
    }
}

/// None if the gate does not let it pass.
fn try_here(gate: &Gate, groups: &mut [Box<dyn Group>]) -> Option<Result<bool, StateError>> {
    let mut locked: Vec<_> = groups.iter_mut().map(|group| group.lock()).collect();
    if !gate.lets_pass() {
        return None;
    }
    for group in &mut locked {
        match group.prepare() {
            Ok(true) => {}
            Ok(false) => return Some(Ok(false)),
            Err(error) => return Some(Err(error)),
        }
    }
    let mut record = gate.record();
    for group in &mut locked {
        group.apply(record.as_mut());
    }
    // Whole, and before any of the locks is let go of.
    if let Some(record) = record {
        record.write();
    }
    Some(Ok(true))
}

async fn commit_there(link: &Link, drafts: Vec<Draft>) -> Result<bool, StateError> {
    let mut parts = Vec::new();
    for Draft { mut part, unseen } in drafts {
        for at in unseen {
            let change = &mut part.changes[at];
            let seen = link.see(&part.section, &change.key).await?;
            change.expected = seen.map_or(0, |seen| seen.version);
        }
        parts.push(part);
    }
    link.commit(parts).await
}

/// Several changes that are to take place together. Made with [`State::transaction`].
///
/// ```
/// # use heirloom_app::state::{Map, State, StateError};
/// # use heirloom_state_codec::State as Schema;
/// # use serde::{Deserialize, Serialize};
/// #[derive(Clone, Serialize, Deserialize, Schema)]
/// #[state(name = "account", version = 1, oldest)]
/// struct Account { balance: u64 }
///
/// async fn transfer(
///     state: &State, accounts: &Map<u32, Account>, from: u32, to: u32, amount: u64,
/// ) -> Result<bool, StateError> {
///     loop {
///         let mut transaction = state.transaction();
///         let (Some(mut giver), Some(mut taker)) =
///             (transaction.get(accounts, &from).await?, transaction.get(accounts, &to).await?)
///         else {
///             return Ok(false);
///         };
///         let Some(rest) = giver.balance.checked_sub(amount) else { return Ok(false) };
///         giver.balance = rest;
///         taker.balance += amount;
///         transaction.put(accounts, from, giver);
///         transaction.put(accounts, to, taker);
///         if transaction.commit().await? {
///             return Ok(true);
///         }
///         // Somebody else changed one of the two: look again.
///     }
/// }
/// ```
pub struct Transaction {
    gate: Arc<Gate>,
    groups: Vec<Box<dyn Group>>,
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("stores", &self.groups.len())
            .finish_non_exhaustive()
    }
}

impl State {
    /// Begins a transaction, which costs nothing until it is committed and nothing if it is not.
    #[must_use]
    pub fn transaction(&self) -> Transaction {
        Transaction {
            gate: Arc::clone(&self.core.gate),
            groups: Vec::new(),
        }
    }
}

impl Transaction {
    /// The value under a key of a map: as this transaction left it, else as it is now. The commit fails
    /// if it has changed by then.
    ///
    /// Two reads are not of the same instant; only the commit tells that both still held together.
    ///
    /// # Errors
    ///
    /// As [`Map::get`].
    ///
    /// # Panics
    ///
    /// If the map belongs to another [`State`], as all methods here.
    pub async fn get<K, V, C>(
        &mut self,
        map: &Map<K, V, C>,
        key: &K,
    ) -> Result<Option<V>, StateError>
    where
        K: Key,
        V: Value<C>,
        C: Codec<K> + Codec<V> + 'static,
    {
        self.look(&map.0, key).await
    }

    /// Puts a value under a key of a map. What it replaces does not matter unless it was read.
    pub fn put<K, V, C>(&mut self, map: &Map<K, V, C>, key: K, value: V)
    where
        K: Key,
        V: Value<C>,
        C: Codec<K> + Codec<V> + 'static,
    {
        self.staged(&map.0).want(key, Some(value));
    }

    /// Removes what is under a key of a map, if anything is.
    pub fn remove<K, V, C>(&mut self, map: &Map<K, V, C>, key: K)
    where
        K: Key,
        V: Value<C>,
        C: Codec<K> + Codec<V> + 'static,
    {
        self.staged(&map.0).want(key, None);
    }

    /// The value of a cell, as [`Self::get`].
    ///
    /// # Errors
    ///
    /// As [`Map::get`].
    pub async fn get_cell<V, C>(&mut self, cell: &Cell<V, C>) -> Result<V, StateError>
    where
        V: Value<C>,
        C: Codec<V> + 'static,
    {
        let value = self.look(&cell.handle, &()).await?;
        Ok(cell.seen(value))
    }

    /// Sets the value of a cell, as [`Self::put`].
    pub fn set_cell<V, C>(&mut self, cell: &Cell<V, C>, value: V)
    where
        V: Value<C>,
        C: Codec<V> + 'static,
    {
        self.staged(&cell.handle).want((), Some(value));
    }

    /// Whether a key is in a set, as [`Self::get`].
    ///
    /// # Errors
    ///
    /// As [`Map::get`].
    pub async fn is_member<K, C>(&mut self, set: &Set<K, C>, key: &K) -> Result<bool, StateError>
    where
        K: Key,
        C: Codec<K> + Codec<()> + 'static,
    {
        Ok(self.look(&set.0, key).await?.is_some())
    }

    /// Adds a key to a set, or removes it.
    pub fn set_member<K, C>(&mut self, set: &Set<K, C>, key: K, is_member: bool)
    where
        K: Key,
        C: Codec<K> + Codec<()> + 'static,
    {
        let value = is_member.then_some(Present);
        self.staged(&set.0).want(key, value);
    }

    /// Adds an entry to a log.
    pub fn push<T, C>(&mut self, log: &Log<T, C>, entry: T)
    where
        T: Value<C>,
        C: Codec<T> + 'static,
    {
        assert!(log.is_of(&self.gate), "{OTHER_STATE}");
        self.part(Appended::new(log)).values.push(entry);
    }

    /// Makes all changes at once, or none: false if something that was read has changed since. Then
    /// begin anew. In a generation that has handed its state over it may also be false because something
    /// changed that was put without having been read.
    ///
    /// # Errors
    ///
    /// [`StateError`]. Nothing was changed, but with [`StateError::OwnerGone`], with which that is not
    /// known.
    pub async fn commit(self) -> Result<bool, StateError> {
        commit_groups(&self.gate, self.groups).await
    }

    /// What is known of an entry, or what it is now.
    async fn look<T: Kind>(
        &mut self,
        handle: &Handle<T>,
        key: &T::Key,
    ) -> Result<Option<T::Value>, StateError> {
        if let Some(known) = self.staged(handle).known(key) {
            return Ok(known);
        }
        let (version, value) = handle.see(key).await?;
        let staged = self.staged(handle);
        staged.saw(key.clone(), version, value.clone());
        Ok(value)
    }

    /// This transaction's part of a keyed store.
    fn staged<T: Kind>(&mut self, handle: &Handle<T>) -> &mut Staged<T> {
        assert!(handle.is_of(&self.gate), "{OTHER_STATE}");
        self.part(Staged::new(handle))
    }

    /// This transaction's part of the store that `empty` is for.
    fn part<G: Group>(&mut self, empty: G) -> &mut G {
        let known = self
            .groups
            .iter()
            .position(|group| group.id() == empty.id());
        let at = known.unwrap_or_else(|| {
            self.groups.push(Box::new(empty));
            self.groups.len() - 1
        });
        let group: &mut dyn Any = self.groups[at].as_mut();
        group
            .downcast_mut()
            .expect("a store has one kind of part, and no other has its address")
    }
}
