//! The reading half: bytes in, checked events out, no I/O.
//!
//! The caller fills [`SnapshotReader::space`] from wherever the stream comes and calls
//! [`SnapshotReader::poll`] until it asks for more. Memory is bounded by one frame, one manifest
//! and one continued entry, whatever the stream claims: no length is believed before its checksum
//! held.

mod envelope;
mod frames;
mod intake;

use std::cell::OnceCell;
use std::ops::Range;

use self::intake::Intake;
use crate::digest::StreamDigest;
use crate::envelope::ParsedHeader;
use crate::envelope::{HEADER_BYTES, Header, Manifest, SectionKind};
use crate::error::{Defect, ReadError};
use crate::event::{End, Event, Tally};
use crate::frame::control::{Freeze, RoundEnd};
use crate::frame::record::{RECORD_HEADER_BYTES, RecordDefect, Records};
use crate::frame::reference::{ConnectionRef, MemfdRef};
use crate::frame::{FRAME_HEADER_BYTES, FrameKind};
use crate::limits::{ENTRY_BYTES_MAX, Limits};
use crate::order::Order;
use crate::writer::key_fits;

/// What the reader expects next.
#[derive(Debug, Clone, Copy)]
enum Expect {
    Header,
    Extension(ParsedHeader),
    Manifest(ParsedHeader),
    Frame,
    Nothing,
}

/// An entry whose first frames have arrived and whose last has not.
#[derive(Debug)]
struct Continued {
    kind: FrameKind,
    section: u16,
    shard: u32,
    bytes: Vec<u8>,
}

/// Where the payload of a finished event lies.
#[derive(Debug, Clone)]
enum Place {
    Buffer(Range<usize>),
    Continued,
}

/// A checked item that has yet to be shown to the caller.
#[derive(Debug)]
enum Found {
    Opened,
    Records {
        delta: bool,
        section: usize,
        shard: u32,
        place: Place,
    },
    Memfd {
        section: usize,
        place: Place,
    },
    Connection {
        section: usize,
        place: Place,
    },
    RoundEnd(RoundEnd),
    Freeze(Freeze),
    End(End),
}

/// Reads one snapshot.
#[derive(Debug)]
pub struct SnapshotReader {
    limits: Limits,
    intake: Intake,
    expect: Expect,
    header: Option<Header>,
    manifest: Option<Manifest>,
    /// References per section, in the manifest's order.
    references: Vec<u64>,
    continued: Option<Continued>,
    /// The bytes of a continued entry that has become whole.
    whole: Vec<u8>,
    order: Order,
    sequence: u64,
    tally: Tally,
    digest: StreamDigest,
    failed: OnceCell<ReadError>,
}

