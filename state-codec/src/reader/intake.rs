//! The bytes that have arrived and not been read yet, and where in the stream they stand.

use std::ops::Range;

use crate::error::{Defect, ReadError};

/// Room offered to the caller beyond what the current item needs, in bytes.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// A buffer that grows to what one item needs and no further.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) buffer: Vec<u8>,
    /// The unread bytes of `buffer`.
    pub(super) unread: Range<usize>,
    /// Bytes at the front of `unread` that belong to the item shown last.
    pub(super) shown: usize,
    /// Bytes from `unread.start` that the current item needs as a whole.
    pub(super) needed: usize,
    /// Offset of `unread.start` in the stream.
    pub(super) offset: u64,
}

impl Intake {
    pub(super) fn new(needed: usize) -> Self {
        Self {
            buffer: Vec::new(),
            unread: 0..0,
            shown: 0,
            needed,
            offset: 0,
        }
    }

    /// Room for more bytes; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        let wanted = self.needed.max(self.unread.len()) + READ_AHEAD_BYTES;
        if self.buffer.len() - self.unread.start < wanted {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        &mut self.buffer[self.unread.end..]
    }

    /// Counts in what was put at the front of [`Self::space`].
    pub(super) fn filled(&mut self, count: usize) {
        self.unread.end = self.buffer.len().min(self.unread.end.saturating_add(count));
    }

    /// Gives up the bytes of the item shown last and returns how many they were.
    pub(super) fn leave_shown(&mut self) -> u64 {
        let count = std::mem::take(&mut self.shown);
        self.unread.start += count;
        self.offset += count as u64;
        count as u64
    }

    /// Where the current item's first `count` bytes are, or `None` and a note of what is needed.
    pub(super) fn have(&mut self, count: usize) -> Option<Range<usize>> {
        self.needed = count;
        let range = self.unread.start..self.unread.start + count;
        (range.end <= self.unread.end).then_some(range)
    }

    /// An error at `distance` bytes behind the current item's start.
    pub(super) fn at(&self, distance: usize, defect: impl Into<Defect>) -> ReadError {
        ReadError {
            offset: self.offset + distance as u64,
            defect: defect.into(),
        }
    }
}
