//! References to file descriptors that travel beside the stream: large objects and live
//! connections.
//!
//! The number in a reference is the descriptor's position among those passed for this handover. How
//! they are passed is the channel's matter; nothing here touches one.

use crate::limits::KEY_BYTES_MAX;
use crate::wire::{Cursor, Put, Short};

/// A large object in a memory file descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemfdRef<'a> {
    /// The object's key; a later reference with the same key replaces this one.
    pub key: &'a [u8],
    /// Position of the descriptor among those passed beside the stream.
    pub descriptor: u32,
    /// Seals that the receiver must find on the descriptor, as `F_GET_SEALS` reports them.
    pub seals: u32,
    /// Where the object begins in the file, in bytes.
    pub offset: u64,
    /// Length of the object, in bytes.
    pub length: u64,
    /// blake3 of the object's bytes, if the writer had time to compute it.
    pub content: Option<[u8; 32]>,
}

impl<'a> MemfdRef<'a> {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_u32(self.descriptor);
        out.put_u32(self.seals);
        out.put_u64(self.offset);
        out.put_u64(self.length);
        out.put_u8(u8::from(self.content.is_some()));
        out.extend_from_slice(&self.content.unwrap_or_default());
        out.put_u32(self.key.len() as u32);
        out.extend_from_slice(self.key);
    }

    pub(crate) fn parse(payload: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(payload);
        let reference = Self::fields(&mut cursor).ok()??;
        (cursor.remaining() == 0).then_some(reference)
    }

    fn fields(cursor: &mut Cursor<'a>) -> Result<Option<Self>, Short> {
        let descriptor = cursor.u32()?;
        let seals = cursor.u32()?;
        let offset = cursor.u64()?;
        let length = cursor.u64()?;
        let has_content = cursor.u8()?;
        let content: [u8; 32] = cursor.array()?;
        let content = match has_content {
            0 if content == [0; 32] => None,
            1 => Some(content),
            _ => return Ok(None),
        };
        let key = cursor.block()?;
        let fits = key.len() <= KEY_BYTES_MAX as usize && offset.checked_add(length).is_some();
        Ok(fits.then_some(Self {
            key,
            descriptor,
            seals,
            offset,
            length,
            content,
        }))
    }
}

/// A live connection: its descriptor, what had been read from it, and the application's own state.
///
/// The same bytes are used for a connection that is handed over after the snapshot has ended; see
/// [`ConnectionRef::to_bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionRef<'a> {
    /// The writer's number for the connection; unique within one handover.
    pub connection: u64,
    /// Position of the descriptor among those passed beside the stream.
    pub descriptor: u32,
    /// Bytes the writer had read from the connection and not yet consumed.
    pub unread: &'a [u8],
    /// The connection's own state, coded by its section's codec.
    pub state: &'a [u8],
}

impl<'a> ConnectionRef<'a> {
    /// The reference's bytes, as they stand in a connection frame's payload.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(20 + self.unread.len() + self.state.len());
        self.write(&mut out);
        out
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_u64(self.connection);
        out.put_u32(self.descriptor);
        out.put_u32(self.unread.len() as u32);
        out.extend_from_slice(self.unread);
        out.put_u32(self.state.len() as u32);
        out.extend_from_slice(self.state);
    }

    /// Reads what [`Self::to_bytes`] made; `None` if the bytes are anything else.
    #[must_use]
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(payload);
        let reference = Self::fields(&mut cursor).ok()?;
        (cursor.remaining() == 0).then_some(reference)
    }

    fn fields(cursor: &mut Cursor<'a>) -> Result<Self, Short> {
        Ok(Self {
            connection: cursor.u64()?,
            descriptor: cursor.u32()?,
            unread: cursor.block()?,
            state: cursor.block()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memfd_reference_reads_back_and_no_part_of_it_does() {
        for content in [None, Some([7; 32])] {
            let reference = MemfdRef {
                key: b"map",
                descriptor: 3,
                seals: 2,
                offset: 4096,
                length: 1 << 30,
                content,
            };
            let mut bytes = Vec::new();
            reference.write(&mut bytes);
            assert_eq!(MemfdRef::parse(&bytes), Some(reference));
            for length in 0..bytes.len() {
                assert_eq!(MemfdRef::parse(&bytes[..length]), None);
            }
            bytes.push(0);
            assert_eq!(MemfdRef::parse(&bytes), None);
        }
    }

    #[test]
    fn a_memfd_reference_beyond_the_address_space_is_refused() {
        let reference = MemfdRef {
            key: b"",
            descriptor: 0,
            seals: 0,
            offset: u64::MAX,
            length: 2,
            content: None,
        };
        let mut bytes = Vec::new();
        reference.write(&mut bytes);
        assert_eq!(MemfdRef::parse(&bytes), None);
    }

    #[test]
    fn a_connection_reference_reads_back_and_no_part_of_it_does() {
        let reference = ConnectionRef {
            connection: 9,
            descriptor: 1,
            unread: b"GET / HT",
            state: b"\x01",
        };
        let bytes = reference.to_bytes();
        assert_eq!(ConnectionRef::parse(&bytes), Some(reference));
        for length in 0..bytes.len() {
            assert_eq!(ConnectionRef::parse(&bytes[..length]), None);
        }
    }
}
