//! `heirloom inspect`: what a saved state holds, without the program that wrote it.
//!
//! Owns the summary for people and the document for programs; reading and checking is
//! [`heirloom_state_codec::inspect()`]'s.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use heirloom_state_codec::{FORMAT_MAJOR, Limits, Report, SectionReport};
use serde::Serialize;

use super::flags::Inspect;
use super::{complain, exit, say};
use crate::daemon::size;

pub(crate) fn inspect(command: &Inspect) -> ExitCode {
    let read = File::open(&command.file)
        .and_then(|file| heirloom_state_codec::inspect(file, Limits::default()));
    let report = match read {
        Ok(report) => report,
        Err(error) => {
            complain(&format!("{}: {error}", command.file.display()));
            return exit::USAGE.into();
        }
    };
    let document = Document::of(&report, command.shapes);
    if command.json {
        match serde_json::to_string(&document) {
            Ok(line) => say(&line),
            Err(error) => complain(&error.to_string()),
        }
    } else {
        say(summary(&command.file, &document).trim_end());
    }
    if document.sound {
        ExitCode::SUCCESS
    } else {
        let damage = document.damage.as_deref().unwrap_or("it is not whole");
        complain(&format!("{}: {damage}", command.file.display()));
        exit::FAILED.into()
    }
}

/// What `--json` prints. Fields are only ever added.
#[derive(Debug, Serialize)]
struct Document {
    sound: bool,
    /// What is wrong first; `null` if nothing is.
    damage: Option<String>,
    /// At which byte, if it is at one.
    damaged_at: Option<u64>,
    /// `null` where the header cannot be read.
    app: Option<String>,
    format: Option<String>,
    build_id: Option<String>,
    generation: Option<u64>,
    migration: Option<u64>,
    /// Bytes that were read and found right.
    bytes: u64,
    /// Of all that was written, as hex; `null` if it is not whole.
    digest: Option<String>,
    sections: Vec<Section>,
}

#[derive(Debug, Serialize)]
struct Section {
    name: String,
    kind: String,
    /// `null` for bytes without a schema.
    schema: Option<String>,
    version: u32,
    fingerprint: String,
    codec: String,
    required: bool,
    /// Entries that are there at the end; the references of a section of descriptors.
    entries: u64,
    puts: u64,
    removals: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_shape: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shape: Option<String>,
}

impl Document {
    fn of(report: &Report, shapes: bool) -> Self {
        let (damage, damaged_at) = damage_of(report);
        let header = report.header.as_ref();
        let sound = report.is_sound();
        Self {
            sound,
            damage,
            damaged_at,
            app: report.app.clone(),
            format: header.map(|header| format!("{FORMAT_MAJOR}.{}", header.format_minor)),
            build_id: header.map(|header| header.build_id.to_string()),
            generation: header.map(|header| header.generation),
            migration: header.map(|header| header.migration_id),
            bytes: report.tally.bytes,
            digest: report
                .stream_digest
                .map(|digest| digest.iter().map(|byte| format!("{byte:02x}")).collect()),
            sections: report
                .sections
                .iter()
                .map(|section| Section::of(section, shapes, sound))
                .collect(),
        }
    }
}

/// What is wrong first, and at which byte.
fn damage_of(report: &Report) -> (Option<String>, Option<u64>) {
    let damage = report.damage.as_ref();
    let misapplied = report.misapplied.as_ref();
    match (damage, misapplied, &report.mismatch) {
        (_, Some((offset, error)), _) => (
            Some(format!("wrong at byte {offset}: {error}")),
            Some(*offset),
        ),
        (Some(error), None, _) => (Some(format!("damaged at {error}")), Some(error.offset)),
        (None, None, Some(mismatch)) => (Some(format!("wrong state: {mismatch}")), None),
        (None, None, None) => (None, None),
    }
}

