//! The attic: what a downgrade took out of an entry, kept for the day the entry goes up again.
//!
//! The older program stores and returns it without being able to read it. It counts only while the
//! entry is the very one it was taken from, which the hash of the entry's bytes tells.

use xxhash_rust::xxh3::xxh3_128;

use crate::wire::{Cursor, Put, Short};

/// Most layers of one record: more versions than any chain has.
const LAYERS_MAX: u16 = 1024;

/// What one step put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtticLayer {
    /// The version that the step came down from.
    pub version: u32,
    /// What it put aside, coded by the section's codec.
    pub bytes: Vec<u8>,
}

/// What all steps put aside for one entry. In the attic section it stands under the entry's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtticRecord {
    /// XXH3-128 of the entry's value as it was written; the layers count only while it is the same.
    pub base: u128,
    /// The layers, newest version first.
    pub layers: Vec<AtticLayer>,
}

impl AtticRecord {
    /// The hash that stands in [`Self::base`] for these bytes of a value.
    #[must_use]
    pub fn base_of(value: &[u8]) -> u128 {
        xxh3_128(value)
    }

    /// The record's bytes, as they stand in an attic section.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u128(self.base);
        out.put_u16(self.layers.len() as u16);
        for layer in &self.layers {
            out.put_u32(layer.version);
            out.put_u32(layer.bytes.len() as u32);
            out.extend_from_slice(&layer.bytes);
        }
        out
    }

    /// Reads what [`Self::to_bytes`] made; `None` if the bytes are anything else.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let record = Self::fields(&mut cursor).ok()??;
        (cursor.remaining() == 0).then_some(record)
    }

    fn fields(cursor: &mut Cursor<'_>) -> Result<Option<Self>, Short> {
        let base = cursor.u128()?;
        let count = cursor.u16()?;
        if count > LAYERS_MAX {
            return Ok(None);
        }
        let mut layers = Vec::new();
        for _ in 0..count {
            let version = cursor.u32()?;
            layers.push(AtticLayer {
                version,
                bytes: cursor.block()?.to_vec(),
            });
        }
        Ok(Some(Self { base, layers }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_no_part_of_it_does() {
        let layers = vec![
            AtticLayer {
                version: 3,
                bytes: vec![1, 2],
            },
            AtticLayer {
                version: 2,
                bytes: Vec::new(),
            },
        ];
        let record = AtticRecord {
            base: AtticRecord::base_of(b"value"),
            layers,
        };
        let bytes = record.to_bytes();
        assert_eq!(AtticRecord::parse(&bytes), Some(record));
        for length in 0..bytes.len() {
            assert_eq!(AtticRecord::parse(&bytes[..length]), None, "{length}");
        }
    }
}
