//! Frames: the unit in which everything behind the manifest is sent, checked and counted.
//!
//! This module owns the frame header. The payloads are in [`record`], [`mod@reference`] and
//! [`control`].

pub(crate) mod control;
pub(crate) mod record;
pub(crate) mod reference;

use crate::envelope::SectionId;
use crate::wire::{Cursor, Put, Short};

/// First bytes of every frame, so that a lost position is noticed at once.
pub const FRAME_SYNC: [u8; 4] = *b"HLF1";
/// Length of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Where the checksum over the preceding bytes of the frame's header stands.
const CHECKSUM_AT: usize = FRAME_HEADER_BYTES - 4;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Entries of the base, each key once.
    Bulk = 1,
    /// Entries that changed since they were sent, and tombstones.
    Delta = 2,
    /// End of a pre-copy round.
    RoundEnd = 3,
    /// The state stands still from here on; what follows completes it.
    Freeze = 4,
    /// A large object in a memory file descriptor that travels beside the stream.
    Memfd = 5,
    /// A live connection whose file descriptor travels beside the stream.
    Connection = 6,
    /// The snapshot is complete; counts and digests.
    End = 7,
    /// The writer gave up; what was sent is void.
    Abort = 8,
}

impl FrameKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Bulk,
        Self::Delta,
        Self::RoundEnd,
        Self::Freeze,
        Self::Memfd,
        Self::Connection,
        Self::End,
        Self::Abort,
    ];

    fn from_wire(kind: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == kind)
    }

    /// The kind's name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Delta => "delta",
            Self::RoundEnd => "round-end",
            Self::Freeze => "freeze",
            Self::Memfd => "memfd",
            Self::Connection => "connection",
            Self::End => "end",
            Self::Abort => "abort",
        }
    }
}

impl std::fmt::Display for FrameKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Bits of a frame header's flags.
pub(crate) mod flag {
    /// The payload goes on in the next frame, which has the same kind, section and shard.
    pub(crate) const MORE: u8 = 1;
    /// A reader that does not know the kind may skip the frame.
    pub(crate) const OPTIONAL: u8 = 2;
    /// All bits that this version knows.
    pub(crate) const KNOWN: u8 = MORE | OPTIONAL;
}

/// A frame header as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// 0 for frames that belong to the whole stream.
    pub(crate) section: u16,
    pub(crate) payload_len: u32,
    pub(crate) shard: u32,
    pub(crate) sequence: u64,
    pub(crate) payload_checksum: u32,
}

/// Why the bytes at a frame's place are no frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameHeaderDefect {
    Sync { found: [u8; 4] },
    Checksum { declared: u32, computed: u32 },
}

impl FrameHeader {
    pub(crate) fn known_kind(&self) -> Option<FrameKind> {
        FrameKind::from_wire(self.kind)
    }

    pub(crate) fn section_id(&self) -> SectionId {
        SectionId(self.section)
    }

    pub(crate) fn to_bytes(self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = Vec::with_capacity(FRAME_HEADER_BYTES);
        out.extend_from_slice(&FRAME_SYNC);
        out.put_u8(self.kind);
        out.put_u8(self.flags);
        out.put_u16(self.section);
        out.put_u32(self.payload_len);
        out.put_u32(self.shard);
        out.put_u64(self.sequence);
        out.put_u32(self.payload_checksum);
        let checksum = crc32fast::hash(&out);
        out.put_u32(checksum);
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes.copy_from_slice(&out);
        bytes
    }

    /// Verifies the checksum; no field may be used before.
    pub(crate) fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, FrameHeaderDefect> {
        let mut cursor = Cursor::new(bytes);
        let fields = Self::fields(&mut cursor);
        let (sync, header, declared) = fields.unwrap_or((
            [0; 4],
            Self {
                kind: 0,
                flags: 0,
                section: 0,
                payload_len: 0,
                shard: 0,
                sequence: 0,
                payload_checksum: 0,
            },
            0,
        ));
        if sync != FRAME_SYNC {
            return Err(FrameHeaderDefect::Sync { found: sync });
        }
        let computed = crc32fast::hash(&bytes[..CHECKSUM_AT]);
        if declared != computed {
            return Err(FrameHeaderDefect::Checksum { declared, computed });
        }
        Ok(header)
    }

    fn fields(cursor: &mut Cursor<'_>) -> Result<([u8; 4], Self, u32), Short> {
        let sync = cursor.array()?;
        let header = Self {
            kind: cursor.u8()?,
            flags: cursor.u8()?,
            section: cursor.u16()?,
            payload_len: cursor.u32()?,
            shard: cursor.u32()?,
            sequence: cursor.u64()?,
            payload_checksum: cursor.u32()?,
        };
        Ok((sync, header, cursor.u32()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: FrameHeader = FrameHeader {
        kind: 2,
        flags: flag::MORE,
        section: 0x0102,
        payload_len: 77,
        shard: 5,
        sequence: 1 << 40,
        payload_checksum: 0xDEAD_BEEF,
    };

    #[test]
    fn a_header_reads_back_and_no_flipped_bit_does() {
        let bytes = SAMPLE.to_bytes();
        assert_eq!(FrameHeader::parse(&bytes), Ok(SAMPLE));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::parse(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn kinds_are_known_by_their_numbers() {
        for kind in FrameKind::ALL {
            assert_eq!(FrameKind::from_wire(kind as u8), Some(kind));
        }
        assert_eq!(FrameKind::from_wire(0), None);
        assert_eq!(FrameKind::from_wire(9), None);
    }
}