impl SnapshotReader {
    /// A reader at the start of a stream.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            intake: Intake::new(HEADER_BYTES),
            expect: Expect::Header,
            header: None,
            manifest: None,
            references: Vec::new(),
            continued: None,
            whole: Vec::new(),
            order: Order::default(),
            sequence: 0,
            tally: Tally::default(),
            digest: StreamDigest::default(),
            failed: OnceCell::new(),
        }
    }

    /// Room for more bytes of the stream; never empty. Say with [`Self::filled`] how much was used.
    pub fn space(&mut self) -> &mut [u8] {
        self.leave_shown();
        self.intake.space()
    }

    /// Says that the first `count` bytes of [`Self::space`] have been filled; more than it has
    /// counts as all.
    pub fn filled(&mut self, count: usize) {
        self.intake.filled(count);
    }

    /// Takes bytes from the front of `bytes` and returns how many. Poll before pushing the rest.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let space = self.space();
        let count = space.len().min(bytes.len());
        space[..count].copy_from_slice(&bytes[..count]);
        self.filled(count);
        count
    }

    /// The next event, or `None` if it takes more bytes.
    ///
    /// # Errors
    /// What is wrong with the stream and at which byte; the same again on every later call.
    pub fn poll(&mut self) -> Result<Option<Event<'_>>, ReadError> {
        if let Some(error) = self.failed.get() {
            return Err(error.clone());
        }
        self.leave_shown();
        let found = match self.advance() {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.fail(error)),
        };
        let reader: &Self = self;
        reader
            .show(found)
            .map(Some)
            .map_err(|error| reader.fail(error))
    }

    /// To be called at the end of the input.
    ///
    /// # Errors
    /// An earlier error again, or [`Defect::Truncated`] if the end mark has not been read, or
    /// [`Defect::Trailing`] if bytes follow it.
    pub fn finish(&mut self) -> Result<(), ReadError> {
        if let Some(error) = self.failed.get() {
            return Err(error.clone());
        }
        self.leave_shown();
        let have = self.intake.unread.len();
        let defect = match self.expect {
            Expect::Nothing if have == 0 => return Ok(()),
            Expect::Nothing => Defect::Trailing,
            _ => Defect::Truncated {
                within: self.within(),
                missing: self.intake.needed.saturating_sub(have).max(1) as u64,
            },
        };
        let offset = match self.expect {
            Expect::Nothing => self.intake.offset,
            _ => self.intake.offset + have as u64,
        };
        Err(self.fail(ReadError { offset, defect }))
    }

    /// The header, once it has been read.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// The manifest, once it has been read.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// What has been read so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Offset in the stream of the event shown last, or of what comes next if none was.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.intake.offset
    }

    /// True once the end mark has been read and found right.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.expect, Expect::Nothing)
    }

    /// True once the freeze has been read.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.order.is_frozen()
    }

    fn within(&self) -> &'static str {
        match self.expect {
            Expect::Header => "header",
            Expect::Extension(_) => "header extension",
            Expect::Manifest(_) => "manifest",
            Expect::Frame if self.intake.needed > FRAME_HEADER_BYTES => "frame",
            Expect::Frame => "frames",
            Expect::Nothing => "end",
        }
    }

    fn fail(&self, error: ReadError) -> ReadError {
        self.failed.get_or_init(|| error).clone()
    }

    /// Gives up the bytes of the event shown last.
    fn leave_shown(&mut self) {
        self.tally.bytes += self.intake.leave_shown();
    }

    /// Reads items until one is worth showing.
    fn advance(&mut self) -> Result<Option<Found>, ReadError> {
        loop {
            if self.intake.offset + self.intake.unread.len() as u64 > self.limits.stream_bytes_max {
                let found = self.intake.offset + self.intake.unread.len() as u64;
                let limit = self.limits.stream_bytes_max;
                return Err(self.intake.at(
                    0,
                    Defect::Limit {
                        what: "a stream",
                        found,
                        limit,
                    },
                ));
            }
            let found = match self.expect {
                Expect::Header => self.read_header(),
                Expect::Extension(parsed) => self.read_extension(parsed),
                Expect::Manifest(parsed) => self.read_manifest(parsed),
                Expect::Frame => self.read_frame(),
                Expect::Nothing if self.intake.unread.is_empty() => return Ok(None),
                Expect::Nothing => Err(self.intake.at(0, Defect::Trailing)),
            };
            match found? {
                Progress::NeedMore => return Ok(None),
                Progress::Skipped => self.leave_shown(),
                Progress::Found(found) => return Ok(Some(found)),
            }
        }
    }

    /// Makes an event of what was found; the borrow of `self` is the event's.
    fn show(&self, found: Found) -> Result<Event<'_>, ReadError> {
        let (Some(header), Some(manifest)) = (&self.header, &self.manifest) else {
            return Err(self.intake.at(0, Defect::EndSections));
        };
        let malformed = |kind| self.intake.at(FRAME_HEADER_BYTES, Defect::Payload { kind });
        Ok(match found {
            Found::Opened => Event::Opened { header, manifest },
            Found::Records {
                delta,
                section,
                shard,
                place,
            } => {
                let section = &manifest.sections[section];
                let records = self.records(section.kind, delta, &place)?;
                match delta {
                    false => Event::Bulk {
                        section,
                        shard,
                        records,
                    },
                    true => Event::Delta {
                        section,
                        shard,
                        records,
                    },
                }
            }
            Found::Memfd { section, place } => Event::Memfd {
                section: &manifest.sections[section],
                reference: MemfdRef::parse(self.bytes(&place))
                    .ok_or_else(|| malformed(FrameKind::Memfd))?,
            },
            Found::Connection { section, place } => Event::Connection {
                section: &manifest.sections[section],
                reference: ConnectionRef::parse(self.bytes(&place))
                    .ok_or_else(|| malformed(FrameKind::Connection))?,
            },
            Found::RoundEnd(round) => Event::RoundEnd(round),
            Found::Freeze(freeze) => Event::Freeze(freeze),
            Found::End(end) => Event::End(end),
        })
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        match place {
            Place::Buffer(range) => &self.intake.buffer[range.clone()],
            Place::Continued => &self.whole,
        }
    }

    fn records(
        &self,
        kind: SectionKind,
        delta: bool,
        place: &Place,
    ) -> Result<Records<'_>, ReadError> {
        let records = Records::check(self.bytes(place), delta, |key| key_fits(kind, key))
            .map_err(|defect| self.intake.at(FRAME_HEADER_BYTES, defect))?;
        if matches!(place, Place::Continued) && records.len() != 1 {
            return Err(self.intake.at(FRAME_HEADER_BYTES, RecordDefect::Count));
        }
        let limit = self.limits.entry_bytes_max.min(ENTRY_BYTES_MAX);
        // No record is larger than the payload it is in.
        if self.bytes(place).len() > limit as usize + RECORD_HEADER_BYTES {
            self.check_entry_sizes(records.clone(), u64::from(limit))?;
        }
        Ok(records)
    }

    fn check_entry_sizes(&self, records: Records<'_>, limit: u64) -> Result<(), ReadError> {
        for record in records {
            let found = (record.raw.len() - RECORD_HEADER_BYTES) as u64;
            if found > limit {
                let defect = Defect::Limit {
                    what: "an entry",
                    found,
                    limit,
                };
                return Err(self.intake.at(FRAME_HEADER_BYTES, defect));
            }
        }
        Ok(())
    }
}

/// How far reading one item came.
#[derive(Debug)]
enum Progress {
    NeedMore,
    Skipped,
    Found(Found),
}
