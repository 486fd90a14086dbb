//! Puts frames together: appends records, keeps to the frame cap, seals.

use super::field::{Field, key_fits};
use super::{OpenFrame, SnapshotWriter};
use crate::digest::EntryHash;
use crate::envelope::{SectionId, SectionKind};
use crate::error::WriteError;
use crate::frame::record::{self, Change, TOMBSTONE};
use crate::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, flag};
use crate::limits::{ENTRY_BYTES_MAX, KEY_BYTES_MAX};

impl SnapshotWriter {
    pub(super) fn position(&self, section: SectionId) -> Result<usize, WriteError> {
        let position = self.sections.iter().position(|(id, ..)| *id == section);
        position.ok_or(WriteError::UnknownSection(section))
    }

    pub(super) fn room(&self) -> Result<(), WriteError> {
        let (held, limit) = (self.backlog_bytes(), self.limits.backlog_bytes_max);
        if held > limit {
            return Err(WriteError::Backlog { held, limit });
        }
        let limit = self.limits.stream_bytes_max;
        if self.stream_bytes() > limit {
            return Err(WriteError::StreamLength { limit });
        }
        Ok(())
    }

    pub(super) fn count_out(&mut self, section: SectionId, replaced: Option<EntryHash>) {
        if let (Some(hash), Ok(position)) = (replaced, self.position(section)) {
            self.sections[position].2.remove(hash);
        }
    }

    /// Appends one record and counts it in. On an error `out` is as it was before.
    pub(super) fn entry(
        &mut self,
        kind: FrameKind,
        section: SectionId,
        version: u64,
        key: impl Field,
        value: Option<impl Field>,
    ) -> Result<EntryHash, WriteError> {
        let position = self.position(section)?;
        let section_kind = self.sections[position].1;
        if !section_kind.has_records() {
            return Err(WriteError::SectionKind {
                section,
                kind: section_kind,
                what: "entries",
            });
        }
        self.room()?;
        self.order.admit(kind, 0)?;
        self.open(kind, section);
        let start = self.out.len();
        let change = match self.record(section, section_kind, version, key, value) {
            Ok(change) => change,
            Err(error) => {
                self.out.truncate(start);
                return Err(error);
            }
        };
        let hash = EntryHash::of_record(&self.out[start..]);
        if change != Change::Remove {
            self.sections[position].2.add(hash);
        }
        self.round_records += 1;
        self.fit(start);
        Ok(hash)
    }

    /// Appends the bytes of one record and checks them against the limits.
    pub(super) fn record(
        &mut self,
        section: SectionId,
        section_kind: SectionKind,
        version: u64,
        key: impl Field,
        value: Option<impl Field>,
    ) -> Result<Change<'static>, WriteError> {
        let start = self.out.len();
        record::begin(&mut self.out, version);
        let key_start = self.out.len();
        key.append(&mut self.out)?;
        let key_len = self.out.len() - key_start;
        if key_len > KEY_BYTES_MAX as usize {
            return Err(WriteError::KeyLength {
                section,
                found: key_len,
            });
        }
        if !key_fits(section_kind, &self.out[key_start..]) {
            return Err(WriteError::SectionKind {
                section,
                kind: section_kind,
                what: "such a key",
            });
        }
        let change = match value {
            Some(value) => {
                value.append(&mut self.out)?;
                Change::Put(&[])
            }
            None => Change::Remove,
        };
        let (found, limit) = (
            self.out.len() - key_start,
            self.limits.entry_bytes_max.min(ENTRY_BYTES_MAX),
        );
        if found > limit as usize {
            return Err(WriteError::EntryLength {
                section,
                found,
                limit,
            });
        }
        let value_len = match change {
            Change::Put(_) => (found - key_len) as u32,
            Change::Remove => TOMBSTONE,
        };
        record::patch(&mut self.out, start, key_len as u32, value_len);
        Ok(change)
    }

    /// Makes sure that a frame for this kind and section is open.
    pub(super) fn open(&mut self, kind: FrameKind, section: SectionId) {
        if self
            .open
            .is_some_and(|open| open.kind != kind || open.section != section)
        {
            self.flush();
        }
        if self.open.is_none() {
            let start = self.out.len();
            self.out.resize(start + FRAME_HEADER_BYTES, 0);
            self.open = Some(OpenFrame {
                start,
                kind,
                section,
            });
        }
    }

    /// Restores the frame cap after the record at `record_start` was appended to the open frame:
    /// the records before it are sealed, and one too large for any frame is split over several.
    pub(super) fn fit(&mut self, record_start: usize) {
        let Some(open) = self.open else { return };
        let payload_start = open.start + FRAME_HEADER_BYTES;
        if self.out.len() - payload_start <= self.frame_cap {
            return;
        }
        let mut rest = self.out.split_off(record_start);
        if record_start > payload_start {
            self.flush();
        } else {
            self.open = None;
            self.out.truncate(open.start);
        }
        let split = rest.len() > self.frame_cap;
        while rest.len() > self.frame_cap {
            let tail = rest.split_off(self.frame_cap);
            self.open(open.kind, open.section);
            self.out.extend_from_slice(&rest);
            if let Some(full) = self.open.take() {
                self.seal(full, flag::MORE);
            }
            rest = tail;
        }
        self.open(open.kind, open.section);
        self.out.extend_from_slice(&rest);
        if split {
            self.flush();
        }
    }

    pub(super) fn reference(
        &mut self,
        kind: FrameKind,
        section: SectionId,
        wanted: SectionKind,
        payload: &[u8],
    ) -> Result<(), WriteError> {
        let position = self.position(section)?;
        let section_kind = self.sections[position].1;
        if section_kind != wanted {
            let what = "this kind of reference";
            return Err(WriteError::SectionKind {
                section,
                kind: section_kind,
                what,
            });
        }
        if payload.len() > self.frame_cap {
            let limit = self.frame_cap as u32;
            return Err(WriteError::EntryLength {
                section,
                found: payload.len(),
                limit,
            });
        }
        self.room()?;
        self.order.admit(kind, 0)?;
        self.whole(kind, section, payload);
        let references = &mut self.sections[position].2.entries;
        *references = references.wrapping_add(1);
        Ok(())
    }

    /// Appends a frame whose payload is known as a whole.
    pub(super) fn whole(&mut self, kind: FrameKind, section: SectionId, payload: &[u8]) {
        self.flush();
        self.open(kind, section);
        self.out.extend_from_slice(payload);
        self.flush();
    }

    /// Fills in the header of the frame at the end of `out`.
    pub(super) fn seal(&mut self, open: OpenFrame, flags: u8) {
        let payload_start = open.start + FRAME_HEADER_BYTES;
        if self.out.len() == payload_start {
            // The entry for which it was opened was refused.
            self.out.truncate(open.start);
            return;
        }
        let payload = &self.out[payload_start..];
        let header = FrameHeader {
            kind: open.kind as u8,
            flags,
            section: open.section.0,
            payload_len: payload.len() as u32,
            shard: if open.section.0 == 0 { 0 } else { self.shard },
            sequence: self.sequence,
            payload_checksum: crc32fast::hash(payload),
        };
        self.out[open.start..payload_start].copy_from_slice(&header.to_bytes());
        self.digest.update(&self.out[open.start..]);
        self.written += (self.out.len() - open.start) as u64;
        self.sequence += 1;
        self.sealed = self.out.len();
    }
}
