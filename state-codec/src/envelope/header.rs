//! The fixed header at byte 0: which format, which handover, who wrote it, how large its parts are.

use std::fmt;

use crate::error::Defect;
use crate::limits::{FRAME_CAP_MAX, FRAME_CAP_MIN, HEADER_BYTES_MAX, MANIFEST_BYTES_MAX};
use crate::wire::{Cursor, Put, Short};

/// First bytes of every snapshot. The high bit catches a 7-bit channel, CR LF and LF catch
/// text-mode conversion, 0x1A stops a terminal listing; the trick is PNG's.
pub const MAGIC: [u8; 8] = [0x89, b'H', b'L', b'S', 0x0D, 0x0A, 0x1A, 0x0A];
/// A reader refuses any other major version.
pub const FORMAT_MAJOR: u16 = 1;
/// A reader accepts any minor version; a newer one may add a header extension and optional frames.
pub const FORMAT_MINOR: u16 = 0;
/// Length of the part of the header that every minor version has.
pub const HEADER_BYTES: usize = 72;
/// Where the checksum over the preceding bytes of the header stands.
const CHECKSUM_AT: usize = HEADER_BYTES - 4;

/// Identity of the program that wrote a snapshot: the first 20 bytes of its ELF build ID, shorter
/// ones padded with zeros, all zeros if unknown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BuildId(pub [u8; 20]);

impl BuildId {
    /// Takes the first 20 bytes of a build ID of any length.
    #[must_use]
    pub fn from_note(note: &[u8]) -> Self {
        let mut id = [0; 20];
        let length = note.len().min(id.len());
        id[..length].copy_from_slice(&note[..length]);
        Self(id)
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == [0; 20] {
            return f.write_str("unknown");
        }
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The header's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Minor format version of the writer.
    pub format_minor: u16,
    /// Which handover this snapshot belongs to; 0 for one taken to be kept.
    pub migration_id: u64,
    /// The generation that wrote it.
    pub generation: u64,
    /// The program that wrote it.
    pub build_id: BuildId,
    /// Most payload bytes any frame of this stream carries.
    pub frame_cap: u32,
}

impl Header {
    /// A header of this format version with the default frame cap.
    #[must_use]
    pub fn new(migration_id: u64, generation: u64, build_id: BuildId) -> Self {
        Self {
            format_minor: FORMAT_MINOR,
            migration_id,
            generation,
            build_id,
            frame_cap: crate::limits::FRAME_CAP_DEFAULT,
        }
    }

    /// Appends the header's bytes.
    pub(crate) fn write(&self, manifest: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.put_u16(FORMAT_MAJOR);
        out.put_u16(self.format_minor);
        out.put_u32(HEADER_BYTES as u32);
        out.put_u64(self.migration_id);
        out.put_u64(self.generation);
        out.extend_from_slice(&self.build_id.0);
        out.put_u32(self.frame_cap);
        out.put_u32(manifest.len() as u32);
        out.put_u32(crc32fast::hash(manifest));
        out.put_u32(0);
        let checksum = crc32fast::hash(&out[start..]);
        out.put_u32(checksum);
        debug_assert_eq!(out.len() - start, HEADER_BYTES);
    }
}

/// A header whose checksum held, with the sizes the reader needs next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ParsedHeader {
    pub(crate) header: Header,
    /// Bytes between the fixed part and the manifest that this version knows nothing about, the
    /// last four of them a checksum; 0 if there are none.
    pub(crate) extension_len: u32,
    pub(crate) manifest_len: u32,
    pub(crate) manifest_checksum: u32,
}

