//! What can be wrong with a snapshot, and whose fault it is.
//!
//! Each message ends in what to do next. The texts are for people and may change; match on the
//! variants.

use crate::codec::CodecError;
use crate::envelope::{FORMAT_MAJOR, ManifestDefect, SectionId, SectionKind};
use crate::frame::FrameKind;
use crate::frame::record::RecordDefect;
use crate::limits::{
    FRAME_CAP_MAX, FRAME_CAP_MIN, HEADER_BYTES_MAX, KEY_BYTES_MAX, MANIFEST_BYTES_MAX,
};
use crate::order::OrderDefect;

/// A snapshot cannot be read, and at which byte that became known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}: {defect}")]
pub struct ReadError {
    /// Offset of the offending item from the start of the stream.
    pub offset: u64,
    /// What is wrong there.
    pub defect: Defect,
}

/// Ends the message of every defect that only damage can cause.
const DAMAGED: &str = "; the stream was damaged on its way, take the snapshot again";
/// Ends the message of every defect that only a faulty writer can cause.
const FAULTY_WRITER: &str = "; the program that wrote this snapshot is at fault";

/// What is wrong with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// The first bytes are not the magic.
    #[error("{}", magic_text(found))]
    Magic {
        /// What stands there.
        found: [u8; 8],
    },
    /// A major version that this library cannot read.
    #[error(
        "format version {found} is not {FORMAT_MAJOR}; read it with the heirloom that wrote it"
    )]
    FormatMajor {
        /// The version found.
        found: u16,
    },
    /// The header's checksum does not hold.
    #[error("header checksum is {declared:08x}, computed {computed:08x}{DAMAGED}")]
    HeaderChecksum {
        /// The checksum in the stream.
        declared: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// An impossible header length.
    #[error(
        "header length {found} is not 72, nor between 76 and {HEADER_BYTES_MAX}{FAULTY_WRITER}"
    )]
    HeaderLength {
        /// The length found.
        found: u32,
    },
    /// A frame cap outside what the format allows.
    #[error(
        "frame cap {found} is not between {FRAME_CAP_MIN} and {FRAME_CAP_MAX} bytes{FAULTY_WRITER}"
    )]
    FrameCap {
        /// The cap found.
        found: u32,
    },
    /// A manifest longer than the format allows.
    #[error("manifest length {found} is over {MANIFEST_BYTES_MAX} bytes{FAULTY_WRITER}")]
    ManifestLength {
        /// The length found.
        found: u32,
    },
    /// Features that a reader must know to read the snapshot.
    #[error(
        "features {found:#010x} are needed and unknown; read it with the heirloom that wrote it"
    )]
    Features {
        /// The feature bits found.
        found: u32,
    },
    /// The manifest's checksum does not hold.
    #[error("manifest checksum is {declared:08x}, computed {computed:08x}{DAMAGED}")]
    ManifestChecksum {
        /// The checksum in the stream.
        declared: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The manifest breaks a rule.
    #[error("manifest: {0}")]
    Manifest(#[from] ManifestDefect),
    /// The stream ends early.
    #[error(
        "the stream ends here in the middle of the {within}, {missing} or more bytes early; without its end mark it is no snapshot, take it again"
    )]
    Truncated {
        /// What was being read.
        within: &'static str,
        /// How many bytes are missing at least.
        missing: u64,
    },
    /// No frame begins where one should.
    #[error("{found:02x?} is not the beginning of a frame{DAMAGED}")]
    FrameSync {
        /// What stands there.
        found: [u8; 4],
    },
    /// A frame header's checksum does not hold.
    #[error("frame header checksum is {declared:08x}, computed {computed:08x}{DAMAGED}")]
    FrameHeaderChecksum {
        /// The checksum in the stream.
        declared: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// A frame is missing, repeated or out of order.
    #[error("frame {found} stands where frame {expected} should{DAMAGED}")]
    Sequence {
        /// The number the frame should have.
        expected: u64,
        /// The number it has.
        found: u64,
    },
    /// A frame's payload is over the cap that the header declared.
    #[error("payload of {found} bytes is over the frame cap of {cap}{FAULTY_WRITER}")]
    FrameLength {
        /// The length found.
        found: u32,
        /// The cap.
        cap: u32,
    },
    /// A payload's checksum does not hold.
    #[error("payload checksum is {declared:08x}, computed {computed:08x}{DAMAGED}")]
    PayloadChecksum {
        /// The checksum in the stream.
        declared: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// A kind of frame that a reader must know.
    #[error("frame kind {kind} is unknown; read it with the heirloom that wrote it")]
    UnknownFrame {
        /// The kind found.
        kind: u8,
    },
    /// Flags that do not exist or do not fit the frame's kind.
    #[error("flags {flags:#04x} do not fit a frame of kind {kind}{FAULTY_WRITER}")]
    FrameFlags {
        /// The kind.
        kind: u8,
        /// The flags found.
        flags: u8,
    },
    /// A frame of a section that the manifest does not declare, or whose kind it does not fit.
    #[error("a {kind} frame does not fit section number {section}{FAULTY_WRITER}")]
    FrameSection {
        /// The kind of the frame.
        kind: FrameKind,
        /// The section's number.
        section: u16,
    },
    /// A continued frame is not followed by its continuation.
    #[error("a continued entry is broken off by a frame of kind {kind}{FAULTY_WRITER}")]
    Continuation {
        /// The kind of the frame that came instead.
        kind: u8,
    },
    /// A frame at a point where it must not come.
    #[error("{0}{FAULTY_WRITER}")]
    Order(#[from] OrderDefect),
    /// The records of a frame.
    #[error("{0}{FAULTY_WRITER}")]
    Record(#[from] RecordDefect),
    /// A payload that is not what its kind prescribes.
    #[error("the payload of a {kind} frame is malformed{FAULTY_WRITER}")]
    Payload {
        /// The kind.
        kind: FrameKind,
    },
    /// The end mark's counts are not what was read.
    #[error("the end mark declares {declared} {what}, {counted} were read{FAULTY_WRITER}")]
    EndCount {
        /// What is counted.
        what: &'static str,
        /// The count in the end mark.
        declared: u64,
        /// The count of what was read.
        counted: u64,
    },
    /// The end mark does not list the manifest's sections.
    #[error(
        "the end mark does not list the sections of the manifest in their order{FAULTY_WRITER}"
    )]
    EndSections,
    /// The stream digest does not hold.
    #[error("the stream digest does not hold though every checksum did{DAMAGED}")]
    StreamDigest,
    /// Bytes follow the end mark.
    #[error("bytes follow the end mark; this is not one snapshot, look at who wrote behind it")]
    Trailing,
    /// The writer gave up.
    #[error("the writer gave up: {reason}: {message}")]
    Aborted {
        /// The class of the reason.
        reason: AbortReason,
        /// The writer's own words.
        message: String,
    },
    /// More than this process is willing to spend.
    #[error(
        "{what} of {found} bytes is over this reader's limit of {limit}; raise the limit if the state is really that large"
    )]
    Limit {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes, as far as known.
        found: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

fn magic_text(found: &[u8; 8]) -> String {
    let hint = match *found {
        [0x09, b'H', b'L', b'S', ..] => {
            "; the high bit of its first byte is gone, it went through a 7-bit channel"
        }
        [0x89, b'H', b'L', b'S', b'\n', ..] => {
            "; its line ends were converted, it was copied as text"
        }
        [0xC2, 0x89, b'H', b'L', b'S', ..] => "; it was recoded as UTF-8",
        [0xEF, 0xBF, 0xBD, b'H', b'L', b'S', ..] => "; it was recoded as UTF-8",
        _ => "",
    };
    format!("not a snapshot: it begins with {found:02x?}{hint}")
}

/// Class of the reasons for which a writer gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AbortReason {
    /// The application refused or failed to give its state.
    Application,
    /// The state changed faster than it could be sent.
    NotConverging,
    /// A deadline passed.
    Deadline,
    /// A limit was exceeded.
    Limit,
    /// Whoever ordered the snapshot called it off.
    Cancelled,
    /// A number that this version has no name for.
    Other(u16),
}

