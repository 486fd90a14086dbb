//! The limits of the format and of a process that reads or writes it.
//!
//! The constants are part of the format: no reader has to accept more. [`Limits`] is what one
//! process is willing to spend; it may be stricter than the format, never laxer.

/// Payload bytes a frame carries unless the writer chose otherwise.
pub const FRAME_CAP_DEFAULT: u32 = 256 * 1024;
/// Smallest frame cap a header may declare.
pub const FRAME_CAP_MIN: u32 = 256;
/// Largest frame cap a header may declare.
pub const FRAME_CAP_MAX: u32 = 1024 * 1024;
/// Largest payload of a frame that belongs to the whole stream, whatever the frame cap; it holds an
/// end mark of [`SECTIONS_MAX`] sections.
pub const CONTROL_BYTES_MAX: u32 = 32 * 1024;
/// Largest header, extension included.
pub const HEADER_BYTES_MAX: u32 = 4096;
/// Largest manifest.
pub const MANIFEST_BYTES_MAX: u32 = 1024 * 1024;
/// Most sections a manifest may declare.
pub const SECTIONS_MAX: usize = 1024;
/// Longest application, section or schema name, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest shape text, in bytes.
pub const SHAPE_BYTES_MAX: usize = 64 * 1024;
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: u32 = 64 * 1024;
/// Largest entry (key and value together) any reader has to accept. A tombstone's length mark and
/// the arithmetic of continued frames rely on this being far below 4 GiB.
pub const ENTRY_BYTES_MAX: u32 = 256 * 1024 * 1024;
/// Longest message of an abort, in bytes of UTF-8.
pub const ABORT_MESSAGE_BYTES_MAX: usize = 1024;

/// What one process is willing to spend on a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest entry, key and value together, in bytes. Larger ones are refused by both sides.
    pub entry_bytes_max: u32,
    /// Longest stream, in bytes.
    pub stream_bytes_max: u64,
    /// Most entries an [`EntryLedger`](crate::EntryLedger) keeps.
    pub entries_max: u64,
    /// Bytes a [`SnapshotWriter`](crate::SnapshotWriter) holds for its caller to carry away.
    /// A writer that holds more refuses the next entry, so that a slow reader costs no memory.
    pub backlog_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entry_bytes_max: 16 * 1024 * 1024,
            stream_bytes_max: 1 << 40,
            entries_max: 1 << 28,
            backlog_bytes_max: 32 * 1024 * 1024,
        }
    }
}
