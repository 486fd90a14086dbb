//! Operations of a keyed store that are carried out in the generation that owns the state.
//!
//! Owns the loop of seeing, changing and committing, and the translation into the version of the schema
//! that both generations speak.

use heirloom_state_codec::{Context, MigrateError, read_entry, write_entry};

use super::{Keyed, Kind};
use crate::state::{
    error::StateError,
    link::{Fate, Link, Part, WantedChange},
};

impl<T: Kind> Keyed<T> {
    /// An entry as the owner has it, with its version.
    pub(super) async fn see_there(
        &self,
        link: &Link,
        key: &T::Key,
    ) -> Result<Option<(u64, T::Value)>, StateError> {
        let bytes = Self::key_bytes(key)?;
        let Some(seen) = link.see(&self.name, &bytes).await? else {
            return Ok(None);
        };
        let value = Self::raised(link.version_of(&self.name), &seen.value)?;
        Ok(Some((seen.version, value)))
    }

    /// Every entry as the owner has it.
    pub(super) async fn entries_there(
        &self,
        link: &Link,
    ) -> Result<Vec<(T::Key, T::Value)>, StateError> {
        let version = link.version_of(&self.name);
        let entries = link.see_all(&self.name).await?;
        let each = entries.iter().map(|(key, value)| {
            let key = T::decode_key(key)?;
            Ok((key, Self::raised(version, value)?))
        });
        each.collect()
    }

    /// Changes an entry there. A commit that fails means that somebody else's went through, so to try
    /// again without a limit still gets everybody on.
    pub(super) async fn update_there<R>(
        &self,
        link: &Link,
        key: &T::Key,
        mut change: impl FnMut(&mut Option<T::Value>) -> R,
    ) -> Result<R, StateError> {
        let key_bytes = Self::key_bytes(key)?;
        loop {
            let seen = self.see_there(link, key).await?;
            let (expected, mut value) = match seen {
                Some((version, value)) => (version, Some(value)),
                None => (0, None),
            };
            let was_there = value.is_some();
            let result = change(&mut value);
            let fate = match value {
                Some(value) => Fate::Put(Self::lowered(link.version_of(&self.name), &value)?),
                None if was_there => Fate::Remove,
                // It was not there at one instant, and that is all this operation found.
                None => return Ok(result),
            };
            let part = Part {
                section: self.name.clone(),
                changes: vec![WantedChange {
                    key: key_bytes.clone(),
                    expected,
                    change: fate,
                }],
            };
            if link.commit(vec![part]).await? {
                return Ok(result);
            }
            tokio::task::yield_now().await;
        }
    }

    /// A value that another generation wrote in this version.
    pub(super) fn raised(version: u32, bytes: &[u8]) -> Result<T::Value, MigrateError> {
        let context = &mut Context::default();
        let entry = read_entry::<T::Codec, T::Value>(version, bytes, None, context)?;
        Ok(entry.value)
    }

    /// A value in the version in which another generation reads it.
    pub(super) fn lowered(version: u32, value: &T::Value) -> Result<Vec<u8>, MigrateError> {
        let mut bytes = Vec::new();
        let context = &mut Context::default();
        write_entry::<T::Codec, T::Value>(value, version, None, &mut bytes, context)?;
        Ok(bytes)
    }
}
