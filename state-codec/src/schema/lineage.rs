//! Walks the chain of versions, down from the newest and back up.

use super::attic::AtticLayer;
use super::identity::schema_of;
use super::{Context, MigrateError, Schema, Step};
use crate::codec::{Codec, CodecError};
use crate::envelope::SchemaRef;

/// What is before the oldest version: nothing. It has no values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {}

/// What may stand before a version: an older version of the same schema, or [`Origin`].
pub trait Ancestor {
    /// Name and version; `None` for the origin.
    const IDENTITY: Option<(&'static str, u32)>;
}

impl Ancestor for Origin {
    const IDENTITY: Option<(&'static str, u32)> = None;
}

impl<T: Schema> Ancestor for T {
    const IDENTITY: Option<(&'static str, u32)> = Some((T::NAME, T::VERSION));
}

/// A version and all before it, coded by `C`. Every [`Step`] whose versions `C` can code has it.
///
/// The methods are the machinery of [`read_entry`](super::read_entry) and
/// [`write_entry`](super::write_entry); use those.
pub trait Lineage<C>: Ancestor + Sized {
    /// Oldest version of the chain; the origin has none.
    const OLDEST: Option<u32>;

    /// The versions of the chain, newest first.
    #[must_use]
    fn schemas() -> Vec<SchemaRef>;

    /// Decodes `bytes` as `version` and walks up. Layers that belong to the steps taken are used
    /// up.
    ///
    /// # Errors
    /// All of [`MigrateError`].
    #[doc(hidden)]
    fn climb(
        version: u32,
        bytes: &[u8],
        layers: &mut Vec<AtticLayer>,
        context: &mut Context,
    ) -> Result<Option<Self>, MigrateError>;

    /// Walks down to `version` and appends its bytes. What is put aside is added to `layers`.
    /// `false` if there is no such version.
    ///
    /// # Errors
    /// All of [`MigrateError`].
    #[doc(hidden)]
    fn descend(
        self,
        version: u32,
        out: &mut Vec<u8>,
        layers: &mut Vec<AtticLayer>,
        context: &mut Context,
    ) -> Result<bool, MigrateError>;
}

impl<C> Lineage<C> for Origin {
    const OLDEST: Option<u32> = None;

    fn schemas() -> Vec<SchemaRef> {
        Vec::new()
    }

    fn climb(
        _: u32,
        _: &[u8],
        _: &mut Vec<AtticLayer>,
        _: &mut Context,
    ) -> Result<Option<Self>, MigrateError> {
        Ok(None)
    }

    fn descend(
        self,
        _: u32,
        _: &mut Vec<u8>,
        _: &mut Vec<AtticLayer>,
        _: &mut Context,
    ) -> Result<bool, MigrateError> {
        match self {}
    }
}

impl<C, T> Lineage<C> for T
where
    T: Step,
    C: Codec<T> + Codec<T::Attic>,
    T::Older: Lineage<C>,
{
    const OLDEST: Option<u32> = {
        assert!(
            follows(T::Older::IDENTITY, T::NAME, T::VERSION),
            "a step leads to an older version of the same schema"
        );
        match <T::Older as Lineage<C>>::OLDEST {
            Some(oldest) => Some(oldest),
            None => Some(T::VERSION),
        }
    };

    fn schemas() -> Vec<SchemaRef> {
        let mut schemas = vec![schema_of::<T>()];
        schemas.extend(<T::Older as Lineage<C>>::schemas());
        schemas
    }

    fn climb(
        version: u32,
        bytes: &[u8],
        layers: &mut Vec<AtticLayer>,
        context: &mut Context,
    ) -> Result<Option<Self>, MigrateError> {
        if version == T::VERSION {
            return Ok(Some(C::decode(bytes)?));
        }
        let Some(older) = <T::Older as Lineage<C>>::climb(version, bytes, layers, context)? else {
            return Ok(None);
        };
        let own = layers.iter().position(|layer| layer.version == T::VERSION);
        let attic = match own.map(|position| layers.remove(position)) {
            Some(layer) => {
                // What another program put aside under this number is no reason to fail.
                let decoded: Result<T::Attic, CodecError> = C::decode(&layer.bytes);
                if decoded.is_err() {
                    context.attic_dropped += 1;
                } else {
                    context.attic_restored += 1;
                }
                decoded.ok()
            }
            None => None,
        };
        let raised = T::up(older, attic, context).map_err(|reason| MigrateError::Step {
            schema: T::NAME,
            from: T::Older::IDENTITY.map_or(0, |(_, version)| version),
            to: T::VERSION,
            reason,
        })?;
        Ok(Some(raised))
    }

    fn descend(
        self,
        version: u32,
        out: &mut Vec<u8>,
        layers: &mut Vec<AtticLayer>,
        context: &mut Context,
    ) -> Result<bool, MigrateError> {
        if version == T::VERSION {
            C::encode(&self, out)?;
            return Ok(true);
        }
        if T::Older::IDENTITY.is_none() {
            return Ok(false);
        }
        let (older, attic) = self.down(context).map_err(|reason| MigrateError::Step {
            schema: T::NAME,
            from: T::VERSION,
            to: T::Older::IDENTITY.map_or(0, |(_, version)| version),
            reason,
        })?;
        if let Some(attic) = attic {
            let mut bytes = Vec::new();
            C::encode(&attic, &mut bytes)?;
            layers.push(AtticLayer {
                version: T::VERSION,
                bytes,
            });
        }
        <T::Older as Lineage<C>>::descend(older, version, out, layers, context)
    }
}

/// Whether a version follows what stands before it.
const fn follows(older: Option<(&str, u32)>, name: &str, version: u32) -> bool {
    let Some((older_name, older_version)) = older else {
        return true;
    };
    let (left, right) = (older_name.as_bytes(), name.as_bytes());
    if left.len() != right.len() || older_version >= version {
        return false;
    }
    let mut at = 0;
    while at < left.len() {
        if left[at] != right[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::follows;

    #[test]
    fn a_version_follows_an_older_one_of_the_same_name() {
        assert!(follows(None, "a", 1));
        assert!(follows(Some(("a", 1)), "a", 2));
        assert!(!follows(Some(("a", 2)), "a", 2));
        assert!(!follows(Some(("a", 3)), "a", 2));
        assert!(!follows(Some(("b", 1)), "a", 2));
        assert!(!follows(Some(("ab", 1)), "a", 2));
    }
}