impl Section {
    fn of(report: &SectionReport, shapes: bool, sound: bool) -> Self {
        let SectionReport {
            section,
            puts,
            removals,
            references,
            bytes,
            state,
        } = report;
        let entries = match section.kind.has_records() {
            // Which entries are left is known at the end alone.
            true if sound => state.entries,
            true => puts.saturating_sub(*removals),
            false => *references,
        };
        Self {
            name: section.name.clone(),
            kind: section.kind.to_string(),
            schema: Some(section.schema.name.clone()).filter(|name| !name.is_empty()),
            version: section.schema.version,
            fingerprint: section.schema.fingerprint.to_string(),
            codec: section.codec.to_string(),
            required: section.required,
            entries,
            puts: *puts,
            removals: *removals,
            bytes: *bytes,
            key_shape: shapes.then(|| section.key_shape.clone()),
            shape: shapes.then(|| section.schema.shape.clone()),
        }
    }
}

fn summary(file: &Path, document: &Document) -> String {
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let number = |number: Option<u64>| known(&number.map(|number| number.to_string()));
    let mut text = format!(
        "{}: {}\napp         {}\ngeneration  {}\nformat      {}\nbuild       {}\nread        {}\n",
        file.display(),
        if document.sound {
            "sound"
        } else {
            "not to be used"
        },
        known(&document.app),
        number(document.generation),
        known(&document.format),
        known(&document.build_id),
        size(document.bytes),
    );
    if let Some(digest) = &document.digest {
        text.push_str(&format!("digest      {digest}\n"));
    }
    let rows: Vec<[String; 7]> = document.sections.iter().map(row).collect();
    if rows.is_empty() {
        return text;
    }
    let titles = ["SECTION", "KIND", "SCHEMA", "CODEC", "ENTRIES", "BYTES", ""].map(str::to_owned);
    let width = |column: usize| {
        let cells = std::iter::once(&titles).chain(&rows);
        cells
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    text.push('\n');
    for (line, section) in std::iter::once(&titles)
        .chain(&rows)
        .zip(std::iter::once(None).chain(document.sections.iter().map(Some)))
    {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .enumerate()
            // Numbers end in one line, words begin in one.
            .map(|(column, (cell, width))| match column {
                4 | 5 => format!("{cell:>width$}"),
                _words => format!("{cell:<width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
        let shapes = section.map(|one| [("key", &one.key_shape), ("value", &one.shape)]);
        for (what, shape) in shapes.into_iter().flatten() {
            if let Some(shape) = shape {
                text.push_str(&format!("    {what}: {shape}\n"));
            }
        }
    }
    text
}

fn row(section: &Section) -> [String; 7] {
    let schema = match &section.schema {
        Some(name) => format!("{name}@{}", section.version),
        None => "none".to_owned(),
    };
    [
        section.name.clone(),
        section.kind.clone(),
        schema,
        section.codec.clone(),
        section.entries.to_string(),
        size(section.bytes),
        if section.required {
            "required"
        } else {
            "optional"
        }
        .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &[u8] = include_bytes!("../../../state-codec/tests/golden/format-1.0.hls");

    fn document(bytes: &[u8]) -> Document {
        let report = heirloom_state_codec::inspect(bytes, Limits::default()).unwrap();
        Document::of(&report, true)
    }

    #[test]
    fn a_sound_state_is_summed_up() {
        let sound = document(SOUND);
        assert!(sound.sound && sound.damage.is_none());
        let text = summary(Path::new("x"), &sound);
        assert!(text.starts_with("x: sound\n"), "{text}");
        for section in &sound.sections {
            assert!(text.contains(&section.name), "{text}");
        }
    }

    #[test]
    fn damage_is_told_with_its_byte() {
        for length in [0, 10, 100, SOUND.len() - 1] {
            let cut = document(&SOUND[..length]);
            assert!(!cut.sound);
            let at = cut.damaged_at.unwrap();
            assert!(at <= length as u64);
            assert!(
                cut.damage
                    .as_deref()
                    .unwrap()
                    .contains(&format!("byte {at}")),
                "{cut:?}"
            );
            assert!(summary(Path::new("x"), &cut).contains("not to be used"));
        }
    }
}
