//! Reads and writes one entry in whatever version the other side has.

use super::attic::AtticRecord;
use super::{Context, Lineage, MigrateError, Schema, Step};
use crate::codec::Codec;

/// An entry in the running program's own version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadEntry<T> {
    /// The value.
    pub value: T,
    /// What a version newer than this program's put aside. Keep it beside the entry, and give it to
    /// [`write_entry`] when the entry is written again.
    pub attic: Option<AtticRecord>,
}

/// Decodes an entry that was written in `version` and raises it to `T`.
///
/// `attic` is what stands under the entry's key in the attic section, if anything does. It is given
/// up if the entry has changed since.
///
/// # Errors
/// All of [`MigrateError`]; [`MigrateError::UnknownVersion`] also for a version newer than `T`,
/// which only a newer program translates.
pub fn read_entry<C, T>(
    version: u32,
    bytes: &[u8],
    attic: Option<AtticRecord>,
    context: &mut Context,
) -> Result<ReadEntry<T>, MigrateError>
where
    C: Codec<T>,
    T: Step + Lineage<C>,
{
    let known = <T as Lineage<C>>::OLDEST;
    let (attic, dropped) = match attic {
        Some(record) if record.base == AtticRecord::base_of(bytes) => (Some(record), false),
        Some(_) => (None, true),
        None => (None, false),
    };
    context.attic_dropped += u64::from(dropped);
    if version == T::VERSION {
        return Ok(ReadEntry {
            value: C::decode(bytes)?,
            attic,
        });
    }
    let mut layers = attic.map(|record| record.layers).unwrap_or_default();
    let climbed = if version < T::VERSION {
        T::climb(version, bytes, &mut layers, context)?
    } else {
        None
    };
    let value = climbed.ok_or_else(|| unknown::<T>(known, version))?;
    context.raised += 1;
    let attic = if layers.is_empty() {
        None
    } else {
        // A version newer than this program's put something aside: it belongs to the raised entry
        // now.
        let mut own = Vec::new();
        C::encode(&value, &mut own)?;
        Some(AtticRecord {
            base: AtticRecord::base_of(&own),
            layers,
        })
    };
    Ok(ReadEntry { value, attic })
}

/// Appends the bytes of `value` in `version` and returns what is to stand under its key in the
/// attic section. `stored` is what [`read_entry`] returned with the entry, if it returned anything.
///
/// # Errors
/// All of [`MigrateError`]. What was appended before an error is to be discarded.
pub fn write_entry<C, T>(
    value: &T,
    version: u32,
    stored: Option<&AtticRecord>,
    out: &mut Vec<u8>,
    context: &mut Context,
) -> Result<Option<AtticRecord>, MigrateError>
where
    C: Codec<T>,
    T: Step + Lineage<C> + Clone,
{
    let known = <T as Lineage<C>>::OLDEST;
    let start = out.len();
    if version == T::VERSION {
        C::encode(value, out)?;
        let base = AtticRecord::base_of(&out[start..]);
        return Ok(stored
            .filter(|record| still(record, base, context))
            .cloned());
    }
    let mut layers = Vec::new();
    if let Some(record) = stored {
        let mut own = Vec::new();
        C::encode(value, &mut own)?;
        if still(record, AtticRecord::base_of(&own), context) {
            layers.clone_from(&record.layers);
        }
    }
    let found =
        version < T::VERSION && value.clone().descend(version, out, &mut layers, context)?;
    if !found {
        return Err(unknown::<T>(known, version));
    }
    context.lowered += 1;
    let base = AtticRecord::base_of(&out[start..]);
    Ok((!layers.is_empty()).then_some(AtticRecord { base, layers }))
}

/// Whether what was put aside still belongs to the entry.
fn still(record: &AtticRecord, base: u128, context: &mut Context) -> bool {
    let unchanged = record.base == base;
    context.attic_dropped += u64::from(!unchanged);
    unchanged
}

fn unknown<T: Schema>(oldest: Option<u32>, asked: u32) -> MigrateError {
    let oldest = oldest.unwrap_or(T::VERSION);
    MigrateError::UnknownVersion {
        schema: T::NAME,
        oldest,
        newest: T::VERSION,
        asked,
    }
}
