//! What a reader tells its caller, and the proof that a snapshot was read completely.

use crate::envelope::{Header, Manifest, SectionDescriptor};
use crate::frame::FrameKind;
use crate::frame::control::{EndFields, Freeze, RoundEnd, SectionTotal};
use crate::frame::record::Records;
use crate::frame::reference::{ConnectionRef, MemfdRef};

/// One checked piece of a snapshot. It borrows from the reader until the next call.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event<'r> {
    /// Header and manifest have been read: the moment to check schemas and to size tables.
    Opened {
        /// The header.
        header: &'r Header,
        /// The manifest.
        manifest: &'r Manifest,
    },
    /// Entries of the base.
    Bulk {
        /// The section they belong to.
        section: &'r SectionDescriptor,
        /// The writer's own division of the section.
        shard: u32,
        /// The entries.
        records: Records<'r>,
    },
    /// Changed and removed entries.
    Delta {
        /// The section they belong to.
        section: &'r SectionDescriptor,
        /// The writer's own division of the section.
        shard: u32,
        /// The entries.
        records: Records<'r>,
    },
    /// A reference to a large object.
    Memfd {
        /// The section it belongs to.
        section: &'r SectionDescriptor,
        /// The reference.
        reference: MemfdRef<'r>,
    },
    /// A reference to a live connection.
    Connection {
        /// The section it belongs to.
        section: &'r SectionDescriptor,
        /// The reference.
        reference: ConnectionRef<'r>,
    },
    /// The end of a pre-copy round.
    RoundEnd(RoundEnd),
    /// The state stands still from here on.
    Freeze(Freeze),
    /// The snapshot is complete, and the stream digest holds. Whether the state is the writer's is
    /// for [`End::verify`] to say.
    End(End),
}

/// Counts of what has been read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    frames: [u64; FrameKind::ALL.len()],
    /// Frames of optional kinds that this version does not know.
    pub skipped: u64,
    /// Bytes read and found right.
    pub bytes: u64,
}

impl Tally {
    pub(crate) fn count(&mut self, kind: FrameKind) {
        self.frames[kind as usize - 1] += 1;
    }

    /// Frames of this kind.
    #[must_use]
    pub fn frames(&self, kind: FrameKind) -> u64 {
        self.frames[kind as usize - 1]
    }
}

/// A complete snapshot's end mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Frames before the end mark.
    pub frames: u64,
    /// Bytes before the end mark.
    pub bytes: u64,
    /// blake3 of the stream up to itself.
    pub stream_digest: [u8; 32],
    /// What the writer holds, per section with records.
    totals: Vec<SectionTotal>,
}

impl End {
    pub(crate) fn new(
        fields: EndFields,
        stream_digest: [u8; 32],
        sections: &[SectionDescriptor],
    ) -> Self {
        let totals = sections
            .iter()
            .zip(fields.totals)
            .filter(|(s, _)| s.kind.has_records());
        Self {
            frames: fields.frames,
            bytes: fields.bytes,
            stream_digest,
            totals: totals.map(|(_, total)| total).collect(),
        }
    }

    /// Entries and digest per section with records, as the writer holds them.
    #[must_use]
    pub fn totals(&self) -> &[SectionTotal] {
        &self.totals
    }

    /// Compares what the reader holds with what the writer does. Sections may be in any order; one
    /// that is not listed counts as empty.
    ///
    /// # Errors
    /// The first section that differs.
    pub fn verify(&self, held: &[SectionTotal]) -> Result<Verified, StateMismatch> {
        for declared in &self.totals {
            let own = held.iter().find(|total| total.section == declared.section);
            let state = own.map(|total| total.state).unwrap_or_default();
            if state != declared.state {
                let held = SectionTotal {
                    section: declared.section,
                    state,
                };
                return Err(StateMismatch {
                    declared: *declared,
                    held,
                });
            }
        }
        Ok(Verified {
            stream_digest: self.stream_digest,
        })
    }
}

/// Proof that a whole snapshot was read and that both digests hold. Only [`End::verify`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    stream_digest: [u8; 32],
}

impl Verified {
    /// Digest of the stream that was verified, to name the snapshot in a log.
    #[must_use]
    pub fn stream_digest(&self) -> [u8; 32] {
        self.stream_digest
    }
}

/// Writer and reader do not hold the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}: the writer holds {}, the reader {}; do not commit, one of the two missed or misapplied a change",
    declared.section, declared.state, held.state
)]
pub struct StateMismatch {
    /// What the writer declared.
    pub declared: SectionTotal,
    /// What the reader holds.
    pub held: SectionTotal,
}
