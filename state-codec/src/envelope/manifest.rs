//! The manifest: what sections follow, in which schema and codec, and which of them must be
//! understood.

use std::collections::HashSet;
use std::fmt;

use crate::codec::CodecId;
use crate::limits::{NAME_BYTES_MAX, SECTIONS_MAX, SHAPE_BYTES_MAX};
use crate::shape::Fingerprint;
use crate::wire::{Cursor, Put, Short};

/// Bit 0 of a section's flags: a reader that has no use for the section must refuse the snapshot.
const REQUIRED: u8 = 1;

/// Number of a section within one stream; chosen by the writer, unique, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionId(pub u16);

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section {}", self.0)
    }
}

/// What a section's entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SectionKind {
    /// At most one entry, with an empty key.
    Value = 1,
    /// Entries by key, in any order.
    Map = 2,
    /// Entries by position: the key is the position as 8 bytes little-endian, counting up by one.
    Log = 3,
    /// Large objects that travel as memory file descriptors; the stream carries references.
    Blob = 4,
    /// Live connections that travel as file descriptors; the stream carries references.
    Connection = 5,
    /// What a downgrade took out of another section's entries, opaque to who cannot read it.
    Attic = 6,
}

impl SectionKind {
    fn from_wire(kind: u8) -> Option<Self> {
        [
            Self::Value,
            Self::Map,
            Self::Log,
            Self::Blob,
            Self::Connection,
            Self::Attic,
        ]
        .into_iter()
        .find(|known| *known as u8 == kind)
    }

    /// True if the section's entries are records in bulk and delta frames.
    #[must_use]
    pub fn has_records(self) -> bool {
        match self {
            Self::Value | Self::Map | Self::Log | Self::Attic => true,
            Self::Blob | Self::Connection => false,
        }
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Value => "value",
            Self::Map => "map",
            Self::Log => "log",
            Self::Blob => "blob",
            Self::Connection => "connection",
            Self::Attic => "attic",
        })
    }
}

/// Identity of a schema as it stands on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaRef {
    /// Name that all versions of the schema share.
    pub name: String,
    /// Version, counting up from 1; 0 if the bytes have no schema.
    pub version: u32,
    /// Hash of `shape`.
    pub fingerprint: Fingerprint,
    /// Canonical text of the value's shape, carried so that a mismatch can be explained.
    pub shape: String,
}

impl SchemaRef {
    /// For sections whose bytes mean something to the application only.
    #[must_use]
    pub fn opaque() -> Self {
        Self {
            name: String::new(),
            version: 0,
            fingerprint: Fingerprint::of(""),
            shape: String::new(),
        }
    }
}

impl fmt::Display for SchemaRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            return f.write_str("opaque");
        }
        write!(f, "{}@{} ({})", self.name, self.version, self.fingerprint)
    }
}

/// One section, as declared before its first entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionDescriptor {
    /// Number of the section in this stream.
    pub id: SectionId,
    /// What its entries are.
    pub kind: SectionKind,
    /// Whether a reader without use for it must refuse the snapshot.
    pub required: bool,
    /// How keys and values are coded.
    pub codec: CodecId,
    /// For an attic, the section whose entries it belongs to.
    pub attic_of: Option<SectionId>,
    /// Name by which the application knows the section; unique.
    pub name: String,
    /// Canonical text of the key's shape; empty if keys are the format's own.
    pub key_shape: String,
    /// Schema of the values.
    pub schema: SchemaRef,
    /// About how many entries will follow; a hint for sizing tables, 0 if unknown.
    pub entries_hint: u64,
    /// About how many bytes will follow; a hint for sizing tables, 0 if unknown.
    pub bytes_hint: u64,
}

/// What is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestDefect {
    /// It ends in the middle of a field.
    #[error("ends in the middle of a field")]
    Short,
    /// Bytes follow the last section.
    #[error("{0} bytes follow its last section")]
    Trailing(usize),
    /// A text is too long or not UTF-8.
    #[error("a text is longer than {limit} bytes or not UTF-8")]
    Text {
        /// The longest text allowed at this place.
        limit: usize,
    },
    /// Too many sections.
    #[error("declares {0} sections; at most {SECTIONS_MAX} are allowed")]
    TooManySections(usize),
    /// A section number or name occurs twice, or the number is 0, or the name is empty.
    #[error("section number {id} or name `{name}` is empty or used twice")]
    NotUnique {
        /// The number.
        id: u16,
        /// The name.
        name: String,
    },
    /// A section kind that this version does not know, in a section that must be understood.
    #[error(
        "unknown section kind {0}; a newer heirloom wrote this snapshot, read it with that one"
    )]
    UnknownKind(u8),
    /// Flag bits that this version does not know.
    #[error(
        "unknown section flags {0:#04x}; a newer heirloom wrote this snapshot, read it with that one"
    )]
    UnknownFlags(u8),
    /// A fingerprint that is not the hash of the shape beside it.
    #[error("fingerprint of schema `{0}` is not that of its shape; the writer's schema is damaged")]
    Fingerprint(String),
    /// An attic that belongs to no section with records, or another section that names one.
    #[error("{0} is no attic of a declared section with records")]
    AtticOf(SectionId),
}

