//! For tests: a copy from one store to another, slice by slice, through the real stream.
//!
//! A ledger reads along, so a wrong hash for what a record replaces shows at the end, whatever the
//! taking store makes of it.

use std::{
    collections::BTreeMap,
    ops::Bound,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use heirloom_state_codec::{
    BuildId, EntryLedger, Event, Header, Limits, Manifest, SectionId, SectionTotal, SnapshotReader,
    SnapshotWriter, StateDigest,
};

use super::{
    error::StoreError,
    own::Own,
    store::{Budget, Form, Outlet, Progress, Store},
    turn::lock,
};

/// A budget that is spent after the first batch.
pub(crate) fn least() -> Budget {
    Budget::new(Duration::ZERO, 0)
}

/// A copy on its way from one store to another.
pub(crate) struct Relay<'a> {
    source: &'a dyn Store,
    target: &'a dyn Store,
    writer: SnapshotWriter,
    attached: Vec<OwnedFd>,
    next: u32,
    reader: SnapshotReader,
    ledger: EntryLedger,
    manifest: Manifest,
    base: Progress,
    rounds: u32,
}

impl<'a> Relay<'a> {
    /// Begins a copy for a reader that knows the target's versions.
    pub(crate) fn begin(source: &'a dyn Store, target: &'a dyn Store, descriptors: bool) -> Self {
        let known: Vec<u32> = target.reads().iter().map(|schema| schema.version).collect();
        let form = Form {
            first: SectionId(1),
            reader: descriptors.then_some(&known[..]),
            descriptors,
        };
        let manifest = Manifest {
            app: "test".to_owned(),
            sections: source.begin_copy(&form).unwrap(),
        };
        let header = Header::new(0, 1, BuildId::default());
        let writer = SnapshotWriter::new(&header, &manifest, Limits::default()).unwrap();
        Self {
            source,
            target,
            writer,
            attached: Vec::new(),
            next: 0,
            reader: SnapshotReader::new(Limits::default()),
            ledger: EntryLedger::new(&manifest, &Limits::default()),
            manifest,
            base: Progress::More,
            rounds: 0,
        }
    }

    fn base(&mut self, budget: &Budget) -> Result<Progress, StoreError> {
        let mut out = Outlet::new(&mut self.writer, &mut self.attached, &mut self.next);
        self.base = self.source.copy_base(&mut out, budget)?;
        self.pump()?;
        Ok(self.base)
    }

    fn changes(&mut self, budget: &Budget) -> Result<Progress, StoreError> {
        let mut out = Outlet::new(&mut self.writer, &mut self.attached, &mut self.next);
        let progress = self.source.copy_changes(&mut out, budget)?;
        self.pump()?;
        Ok(progress)
    }

    /// A slice of whatever is due, and the end of the round if it was the last.
    pub(crate) fn slice(&mut self, budget: &Budget) -> Result<(), StoreError> {
        let progress = match self.base {
            Progress::More => self.base(budget)?,
            Progress::Done => self.changes(budget)?,
        };
        if progress == Progress::Done {
            self.round_end();
        }
        Ok(())
    }

    /// Rounds that have ended, the base among them.
    pub(crate) fn rounds(&self) -> u32 {
        self.rounds
    }

    fn round_end(&mut self) {
        let pending = self.source.pending();
        self.writer.round_end(pending.entries).unwrap();
        self.rounds += 1;
        self.pump().unwrap();
    }

    /// Everything that is left, to be called when nobody changes the source any more, and the proof
    /// that both hold the same.
    pub(crate) fn finish(mut self) -> Result<(), StoreError> {
        self.source.settle();
        self.writer.freeze()?;
        while self.base == Progress::More {
            self.base(&least())?;
        }
        while self.changes(&least())? == Progress::More {}
        assert_eq!(self.source.pending().entries, 0);
        self.source.end_copy();
        self.writer.end()?;
        self.pump()?;
        Ok(())
    }

    /// Carries what is ready over.
    fn pump(&mut self) -> Result<(), StoreError> {
        self.writer.flush();
        while !self.writer.ready().is_empty() {
            let count = self.reader.push(self.writer.ready());
            self.writer.consume(count);
            while let Some(event) = self.reader.poll().unwrap() {
                self.ledger.apply(&event)?;
                match &event {
                    Event::Opened { .. } => {
                        let sections: Vec<_> = self.manifest.sections.iter().collect();
                        self.target.begin_taking(&sections)?;
                    }
                    Event::Bulk {
                        section, records, ..
                    } => self.target.apply(section, true, records.clone())?,
                    Event::Delta {
                        section, records, ..
                    } => self.target.apply(section, false, records.clone())?,
                    Event::Memfd { section, reference } => {
                        // Taken in the order in which they were attached.
                        let descriptor = self.attached.remove(0);
                        self.target.apply_memfd(section, reference, descriptor)?;
                    }
                    Event::End(end) => {
                        end.verify(&self.ledger.totals()).unwrap();
                        let held = self.target.end_taking();
                        end.verify(&held).unwrap();
                        assert_eq!(nonempty(&held), nonempty(end.totals()));
                    }
                    _other => {}
                }
            }
        }
        Ok(())
    }
}

fn nonempty(totals: &[SectionTotal]) -> Vec<SectionTotal> {
    let holds = |total: &&SectionTotal| total.state != StateDigest::default();
    totals.iter().filter(holds).copied().collect()
}

/// A whole copy at once.
pub(crate) fn copy(source: &dyn Store, target: &dyn Store, descriptors: bool) {
    let mut relay = Relay::begin(source, target, descriptors);
    while relay.base == Progress::More {
        relay.slice(&least()).unwrap();
    }
    relay.finish().unwrap();
}

/// An app's own store.
#[derive(Clone, Debug)]
pub(crate) struct Tree<V>(pub(crate) Arc<Mutex<BTreeMap<u16, V>>>);

impl<V> Default for Tree<V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<V: Clone + Send + Sync + 'static> Own for Tree<V> {
    type Key = u16;
    type Value = V;

    fn get(&self, key: &u16) -> Option<V> {
        lock(&self.0).get(key).cloned()
    }

    fn put(&self, key: &u16, value: Option<V>) {
        match value {
            Some(value) => lock(&self.0).insert(*key, value),
            None => lock(&self.0).remove(key),
        };
    }

    fn keys(&self, after: Option<&u16>, most: usize) -> Vec<u16> {
        let start = after.map_or(Bound::Unbounded, |key| Bound::Excluded(*key));
        let tree = lock(&self.0);
        let range = tree.range((start, Bound::Unbounded));
        range.map(|(key, _)| *key).take(most).collect()
    }

    fn count(&self) -> u64 {
        lock(&self.0).len() as u64
    }

    fn clear(&self) {
        lock(&self.0).clear();
    }
}
