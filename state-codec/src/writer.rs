//! The writing half: entries in, frames out, no I/O.
//!
//! Every call appends to an open frame; a full frame is sealed and waits in
//! [`SnapshotWriter::ready`] until the caller has carried it away. So a caller may send in slices
//! of any size, between two requests or from another thread, and never blocks in here.

mod assemble;
mod field;

use std::io;

pub(crate) use self::field::key_fits;
use self::field::{Plain, coded, plain};
use crate::codec::Codec;
use crate::digest::{EntryHash, StateDigest, StreamDigest};
use crate::envelope::{Header, Manifest, SectionId, SectionKind};
use crate::error::{AbortReason, WriteError};
use crate::frame::FrameKind;
use crate::frame::control::{Abort, END_MAGIC, EndFields, Freeze, RoundEnd, SectionTotal};
use crate::frame::reference::{ConnectionRef, MemfdRef};
use crate::limits::{FRAME_CAP_MAX, FRAME_CAP_MIN, KEY_BYTES_MAX, Limits, MANIFEST_BYTES_MAX};
use crate::order::Order;

/// Room that is kept for reuse after everything has been carried away, in bytes.
const KEEP_BYTES: usize = 2 * FRAME_CAP_MAX as usize;

/// The frame that entries are being appended to. Its header is filled in when it is sealed.
#[derive(Debug, Clone, Copy)]
struct OpenFrame {
    start: usize,
    kind: FrameKind,
    section: SectionId,
}

/// Writes one snapshot.
///
/// ```
/// use heirloom_state_codec::*;
/// let manifest = Manifest {
///     app: "shop".to_owned(),
///     sections: vec![SectionDescriptor {
///         id: SectionId(1), kind: SectionKind::Map, required: true, codec: CodecId::RAW,
///         attic_of: None, name: "notes".to_owned(), key_shape: String::new(),
///         schema: SchemaRef::opaque(), entries_hint: 1, bytes_hint: 0,
///     }],
/// };
/// let mut writer =
///     SnapshotWriter::new(&Header::new(0, 1, BuildId::default()), &manifest, Limits::default())?;
/// let first = writer.bulk(SectionId(1), 1, b"key", b"value")?;
/// writer.round_end(0)?;
/// writer.freeze()?;
/// writer.upsert(SectionId(1), 2, b"key", b"newer", Some(first))?;
/// writer.end()?;
/// let mut file = Vec::new();
/// writer.write_to(&mut file)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SnapshotWriter {
    limits: Limits,
    frame_cap: usize,
    /// Kind and digest per section, in the manifest's order.
    sections: Vec<(SectionId, SectionKind, StateDigest)>,
    out: Vec<u8>,
    /// Bytes at the front of `out` that have been carried away.
    taken: usize,
    /// Bytes of `out` that are complete frames, counted from its front.
    sealed: usize,
    open: Option<OpenFrame>,
    shard: u32,
    sequence: u64,
    /// Bytes of the stream before `out[sealed]`.
    written: u64,
    round_records: u64,
    round_start: u64,
    order: Order,
    digest: StreamDigest,
}

impl SnapshotWriter {
    /// Begins a snapshot: header and manifest are ready at once.
    ///
    /// # Errors
    /// [`WriteError::Manifest`], [`WriteError::ManifestLength`] and [`WriteError::FrameCap`].
    pub fn new(header: &Header, manifest: &Manifest, limits: Limits) -> Result<Self, WriteError> {
        if !(FRAME_CAP_MIN..=FRAME_CAP_MAX).contains(&header.frame_cap) {
            return Err(WriteError::FrameCap {
                found: header.frame_cap,
            });
        }
        let manifest_bytes = manifest.to_bytes()?;
        if manifest_bytes.len() > MANIFEST_BYTES_MAX as usize {
            return Err(WriteError::ManifestLength {
                found: manifest_bytes.len(),
            });
        }
        let mut out = Vec::new();
        header.write(&manifest_bytes, &mut out);
        out.extend_from_slice(&manifest_bytes);
        let mut digest = StreamDigest::default();
        digest.update(&out);
        let sections = manifest.sections.iter();
        Ok(Self {
            limits,
            frame_cap: header.frame_cap as usize,
            sections: sections
                .map(|s| (s.id, s.kind, StateDigest::default()))
                .collect(),
            taken: 0,
            sealed: out.len(),
            written: out.len() as u64,
            round_start: out.len() as u64,
            out,
            open: None,
            shard: 0,
            sequence: 0,
            round_records: 0,
            order: Order::default(),
            digest,
        })
    }

