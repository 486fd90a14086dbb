//! The bytes of a record on the way back: `docs/protocol.md` is the normative text.
//!
//! A record is `u32 length | u128 checksum | body`, all little-endian: the length counts the body, and the
//! checksum is its XXH3-128. The body is one change behind the other. A record that is not all there was never
//! acknowledged.

use heirloom_state_codec::AtticRecord;

use crate::state::link::wire::In;

/// The longest body, in bytes: as that of a frame on the link.
pub(crate) const LONGEST_BYTES: usize = 256 * 1024 * 1024;

/// The bytes ahead of a body.
pub(crate) const HEAD_BYTES: usize = size_of::<u32>() + size_of::<u128>();

const PUT: u8 = 1;
const REMOVE: u8 = 2;
const OBJECT: u8 = 3;

/// What has become of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate<'a> {
    /// It has this value, in the version of the schema that its change names, and beside it what that version
    /// has no room for; no bytes if there is no such thing.
    Put { value: &'a [u8], attic: &'a [u8] },
    /// It is gone.
    Remove,
    /// It is an object in a memory file of so many bytes, whose descriptor is the next on the fate.
    Object { bytes: u64 },
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change<'a> {
    /// The store.
    pub(crate) store: String,
    /// The version of its schema.
    pub(crate) version: u32,
    pub(crate) key: &'a [u8],
    /// The entry's version; 0 where entries have none.
    pub(crate) entry_version: u64,
    pub(crate) fate: Fate<'a>,
}

/// A record as it grows.
#[derive(Debug)]
pub(crate) struct Draft(Vec<u8>);

impl Default for Draft {
    fn default() -> Self {
        Self(vec![0; HEAD_BYTES])
    }
}

impl Draft {
    pub(crate) fn add(
        &mut self,
        store: &str,
        version: u32,
        key: &[u8],
        entry_version: u64,
        fate: Fate<'_>,
    ) {
        self.block(store.as_bytes());
        self.0.extend_from_slice(&version.to_le_bytes());
        self.block(key);
        self.0.extend_from_slice(&entry_version.to_le_bytes());
        match fate {
            Fate::Put { value, attic } => {
                self.0.push(PUT);
                self.block(value);
                self.block(attic);
            }
            Fate::Remove => self.0.push(REMOVE),
            Fate::Object { bytes } => {
                self.0.push(OBJECT);
                self.0.extend_from_slice(&bytes.to_le_bytes());
            }
        }
    }

    /// What does not fit into the number makes the whole too long anyway.
    fn block(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    /// The whole record; none if nothing was added.
    ///
    /// # Errors
    ///
    /// If it is too long.
    pub(crate) fn finish(mut self) -> Result<Option<Vec<u8>>, &'static str> {
        let (head, body) = self.0.split_at_mut(HEAD_BYTES);
        if body.is_empty() {
            return Ok(None);
        }
        let length = u32::try_from(body.len()).ok();
        let Some(length) = length.filter(|_| body.len() <= LONGEST_BYTES) else {
            return Err("one change has more than 256 MiB");
        };
        let (first, second) = head.split_at_mut(size_of::<u32>());
        first.copy_from_slice(&length.to_le_bytes());
        second.copy_from_slice(&AtticRecord::base_of(body).to_le_bytes());
        Ok(Some(self.0))
    }
}

/// The first record of these bytes and how long it is; none if it is not all there.
///
/// # Errors
///
/// If it is none.
pub(crate) fn first(bytes: &[u8]) -> Result<Option<(Vec<Change<'_>>, usize)>, &'static str> {
    let mut input = In(bytes);
    let Some(length) = input.u32() else {
        return Ok(None);
    };
    let length = length as usize;
    if length > LONGEST_BYTES {
        return Err("a record has a length that none may have");
    }
    let Some(checksum) = input.take(size_of::<u128>()) else {
        return Ok(None);
    };
    let Some(body) = input.take(length) else {
        return Ok(None);
    };
    if AtticRecord::base_of(body).to_le_bytes() != checksum {
        return Err("a record is damaged");
    }
    let mut input = In(body);
    let mut changes = Vec::new();
    while !input.0.is_empty() {
        changes.push(change(&mut input).ok_or("a record makes no sense")?);
    }
    Ok(Some((changes, HEAD_BYTES + length)))
}

fn change<'a>(input: &mut In<'a>) -> Option<Change<'a>> {
    Some(Change {
        store: input.text()?,
        version: input.u32()?,
        key: input.bytes()?,
        entry_version: input.u64()?,
        fate: match input.byte()? {
            PUT => Fate::Put {
                value: input.bytes()?,
                attic: input.bytes()?,
            },
            REMOVE => Fate::Remove,
            OBJECT => Fate::Object {
                bytes: input.u64()?,
            },
            _unknown => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Vec<u8> {
        let mut draft = Draft::default();
        let put = Fate::Put {
            value: b"value",
            attic: b"",
        };
        draft.add("sessions", 2, b"ann", 7, put);
        draft.add("sessions", 2, b"bob", 8, Fate::Remove);
        draft.add("tiles", 0, b"map", 0, Fate::Object { bytes: 4096 });
        draft.finish().unwrap().unwrap()
    }

    #[test]
    fn a_record_reads_back_and_no_part_of_it_does() {
        let bytes = whole();
        let (changes, length) = first(&bytes).unwrap().unwrap();
        assert_eq!((changes.len(), length), (3, bytes.len()));
        assert_eq!(
            (changes[1].key, changes[1].fate),
            (&b"bob"[..], Fate::Remove)
        );
        for length in 0..bytes.len() {
            assert_eq!(first(&bytes[..length]), Ok(None), "{length}");
        }
    }

    #[test]
    fn a_damaged_record_is_none() {
        for at in size_of::<u32>()..whole().len() {
            let mut bytes = whole();
            bytes[at] ^= 1;
            assert!(first(&bytes).is_err(), "{at}");
        }
    }

    #[test]
    fn an_empty_draft_is_no_record() {
        assert_eq!(Draft::default().finish(), Ok(None));
    }
}
