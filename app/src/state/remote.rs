//! Operations on entries that are carried out in the generation that owns the state.
//!
//! Owns the loop of seeing, changing and committing, and the translation into the version of the schema
//! that both generations speak.

use heirloom_state_codec::{AtticRecord, Codec, Context, MigrateError, read_entry, write_entry};

use super::{
    error::StateError,
    keyed::Value,
    link::{Fate, Link, Part, WantedChange},
};

/// An entry as the owner has it, with its version.
///
/// # Errors
///
/// [`StateError`], as all functions here.
pub(crate) async fn see<C: Codec<V>, V: Value<C>>(
    link: &Link,
    store: &str,
    key: &[u8],
) -> Result<Option<(u64, V)>, StateError> {
    let Some(seen) = link.see(store, key).await? else {
        return Ok(None);
    };
    let value = raised::<C, V>(link.version_of(store), &seen.value)?;
    Ok(Some((seen.version, value)))
}

/// Every entry as the owner has it, under its key's bytes.
///
/// # Errors
///
/// As [`see`].
pub(crate) async fn see_all<C: Codec<V>, V: Value<C>>(
    link: &Link,
    store: &str,
) -> Result<Vec<(Vec<u8>, V)>, StateError> {
    let version = link.version_of(store);
    let entries = link.see_all(store).await?.into_iter();
    let each = entries.map(|(key, value)| Ok((key, raised::<C, V>(version, &value)?)));
    each.collect()
}

/// Changes an entry there. A commit that fails means that somebody else's went through, so to try again
/// without a limit still gets everybody on.
///
/// # Errors
///
/// As [`see`].
pub(crate) async fn update<C: Codec<V>, V: Value<C>, R>(
    link: &Link,
    store: &str,
    key: Vec<u8>,
    mut change: impl FnMut(&mut Option<V>) -> R,
) -> Result<R, StateError> {
    loop {
        let seen = see::<C, V>(link, store, &key).await?;
        let (expected, mut value) = match seen {
            Some((version, value)) => (version, Some(value)),
            None => (0, None),
        };
        let was_there = value.is_some();
        let result = change(&mut value);
        let fate = match value {
            Some(value) => Fate::Put(lowered::<C, V>(link.version_of(store), &value)?),
            None if was_there => Fate::Remove,
            // It was not there at one instant, and that is all this operation found.
            None => return Ok(result),
        };
        let part = Part {
            section: store.to_owned(),
            changes: vec![WantedChange {
                key: key.clone(),
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
///
/// # Errors
///
/// If it is none, or the version is not known.
pub(crate) fn raised<C: Codec<V>, V: Value<C>>(
    version: u32,
    bytes: &[u8],
) -> Result<V, MigrateError> {
    Ok(read_entry::<C, V>(version, bytes, None, &mut Context::default())?.value)
}

/// A value in the version in which another generation reads it.
///
/// # Errors
///
/// If it cannot be translated.
pub(crate) fn lowered<C: Codec<V>, V: Value<C>>(
    version: u32,
    value: &V,
) -> Result<Vec<u8>, MigrateError> {
    let mut bytes = Vec::new();
    write_entry::<C, V>(value, version, None, &mut bytes, &mut Context::default())?;
    Ok(bytes)
}

/// A value that an older generation wrote over an entry, and what is to be kept beside it. That
/// generation does not know what newer versions have, so that stays as it was: it is put aside from the
/// present value and given back to the new one.
///
/// # Errors
///
/// As [`raised`] and [`lowered`].
pub(crate) fn raised_over<C: Codec<V>, V: Value<C>>(
    present: Option<(&V, Option<&AtticRecord>)>,
    version: u32,
    bytes: &[u8],
) -> Result<(V, Option<AtticRecord>), MigrateError> {
    let context = &mut Context::default();
    let mut aside = None;
    if let Some((value, stored)) = present {
        aside = write_entry::<C, V>(value, version, stored, &mut Vec::new(), context)?;
    }
    if let Some(record) = &mut aside {
        record.base = AtticRecord::base_of(bytes);
    }
    let entry = read_entry::<C, V>(version, bytes, aside, context)?;
    Ok((entry.value, entry.attic))
}