    /// Sets the shard that the frames from here on bear: the writer's own division of a section, 0
    /// if there is none. All records of one key must bear the same shard, so that a reader may
    /// apply different shards side by side.
    pub fn set_shard(&mut self, shard: u32) {
        if shard != self.shard {
            self.flush();
            self.shard = shard;
        }
    }

    /// Appends an entry of the base. Each key may come once.
    ///
    /// Returns the entry's hash, which a later [`Self::upsert`] or [`Self::tombstone`] of the same
    /// key needs.
    ///
    /// # Errors
    /// All of [`WriteError`] but those of [`Self::new`]. Nothing has been appended then.
    pub fn bulk(
        &mut self,
        section: SectionId,
        version: u64,
        key: &[u8],
        value: &[u8],
    ) -> Result<EntryHash, WriteError> {
        self.entry(
            FrameKind::Bulk,
            section,
            version,
            plain(key),
            Some(plain(value)),
        )
    }

    /// Like [`Self::bulk`], coding key and value straight into the frame.
    ///
    /// # Errors
    /// As [`Self::bulk`].
    pub fn bulk_with<C, K, V>(
        &mut self,
        section: SectionId,
        version: u64,
        key: &K,
        value: &V,
    ) -> Result<EntryHash, WriteError>
    where
        C: Codec<K> + Codec<V>,
    {
        let (key, value) = (coded::<C, K>(key), coded::<C, V>(value));
        self.entry(FrameKind::Bulk, section, version, key, Some(value))
    }

    /// Appends an entry that is new or has changed. `replaced` is the hash that this key's previous
    /// record in this stream returned, `None` if there was none or it was removed since.
    ///
    /// # Errors
    /// As [`Self::bulk`].
    pub fn upsert(
        &mut self,
        section: SectionId,
        version: u64,
        key: &[u8],
        value: &[u8],
        replaced: Option<EntryHash>,
    ) -> Result<EntryHash, WriteError> {
        let hash = self.entry(
            FrameKind::Delta,
            section,
            version,
            plain(key),
            Some(plain(value)),
        )?;
        self.count_out(section, replaced);
        Ok(hash)
    }

    /// Like [`Self::upsert`], coding key and value straight into the frame.
    ///
    /// # Errors
    /// As [`Self::bulk`].
    pub fn upsert_with<C, K, V>(
        &mut self,
        section: SectionId,
        version: u64,
        key: &K,
        value: &V,
        replaced: Option<EntryHash>,
    ) -> Result<EntryHash, WriteError>
    where
        C: Codec<K> + Codec<V>,
    {
        let (key, value) = (coded::<C, K>(key), coded::<C, V>(value));
        let hash = self.entry(FrameKind::Delta, section, version, key, Some(value))?;
        self.count_out(section, replaced);
        Ok(hash)
    }

    /// Appends the removal of an entry. `replaced` as in [`Self::upsert`].
    ///
    /// # Errors
    /// As [`Self::bulk`].
    pub fn tombstone(
        &mut self,
        section: SectionId,
        version: u64,
        key: &[u8],
        replaced: Option<EntryHash>,
    ) -> Result<(), WriteError> {
        self.entry(
            FrameKind::Delta,
            section,
            version,
            plain(key),
            None::<Plain<'_>>,
        )?;
        self.count_out(section, replaced);
        Ok(())
    }

    /// Appends a reference to a large object.
    ///
    /// # Errors
    /// As [`Self::bulk`].
    pub fn memfd(
        &mut self,
        section: SectionId,
        reference: &MemfdRef<'_>,
    ) -> Result<(), WriteError> {
        if reference.key.len() > KEY_BYTES_MAX as usize {
            return Err(WriteError::KeyLength {
                section,
                found: reference.key.len(),
            });
        }
        let mut payload = Vec::new();
        reference.write(&mut payload);
        self.reference(FrameKind::Memfd, section, SectionKind::Blob, &payload)
    }

    /// Appends a reference to a live connection.
    ///
    /// # Errors
    /// As [`Self::bulk`].
    pub fn connection(
        &mut self,
        section: SectionId,
        reference: &ConnectionRef<'_>,
    ) -> Result<(), WriteError> {
        let payload = reference.to_bytes();
        self.reference(
            FrameKind::Connection,
            section,
            SectionKind::Connection,
            &payload,
        )
    }

