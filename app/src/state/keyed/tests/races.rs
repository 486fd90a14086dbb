//! Every order in which threads can change a shard, copy it, and close the gate.
//!
//! The shard and the copy are the real ones; the lock and the gate's word are replaced by those of a model
//! checker, and used as [`Keyed`](super::super::Keyed) and [`Gate`](crate::state::gate::Gate) use theirs.

use std::collections::BTreeMap;

use heirloom_state_codec::{
    Bincode, BuildId, Change, Codec, EntryLedger, Event, Header, Limits, Manifest, SectionId,
    SectionKind, SnapshotReader, SnapshotWriter,
};
use loom::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::{Few, Item1};
use crate::state::{
    declared::{Declared, Identity, declare},
    keyed::{copying::Copying, shard::Shard},
    store::{Form, Progress},
};

/// More of these make the orders too many to try in seconds.
const PREEMPTIONS: usize = 2;

struct Model {
    shard: Mutex<Shard<u8, Item1>>,
    closed: AtomicBool,
}

impl Model {
    /// A change as a store makes it; false if it was turned away.
    fn change(&self, key: u8, change: impl FnOnce(&mut Option<Item1>)) -> bool {
        let mut shard = self.shard.lock().unwrap();
        if self.closed.load(Ordering::Relaxed) {
            return false;
        }
        shard.update(u64::from(key), key, change);
        true
    }
}

fn add_one(held: &mut Option<Item1>) {
    held.get_or_insert(Item1 { count: 0 }).count += 1;
}

fn declared() -> Declared {
    let identity = Identity {
        name: "items",
        kind: SectionKind::Map,
        key_shape: "u8",
    };
    let form = Form {
        first: SectionId(1),
        reader: None,
        descriptors: false,
    };
    declare::<Bincode, Item1>(identity, &form, 0, false)
}

/// The copy as whoever reads it has it.
fn read(mut writer: SnapshotWriter, manifest: &Manifest) -> BTreeMap<u8, u32> {
    let mut reader = SnapshotReader::new(Limits::default());
    let mut ledger = EntryLedger::new(manifest, &Limits::default());
    let mut held = BTreeMap::new();
    writer.end().unwrap();
    while !writer.ready().is_empty() {
        let count = reader.push(writer.ready());
        writer.consume(count);
        while let Some(event) = reader.poll().unwrap() {
            ledger.apply(&event).unwrap();
            match event {
                Event::Bulk { records, .. } | Event::Delta { records, .. } => {
                    for record in records {
                        let key = record.key[0];
                        match record.change {
                            Change::Put(bytes) => {
                                let item: Item1 = Bincode::decode(bytes).unwrap();
                                held.insert(key, item.count);
                            }
                            Change::Remove => drop(held.remove(&key)),
                        }
                    }
                }
                Event::End(end) => drop(end.verify(&ledger.totals()).unwrap()),
                _other => {}
            }
        }
    }
    held
}

/// Copies, closes, settles, writes the rest.
fn copy(model: &Model) -> BTreeMap<u8, u32> {
    let declared = declared();
    let mut copying = Copying::new(1, &declared, 1);
    let manifest = Manifest {
        app: "test".to_owned(),
        sections: declared.into_sections(),
    };
    let header = Header::new(0, 1, BuildId::default());
    let mut writer = SnapshotWriter::new(&header, &manifest, Limits::default()).unwrap();
    let mut base = || {
        let mut shard = model.shard.lock().unwrap();
        copying
            .base_batch::<Few<Item1>>(&mut shard, &mut writer)
            .unwrap()
    };
    while base() == Progress::More {}
    writer.round_end(0).unwrap();
    model.closed.store(true, Ordering::SeqCst);
    drop(model.shard.lock().unwrap());
    writer.freeze().unwrap();
    let mut rest = || {
        let mut shard = model.shard.lock().unwrap();
        copying
            .round_batch::<Few<Item1>>(&mut shard, &mut writer)
            .unwrap()
    };
    while rest() == Progress::More {}
    read(writer, &manifest)
}

/// What a copy needs, which is more than a thread of the model checker has by itself.
const STACK_BYTES: usize = 256 * 1024;

fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    let builder = thread::Builder::new().stack_size(STACK_BYTES);
    builder.spawn(work).unwrap()
}

fn check(writers: [fn(&Model) -> u32; 2], keys: &'static [u8]) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(move || {
        let model = Arc::new(Model {
            shard: Mutex::new(Shard::default()),
            closed: AtomicBool::new(false),
        });
        for key in keys {
            model.change(*key, add_one);
        }
        let writers = writers.map(|writer| {
            let model = Arc::clone(&model);
            start(move || writer(&model))
        });
        let copier = {
            let model = Arc::clone(&model);
            start(move || copy(&model))
        };
        let copied = copier.join().unwrap();
        let each = writers.into_iter().map(|writer| writer.join().unwrap());
        let acknowledged: u32 = each.sum();
        // Nothing has changed since, though every thread has done all it was to do.
        let shard = model.shard.lock().unwrap();
        let slots = shard.iter();
        let held: BTreeMap<u8, u32> = slots
            .map(|slot| (slot.key, slot.value().unwrap().count))
            .collect();
        assert_eq!(copied, held);
        // Key 0 is only added to.
        assert_eq!(copied.get(&0).copied().unwrap_or(0), 1 + acknowledged);
    });
}

#[test]
fn an_acknowledged_change_is_in_the_copy_and_no_other() {
    let twice = |model: &Model| {
        let done = [model.change(0, add_one), model.change(0, add_one)];
        done.into_iter().map(u32::from).sum()
    };
    let once = |model: &Model| u32::from(model.change(0, add_one));
    check([twice, once], &[0]);
}

#[test]
fn a_key_that_goes_and_comes_back_is_copied_as_it_is() {
    let come_back = |model: &Model| {
        model.change(1, |held| *held = None);
        model.change(1, add_one);
        0
    };
    let squeeze_in = |model: &Model| {
        model.change(2, add_one);
        u32::from(model.change(0, add_one))
    };
    check([come_back, squeeze_in], &[1, 0]);
}
