//! What the keeper needs of a store: to give its entries away slice by slice while it serves, to take
//! them up, and to serve operations of a generation that has given them away.
//!
//! The stores of this library are in the files beside this one. What they promise is said here, once.

use std::{
    fmt,
    future::Future,
    os::fd::OwnedFd,
    pin::Pin,
    time::{Duration, Instant},
};

use heirloom_state_codec::{
    Change, MemfdRef, Records, SchemaRef, SectionDescriptor, SectionId, SectionTotal,
    SnapshotWriter,
};

use super::{
    error::{StateError, StoreError},
    way_back::record::Fate,
};

/// How far a slice came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There is more to write.
    More,
    /// Everything has been written.
    Done,
}

/// What a slice may spend. A store looks at it after each few entries, and lets go of its locks when
/// it is used up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    end: Instant,
    bytes: usize,
}

impl Budget {
    /// So much time from now, and so many bytes in the writer.
    #[must_use]
    pub(crate) fn new(time: Duration, bytes: usize) -> Self {
        Self {
            end: Instant::now() + time,
            bytes,
        }
    }

    /// Whether it is used up.
    #[must_use]
    pub(crate) fn is_spent(&self, writer: &SnapshotWriter) -> bool {
        writer.backlog_bytes() >= self.bytes || Instant::now() >= self.end
    }
}

/// How a copy is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form<'a> {
    /// The number of the first section this store may declare; the next ones follow.
    pub(crate) first: SectionId,
    /// The versions of this store's schema that the reader knows; none if it is written to be kept,
    /// in the program's own version.
    pub(crate) reader: Option<&'a [u32]>,
    /// The reader gets descriptors beside the stream. If not, as in a file, objects in memory files
    /// are to be written as entries.
    pub(crate) descriptors: bool,
}

/// Where a copy goes.
#[derive(Debug)]
pub(crate) struct Outlet<'a> {
    /// The stream.
    pub(crate) writer: &'a mut SnapshotWriter,
    /// Descriptors that travel beside it, in the order in which they are numbered, counted from the
    /// migration's beginning.
    attached: &'a mut Vec<OwnedFd>,
    next: &'a mut u32,
}

impl<'a> Outlet<'a> {
    pub(crate) fn new(
        writer: &'a mut SnapshotWriter,
        attached: &'a mut Vec<OwnedFd>,
        next: &'a mut u32,
    ) -> Self {
        Self {
            writer,
            attached,
            next,
        }
    }

    /// Lets a descriptor travel beside the stream and returns its number.
    pub(crate) fn attach(&mut self, descriptor: OwnedFd) -> u32 {
        let number = *self.next;
        self.attached.push(descriptor);
        *self.next += 1;
        number
    }
}

/// What is still to be sent, about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Entries that have changed since they were sent.
    pub(crate) entries: u64,
    /// About how many bytes they are.
    pub(crate) bytes: u64,
}

/// An entry as another generation sees it, in the version of the schema that it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its version: grows with each change.
    pub(crate) version: u64,
    /// Its value.
    pub(crate) value: Vec<u8>,
}

/// One change that another generation asks for, all bytes in the version of the schema it names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The key.
    pub(crate) key: &'a [u8],
    /// The version the entry must have for the change to take place; 0 for that it is not there.
    pub(crate) expected: u64,
    /// What it becomes; none if it was only read.
    pub(crate) change: Option<Change<'a>>,
}

/// A change that the generation which owns the state has made, for one in reserve.
#[derive(Debug)]
pub(crate) struct Followed<'a> {
    /// The version of the schema of its value.
    pub(crate) version: u32,
    /// The key.
    pub(crate) key: &'a [u8],
    /// The entry's version.
    pub(crate) entry_version: u64,
    /// What has become of it.
    pub(crate) fate: Fate<'a>,
    /// What came with it, if it is an object in a memory file.
    pub(crate) descriptor: Option<OwnedFd>,
}

impl Followed<'_> {
    /// That this is no change of the store with this name.
    pub(crate) fn is_none_of(&self, store: &str) -> StoreError {
        StoreError::Other(format!(
            "a change of {store} is none that it can have; the program that wrote it is at fault"
        ))
    }
}

