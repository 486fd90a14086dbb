//! The tracked cell: one value that moves to the next generation.
//!
//! Owns the public operations and their meaning; [`super::keyed`] does the work, for which a cell is a
//! map of one entry without a key.

use std::{fmt, marker::PhantomData};

use heirloom_state_codec::{Bincode, Codec, CodecError, CodecId, MigrateError, SectionKind};

use super::{
    State,
    error::StateError,
    keyed::{Handle, Kind, Value},
};

/// One value that moves to the next generation. Clones are handles to the same cell. For what its
/// operations have in common, see [`Map`](super::Map).
pub struct Cell<V, C = Bincode>
where
    V: Value<C>,
    C: Codec<V> + 'static,
{
    pub(super) handle: Handle<One<V, C>>,
    /// For a copy that says that the cell is empty, which no program of this library writes.
    initial: V,
}

/// One entry without a key.
pub(crate) struct One<V, C>(PhantomData<fn() -> (V, C)>);

impl<V, C> fmt::Debug for One<V, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("One")
    }
}

impl<V, C> Kind for One<V, C>
where
    V: Value<C>,
    C: Codec<V> + 'static,
{
    type Key = ();
    type Value = V;
    type Codec = C;
    const SECTION: SectionKind = SectionKind::Value;
    const SHARDS: usize = 1;

    fn key_shape() -> String {
        String::new()
    }

    fn encode_key((): &(), _: &mut Vec<u8>) -> Result<(), MigrateError> {
        Ok(())
    }

    fn decode_key(bytes: &[u8]) -> Result<(), MigrateError> {
        if bytes.is_empty() {
            return Ok(());
        }
        Err(MigrateError::Codec(CodecError::Trailing {
            codec: CodecId::RAW,
            left: bytes.len(),
        }))
    }
}

impl<V, C> Clone for Cell<V, C>
where
    V: Value<C>,
    C: Codec<V> + 'static,
{
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            initial: self.initial.clone(),
        }
    }
}

impl<V, C> fmt::Debug for Cell<V, C>
where
    V: Value<C>,
    C: Codec<V> + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cell").field(&self.handle).finish()
    }
}

impl<V, C> Cell<V, C>
where
    V: Value<C>,
    C: Codec<V> + 'static,
{
    /// A new cell of this state, with the value it has until one is taken over. The name is as in
    /// [`Map::new`](super::Map::new).
    ///
    /// # Panics
    ///
    /// As there.
    #[must_use]
    pub fn new(state: &State, name: &str, initial: V) -> Self {
        let handle = Handle::new(state, name);
        handle.preset((), initial.clone());
        Self { handle, initial }
    }

    /// The value.
    ///
    /// # Errors
    ///
    /// As [`Map::get`](super::Map::get).
    pub async fn get(&self) -> Result<V, StateError> {
        self.read(V::clone).await
    }

    /// Looks at the value without a copy of it. `look` runs under a lock: briefly, and without touching
    /// the state again.
    ///
    /// # Errors
    ///
    /// As [`Map::get`](super::Map::get).
    pub async fn read<R>(&self, look: impl FnOnce(&V) -> R) -> Result<R, StateError> {
        self.handle
            .read(&(), |value| look(value.unwrap_or(&self.initial)))
            .await
    }

    /// Sets the value and returns the one before.
    ///
    /// # Errors
    ///
    /// As [`Map::get`](super::Map::get).
    pub async fn set(&self, value: V) -> Result<V, StateError> {
        let before = self.handle.insert((), value).await?;
        Ok(before.unwrap_or_else(|| self.initial.clone()))
    }

    /// Lets `change` do as it likes with the value. As [`Map::update`](super::Map::update), it may run
    /// more than once.
    ///
    /// # Errors
    ///
    /// As [`Map::get`](super::Map::get).
    pub async fn update<R>(&self, mut change: impl FnMut(&mut V) -> R) -> Result<R, StateError> {
        self.handle
            .update((), |held| {
                change(held.get_or_insert_with(|| self.initial.clone()))
            })
            .await
    }

    /// What a transaction saw of the value.
    pub(super) fn seen(&self, value: Option<V>) -> V {
        value.unwrap_or_else(|| self.initial.clone())
    }
}