impl AbortReason {
    pub(crate) fn to_wire(self) -> u16 {
        match self {
            Self::Application => 1,
            Self::NotConverging => 2,
            Self::Deadline => 3,
            Self::Limit => 4,
            Self::Cancelled => 5,
            Self::Other(number) => number,
        }
    }

    pub(crate) fn from_wire(number: u16) -> Self {
        match number {
            1 => Self::Application,
            2 => Self::NotConverging,
            3 => Self::Deadline,
            4 => Self::Limit,
            5 => Self::Cancelled,
            other => Self::Other(other),
        }
    }
}

impl std::fmt::Display for AbortReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Application => f.write_str("the application failed"),
            Self::NotConverging => f.write_str("the state changed faster than it could be sent"),
            Self::Deadline => f.write_str("a deadline passed"),
            Self::Limit => f.write_str("a limit was exceeded"),
            Self::Cancelled => f.write_str("it was called off"),
            Self::Other(number) => write!(f, "reason {number}"),
        }
    }
}

/// A snapshot cannot be written. Nothing of the refused call has been written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The manifest breaks a rule.
    #[error("manifest: {0}")]
    Manifest(#[from] ManifestDefect),
    /// The manifest is longer than the format allows.
    #[error(
        "the manifest has {found} bytes, {MANIFEST_BYTES_MAX} are allowed; declare fewer sections or flatter types"
    )]
    ManifestLength {
        /// The length in bytes.
        found: usize,
    },
    /// A frame cap outside what the format allows.
    #[error("frame cap {found} is not between {FRAME_CAP_MIN} and {FRAME_CAP_MAX} bytes")]
    FrameCap {
        /// The cap asked for.
        found: u32,
    },
    /// A section that the manifest does not declare.
    #[error("{0} is not declared in the manifest")]
    UnknownSection(SectionId),
    /// Something that a section of this kind cannot hold.
    #[error("{section} is a {kind} section and cannot take {what}")]
    SectionKind {
        /// The section.
        section: SectionId,
        /// Its kind.
        kind: SectionKind,
        /// What was offered.
        what: &'static str,
    },
    /// A key longer than the format allows.
    #[error(
        "a key of {found} bytes in {section}; {KEY_BYTES_MAX} are allowed, use a digest as the key"
    )]
    KeyLength {
        /// The section.
        section: SectionId,
        /// The key's length in bytes.
        found: usize,
    },
    /// An entry over the limit.
    #[error(
        "an entry of {found} bytes in {section} is over the limit of {limit}; split it, or move it into a blob section"
    )]
    EntryLength {
        /// The section.
        section: SectionId,
        /// The entry's length in bytes.
        found: usize,
        /// The limit in bytes.
        limit: u32,
    },
    /// Nobody carried the earlier frames away.
    #[error(
        "{held} bytes wait to be carried away, {limit} are allowed; write them out and try again"
    )]
    Backlog {
        /// Bytes held.
        held: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The stream is over the limit.
    #[error("the stream is over the limit of {limit} bytes")]
    StreamLength {
        /// The limit in bytes.
        limit: u64,
    },
    /// A call at a point where it must not come.
    #[error(transparent)]
    Order(#[from] OrderDefect),
    /// The codec refused the key or the value.
    #[error(transparent)]
    Codec(#[from] CodecError),
}
