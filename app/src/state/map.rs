//! The tracked map: entries by key that move to the next generation.
//!
//! Owns the public operations and their meaning; [`super::keyed`] does the work.

use std::{fmt, marker::PhantomData};

use heirloom_state_codec::{Bincode, Codec, MigrateError, SectionKind, shape_of};

use super::{
    State,
    error::StateError,
    keyed::{Handle, Key, Kind, MANY_SHARDS, Value},
};

/// A map whose entries move to the next generation. Clones are handles to the same map.
///
/// All operations are asynchronous, and hardly ever wait: only while the state stands still, which is
/// milliseconds in a handover, or if a copy does not keep up and the app chose to be slowed down. In a
/// generation that has handed its state over they are carried out in the one that owns it.
///
/// ```
/// # use heirloom_app::state::{Map, State};
/// # use heirloom_state_codec::{Context, Origin, State as Schema, Step, StepError};
/// # use serde::{Deserialize, Serialize};
/// #[derive(Clone, Serialize, Deserialize, Schema)]
/// #[state(name = "visits", version = 1, oldest)]
/// struct Visits { count: u64 }
///
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let state = State::new();
/// let visits: Map<String, Visits> = Map::new(&state, "visits");
/// let add_one = |entry: &mut Option<Visits>| {
///     let visits = entry.get_or_insert(Visits { count: 0 });
///     visits.count += 1;
///     visits.count
/// };
/// assert_eq!(visits.update("ann".to_owned(), add_one).await?, 1);
/// assert_eq!(visits.update("ann".to_owned(), add_one).await?, 2);
/// # Ok::<(), heirloom_app::state::StateError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Map<K, V, C = Bincode>(pub(super) Handle<Entries<K, V, C>>)
where
    K: Key,
    V: Value<C>,
    C: Codec<K> + Codec<V> + 'static;

/// Entries of keys and values in a codec.
pub(crate) struct Entries<K, V, C>(PhantomData<Types<K, V, C>>);

/// Keeps it free of the auto traits of its types, which it does not hold.
type Types<K, V, C> = fn() -> (K, V, C);

impl<K, V, C> fmt::Debug for Entries<K, V, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entries")
    }
}

impl<K, V, C> Kind for Entries<K, V, C>
where
    K: Key,
    V: Value<C>,
    C: Codec<K> + Codec<V> + 'static,
{
    type Key = K;
    type Value = V;
    type Codec = C;
    const SECTION: SectionKind = SectionKind::Map;
    const SHARDS: usize = MANY_SHARDS;

    fn key_shape() -> String {
        shape_of::<K>()
    }

    fn encode_key(key: &K, out: &mut Vec<u8>) -> Result<(), MigrateError> {
        Ok(C::encode(key, out)?)
    }

    fn decode_key(bytes: &[u8]) -> Result<K, MigrateError> {
        Ok(C::decode(bytes)?)
    }
}

impl<K, V, C> Clone for Map<K, V, C>
where
    K: Key,
    V: Value<C>,
    C: Codec<K> + Codec<V> + 'static,
{
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V, C> fmt::Debug for Map<K, V, C>
where
    K: Key,
    V: Value<C>,
    C: Codec<K> + Codec<V> + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Map").field(&self.0).finish()
    }
}

impl<K, V, C> Map<K, V, C>
where
    K: Key,
    V: Value<C>,
    C: Codec<K> + Codec<V> + 'static,
{
    /// A new map of this state. Its name is what the generations know it by: letters, digits, `-` and
    /// `_`. To be made before [`State::take_over`]; what it holds then stays if the state that is taken
    /// over has no map of this name, and is replaced if it has.
    ///
    /// # Panics
    ///
    /// If the name is none, or another store has it.
    #[must_use]
    pub fn new(state: &State, name: &str) -> Self {
        const {
            assert!(
                size_of::<K>() != 0 && size_of::<V>() != 0,
                "keys and values of no size cannot be part of a snapshot; take a `Set` or a `Cell`"
            );
        }
        Self(Handle::new(state, name))
    }

    /// The value under a key.
    ///
    /// # Errors
    ///
    /// [`StateError`], and only in a generation that has handed its state over. The same holds for all
    /// other operations.
    pub async fn get(&self, key: &K) -> Result<Option<V>, StateError> {
        self.read(key, |value| value.cloned()).await
    }

    /// Looks at the value under a key without a copy of it. `look` runs under a lock: briefly, and
    /// without touching the state again.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn read<R>(
        &self,
        key: &K,
        look: impl FnOnce(Option<&V>) -> R,
    ) -> Result<R, StateError> {
        self.0.read(key, look).await
    }

    /// Whether there is an entry under a key.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn contains(&self, key: &K) -> Result<bool, StateError> {
        self.read(key, |value| value.is_some()).await
    }

    /// Lets `change` do as it likes with the entry under a key: create it, change it, or remove it by
    /// leaving `None`. It is one step for everybody else, and what it returns is returned.
    ///
    /// `change` runs under a lock: briefly, and without touching the state again. When it is carried out
    /// in another generation it may run more than once, on what the entry is then; only the last run
    /// counts.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn update<R>(
        &self,
        key: K,
        change: impl FnMut(&mut Option<V>) -> R,
    ) -> Result<R, StateError> {
        self.0.update(key, change).await
    }

    /// Puts a value under a key and returns the one before.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn insert(&self, key: K, value: V) -> Result<Option<V>, StateError> {
        self.0.insert(key, value).await
    }

    /// Removes the entry under a key and returns its value.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn remove(&self, key: &K) -> Result<Option<V>, StateError> {
        self.0.remove(key).await
    }

    /// Every entry, in any order, all as they were at one instant. Everybody else waits meanwhile: for
    /// small maps, or rarely.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn entries(&self) -> Result<Vec<(K, V)>, StateError> {
        self.0.entries().await
    }

    /// How many entries there are. In a generation that has handed its state over this costs as much as
    /// [`Self::entries`].
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    pub async fn len(&self) -> Result<u64, StateError> {
        self.0.len().await
    }

    /// Whether there is no entry.
    ///
    /// # Errors
    ///
    /// As [`Self::len`].
    pub async fn is_empty(&self) -> Result<bool, StateError> {
        Ok(self.len().await? == 0)
    }
}
