//! Records: the entries inside bulk and delta frames.
//!
//! `u64 version | u32 key length | u32 value length | key | value`; a value length of all ones is a
//! tombstone. The lengths stand outside the codec, so entries can be counted, hashed, split and put
//! aside without being decoded.

use crate::digest::EntryHash;
use crate::limits::KEY_BYTES_MAX;
use crate::wire::{Cursor, Put, Short};

/// Bytes of a record before its key.
pub(crate) const RECORD_HEADER_BYTES: usize = 16;
/// Value length that marks a tombstone.
pub(crate) const TOMBSTONE: u32 = u32::MAX;

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// It has this value now, coded by the section's codec.
    Put(&'a [u8]),
    /// It was removed.
    Remove,
}

/// One entry of a section, as its bytes stand in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The writer's count of changes to this entry; grows with every change.
    pub version: u64,
    /// The key, coded by the section's codec.
    pub key: &'a [u8],
    /// Its value, or that it is gone.
    pub change: Change<'a>,
    /// The whole record as it stands in the stream.
    pub(crate) raw: &'a [u8],
}

impl Record<'_> {
    /// What this entry adds to its section's state digest; meaningless for a tombstone, which adds
    /// nothing.
    #[must_use]
    pub fn hash(&self) -> EntryHash {
        EntryHash::of_record(self.raw)
    }
}

/// What is wrong with the records of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordDefect {
    /// A record reaches over the end of the payload.
    #[error("a record reaches over the end of its frame")]
    Short,
    /// A bulk frame holds a tombstone.
    #[error("a bulk frame holds a tombstone")]
    TombstoneInBulk,
    /// A frame without records, or a continued one with several.
    #[error("a frame has no record, or a continued one has several")]
    Count,
    /// A key longer than the format allows.
    #[error("a key of {0} bytes; at most {KEY_BYTES_MAX} are allowed")]
    KeyLength(u32),
    /// A key that its section's kind does not allow.
    #[error("a value section has an empty key, a log section one of 8 bytes")]
    KeyForKind,
}

impl From<Short> for RecordDefect {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

/// The records of one frame, all of them checked.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    cursor: Cursor<'a>,
    count: usize,
}

impl<'a> Records<'a> {
    /// Walks over the whole payload, so that iteration cannot fail later.
    pub(crate) fn check(
        payload: &'a [u8],
        tombstones: bool,
        key_rule: impl Fn(&[u8]) -> bool,
    ) -> Result<Self, RecordDefect> {
        let mut cursor = Cursor::new(payload);
        let mut count = 0;
        while cursor.remaining() > 0 {
            let record = next(&mut cursor)?;
            if record.key.len() > KEY_BYTES_MAX as usize {
                return Err(RecordDefect::KeyLength(record.key.len() as u32));
            }
            if !key_rule(record.key) {
                return Err(RecordDefect::KeyForKind);
            }
            if record.change == Change::Remove && !tombstones {
                return Err(RecordDefect::TombstoneInBulk);
            }
            count += 1;
        }
        if count == 0 {
            return Err(RecordDefect::Count);
        }
        Ok(Self {
            cursor: Cursor::new(payload),
            count,
        })
    }

    /// How many records are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// True when none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = next(&mut self.cursor).ok()?;
        self.count -= 1;
        Some(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Records<'_> {}

fn next<'a>(cursor: &mut Cursor<'a>) -> Result<Record<'a>, Short> {
    let mut ahead = cursor.clone();
    let version = ahead.u64()?;
    let key_len = ahead.u32()? as usize;
    let value_len = ahead.u32()?;
    let key = ahead.take(key_len)?;
    let change = match value_len {
        TOMBSTONE => Change::Remove,
        length => Change::Put(ahead.take(length as usize)?),
    };
    let raw = cursor.take(ahead.position() - cursor.position())?;
    Ok(Record {
        version,
        key,
        change,
        raw,
    })
}

/// Appends a record's header with lengths to be filled in by [`patch`].
pub(crate) fn begin(out: &mut Vec<u8>, version: u64) {
    out.put_u64(version);
    out.put_u32(0);
    out.put_u32(0);
}

/// Fills in the lengths of the record that begins at `start`.
pub(crate) fn patch(out: &mut [u8], start: usize, key_len: u32, value_len: u32) {
    out[start + 8..start + 12].copy_from_slice(&key_len.to_le_bytes());
    out[start + 12..start + 16].copy_from_slice(&value_len.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: u64, key: &[u8], value: Option<&[u8]>) -> Vec<u8> {
        let mut out = Vec::new();
        begin(&mut out, version);
        out.extend_from_slice(key);
        out.extend_from_slice(value.unwrap_or_default());
        let value_len = value.map_or(TOMBSTONE, |value| value.len() as u32);
        patch(&mut out, 0, key.len() as u32, value_len);
        out
    }

    #[test]
    fn records_read_back_in_order() {
        let payload = [record(1, b"a", Some(b"one")), record(2, b"b", None)].concat();
        let records = Records::check(&payload, true, |_| true).unwrap();
        assert_eq!(records.len(), 2);
        let read: Vec<_> = records
            .map(|record| (record.version, record.key, record.change))
            .collect();
        assert_eq!(
            read,
            [
                (1, &b"a"[..], Change::Put(b"one")),
                (2, &b"b"[..], Change::Remove)
            ]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let payload = record(1, b"key", Some(b"value"));
        for length in 0..payload.len() {
            assert!(
                Records::check(&payload[..length], true, |_| true).is_err(),
                "{length}"
            );
        }
        let mut huge = payload.clone();
        patch(&mut huge, 0, 3, TOMBSTONE - 1);
        assert!(matches!(
            Records::check(&huge, true, |_| true),
            Err(RecordDefect::Short)
        ));
        let tombstone = record(1, b"key", None);
        assert!(matches!(
            Records::check(&tombstone, false, |_| true),
            Err(RecordDefect::TombstoneInBulk)
        ));
        assert!(matches!(
            Records::check(&payload, true, <[u8]>::is_empty),
            Err(RecordDefect::KeyForKind)
        ));
        let long = record(1, &[0; KEY_BYTES_MAX as usize + 1], None);
        assert!(matches!(
            Records::check(&long, true, |_| true),
            Err(RecordDefect::KeyLength(_))
        ));
    }
}
