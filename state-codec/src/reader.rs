//! The reading half: bytes in, checked events out, no I/O.
//!
//! The caller fills [`SnapshotReader::space`] from wherever the stream comes and calls
//! [`SnapshotReader::poll`] until it asks for more. Memory is bounded by one frame, one manifest and one
//! continued entry, whatever the stream claims: no length is believed before its checksum held.

use std::cell::OnceCell;
use std::ops::Range;

use crate::digest::StreamDigest;
use crate::envelope::ParsedHeader;
use crate::envelope::{HEADER_BYTES, Header, Manifest, SectionDescriptor, SectionKind};
use crate::error::{Defect, ReadError};
use crate::event::{End, Event, Tally};
use crate::frame::control::{Abort, EndFields, Freeze, RoundEnd};
use crate::frame::record::{RECORD_HEADER_BYTES, RecordDefect, Records};
use crate::frame::reference::{ConnectionRef, MemfdRef};
use crate::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameHeaderDefect, FrameKind, flag};
use crate::limits::{CONTROL_BYTES_MAX, ENTRY_BYTES_MAX, Limits};
use crate::order::Order;
use crate::writer::key_fits;

/// Room offered to the caller beyond what the current item needs, in bytes.
const READ_AHEAD_BYTES: usize = 64 * 1024;

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
    buffer: Vec<u8>,
    /// The unread bytes of `buffer`.
    unread: Range<usize>,
    /// Bytes at the front of `unread` that belong to the event shown last.
    shown: usize,
    /// Bytes from `unread.start` that the current item needs as a whole.
    needed: usize,
    /// Offset of `unread.start` in the stream.
    offset: u64,
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
            buffer: Vec::new(),
            unread: 0..0,
            shown: 0,
            needed: HEADER_BYTES,
            offset: 0,
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
        let wanted = self.needed.max(self.unread.len()) + READ_AHEAD_BYTES;
        if self.buffer.len() - self.unread.start < wanted {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        &mut self.buffer[self.unread.end..]
    }

    /// Says that the first `count` bytes of [`Self::space`] have been filled; more than it has counts
    /// as all.
    pub fn filled(&mut self, count: usize) {
        self.unread.end = self.buffer.len().min(self.unread.end + count);
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
        let have = self.unread.len();
        let defect = match self.expect {
            Expect::Nothing if have == 0 => return Ok(()),
            Expect::Nothing => Defect::Trailing,
            _ => Defect::Truncated {
                within: self.within(),
                missing: self.needed.saturating_sub(have).max(1) as u64,
            },
        };
        let offset = match self.expect {
            Expect::Nothing => self.offset,
            _ => self.offset + have as u64,
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
            Expect::Frame if self.needed > FRAME_HEADER_BYTES => "frame",
            Expect::Frame => "frames",
            Expect::Nothing => "end",
        }
    }

    fn fail(&self, error: ReadError) -> ReadError {
        self.failed.get_or_init(|| error).clone()
    }

    /// Gives up the bytes of the event shown last.
    fn leave_shown(&mut self) {
        let count = std::mem::take(&mut self.shown);
        self.unread.start += count;
        self.offset += count as u64;
        self.tally.bytes += count as u64;
    }

    /// An error at `distance` bytes behind the current item's start.
    fn at(&self, distance: usize, defect: impl Into<Defect>) -> ReadError {
        ReadError {
            offset: self.offset + distance as u64,
            defect: defect.into(),
        }
    }

    /// The current item's first `count` bytes, or `None` and a note of what is needed.
    fn have(&mut self, count: usize) -> Option<Range<usize>> {
        self.needed = count;
        let range = self.unread.start..self.unread.start + count;
        (range.end <= self.unread.end).then_some(range)
    }

    /// Reads items until one is worth showing.
    fn advance(&mut self) -> Result<Option<Found>, ReadError> {
        loop {
            if self.offset + self.unread.len() as u64 > self.limits.stream_bytes_max {
                let found = self.offset + self.unread.len() as u64;
                let limit = self.limits.stream_bytes_max;
                return Err(self.at(
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
                Expect::Nothing if self.unread.is_empty() => return Ok(None),
                Expect::Nothing => Err(self.at(0, Defect::Trailing)),
            };
            match found? {
                Progress::NeedMore => return Ok(None),
                Progress::Skipped => self.leave_shown(),
                Progress::Found(found) => return Ok(Some(found)),
            }
        }
    }

    fn read_header(&mut self) -> Result<Progress, ReadError> {
        // A stream of another kind may be shorter than a header; say so as soon as it is known.
        let seen = &self.buffer[self.unread.clone()];
        let common = seen.len().min(crate::envelope::MAGIC.len());
        if seen[..common] != crate::envelope::MAGIC[..common] {
            let mut found = [0; 8];
            found[..common].copy_from_slice(&seen[..common]);
            return Err(self.at(0, Defect::Magic { found }));
        }
        let Some(range) = self.have(HEADER_BYTES) else {
            return Ok(Progress::NeedMore);
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&self.buffer[range]);
        let parsed =
            ParsedHeader::parse(&bytes).map_err(|(offset, defect)| ReadError { offset, defect })?;
        self.digest.update(&bytes);
        self.header = Some(parsed.header);
        self.expect = match parsed.extension_len {
            0 => Expect::Manifest(parsed),
            _ => Expect::Extension(parsed),
        };
        self.shown = HEADER_BYTES;
        Ok(Progress::Skipped)
    }

    fn read_extension(&mut self, parsed: ParsedHeader) -> Result<Progress, ReadError> {
        let Some(range) = self.have(parsed.extension_len as usize) else {
            return Ok(Progress::NeedMore);
        };
        let bytes = &self.buffer[range];
        let (body, declared) = bytes.split_at(bytes.len() - 4);
        let computed = crc32fast::hash(body);
        if declared != computed.to_le_bytes() {
            let mut word = [0; 4];
            word.copy_from_slice(declared);
            let declared = u32::from_le_bytes(word);
            return Err(self.at(0, Defect::HeaderChecksum { declared, computed }));
        }
        self.digest.update(bytes);
        self.shown = bytes.len();
        self.expect = Expect::Manifest(parsed);
        Ok(Progress::Skipped)
    }

    fn read_manifest(&mut self, parsed: ParsedHeader) -> Result<Progress, ReadError> {
        let Some(range) = self.have(parsed.manifest_len as usize) else {
            return Ok(Progress::NeedMore);
        };
        let bytes = &self.buffer[range];
        let computed = crc32fast::hash(bytes);
        let declared = parsed.manifest_checksum;
        if declared != computed {
            return Err(self.at(0, Defect::ManifestChecksum { declared, computed }));
        }
        let manifest = Manifest::parse(bytes).map_err(|(at, defect)| self.at(at, defect))?;
        self.digest.update(bytes);
        self.shown = bytes.len();
        self.references = vec![0; manifest.sections.len()];
        self.manifest = Some(manifest);
        self.expect = Expect::Frame;
        Ok(Progress::Found(Found::Opened))
    }

    fn read_frame(&mut self) -> Result<Progress, ReadError> {
        let Some(range) = self.have(FRAME_HEADER_BYTES) else {
            return Ok(Progress::NeedMore);
        };
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes.copy_from_slice(&self.buffer[range]);
        let header = FrameHeader::parse(&bytes).map_err(|defect| {
            self.at(
                0,
                match defect {
                    FrameHeaderDefect::Sync { found } => Defect::FrameSync { found },
                    FrameHeaderDefect::Checksum { declared, computed } => {
                        Defect::FrameHeaderChecksum { declared, computed }
                    }
                },
            )
        })?;
        let kind = self.check_frame_header(&header)?;
        let frame_len = FRAME_HEADER_BYTES + header.payload_len as usize;
        let Some(range) = self.have(frame_len) else {
            return Ok(Progress::NeedMore);
        };
        let payload = range.start + FRAME_HEADER_BYTES..range.end;
        let computed = crc32fast::hash(&self.buffer[payload.clone()]);
        let declared = header.payload_checksum;
        if declared != computed {
            let defect = Defect::PayloadChecksum { declared, computed };
            return Err(self.at(FRAME_HEADER_BYTES, defect));
        }
        let progress = match kind {
            Some(kind) => self.read_payload(kind, &header, payload)?,
            None => {
                self.tally.skipped += 1;
                Progress::Skipped
            }
        };
        if kind != Some(FrameKind::End) {
            self.digest.update(&self.buffer[range]);
        }
        self.sequence += 1;
        self.shown = frame_len;
        self.needed = FRAME_HEADER_BYTES;
        Ok(progress)
    }

    /// Checks all of a frame header that can be wrong though its checksum holds. `None` is an unknown
    /// kind that may be skipped.
    fn check_frame_header(&self, header: &FrameHeader) -> Result<Option<FrameKind>, ReadError> {
        if header.sequence != self.sequence {
            let (expected, found) = (self.sequence, header.sequence);
            return Err(self.at(16, Defect::Sequence { expected, found }));
        }
        let cap = self.header.map_or(0, |header| header.frame_cap);
        let cap = if header.section == 0 {
            cap.max(CONTROL_BYTES_MAX)
        } else {
            cap
        };
        if header.payload_len > cap {
            return Err(self.at(
                8,
                Defect::FrameLength {
                    found: header.payload_len,
                    cap,
                },
            ));
        }
        if let Some(continued) = &self.continued {
            let goes_on = header.known_kind() == Some(continued.kind)
                && header.section == continued.section
                && header.shard == continued.shard;
            // An abort may come at any point.
            if !goes_on && header.known_kind() != Some(FrameKind::Abort) {
                return Err(self.at(4, Defect::Continuation { kind: header.kind }));
            }
        }
        let kind = header.known_kind();
        let optional = header.flags & flag::OPTIONAL != 0;
        if kind.is_none() && !optional {
            return Err(self.at(4, Defect::UnknownFrame { kind: header.kind }));
        }
        let stream_wide = matches!(
            kind,
            Some(FrameKind::RoundEnd | FrameKind::Freeze | FrameKind::End | FrameKind::Abort)
        );
        if let Some(kind) = kind
            && stream_wide
            && (header.section != 0 || header.shard != 0)
        {
            return Err(self.at(
                6,
                Defect::FrameSection {
                    kind,
                    section: header.section,
                },
            ));
        }
        let holds_records = matches!(kind, Some(FrameKind::Bulk | FrameKind::Delta));
        let more = header.flags & flag::MORE != 0;
        let unfit = more && !holds_records || optional && kind.is_some();
        if header.flags & !flag::KNOWN != 0 || unfit {
            let defect = Defect::FrameFlags {
                kind: header.kind,
                flags: header.flags,
            };
            return Err(self.at(5, defect));
        }
        Ok(kind)
    }

    /// Position of the frame's section in the manifest, if its kind may hold such frames.
    fn section(&self, kind: FrameKind, header: &FrameHeader) -> Result<usize, ReadError> {
        let fits = |section: &SectionDescriptor| match kind {
            FrameKind::Bulk | FrameKind::Delta => section.kind.has_records(),
            FrameKind::Memfd => section.kind == SectionKind::Blob,
            FrameKind::Connection => section.kind == SectionKind::Connection,
            FrameKind::RoundEnd | FrameKind::Freeze | FrameKind::End | FrameKind::Abort => false,
        };
        let sections = self
            .manifest
            .as_ref()
            .map_or(&[][..], |manifest| &manifest.sections);
        let position = sections
            .iter()
            .position(|section| section.id == header.section_id() && fits(section));
        let defect = Defect::FrameSection {
            kind,
            section: header.section,
        };
        position.ok_or_else(|| self.at(6, defect))
    }

    fn read_payload(
        &mut self,
        kind: FrameKind,
        header: &FrameHeader,
        payload: Range<usize>,
    ) -> Result<Progress, ReadError> {
        let bytes = &self.buffer[payload.clone()];
        let malformed = || self.at(FRAME_HEADER_BYTES, Defect::Payload { kind });
        let (found, round) = match kind {
            FrameKind::Bulk | FrameKind::Delta => {
                let (section, shard) = (self.section(kind, header)?, header.shard);
                let (delta, place) = (kind == FrameKind::Delta, Place::Buffer(payload.clone()));
                (
                    Found::Records {
                        delta,
                        section,
                        shard,
                        place,
                    },
                    0,
                )
            }
            FrameKind::Memfd => {
                let section = self.section(kind, header)?;
                (
                    Found::Memfd {
                        section,
                        place: Place::Buffer(payload.clone()),
                    },
                    0,
                )
            }
            FrameKind::Connection => {
                let section = self.section(kind, header)?;
                (
                    Found::Connection {
                        section,
                        place: Place::Buffer(payload.clone()),
                    },
                    0,
                )
            }
            FrameKind::RoundEnd => {
                let round = RoundEnd::parse(bytes).ok_or_else(malformed)?;
                (Found::RoundEnd(round), round.round)
            }
            FrameKind::Freeze => {
                let freeze = Freeze::parse(bytes).ok_or_else(malformed)?;
                (Found::Freeze(freeze), freeze.rounds)
            }
            FrameKind::End => (Found::End(self.read_end(bytes)?), 0),
            FrameKind::Abort => {
                let Abort { reason, message } = Abort::parse(bytes).ok_or_else(malformed)?;
                return Err(self.at(0, Defect::Aborted { reason, message }));
            }
        };
        let mut order = self.order;
        order
            .admit(kind, round)
            .map_err(|defect| self.at(0, defect))?;
        self.order = order;
        self.tally.count(kind);
        match found {
            Found::Records { section, .. } => self.read_records(header, payload, kind, section),
            Found::Memfd { section, .. } | Found::Connection { section, .. } => {
                self.references[section] += 1;
                Ok(Progress::Found(found))
            }
            Found::End(_) if self.unread.end > payload.end => {
                Err(self.at(payload.end - self.unread.start, Defect::Trailing))
            }
            Found::End(_) => {
                self.expect = Expect::Nothing;
                Ok(Progress::Found(found))
            }
            Found::Opened | Found::RoundEnd(_) | Found::Freeze(_) => Ok(Progress::Found(found)),
        }
    }

    /// Shows the records of a frame, or puts them to those that they continue.
    fn read_records(
        &mut self,
        header: &FrameHeader,
        payload: Range<usize>,
        kind: FrameKind,
        section: usize,
    ) -> Result<Progress, ReadError> {
        let more = header.flags & flag::MORE != 0;
        let (delta, shard) = (kind == FrameKind::Delta, header.shard);
        if !more && self.continued.is_none() {
            let place = Place::Buffer(payload);
            return Ok(Progress::Found(Found::Records {
                delta,
                section,
                shard,
                place,
            }));
        }
        let bytes = &self.buffer[payload];
        let limit = self.limits.entry_bytes_max.min(ENTRY_BYTES_MAX);
        let held = self
            .continued
            .as_ref()
            .map_or(0, |continued| continued.bytes.len());
        let found = held + bytes.len();
        if found > limit as usize + RECORD_HEADER_BYTES {
            let (found, limit) = (found as u64, u64::from(limit));
            return Err(self.at(
                0,
                Defect::Limit {
                    what: "an entry",
                    found,
                    limit,
                },
            ));
        }
        if bytes.is_empty() {
            return Err(self.at(FRAME_HEADER_BYTES, RecordDefect::Short));
        }
        let section_number = header.section;
        let continued = self.continued.get_or_insert_with(|| Continued {
            kind,
            section: section_number,
            shard,
            bytes: Vec::new(),
        });
        continued.bytes.extend_from_slice(bytes);
        if more {
            return Ok(Progress::Skipped);
        }
        self.whole = self
            .continued
            .take()
            .map(|continued| continued.bytes)
            .unwrap_or_default();
        Ok(Progress::Found(Found::Records {
            delta,
            section,
            shard,
            place: Place::Continued,
        }))
    }

    /// Holds the end mark against everything that was read.
    fn read_end(&self, payload: &[u8]) -> Result<End, ReadError> {
        let kind = FrameKind::End;
        let (fields, covered, declared) = EndFields::parse(payload)
            .ok_or_else(|| self.at(FRAME_HEADER_BYTES, Defect::Payload { kind }))?;
        let mut digest = self.digest.clone();
        digest.update(covered);
        if digest.value() != declared {
            return Err(self.at(FRAME_HEADER_BYTES + covered.len(), Defect::StreamDigest));
        }
        let count = |what, declared, counted| {
            let defect = Defect::EndCount {
                what,
                declared,
                counted,
            };
            if declared == counted {
                Ok(())
            } else {
                Err(self.at(FRAME_HEADER_BYTES, defect))
            }
        };
        count("frames", fields.frames, self.sequence)?;
        count("bytes", fields.bytes, self.offset)?;
        let sections = self
            .manifest
            .as_ref()
            .map_or(&[][..], |manifest| &manifest.sections);
        let listed = fields.totals.iter().map(|total| total.section);
        if !listed.eq(sections.iter().map(|section| section.id)) {
            return Err(self.at(FRAME_HEADER_BYTES, Defect::EndSections));
        }
        for ((section, total), read) in sections.iter().zip(&fields.totals).zip(&self.references) {
            if !section.kind.has_records() {
                count("references", total.state.entries, *read)?;
                count("digests of references", u64::from(total.state.sum != 0), 0)?;
            }
        }
        Ok(End::new(fields, declared, sections))
    }

    /// Makes an event of what was found; the borrow of `self` is the event's.
    fn show(&self, found: Found) -> Result<Event<'_>, ReadError> {
        let (Some(header), Some(manifest)) = (&self.header, &self.manifest) else {
            return Err(self.at(0, Defect::EndSections));
        };
        let malformed = |kind| self.at(FRAME_HEADER_BYTES, Defect::Payload { kind });
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
            Place::Buffer(range) => &self.buffer[range.clone()],
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
            .map_err(|defect| self.at(FRAME_HEADER_BYTES, defect))?;
        if matches!(place, Place::Continued) && records.len() != 1 {
            return Err(self.at(FRAME_HEADER_BYTES, RecordDefect::Count));
        }
        let limit = u64::from(self.limits.entry_bytes_max.min(ENTRY_BYTES_MAX));
        for record in records.clone() {
            let found = (record.raw.len() - RECORD_HEADER_BYTES) as u64;
            if found > limit {
                return Err(self.at(
                    FRAME_HEADER_BYTES,
                    Defect::Limit {
                        what: "an entry",
                        found,
                        limit,
                    },
                ));
            }
        }
        Ok(records)
    }
}

/// How far reading one item came.
#[derive(Debug)]
enum Progress {
    NeedMore,
    Skipped,
    Found(Found),
}
