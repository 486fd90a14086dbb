//! A copy of the whole state as it is written: every store's part, in the order of the stream.
//!
//! Owns what is written when. Where the bytes go, and when the state stands still, is left to
//! [`super::giving`] and [`super::saving`].

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use heirloom_handover::message::Reads;
use heirloom_state_codec::{
    Header, Limits, Manifest, SectionDescriptor, SectionId, SnapshotWriter,
};

use super::{
    build_id,
    error::StoreError,
    store::{Budget, Form, Outlet, Progress, Store},
};

/// Sections that one store may declare.
const SECTIONS_PER_STORE: usize = 4;

/// The format's limits, and the supervisor's if that is lower.
pub(super) fn limits(bytes_max: Option<u64>) -> Limits {
    let limits = Limits::default();
    Limits {
        stream_bytes_max: bytes_max.map_or(limits.stream_bytes_max, |most| {
            most.min(limits.stream_bytes_max)
        }),
        ..limits
    }
}

/// A copy under way. Ends in every store when it is dropped.
#[derive(Debug)]
pub(super) struct Copy {
    stores: Vec<Arc<dyn Store>>,
    /// The store whose turn it is.
    at: usize,
    pub(super) writer: SnapshotWriter,
    attached: Vec<OwnedFd>,
    next_descriptor: u32,
    /// The versions in which the sections are written, by name.
    pub(super) versions: HashMap<String, u32>,
    /// Rounds that have ended, the base among them.
    pub(super) rounds: u32,
    /// The longest that one slice took.
    pub(super) longest_slice: Duration,
}

impl Copy {
    /// Begins a copy: header and manifest are ready at once. `reader` is what the reader knows; none for
    /// a copy that is to be kept. `bytes_max` is how long it may become.
    pub(super) fn begin(
        app: &str,
        stores: Vec<Arc<dyn Store>>,
        (migration, generation): (u64, u64),
        reader: Option<&[Reads]>,
        bytes_max: Option<u64>,
    ) -> Result<Self, StoreError> {
        let mut sections: Vec<SectionDescriptor> = Vec::new();
        let mut versions = HashMap::new();
        let mut begun = Begun(Vec::new());
        for (index, store) in stores.iter().enumerate() {
            let known: Option<Vec<u32>> = reader.map(|reads| {
                let of_it = reads.iter().filter(|one| one.section == store.name());
                of_it.map(|one| one.version).collect()
            });
            let first = index * SECTIONS_PER_STORE + 1;
            let form = Form {
                first: SectionId(u16::try_from(first).map_err(|_| {
                    StoreError::Other("there are too many stores for one snapshot".to_owned())
                })?),
                reader: known.as_deref(),
                descriptors: reader.is_some(),
            };
            begun.0.push(Arc::clone(store));
            let declared = store.begin_copy(&form)?;
            for section in &declared {
                versions.insert(section.name.clone(), section.schema.version);
            }
            sections.extend(declared);
        }
        let header = Header::new(migration, generation, build_id::own());
        let manifest = Manifest {
            app: app.to_owned(),
            sections,
        };
        let writer = SnapshotWriter::new(&header, &manifest, limits(bytes_max))?;
        std::mem::take(&mut begun.0);
        Ok(Self {
            stores,
            at: 0,
            writer,
            attached: Vec::new(),
            next_descriptor: 0,
            versions,
            rounds: 0,
            longest_slice: Duration::ZERO,
        })
    }

    /// Writes a slice of the base.
    pub(super) fn base(&mut self, budget: &Budget) -> Result<Progress, StoreError> {
        self.slice(budget, |store, out, budget| store.copy_base(out, budget))
    }

    /// Writes a slice of what has changed.
    pub(super) fn changes(&mut self, budget: &Budget) -> Result<Progress, StoreError> {
        self.slice(budget, |store, out, budget| store.copy_changes(out, budget))
    }

    fn slice(
        &mut self,
        budget: &Budget,
        write: impl Fn(&dyn Store, &mut Outlet<'_>, &Budget) -> Result<Progress, StoreError>,
    ) -> Result<Progress, StoreError> {
        let began = Instant::now();
        while let Some(store) = self.stores.get(self.at) {
            let mut out = Outlet::new(
                &mut self.writer,
                &mut self.attached,
                &mut self.next_descriptor,
            );
            match write(store.as_ref(), &mut out, budget)? {
                Progress::Done => self.at += 1,
                Progress::More => {
                    self.longest_slice = self.longest_slice.max(began.elapsed());
                    return Ok(Progress::More);
                }
            }
        }
        self.longest_slice = self.longest_slice.max(began.elapsed());
        self.at = 0;
        Ok(Progress::Done)
    }

    /// What has changed and is not written, in entries and bytes.
    pub(super) fn pending(&self) -> (u64, u64) {
        let each = self.stores.iter().map(|store| store.pending());
        each.fold((0, 0), |(entries, bytes), one| {
            (entries + one.entries, bytes + one.bytes)
        })
    }

    /// Ends a round.
    pub(super) fn end_round(&mut self) -> Result<(), StoreError> {
        let (entries, _) = self.pending();
        self.writer.round_end(entries)?;
        self.rounds += 1;
        Ok(())
    }

    /// Waits for every operation that asked the gate before it was closed, and marks the freeze.
    pub(super) fn freeze(&mut self) -> Result<(), StoreError> {
        for store in &self.stores {
            store.settle();
        }
        // A round that was under way begins anew: what it had not reached is still noted.
        self.at = 0;
        self.writer.freeze()?;
        Ok(())
    }

    /// Completes the copy.
    pub(super) fn end(&mut self) -> Result<(), StoreError> {
        self.writer.end()?;
        Ok(())
    }

    /// How many entries all stores hold.
    pub(super) fn entries(&self) -> u64 {
        self.stores.iter().map(|store| store.entries()).sum()
    }

    /// Descriptors that must have gone before the bytes that are ready.
    pub(super) fn take_attached(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.attached)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        for store in &self.stores {
            store.end_copy();
        }
    }
}

/// Stores in which a copy has begun that may not come to be.
struct Begun(Vec<Arc<dyn Store>>);

impl Drop for Begun {
    fn drop(&mut self) {
        for store in &self.0 {
            store.end_copy();
        }
    }
}