/// A key and its value, in bytes.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// A future that can be sent.
pub(crate) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One named part of an app's state.
///
/// # Giving
///
/// `begin_copy`, then `copy_base` until it is done, `copy_changes` in rounds, at last `settle` after
/// the gate was closed and `copy_changes` until it is done; `end_copy` in any case, at any point. All
/// of it comes from one thread, while others use the store. From `begin_copy` to `end_copy` every
/// change to an entry that has been written is remembered. `end_copy` costs no more than a walk over
/// what is remembered, and leaves the store as if nothing had happened.
///
/// # Taking
///
/// The gate is closed. `begin_taking` empties the store; `apply` in the stream's order; `end_taking`
/// tells what is held. A store that is not `end_taking` is never used.
///
/// # Serving another generation
///
/// `see`, `see_all` and `stage` are what an operation of a generation that has given its state away
/// comes down to.
///
/// # In reserve
///
/// The gate sends operations elsewhere. `follow` keeps the store as the owner has it.
pub(crate) trait Store: Send + Sync + fmt::Debug + 'static {
    /// Its name: the section's.
    fn name(&self) -> &str;

    /// Every version of its schema that it can read, the newest first.
    fn reads(&self) -> Vec<SchemaRef>;

    /// How many entries it holds.
    fn entries(&self) -> u64;

    /// Begins a copy and declares its sections, at most four.
    ///
    /// # Errors
    ///
    /// If it cannot be written in a version the reader knows.
    fn begin_copy(&self, form: &Form<'_>) -> Result<Vec<SectionDescriptor>, StoreError>;

    /// Writes a slice of the entries that were there when the copy began.
    ///
    /// # Errors
    ///
    /// If an entry cannot be written; the copy is then given up.
    fn copy_base(&self, out: &mut Outlet<'_>, budget: &Budget) -> Result<Progress, StoreError>;

    /// What has changed since it was written.
    fn pending(&self) -> Pending;

    /// Writes a slice of what has changed since it was written. `Done` means that it was up to date at
    /// one instant for each entry; what changes meanwhile is remembered for the next round.
    ///
    /// # Errors
    ///
    /// As [`Self::copy_base`].
    fn copy_changes(&self, out: &mut Outlet<'_>, budget: &Budget) -> Result<Progress, StoreError>;

    /// Takes each lock once, so that every operation that asked the gate before has ended.
    fn settle(&self);

    /// Ends a copy, complete or not.
    fn end_copy(&self);

    /// Empties the store and opens the sections of its name and of its attic.
    ///
    /// # Errors
    ///
    /// If they are not what this store can read.
    fn begin_taking(&self, sections: &[&SectionDescriptor]) -> Result<(), StoreError>;

    /// Applies records of one of its sections.
    ///
    /// # Errors
    ///
    /// The first record that cannot be applied.
    fn apply(
        &self,
        section: &SectionDescriptor,
        base: bool,
        records: Records<'_>,
    ) -> Result<(), StoreError>;

    /// Takes an object that came with a descriptor.
    ///
    /// # Errors
    ///
    /// If it cannot; a store that declares no such sections never gets one.
    fn apply_memfd(
        &self,
        section: &SectionDescriptor,
        reference: &MemfdRef<'_>,
        descriptor: OwnedFd,
    ) -> Result<(), StoreError> {
        let _ = (reference, descriptor);
        Err(StoreError::Other(format!(
            "{} holds no objects in memory files; the program that wrote it is at fault",
            section.name
        )))
    }

    /// What it holds, for each of its sections with records that `begin_taking` was given.
    fn end_taking(&self) -> Vec<SectionTotal>;

    /// An entry, for another generation, in this version of the schema. Waits while the gate is closed,
    /// and asks further if the state has moved on.
    ///
    /// # Errors
    ///
    /// [`StateError`].
    fn see<'a>(
        &'a self,
        version: u32,
        key: &'a [u8],
    ) -> Boxed<'a, Result<Option<Seen>, StateError>>;

    /// All entries at one instant, as pairs of key and value, for another generation.
    ///
    /// # Errors
    ///
    /// [`StateError`].
    fn see_all(&self, version: u32) -> Boxed<'_, Result<Vec<Pair>, StateError>>;

    /// Reads changes that another generation wants, so that they can be committed together with others.
    ///
    /// # Errors
    ///
    /// [`StateError`] if they cannot be understood.
    fn stage(
        &self,
        version: u32,
        wanted: &[Wanted<'_>],
    ) -> Result<Box<dyn super::transaction::Group>, StateError>;

    /// Makes a change that the generation which owns the state has made. The changes of a key come in their
    /// order.
    ///
    /// # Errors
    ///
    /// If it cannot be understood; the store is not what the owner has from then on.
    fn follow(&self, change: Followed<'_>) -> Result<(), StoreError>;
}
