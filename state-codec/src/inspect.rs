//! Reads a snapshot without the program that wrote it and says what is in it and what is wrong with
//! it.

use std::fmt;
use std::io::{self, Read};

use crate::digest::StateDigest;
use crate::envelope::{Header, Manifest, SectionDescriptor};
use crate::error::ReadError;
use crate::event::{Event, StateMismatch, Tally};
use crate::frame::FrameKind;
use crate::frame::control::SectionTotal;
use crate::frame::record::{Change, Records};
use crate::ledger::{ApplyError, EntryLedger};
use crate::limits::Limits;
use crate::reader::SnapshotReader;

/// What one section holds, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionReport {
    /// Its entry in the manifest.
    pub section: SectionDescriptor,
    /// Records that put an entry.
    pub puts: u64,
    /// Records that removed one.
    pub removals: u64,
    /// References to file descriptors.
    pub references: u64,
    /// Bytes of keys and values, or of the objects that are referred to.
    pub bytes: u64,
    /// Live entries and their digest, as the inspector computed them.
    pub state: StateDigest,
}

/// What a snapshot holds and what is wrong with it. Its text is for people.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// The header, if it could be read.
    pub header: Option<Header>,
    /// Name of the application, if the manifest could be read.
    pub app: Option<String>,
    /// The sections, in the manifest's order.
    pub sections: Vec<SectionReport>,
    /// Frames and bytes that were read and found right.
    pub tally: Tally,
    /// Digest of the stream, if it is complete.
    pub stream_digest: Option<[u8; 32]>,
    /// What is wrong with the stream, if anything is.
    pub damage: Option<ReadError>,
    /// The first record that breaks a rule, and the offset of the frame it is in.
    pub misapplied: Option<(u64, ApplyError)>,
    /// The end mark declares another state than the records lead to.
    pub mismatch: Option<StateMismatch>,
}

impl Report {
    /// True if the snapshot is complete and nothing is wrong with it.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.stream_digest.is_some()
            && self.damage.is_none()
            && self.misapplied.is_none()
            && self.mismatch.is_none()
    }
}

/// Reads a snapshot to its end or to the first damage.
///
/// # Errors
/// What `input` returns. A damaged snapshot is no error here; the report says what is wrong.
pub fn inspect(mut input: impl Read, limits: Limits) -> io::Result<Report> {
    let mut reader = SnapshotReader::new(limits);
    let mut report = Report::default();
    let mut ledger = None;
    loop {
        match reader.poll() {
            Ok(Some(event)) => {
                if let Err(error) = report.add(&event, &mut ledger, &limits) {
                    report.misapplied = Some((reader.offset(), error));
                }
            }
            Ok(None) => {
                let count = match input.read(reader.space()) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                reader.filled(count);
                if count == 0 {
                    report.damage = reader.finish().err();
                    break;
                }
            }
            Err(error) => {
                report.damage = Some(error);
                break;
            }
        }
    }
    report.header = reader.header().copied();
    report.tally = *reader.tally();
    if report.damage.is_some() {
        report.stream_digest = None;
    }
    Ok(report)
}

impl Report {
    fn add(
        &mut self,
        event: &Event<'_>,
        ledger: &mut Option<EntryLedger>,
        limits: &Limits,
    ) -> Result<(), ApplyError> {
        match event {
            Event::Opened { manifest, .. } => {
                self.open(manifest);
                *ledger = Some(EntryLedger::new(manifest, limits));
            }
            Event::Bulk {
                section, records, ..
            }
            | Event::Delta {
                section, records, ..
            } => {
                self.count_records(section, records);
                if self.misapplied.is_none()
                    && let Some(ledger) = ledger
                {
                    return ledger.apply(event);
                }
            }
            Event::Memfd { section, reference } => {
                self.count_reference(section, reference.length);
            }
            Event::Connection { section, reference } => {
                let bytes = reference.unread.len() + reference.state.len();
                self.count_reference(section, bytes as u64);
            }
            Event::RoundEnd(_) | Event::Freeze(_) => {}
            Event::End(end) => {
                let totals = ledger.as_ref().map(EntryLedger::totals).unwrap_or_default();
                self.settle(&totals);
                self.stream_digest = Some(end.stream_digest);
                if self.misapplied.is_none() {
                    self.mismatch = end.verify(&totals).err();
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, manifest: &Manifest) {
        self.app = Some(manifest.app.clone());
        let sections = manifest.sections.iter().cloned();
        self.sections = sections
            .map(|section| SectionReport {
                section,
                puts: 0,
                removals: 0,
                references: 0,
                bytes: 0,
                state: StateDigest::default(),
            })
            .collect();
    }

    fn section(&mut self, section: &SectionDescriptor) -> Option<&mut SectionReport> {
        self.sections
            .iter_mut()
            .find(|report| report.section.id == section.id)
    }

    fn count_records(&mut self, section: &SectionDescriptor, records: &Records<'_>) {
        let Some(report) = self.section(section) else {
            return;
        };
        for record in records.clone() {
            report.bytes += record.key.len() as u64;
            match record.change {
                Change::Put(value) => {
                    report.puts += 1;
                    report.bytes += value.len() as u64;
                }
                Change::Remove => report.removals += 1,
            }
        }
    }

    fn count_reference(&mut self, section: &SectionDescriptor, bytes: u64) {
        if let Some(report) = self.section(section) {
            report.references += 1;
            report.bytes = report.bytes.saturating_add(bytes);
        }
    }

    fn settle(&mut self, totals: &[SectionTotal]) {
        for report in &mut self.sections {
            let total = totals
                .iter()
                .find(|total| total.section == report.section.id);
            report.state = total.map(|total| total.state).unwrap_or_default();
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(header) = &self.header {
            writeln!(
                f,
                "snapshot of {}, format {}.{}, generation {}, migration {}, build {}",
                self.app.as_deref().unwrap_or("an unknown application"),
                crate::envelope::FORMAT_MAJOR,
                header.format_minor,
                header.generation,
                header.migration_id,
                header.build_id
            )?;
        }
        for report in &self.sections {
            let section = &report.section;
            write!(
                f,
                "{} `{}`: {}, {}, {}",
                section.id, section.name, section.kind, section.schema, section.codec
            )?;
            if section.kind.has_records() {
                writeln!(
                    f,
                    "; {} puts, {} removals, {} bytes; {}",
                    report.puts, report.removals, report.bytes, report.state
                )?;
            } else {
                writeln!(
                    f,
                    "; {} references, {} bytes",
                    report.references, report.bytes
                )?;
            }
        }
        let kinds = FrameKind::ALL
            .into_iter()
            .filter(|kind| self.tally.frames(*kind) > 0);
        let kinds: Vec<_> = kinds
            .map(|kind| format!("{} {kind}", self.tally.frames(kind)))
            .collect();
        writeln!(
            f,
            "{} bytes in frames: {}",
            self.tally.bytes,
            kinds.join(", ")
        )?;
        if let Some(damage) = &self.damage {
            writeln!(f, "damaged at {damage}")?;
        }
        if let Some((offset, error)) = &self.misapplied {
            writeln!(f, "wrong at byte {offset}: {error}")?;
        }
        if let Some(mismatch) = &self.mismatch {
            writeln!(f, "wrong state: {mismatch}")?;
        }
        match &self.stream_digest {
            Some(digest) if self.is_sound() => {
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(f, "complete and sound, stream digest {hex}")
            }
            Some(_) | None => writeln!(f, "not to be used"),
        }
    }
}
