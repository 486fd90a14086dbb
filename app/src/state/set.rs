//! The tracked set: keys that move to the next generation.
//!
//! Owns the public operations and their meaning; [`super::keyed`] does the work, for which a set is a map
//! whose values say nothing.

use std::{fmt, marker::PhantomData};

use heirloom_state_codec::{
    Bincode, Codec, CodecError, CodecId, Context, MigrateError, Origin, Schema, SectionKind, Shape,
    ShapeBuilder, Step, StepError, shape_of,
};

use super::{
    State,
    error::StateError,
    keyed::{Handle, Key, Kind, MANY_SHARDS},
};

/// A set whose keys move to the next generation. Clones are handles to the same set. For what its
/// operations have in common, see [`Map`](super::Map).
pub struct Set<K, C = Bincode>(pub(super) Handle<Members<K, C>>)
where
    K: Key,
    C: Codec<K> + Codec<()> + 'static;

/// Keys without values.
pub(crate) struct Members<K, C>(PhantomData<fn() -> (K, C)>);

/// The value of a key that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Present;

/// Codes it as `C` codes `()`.
#[derive(Debug)]
pub(crate) struct AsUnit<C>(PhantomData<C>);

impl Shape for Present {
    fn describe(to: &mut ShapeBuilder) {
        <()>::describe(to);
    }
}

impl Schema for Present {
    const NAME: &'static str = "present";
    const VERSION: u32 = 1;
}

impl Step for Present {
    type Older = Origin;
    type Attic = ();

    fn up(older: Origin, _: Option<()>, _: &mut Context) -> Result<Self, StepError> {
        match older {}
    }

    fn down(self, _: &mut Context) -> Result<(Origin, Option<()>), StepError> {
        Err(StepError::new("there is no older version"))
    }
}

impl<C: Codec<()>> Codec<Present> for AsUnit<C> {
    const ID: CodecId = C::ID;

    fn encode(_: &Present, out: &mut Vec<u8>) -> Result<(), CodecError> {
        C::encode(&(), out)
    }

    fn decode(bytes: &[u8]) -> Result<Present, CodecError> {
        C::decode(bytes).map(|()| Present)
    }
}

impl<C: Codec<()>> Codec<()> for AsUnit<C> {
    const ID: CodecId = C::ID;

    fn encode(value: &(), out: &mut Vec<u8>) -> Result<(), CodecError> {
        C::encode(value, out)
    }

    fn decode(bytes: &[u8]) -> Result<(), CodecError> {
        C::decode(bytes)
    }
}

impl<K, C> fmt::Debug for Members<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Members")
    }
}

impl<K, C> Kind for Members<K, C>
where
    K: Key,
    C: Codec<K> + Codec<()> + 'static,
{
    type Key = K;
    type Value = Present;
    type Codec = AsUnit<C>;
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

impl<K, C> Clone for Set<K, C>
where
    K: Key,
    C: Codec<K> + Codec<()> + 'static,
{
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, C> fmt::Debug for Set<K, C>
where
    K: Key,
    C: Codec<K> + Codec<()> + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Set").field(&self.0).finish()
    }
}

impl<K, C> Set<K, C>
where
    K: Key,
    C: Codec<K> + Codec<()> + 'static,
{
    /// A new set of this state, as [`Map::new`](super::Map::new).
    ///
    /// # Panics
    ///
    /// As there.
    #[must_use]
    pub fn new(state: &State, name: &str) -> Self {
        const {
            assert!(
                size_of::<K>() != 0,
                "keys of no size cannot be part of a snapshot; take a `Cell`"
            );
        }
        Self(Handle::new(state, name))
    }

    /// Whether a key is in the set.
    ///
    /// # Errors
    ///
    /// As [`Map::get`](super::Map::get), as all operations here.
    pub async fn contains(&self, key: &K) -> Result<bool, StateError> {
        self.0.read(key, |present| present.is_some()).await
    }

    /// Adds a key; true if it was not there.
    ///
    /// # Errors
    ///
    /// As [`Self::contains`].
    pub async fn insert(&self, key: K) -> Result<bool, StateError> {
        Ok(self.0.insert(key, Present).await?.is_none())
    }

    /// Removes a key; true if it was there.
    ///
    /// # Errors
    ///
    /// As [`Self::contains`].
    pub async fn remove(&self, key: &K) -> Result<bool, StateError> {
        Ok(self.0.remove(key).await?.is_some())
    }

    /// Every key, in any order, as [`Map::entries`](super::Map::entries).
    ///
    /// # Errors
    ///
    /// As [`Self::contains`].
    pub async fn keys(&self) -> Result<Vec<K>, StateError> {
        let entries = self.0.entries().await?;
        Ok(entries.into_iter().map(|(key, Present)| key).collect())
    }

    /// How many keys there are, as [`Map::len`](super::Map::len).
    ///
    /// # Errors
    ///
    /// As [`Self::contains`].
    pub async fn len(&self) -> Result<u64, StateError> {
        self.0.len().await
    }

    /// Whether there is no key.
    ///
    /// # Errors
    ///
    /// As [`Self::contains`].
    pub async fn is_empty(&self) -> Result<bool, StateError> {
        Ok(self.len().await? == 0)
    }
}