    /// Ends a round of pre-copy; the first one ends the base. `dirty` is how many entries are known
    /// to have changed meanwhile.
    ///
    /// # Errors
    /// [`WriteError::Order`] after the freeze, [`WriteError::Backlog`],
    /// [`WriteError::StreamLength`].
    pub fn round_end(&mut self, dirty: u64) -> Result<RoundEnd, WriteError> {
        self.room()?;
        self.flush();
        let round = RoundEnd {
            round: self.order.rounds(),
            records: self.round_records,
            bytes: self.written - self.round_start,
            dirty,
        };
        self.order.admit(FrameKind::RoundEnd, round.round)?;
        let mut payload = Vec::new();
        round.write(&mut payload);
        self.whole(FrameKind::RoundEnd, SectionId(0), &payload);
        self.round_records = 0;
        self.round_start = self.written;
        Ok(round)
    }

    /// Marks that the state stands still from here on.
    ///
    /// # Errors
    /// [`WriteError::Order`] the second time, [`WriteError::Backlog`],
    /// [`WriteError::StreamLength`].
    pub fn freeze(&mut self) -> Result<(), WriteError> {
        self.room()?;
        let rounds = self.order.rounds();
        self.order.admit(FrameKind::Freeze, rounds)?;
        let mut payload = Vec::new();
        Freeze { rounds }.write(&mut payload);
        self.whole(FrameKind::Freeze, SectionId(0), &payload);
        Ok(())
    }

    /// Completes the snapshot with counts and digests.
    ///
    /// # Errors
    /// [`WriteError::Order`] without a freeze.
    pub fn end(&mut self) -> Result<(), WriteError> {
        self.order.admit(FrameKind::End, 0)?;
        self.flush();
        let mut payload = Vec::new();
        let fields = EndFields {
            frames: self.sequence,
            bytes: self.written,
            totals: self.totals(),
        };
        fields.write(&mut payload);
        self.digest.update(&payload);
        payload.extend_from_slice(&self.digest.value());
        payload.extend_from_slice(&END_MAGIC);
        self.whole(FrameKind::End, SectionId(0), &payload);
        Ok(())
    }

    /// Tells the reader that this will not become a snapshot. The message is cut at 1024 bytes.
    ///
    /// # Errors
    /// [`WriteError::Order`] if the stream has ended already.
    pub fn abort(&mut self, reason: AbortReason, message: &str) -> Result<(), WriteError> {
        self.order.admit(FrameKind::Abort, 0)?;
        let mut payload = Vec::new();
        Abort {
            reason,
            message: message.to_owned(),
        }
        .write(&mut payload);
        self.whole(FrameKind::Abort, SectionId(0), &payload);
        Ok(())
    }

    /// Seals the open frame, so that everything appended so far is in [`Self::ready`].
    pub fn flush(&mut self) {
        if let Some(open) = self.open.take() {
            self.seal(open, 0);
        }
    }

    /// Frames that wait to be carried away. [`Self::flush`] adds the one that is still open.
    #[must_use]
    pub fn ready(&self) -> &[u8] {
        &self.out[self.taken..self.sealed]
    }

    /// Says that the first `count` bytes of [`Self::ready`] have been carried away; more than it
    /// holds counts as all.
    pub fn consume(&mut self, count: usize) {
        self.taken = self.sealed.min(self.taken.saturating_add(count));
        let all_taken = self.taken == self.out.len();
        // Moving the rest to the front costs less than what was written since the last time.
        if all_taken || (self.taken >= KEEP_BYTES && self.taken >= self.out.len() / 2) {
            self.out.drain(..self.taken);
            self.sealed -= self.taken;
            if let Some(open) = &mut self.open {
                open.start -= self.taken;
            }
            self.taken = 0;
            if all_taken {
                self.out.shrink_to(KEEP_BYTES);
            }
        }
    }

    /// Carries everything that is ready into `output`, until it is all written or `output` fails.
    ///
    /// # Errors
    /// What `output` returns. A call repeated after [`io::ErrorKind::WouldBlock`] goes on where it
    /// stopped.
    pub fn write_to(&mut self, output: &mut impl io::Write) -> io::Result<()> {
        while !self.ready().is_empty() {
            match output.write(self.ready()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.consume(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Bytes appended and not yet carried away, the open frame included.
    #[must_use]
    pub fn backlog_bytes(&self) -> usize {
        self.out.len() - self.taken
    }

    /// Bytes of the stream so far, the open frame included.
    #[must_use]
    pub fn stream_bytes(&self) -> u64 {
        self.written + (self.out.len() - self.sealed) as u64
    }

    /// True once the stream has been completed or aborted.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.order.is_ended()
    }

    /// What the end mark says, or would say now, of each section.
    #[must_use]
    pub fn totals(&self) -> Vec<SectionTotal> {
        self.sections
            .iter()
            .map(|&(section, _, state)| SectionTotal { section, state })
            .collect()
    }
}
