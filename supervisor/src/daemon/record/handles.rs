//! The names by which a record speaks of descriptors.
//!
//! A [`Handle`] is one kernel object that a supervisor keeps, for the life of its lineage; the number of
//! the descriptor that stands for it may change. [`Held`] gathers them while a record is written,
//! [`Found`] is where a later supervisor takes them from.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

static LAST: AtomicU64 = AtomicU64::new(0);

/// The name of one kernel object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Handle(pub(crate) u64);

impl Handle {
    /// A name that nothing has yet.
    pub(crate) fn new() -> Self {
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The last name that was given.
    pub(crate) fn last() -> Self {
        Self(LAST.load(Ordering::Relaxed))
    }

    /// Leaves out the names that a record has given.
    pub(crate) fn begin_after(last: Self) {
        LAST.fetch_max(last.0, Ordering::Relaxed);
    }
}

/// What for a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For a successor in place, which gets every descriptor.
    Pass,
    /// For one that comes after a death.
    Keep,
}

/// The descriptors that a record names.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    pub(crate) purpose: Purpose,
    descriptors: BTreeMap<Handle, BorrowedFd<'a>>,
}

impl<'a> Held<'a> {
    pub(crate) fn for_(purpose: Purpose) -> Self {
        Self {
            purpose,
            descriptors: BTreeMap::new(),
        }
    }

    /// Names a descriptor; says how.
    pub(crate) fn hold(&mut self, handle: Handle, fd: BorrowedFd<'a>) -> Handle {
        self.descriptors.insert(handle, fd);
        handle
    }

    /// Names one that whoever comes after a death opens anew.
    pub(crate) fn pass(&mut self, handle: Handle, fd: BorrowedFd<'a>) -> Handle {
        match self.purpose {
            Purpose::Pass => self.hold(handle, fd),
            Purpose::Keep => handle,
        }
    }

    pub(crate) fn descriptors(&self) -> &BTreeMap<Handle, BorrowedFd<'a>> {
        &self.descriptors
    }
}

/// Descriptors by their names. What nobody takes is closed with it.
#[derive(Debug, Default)]
pub(crate) struct Found(BTreeMap<Handle, OwnedFd>);

impl Found {
    pub(crate) fn insert(&mut self, handle: Handle, fd: OwnedFd) {
        self.0.insert(handle, fd);
    }

    pub(crate) fn has(&self, handle: Handle) -> bool {
        self.0.contains_key(&handle)
    }

    /// Takes a descriptor, if it was found.
    pub(crate) fn take(&mut self, handle: Handle) -> Option<OwnedFd> {
        self.0.remove(&handle)
    }
}
