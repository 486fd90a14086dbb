//! Frames about the stream itself: round end, freeze, abort, end.

use crate::digest::StateDigest;
use crate::envelope::SectionId;
use crate::error::AbortReason;
use crate::limits::{ABORT_MESSAGE_BYTES_MAX, SECTIONS_MAX};
use crate::wire::{Cursor, Put, Short};

/// Last bytes of every snapshot: the magic's letters mirrored, so that its tail is known as well.
pub(crate) const END_MAGIC: [u8; 8] = [0x0A, 0x1A, 0x0A, 0x0D, b'S', b'L', b'H', 0x89];

/// The end of a pre-copy round. Round 0 is the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundEnd {
    /// Number of the round, counting up from 0.
    pub round: u32,
    /// Records sent in this round.
    pub records: u64,
    /// Bytes sent in this round.
    pub bytes: u64,
    /// Entries known to have changed meanwhile, which the next round will send.
    pub dirty: u64,
}

impl RoundEnd {
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        out.put_u32(self.round);
        out.put_u64(self.records);
        out.put_u64(self.bytes);
        out.put_u64(self.dirty);
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        exact(payload, |cursor| {
            Ok(Some(Self {
                round: cursor.u32()?,
                records: cursor.u64()?,
                bytes: cursor.u64()?,
                dirty: cursor.u64()?,
            }))
        })
    }
}

/// The state stands still from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freeze {
    /// Rounds that were sent before.
    pub rounds: u32,
}

impl Freeze {
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        out.put_u32(self.rounds);
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        exact(payload, |cursor| {
            Ok(Some(Self {
                rounds: cursor.u32()?,
            }))
        })
    }
}

/// Why a writer gave up, and in what words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Abort {
    pub(crate) reason: AbortReason,
    pub(crate) message: String,
}

impl Abort {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_u16(self.reason.to_wire());
        let mut length = self.message.len().min(ABORT_MESSAGE_BYTES_MAX);
        while !self.message.is_char_boundary(length) {
            length -= 1;
        }
        out.extend_from_slice(&self.message.as_bytes()[..length]);
    }

    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        exact(payload, |cursor| {
            let reason = AbortReason::from_wire(cursor.u16()?);
            let text = cursor.take(cursor.remaining())?;
            let fits = text.len() <= ABORT_MESSAGE_BYTES_MAX;
            let text = std::str::from_utf8(text).ok().filter(|_| fits);
            Ok(text.map(|text| Self {
                reason,
                message: text.to_owned(),
            }))
        })
    }
}

/// What the end mark says of one section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionTotal {
    /// The section.
    pub section: SectionId,
    /// Entries it holds after all deltas, and their digest. For sections of references the count of
    /// references and no digest.
    pub state: StateDigest,
}

/// The end mark's fields. The stream digest and the end magic stand behind them on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndFields {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) totals: Vec<SectionTotal>,
}

/// Bytes of the end mark that its own stream digest does not cover: the digest and the magic.
const UNDIGESTED_BYTES: usize = 32 + END_MAGIC.len();

impl EndFields {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_u64(self.frames);
        out.put_u64(self.bytes);
        out.put_u16(self.totals.len() as u16);
        for total in &self.totals {
            out.put_u16(total.section.0);
            out.put_u64(total.state.entries);
            out.put_u128(total.state.sum);
        }
    }

    /// Returns the fields, the bytes of the payload that the digest covers, and the digest.
    pub(crate) fn parse(payload: &[u8]) -> Option<(Self, &[u8], [u8; 32])> {
        let covered = payload.get(..payload.len().checked_sub(UNDIGESTED_BYTES)?)?;
        exact(payload, |cursor| {
            let frames = cursor.u64()?;
            let bytes = cursor.u64()?;
            let count = usize::from(cursor.u16()?);
            if count > SECTIONS_MAX {
                return Ok(None);
            }
            let mut totals = Vec::new();
            for _ in 0..count {
                totals.push(SectionTotal {
                    section: SectionId(cursor.u16()?),
                    state: StateDigest {
                        entries: cursor.u64()?,
                        sum: cursor.u128()?,
                    },
                });
            }
            let digest = cursor.array()?;
            let magic: [u8; 8] = cursor.array()?;
            Ok((magic == END_MAGIC).then_some((
                Self {
                    frames,
                    bytes,
                    totals,
                },
                covered,
                digest,
            )))
        })
    }
}

/// Runs `fields` and refuses a payload that is shorter or longer than what it reads.
fn exact<'a, T>(
    payload: &'a [u8],
    fields: impl FnOnce(&mut Cursor<'a>) -> Result<Option<T>, Short>,
) -> Option<T> {
    let mut cursor = Cursor::new(payload);
    let value = fields(&mut cursor).ok()??;
    (cursor.remaining() == 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_end_reads_back_and_no_part_of_it_does() {
        let round = RoundEnd {
            round: 3,
            records: 4,
            bytes: 5,
            dirty: 6,
        };
        let mut bytes = Vec::new();
        round.write(&mut bytes);
        assert_eq!(RoundEnd::parse(&bytes), Some(round));
        for length in 0..bytes.len() {
            assert_eq!(RoundEnd::parse(&bytes[..length]), None);
        }
        bytes.push(0);
        assert_eq!(RoundEnd::parse(&bytes), None);
    }

    #[test]
    fn an_abort_is_cut_at_a_character() {
        let message = "é".repeat(ABORT_MESSAGE_BYTES_MAX);
        let mut bytes = Vec::new();
        Abort {
            reason: AbortReason::Application,
            message,
        }
        .write(&mut bytes);
        let abort = Abort::parse(&bytes).unwrap();
        assert_eq!(abort.message, "é".repeat(ABORT_MESSAGE_BYTES_MAX / 2));
        assert_eq!(abort.reason, AbortReason::Application);
        assert_eq!(Abort::parse(&[1]), None);
        assert_eq!(Abort::parse(&[1, 0, 0xFF]), None);
    }

    #[test]
    fn an_end_reads_back_and_no_part_of_it_does() {
        let end = EndFields {
            frames: 1,
            bytes: 2,
            totals: vec![SectionTotal {
                section: SectionId(1),
                state: StateDigest { entries: 3, sum: 4 },
            }],
        };
        let mut bytes = Vec::new();
        end.write(&mut bytes);
        let covered = bytes.len();
        bytes.extend_from_slice(&[9; 32]);
        bytes.extend_from_slice(&END_MAGIC);
        assert_eq!(
            EndFields::parse(&bytes),
            Some((end, &bytes[..covered], [9; 32]))
        );
        for length in 0..bytes.len() {
            assert_eq!(EndFields::parse(&bytes[..length]), None);
        }
    }
}
