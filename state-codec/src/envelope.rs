//! What a reader learns before it decodes anything: the header and the manifest.
//!
//! Both are coded by hand, little-endian and outside any codec, so that a reader can say "wrong
//! version" or "other schema" without being able to decode a single entry.

mod header;
mod manifest;

pub(crate) use header::ParsedHeader;
pub use header::{BuildId, FORMAT_MAJOR, FORMAT_MINOR, HEADER_BYTES, Header, MAGIC};
pub use manifest::{
    Manifest, ManifestDefect, SchemaRef, SectionDescriptor, SectionId, SectionKind,
};