impl ParsedHeader {
    /// Checks magic, major version and checksum, in this order, and only then believes a length.
    /// The first number of an error is the offset of the offending field.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, (u64, Defect)> {
        Self::fields(bytes).unwrap_or(Err((0, Defect::HeaderLength { found: 0 })))
    }

    /// The outer error cannot happen: the input is as long as the fields together.
    fn fields(bytes: &[u8; HEADER_BYTES]) -> Result<Result<Self, (u64, Defect)>, Short> {
        let mut cursor = Cursor::new(bytes);
        let magic: [u8; 8] = cursor.array()?;
        if magic != MAGIC {
            return Ok(Err((0, Defect::Magic { found: magic })));
        }
        let format_major = cursor.u16()?;
        if format_major != FORMAT_MAJOR {
            return Ok(Err((
                8,
                Defect::FormatMajor {
                    found: format_major,
                },
            )));
        }
        let format_minor = cursor.u16()?;
        let header_len = cursor.u32()?;
        let migration_id = cursor.u64()?;
        let generation = cursor.u64()?;
        let build_id = BuildId(cursor.array()?);
        let frame_cap = cursor.u32()?;
        let manifest_len = cursor.u32()?;
        let manifest_checksum = cursor.u32()?;
        let features = cursor.u32()?;
        let declared = cursor.u32()?;
        let computed = crc32fast::hash(&bytes[..CHECKSUM_AT]);
        if declared != computed {
            return Ok(Err((0, Defect::HeaderChecksum { declared, computed })));
        }
        let extension_len = match header_len.checked_sub(HEADER_BYTES as u32) {
            Some(0) => 0,
            Some(extension @ 4..) if header_len <= HEADER_BYTES_MAX => extension,
            Some(_) | None => return Ok(Err((12, Defect::HeaderLength { found: header_len }))),
        };
        if !(FRAME_CAP_MIN..=FRAME_CAP_MAX).contains(&frame_cap) {
            return Ok(Err((52, Defect::FrameCap { found: frame_cap })));
        }
        if manifest_len > MANIFEST_BYTES_MAX {
            return Ok(Err((
                56,
                Defect::ManifestLength {
                    found: manifest_len,
                },
            )));
        }
        if features != 0 {
            return Ok(Err((64, Defect::Features { found: features })));
        }
        Ok(Ok(Self {
            header: Header {
                format_minor,
                migration_id,
                generation,
                build_id,
                frame_cap,
            },
            extension_len,
            manifest_len,
            manifest_checksum,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::new();
        Header::new(7, 3, BuildId::from_note(&[0xAB; 8])).write(b"manifest", &mut bytes);
        bytes.try_into().unwrap()
    }

    fn resealed(change: impl FnOnce(&mut [u8; HEADER_BYTES])) -> [u8; HEADER_BYTES] {
        let mut bytes = sample();
        change(&mut bytes);
        let checksum = crc32fast::hash(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn a_header_reads_back() {
        let parsed = ParsedHeader::parse(&sample()).unwrap();
        assert_eq!(
            parsed.header,
            Header::new(7, 3, BuildId::from_note(&[0xAB; 8]))
        );
        assert_eq!(parsed.extension_len, 0);
        assert_eq!(parsed.manifest_len, 8);
        assert_eq!(parsed.manifest_checksum, crc32fast::hash(b"manifest"));
    }

    #[test]
    fn another_major_is_named_before_its_checksum_is_looked_at() {
        let mut bytes = sample();
        bytes[8] = 2;
        assert!(matches!(
            ParsedHeader::parse(&bytes),
            Err((8, Defect::FormatMajor { found: 2 }))
        ));
    }

    #[test]
    fn fields_out_of_range_are_refused_though_the_checksum_holds() {
        let header_len = resealed(|bytes| bytes[12] = 71);
        assert!(matches!(ParsedHeader::parse(&header_len), Err((12, _))));
        let stub_of_extension = resealed(|bytes| bytes[12] = 75);
        assert!(matches!(
            ParsedHeader::parse(&stub_of_extension),
            Err((12, _))
        ));
        let frame_cap = resealed(|bytes| bytes[55] = 1);
        assert!(matches!(ParsedHeader::parse(&frame_cap), Err((52, _))));
        let manifest_len = resealed(|bytes| bytes[59] = 1);
        assert!(matches!(ParsedHeader::parse(&manifest_len), Err((56, _))));
        let features = resealed(|bytes| bytes[64] = 1);
        assert!(matches!(ParsedHeader::parse(&features), Err((64, _))));
    }

    #[test]
    fn a_newer_minor_with_an_extension_is_accepted() {
        let newer = resealed(|bytes| {
            bytes[10] = 9;
            bytes[12] = 80;
        });
        let parsed = ParsedHeader::parse(&newer).unwrap();
        assert_eq!((parsed.header.format_minor, parsed.extension_len), (9, 8));
    }

    #[test]
    fn a_build_id_shows_as_hex() {
        assert_eq!(BuildId::default().to_string(), "unknown");
        let shown = BuildId::from_note(&[0x0F; 32]).to_string();
        assert_eq!(shown, "0f".repeat(20));
    }
}
