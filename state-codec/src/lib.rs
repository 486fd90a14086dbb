//! The snapshot stream: how the state of one generation becomes bytes and state again in the next.
//!
//! * [`SnapshotWriter`] turns entries into frames, [`SnapshotReader`] frames into checked
//!   [`Event`]s. Neither does I/O: bytes are carried by the caller, in slices of any size.
//! * [`Section`] gives a section its types; [`Step`] translates between versions of a type, in both
//!   directions.
//! * [`Codec`]s code keys and values; the envelope around them is coded by hand.
//! * [`inspect()`] reads a snapshot without the program that wrote it.
//!
//! `docs/snapshot-format.md` is the format's normative text.
//!
//! # What holds
//! * Nothing is believed before its checksum held: no length, no payload.
//! * Nothing costs more memory than one frame, one manifest and one continued entry, whatever the
//!   input claims.
//! * Bytes are decoded only as a type of the shape they were written with.
//! * A snapshot without its end mark is none; [`End::verify`] is the only way to a [`Verified`].

#![forbid(unsafe_code)]

// The derive macro writes this crate's name; its own tests use the macro too.
extern crate self as heirloom_state_codec;

mod codec;
mod digest;
mod envelope;
mod error;
mod event;
mod frame;
mod inspect;
mod ledger;
mod limits;
mod order;
mod reader;
mod schema;
mod section;
mod shape;
mod wire;
mod writer;

#[cfg(feature = "wincode")]
pub use codec::Wincode;
pub use codec::{Bincode, Bytes, Cbor, Codec, CodecError, CodecId, DEPTH_MAX, Raw};
pub use digest::{EntryHash, StateDigest};
pub use envelope::{
    BuildId, FORMAT_MAJOR, FORMAT_MINOR, HEADER_BYTES, Header, MAGIC, Manifest, ManifestDefect,
    SchemaRef, SectionDescriptor, SectionId, SectionKind,
};
pub use error::{AbortReason, Defect, ReadError, WriteError};
pub use event::{End, Event, StateMismatch, Tally, Verified};
pub use frame::control::{Freeze, RoundEnd, SectionTotal};
pub use frame::record::{Change, Record, RecordDefect, Records};
pub use frame::reference::{ConnectionRef, MemfdRef};
pub use frame::{FRAME_HEADER_BYTES, FRAME_SYNC, FrameKind};
pub use heirloom_state_codec_derive::State;
pub use inspect::{Report, SectionReport, inspect};
pub use ledger::{ApplyError, EntryLedger};
pub use limits::{
    ABORT_MESSAGE_BYTES_MAX, CONTROL_BYTES_MAX, ENTRY_BYTES_MAX, FRAME_CAP_DEFAULT, FRAME_CAP_MAX,
    FRAME_CAP_MIN, HEADER_BYTES_MAX, KEY_BYTES_MAX, Limits, MANIFEST_BYTES_MAX, NAME_BYTES_MAX,
    SECTIONS_MAX, SHAPE_BYTES_MAX,
};
pub use order::OrderDefect;
pub use reader::SnapshotReader;
pub use schema::{
    Ancestor, AtticLayer, AtticRecord, Context, Lineage, MigrateError, Origin, ReadEntry, Schema,
    SchemaMismatch, Step, StepError, admit, agree, read_entry, schema_of, write_entry,
};
pub use section::{EntryError, ReadChange, Section, Written};
pub use shape::{
    Elements, Fields, Fingerprint, Shape, ShapeBuilder, Variants, differences, shape_of,
};
pub use writer::SnapshotWriter;