impl From<Short> for ManifestDefect {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

/// What a snapshot contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Name of the application whose state this is.
    pub app: String,
    /// The sections, in the writer's order.
    pub sections: Vec<SectionDescriptor>,
}

impl Manifest {
    /// The section with this number.
    #[must_use]
    pub fn section(&self, id: SectionId) -> Option<&SectionDescriptor> {
        self.sections.iter().find(|section| section.id == id)
    }

    /// The section with this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&SectionDescriptor> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The first required section that the reader has no use for. If there is one, the snapshot must be
    /// refused: what it holds would be lost.
    #[must_use]
    pub fn unserved(
        &self,
        serves: impl Fn(&SectionDescriptor) -> bool,
    ) -> Option<&SectionDescriptor> {
        self.sections
            .iter()
            .find(|section| section.required && !serves(section))
    }

    /// Checks what [`Self::parse`] would refuse and returns the manifest's bytes.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, ManifestDefect> {
        self.check()?;
        let mut out = Vec::new();
        put_text(&mut out, &self.app);
        out.put_u16(self.sections.len() as u16);
        for section in &self.sections {
            out.put_u16(section.id.0);
            out.put_u8(section.kind as u8);
            out.put_u8(if section.required { REQUIRED } else { 0 });
            out.put_u16(section.codec.0);
            out.put_u16(section.attic_of.map_or(0, |of| of.0));
            out.put_u32(section.schema.version);
            out.put_u128(section.schema.fingerprint.0);
            out.put_u64(section.entries_hint);
            out.put_u64(section.bytes_hint);
            put_text(&mut out, &section.name);
            put_text(&mut out, &section.schema.name);
            put_text(&mut out, &section.key_shape);
            put_text(&mut out, &section.schema.shape);
        }
        Ok(out)
    }

    /// Reads a manifest whose checksum has been verified.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, (usize, ManifestDefect)> {
        let mut cursor = Cursor::new(bytes);
        let manifest = Self::fields(&mut cursor).map_err(|defect| (cursor.position(), defect))?;
        manifest.check().map_err(|defect| (0, defect))?;
        Ok(manifest)
    }

    fn fields(cursor: &mut Cursor<'_>) -> Result<Self, ManifestDefect> {
        let app = text(cursor, NAME_BYTES_MAX)?;
        let count = usize::from(cursor.u16()?);
        if count > SECTIONS_MAX {
            return Err(ManifestDefect::TooManySections(count));
        }
        let mut sections = Vec::new();
        for _ in 0..count {
            let id = SectionId(cursor.u16()?);
            let kind = cursor.u8()?;
            let kind = SectionKind::from_wire(kind).ok_or(ManifestDefect::UnknownKind(kind))?;
            let flags = cursor.u8()?;
            if flags & !REQUIRED != 0 {
                return Err(ManifestDefect::UnknownFlags(flags));
            }
            let codec = CodecId(cursor.u16()?);
            let attic_of = cursor.u16()?;
            let version = cursor.u32()?;
            let fingerprint = Fingerprint(cursor.u128()?);
            let entries_hint = cursor.u64()?;
            let bytes_hint = cursor.u64()?;
            let name = text(cursor, NAME_BYTES_MAX)?;
            let schema_name = text(cursor, NAME_BYTES_MAX)?;
            let key_shape = text(cursor, SHAPE_BYTES_MAX)?;
            let shape = text(cursor, SHAPE_BYTES_MAX)?;
            sections.push(SectionDescriptor {
                id,
                kind,
                required: flags & REQUIRED != 0,
                codec,
                attic_of: (attic_of != 0).then_some(SectionId(attic_of)),
                name,
                key_shape,
                schema: SchemaRef {
                    name: schema_name,
                    version,
                    fingerprint,
                    shape,
                },
                entries_hint,
                bytes_hint,
            });
        }
        if cursor.remaining() != 0 {
            return Err(ManifestDefect::Trailing(cursor.remaining()));
        }
        Ok(Self { app, sections })
    }

    /// The rules that both writer and reader hold to.
    fn check(&self) -> Result<(), ManifestDefect> {
        if self.sections.len() > SECTIONS_MAX {
            return Err(ManifestDefect::TooManySections(self.sections.len()));
        }
        within(&self.app, NAME_BYTES_MAX)?;
        let mut ids = HashSet::new();
        let mut names = HashSet::new();
        for section in &self.sections {
            within(&section.name, NAME_BYTES_MAX)?;
            within(&section.schema.name, NAME_BYTES_MAX)?;
            within(&section.key_shape, SHAPE_BYTES_MAX)?;
            within(&section.schema.shape, SHAPE_BYTES_MAX)?;
            let unique = ids.insert(section.id) && names.insert(section.name.as_str());
            if section.id.0 == 0 || section.name.is_empty() || !unique {
                return Err(ManifestDefect::NotUnique {
                    id: section.id.0,
                    name: section.name.clone(),
                });
            }
            if section.schema.fingerprint != Fingerprint::of(&section.schema.shape) {
                return Err(ManifestDefect::Fingerprint(section.schema.name.clone()));
            }
            let holds = match section.attic_of {
                Some(of) => {
                    let parent = self.section(of).map(|parent| parent.kind);
                    section.kind == SectionKind::Attic
                        && parent
                            .is_some_and(|kind| kind.has_records() && kind != SectionKind::Attic)
                }
                None => section.kind != SectionKind::Attic,
            };
            if !holds {
                return Err(ManifestDefect::AtticOf(section.id));
            }
        }
        Ok(())
    }
}

