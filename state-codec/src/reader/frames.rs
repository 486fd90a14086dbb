//! Reading frames: checksums first, then the rules, then the payload.

use std::ops::Range;

use super::{Continued, Expect, Found, Place, Progress, SnapshotReader};
use crate::envelope::{SectionDescriptor, SectionKind};
use crate::error::{Defect, ReadError};
use crate::event::End;
use crate::frame::control::{Abort, EndFields, Freeze, RoundEnd};
use crate::frame::record::{RECORD_HEADER_BYTES, RecordDefect};
use crate::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameHeaderDefect, FrameKind, flag};
use crate::limits::{CONTROL_BYTES_MAX, ENTRY_BYTES_MAX};

impl SnapshotReader {
    pub(super) fn read_frame(&mut self) -> Result<Progress, ReadError> {
        let Some(range) = self.intake.have(FRAME_HEADER_BYTES) else {
            return Ok(Progress::NeedMore);
        };
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes.copy_from_slice(&self.intake.buffer[range]);
        let header = FrameHeader::parse(&bytes).map_err(|defect| {
            self.intake.at(
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
        let Some(range) = self.intake.have(frame_len) else {
            return Ok(Progress::NeedMore);
        };
        let payload = range.start + FRAME_HEADER_BYTES..range.end;
        let computed = crc32fast::hash(&self.intake.buffer[payload.clone()]);
        let declared = header.payload_checksum;
        if declared != computed {
            let defect = Defect::PayloadChecksum { declared, computed };
            return Err(self.intake.at(FRAME_HEADER_BYTES, defect));
        }
        let progress = match kind {
            Some(kind) => self.read_payload(kind, &header, payload)?,
            None => {
                self.tally.skipped += 1;
                Progress::Skipped
            }
        };
        if kind != Some(FrameKind::End) {
            self.digest.update(&self.intake.buffer[range]);
        }
        self.sequence += 1;
        self.intake.shown = frame_len;
        self.intake.needed = FRAME_HEADER_BYTES;
        Ok(progress)
    }

    /// Checks all of a frame header that can be wrong though its checksum holds. `None` is an
    /// unknown kind that may be skipped.
    fn check_frame_header(&self, header: &FrameHeader) -> Result<Option<FrameKind>, ReadError> {
        if header.sequence != self.sequence {
            let (expected, found) = (self.sequence, header.sequence);
            return Err(self.intake.at(16, Defect::Sequence { expected, found }));
        }
        let cap = self.header.map_or(0, |header| header.frame_cap);
        let cap = if header.section == 0 {
            cap.max(CONTROL_BYTES_MAX)
        } else {
            cap
        };
        if header.payload_len > cap {
            return Err(self.intake.at(
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
                return Err(self
                    .intake
                    .at(4, Defect::Continuation { kind: header.kind }));
            }
        }
        let kind = header.known_kind();
        let optional = header.flags & flag::OPTIONAL != 0;
        if kind.is_none() && !optional {
            return Err(self
                .intake
                .at(4, Defect::UnknownFrame { kind: header.kind }));
        }
        let stream_wide = matches!(
            kind,
            Some(FrameKind::RoundEnd | FrameKind::Freeze | FrameKind::End | FrameKind::Abort)
        );
        if let Some(kind) = kind
            && stream_wide
            && (header.section != 0 || header.shard != 0)
        {
            return Err(self.intake.at(
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
            return Err(self.intake.at(5, defect));
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
        position.ok_or_else(|| self.intake.at(6, defect))
    }

    fn read_payload(
        &mut self,
        kind: FrameKind,
        header: &FrameHeader,
        payload: Range<usize>,
    ) -> Result<Progress, ReadError> {
        let bytes = &self.intake.buffer[payload.clone()];
        let malformed = || self.intake.at(FRAME_HEADER_BYTES, Defect::Payload { kind });
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
                return Err(self.intake.at(0, Defect::Aborted { reason, message }));
            }
        };
        let mut order = self.order;
        order
            .admit(kind, round)
            .map_err(|defect| self.intake.at(0, defect))?;
        self.order = order;
        self.tally.count(kind);
        match found {
            Found::Records { section, .. } => self.read_records(header, payload, kind, section),
            Found::Memfd { section, .. } | Found::Connection { section, .. } => {
                self.references[section] += 1;
                Ok(Progress::Found(found))
            }
            Found::End(_) if self.intake.unread.end > payload.end => Err(self
                .intake
                .at(payload.end - self.intake.unread.start, Defect::Trailing)),
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
        let bytes = &self.intake.buffer[payload];
        let limit = self.limits.entry_bytes_max.min(ENTRY_BYTES_MAX);
        let held = self
            .continued
            .as_ref()
            .map_or(0, |continued| continued.bytes.len());
        let found = held + bytes.len();
        if found > limit as usize + RECORD_HEADER_BYTES {
            let (found, limit) = (found as u64, u64::from(limit));
            return Err(self.intake.at(
                0,
                Defect::Limit {
                    what: "an entry",
                    found,
                    limit,
                },
            ));
        }
        if bytes.is_empty() {
            return Err(self.intake.at(FRAME_HEADER_BYTES, RecordDefect::Short));
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
            .ok_or_else(|| self.intake.at(FRAME_HEADER_BYTES, Defect::Payload { kind }))?;
        let mut digest = self.digest.clone();
        digest.update(covered);
        if digest.value() != declared {
            return Err(self
                .intake
                .at(FRAME_HEADER_BYTES + covered.len(), Defect::StreamDigest));
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
                Err(self.intake.at(FRAME_HEADER_BYTES, defect))
            }
        };
        count("frames", fields.frames, self.sequence)?;
        count("bytes", fields.bytes, self.intake.offset)?;
        let sections = self
            .manifest
            .as_ref()
            .map_or(&[][..], |manifest| &manifest.sections);
        let listed = fields.totals.iter().map(|total| total.section);
        if !listed.eq(sections.iter().map(|section| section.id)) {
            return Err(self.intake.at(FRAME_HEADER_BYTES, Defect::EndSections));
        }
        for ((section, total), read) in sections.iter().zip(&fields.totals).zip(&self.references) {
            if !section.kind.has_records() {
                count("references", total.state.entries, *read)?;
                count("digests of references", u64::from(total.state.sum != 0), 0)?;
            }
        }
        Ok(End::new(fields, declared, sections))
    }
}