fn within(text: &str, limit: usize) -> Result<(), ManifestDefect> {
    if text.len() > limit {
        Err(ManifestDefect::Text { limit })
    } else {
        Ok(())
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u32(text.len() as u32);
    out.extend_from_slice(text.as_bytes());
}

fn text(cursor: &mut Cursor<'_>, limit: usize) -> Result<String, ManifestDefect> {
    let length = cursor.u32()? as usize;
    if length > limit {
        return Err(ManifestDefect::Text { limit });
    }
    let bytes = cursor.take(length)?;
    let text = std::str::from_utf8(bytes).map_err(|_| ManifestDefect::Text { limit })?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(id: u16, name: &str, kind: SectionKind) -> SectionDescriptor {
        SectionDescriptor {
            id: SectionId(id),
            kind,
            required: true,
            codec: CodecId::RAW,
            attic_of: None,
            name: name.to_owned(),
            key_shape: String::new(),
            schema: SchemaRef::opaque(),
            entries_hint: 1,
            bytes_hint: 2,
        }
    }

    fn sample() -> Manifest {
        let mut attic = descriptor(2, "sessions.attic", SectionKind::Attic);
        attic.attic_of = Some(SectionId(1));
        attic.required = false;
        let mut sessions = descriptor(1, "sessions", SectionKind::Map);
        sessions.schema = SchemaRef {
            name: "session".to_owned(),
            version: 2,
            fingerprint: Fingerprint::of("{seen:u64}"),
            shape: "{seen:u64}".to_owned(),
        };
        Manifest {
            app: "shop".to_owned(),
            sections: vec![sessions, attic],
        }
    }

    #[test]
    fn a_manifest_reads_back() {
        let bytes = sample().to_bytes().unwrap();
        assert_eq!(Manifest::parse(&bytes), Ok(sample()));
    }

    #[test]
    fn a_required_section_must_be_served_and_another_need_not() {
        let manifest = sample();
        assert_eq!(
            manifest.unserved(|section| section.name == "sessions"),
            None
        );
        let unserved = manifest.unserved(|section| section.name == "sessions.attic");
        assert_eq!(unserved, manifest.named("sessions"));
    }

    #[test]
    fn a_shortened_manifest_is_refused_at_every_length() {
        let bytes = sample().to_bytes().unwrap();
        for length in 0..bytes.len() {
            assert!(Manifest::parse(&bytes[..length]).is_err(), "{length}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(matches!(
            Manifest::parse(&longer),
            Err((_, ManifestDefect::Trailing(1)))
        ));
    }

    #[test]
    fn rules_are_checked_by_the_writer_too() {
        let mut twice = sample();
        twice.sections[1].name = "sessions".to_owned();
        assert!(matches!(
            twice.to_bytes(),
            Err(ManifestDefect::NotUnique { id: 2, .. })
        ));
        let mut orphan = sample();
        orphan.sections[1].attic_of = Some(SectionId(9));
        assert!(matches!(
            orphan.to_bytes(),
            Err(ManifestDefect::AtticOf(SectionId(2)))
        ));
        let mut lying = sample();
        lying.sections[0].schema.shape = "{seen:u32}".to_owned();
        assert!(matches!(
            lying.to_bytes(),
            Err(ManifestDefect::Fingerprint(_))
        ));
        let mut long = sample();
        long.app = "a".repeat(NAME_BYTES_MAX + 1);
        assert!(matches!(long.to_bytes(), Err(ManifestDefect::Text { .. })));
        let mut zero = sample();
        zero.sections[0].id = SectionId(0);
        assert!(zero.to_bytes().is_err());
    }
}
