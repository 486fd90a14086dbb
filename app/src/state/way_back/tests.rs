//! What one generation changes, the one in reserve has: every kind of store, of two versions, whichever is the
//! older; and what the ends of a way back come to.

use std::{
    io::Write as _,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use heirloom_handover::{lifeline::Sent, message::Reads, way_back::Fate};
use heirloom_state_codec::{
    self as heirloom_state_codec, Context, State as Schema, Step, StepError,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::pipe2,
};
use serde::{Deserialize, Serialize};

use super::{
    Change, WayBack,
    following::{Ends, Following, Outcome},
    record::{Draft, HEAD_BYTES},
};
use crate::state::{
    Arena, Cell, Log, Map, Set, State, Tracked, keyed::Value, link, store::Store, testing::Tree,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Schema)]
#[state(name = "thing", version = 1, oldest)]
struct Thing1 {
    size: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Schema)]
#[state(name = "thing", version = 2)]
struct Thing2 {
    size: u64,
    label: String,
}

impl Step for Thing2 {
    type Older = Thing1;
    type Attic = String;

    fn up(old: Thing1, attic: Option<String>, _: &mut Context) -> Result<Self, StepError> {
        Ok(Self {
            size: old.size,
            label: attic.unwrap_or_default(),
        })
    }

    fn down(self, _: &mut Context) -> Result<(Thing1, Option<String>), StepError> {
        if self.size > 1000 {
            return Err(StepError::new("version 1 knows no such size"));
        }
        let label = Some(self.label).filter(|label| !label.is_empty());
        Ok((Thing1 { size: self.size }, label))
    }
}

fn thing1(size: u64) -> Thing1 {
    Thing1 { size }
}

fn thing2(size: u64) -> Thing2 {
    Thing2 {
        size,
        label: format!("label {size}"),
    }
}

fn now<T>(operation: impl Future<Output = T>) -> T {
    operation.now_or_never().expect("the gate is open")
}

/// A state with every kind of store.
struct Stores<V>
where
    V: Value<heirloom_state_codec::Bincode>,
    heirloom_state_codec::Bincode: heirloom_state_codec::Codec<V>,
{
    state: State,
    map: Map<u16, V>,
    set: Set<u16>,
    cell: Cell<V>,
    log: Log<V>,
    tree: Tree<V>,
    tracked: Tracked<Tree<V>>,
    arena: Arena,
}

impl<V> Stores<V>
where
    V: Value<heirloom_state_codec::Bincode> + PartialEq + std::fmt::Debug,
    heirloom_state_codec::Bincode: heirloom_state_codec::Codec<V>,
{
    fn new(initial: V) -> Self {
        let state = State::new();
        let tree = Tree::default();
        Self {
            map: Map::new(&state, "map"),
            set: Set::new(&state, "set"),
            cell: Cell::new(&state, "cell", initial),
            log: Log::new(&state, "log"),
            tracked: Tracked::new(&state, "tracked", tree.clone()),
            tree,
            arena: Arena::new(&state, "arena"),
            state,
        }
    }

    /// Changes all of it, in every way there is.
    fn change(&self, make: impl Fn(u64) -> V) {
        for key in 0..8 {
            now(self.map.insert(key, make(key.into()))).unwrap();
            now(self.set.insert(key)).unwrap();
            now(self.log.push(make(key.into()))).unwrap();
            let put = |held: &mut Option<V>| *held = Some(make(key.into()));
            now(self.tracked.change(key, put)).unwrap();
        }
        now(self.map.update(1, |held| *held = Some(make(21)))).unwrap();
        now(self.map.update(2, |held| *held = None)).unwrap();
        now(self.map.remove(&3)).unwrap();
        now(self.map.remove(&99)).unwrap();
        now(self.set.remove(&4)).unwrap();
        now(self.cell.set(make(5))).unwrap();
        now(self.cell.update(|held| *held = make(6))).unwrap();
        now(self.tracked.change(5, |held| *held = None)).unwrap();
        let mut transaction = self.state.transaction();
        transaction.put(&self.map, 6, make(66));
        transaction.remove(&self.map, 7);
        transaction.set_member(&self.set, 77, true);
        transaction.set_cell(&self.cell, make(7));
        transaction.push(&self.log, make(8));
        assert!(now(transaction.commit()).unwrap());
        let blob = now(self.arena.create("kept", 100)).unwrap();
        now(blob.write_at(0, b"written before")).unwrap();
        now(self.arena.create("gone", 100)).unwrap();
        now(self.arena.remove("gone")).unwrap();
        now(blob.write_at(8, b"since")).unwrap();
    }

    /// What `change` leads to.
    fn check(&self, make: impl Fn(u64) -> V) {
        let mut entries = now(self.map.entries()).unwrap();
        entries.sort_by_key(|(key, _)| *key);
        let expected = [(0, 0), (1, 21), (4, 4), (5, 5), (6, 66)];
        let expected: Vec<_> = expected.map(|(key, size)| (key, make(size))).into();
        assert_eq!(entries, expected);
        let mut keys = now(self.set.keys()).unwrap();
        keys.sort_unstable();
        assert_eq!(keys, [0, 1, 2, 3, 5, 6, 7, 77]);
        assert_eq!(now(self.cell.get()).unwrap(), make(7));
        let log = now(self.log.range(0..100)).unwrap();
        assert_eq!(log, (0..9).map(&make).collect::<Vec<_>>());
        let tree = self.tree.0.lock().unwrap().clone();
        let keys: Vec<u16> = tree.keys().copied().collect();
        assert_eq!(keys, [0, 1, 2, 3, 4, 6, 7]);
        assert!(
            tree.iter()
                .all(|(key, value)| *value == make((*key).into()))
        );
        let blob = now(self.arena.blob("kept")).unwrap().unwrap();
        let mut bytes = [0; 14];
        now(blob.read_at(0, &mut bytes)).unwrap();
        assert_eq!(&bytes, b"written sincee");
        assert!(now(self.arena.blob("gone")).unwrap().is_none());
    }
}

fn reads(stores: &[Arc<dyn Store>]) -> Vec<Reads> {
    let of = |store: &Arc<dyn Store>| {
        let name = store.name().to_owned();
        let schemas = store.reads().into_iter();
        let each = schemas.map(move |schema| Reads {
            section: name.clone(),
            schema: schema.name,
            version: schema.version,
            fingerprint: schema.fingerprint.0,
        });
        each.collect::<Vec<_>>()
    };
    stores.iter().flat_map(of).collect()
}

/// A way back between two states, and how often it was given up.
struct Way {
    way: Arc<WayBack>,
    following: Following,
    lost: Arc<AtomicUsize>,
}

fn way(from: &State, to: &State) -> Way {
    let (reading, writing) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (old_fate, new_fate) = Fate::pair().unwrap();
    let (link, _other): (OwnedFd, OwnedFd) = link::pair();
    let lost = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lost);
    let tell = Box::new(move |_: &str| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let readable = reads(&to.core.stores());
    let way = WayBack::new(writing, new_fate, &from.core.stores(), &readable, tell).unwrap();
    let way = Arc::new(way);
    from.core.gate.write_back(Arc::clone(&way));
    let ends = Ends {
        pipe: reading,
        fate: old_fate,
        link,
        limit: Duration::from_secs(60),
    };
    let following = Following::begin(ends, to.core.stores()).unwrap();
    Way {
        way,
        following,
        lost,
    }
}

impl Way {
    /// The writer is gone, without a word.
    fn dies<V>(self, from: Stores<V>) -> Outcome
    where
        V: Value<heirloom_state_codec::Bincode>,
        heirloom_state_codec::Bincode: heirloom_state_codec::Codec<V>,
    {
        let Self {
            way, mut following, ..
        } = self;
        assert_eq!(following.go_on(), None);
        drop((from, way));
        following.go_on().expect("both have ended")
    }
}

#[test]
fn what_the_same_version_changes_is_followed() {
    let (from, to) = (Stores::new(thing1(0)), Stores::new(thing1(0)));
    let way = way(&from.state, &to.state);
    from.change(thing1);
    assert_eq!(way.lost.load(Ordering::Relaxed), 0);
    assert_eq!(way.dies(from), Outcome::Ours);
    to.check(thing1);
}

#[test]
fn what_a_newer_version_changes_is_followed_and_comes_back_whole() {
    let (from, to) = (Stores::new(thing2(0)), Stores::new(thing1(0)));
    let there = way(&from.state, &to.state);
    from.change(thing2);
    assert_eq!(there.dies(from), Outcome::Ours);
    to.check(thing1);
    // What version 1 has no room for was kept, and goes on to the next of version 2.
    let next: Map<u16, Thing2> = Map::new(&State::new(), "map");
    crate::state::testing::copy(&to.map.0, &next.0, true);
    assert_eq!(now(next.get(&6)).unwrap(), Some(thing2(66)));
    assert_eq!(now(next.get(&1)).unwrap(), Some(thing2(21)));
}

#[test]
fn what_an_older_version_changes_is_followed() {
    let (from, to) = (Stores::new(thing1(0)), Stores::new(thing2(0)));
    let way = way(&from.state, &to.state);
    from.change(thing1);
    assert_eq!(way.dies(from), Outcome::Ours);
    let bare = |size| Thing2 {
        size,
        label: String::new(),
    };
    to.check(bare);
}

/// Writes a record past the stores, and lets the writer die.
fn dies_behind(bytes: &[u8]) -> (Outcome, Option<Thing1>) {
    let (from, to) = (Stores::new(thing1(0)), Stores::new(thing1(0)));
    let way = way(&from.state, &to.state);
    now(from.map.insert(1, thing1(1))).unwrap();
    way.way
        .pipe
        .lock()
        .unwrap()
        .file
        .as_mut()
        .unwrap()
        .write_all(bytes)
        .unwrap();
    let Way {
        way, mut following, ..
    } = way;
    drop((from, way));
    let outcome = following.go_on().unwrap();
    (outcome, now(to.map.get(&1)).unwrap())
}

#[test]
fn a_record_that_is_cut_off_is_dropped_and_a_damaged_one_ends_it() {
    let mut draft = Draft::default();
    draft.add("map", 1, &1_u16.to_le_bytes(), 9, Change::Remove);
    let whole = draft.finish().unwrap().unwrap();
    let held = Some(thing1(1));
    let cut = &whole[..whole.len() - 1];
    assert_eq!(dies_behind(cut), (Outcome::Ours, held.clone()));
    let mut damaged = whole.clone();
    damaged[HEAD_BYTES + 2] ^= 1;
    assert_eq!(dies_behind(&damaged), (Outcome::Over, held));
    assert_eq!(dies_behind(&whole), (Outcome::Ours, None));
}

#[test]
fn a_reader_that_does_not_keep_up_is_given_up_and_told_before_the_change_returns() {
    let (from, to) = (Stores::new(thing1(0)), Stores::new(thing1(0)));
    let mut way = way(&from.state, &to.state);
    {
        let pipe = way.way.pipe.lock().unwrap();
        fcntl(pipe.file.as_ref().unwrap(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    }
    for key in 0..1000 {
        now(from.map.insert(key, thing1(1))).unwrap();
        if way.lost.load(Ordering::Relaxed) > 0 {
            break;
        }
    }
    assert_eq!(way.lost.load(Ordering::Relaxed), 1);
    assert!(!way.way.is_open());
    assert!(from.state.core.gate.way_back().is_none());
    assert_eq!(way.following.go_on(), Some(Outcome::Over));
    assert!(
        way.following.reason.contains("did not read"),
        "{}",
        way.following.reason
    );
}

#[test]
fn a_value_without_an_older_form_ends_the_way_back_and_not_the_change() {
    let (from, to) = (Stores::new(thing2(0)), Stores::new(thing1(0)));
    let mut way = way(&from.state, &to.state);
    now(from.map.insert(1, thing2(1001))).unwrap();
    assert_eq!(now(from.map.get(&1)).unwrap(), Some(thing2(1001)));
    assert_eq!(way.lost.load(Ordering::Relaxed), 1);
    assert_eq!(way.following.go_on(), Some(Outcome::Over));
    assert!(
        way.following.reason.contains("no such size"),
        "{}",
        way.following.reason
    );
}

#[test]
fn a_change_that_panics_is_followed_as_far_as_it_came() {
    let (from, to) = (Stores::new(thing1(0)), Stores::new(thing1(0)));
    let way = way(&from.state, &to.state);
    now(from.map.insert(1, thing1(1))).unwrap();
    let half = from.map.update(1, |held| {
        *held = Some(thing1(2));
        panic!("a test of a change that panics");
    });
    let half: Result<Result<(), _>, _> =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| now(half)));
    assert!(half.is_err());
    assert_eq!(now(from.map.get(&1)).unwrap(), Some(thing1(2)));
    assert_eq!(way.dies(from), Outcome::Ours);
    assert_eq!(now(to.map.get(&1)).unwrap(), Some(thing1(2)));
}

#[test]
fn an_offer_is_taken_when_everything_has_been_read() {
    let (from, to) = (Stores::new(thing1(0)), Stores::new(thing1(0)));
    let mut way = way(&from.state, &to.state);
    now(from.map.insert(1, thing1(1))).unwrap();
    assert_eq!(way.way.offer().unwrap(), Sent::Queued);
    assert_eq!(way.following.go_on(), Some(Outcome::Ours));
    assert_eq!(now(to.map.get(&1)).unwrap(), Some(thing1(1)));
    assert!(way.way.fate().unwrap().into_lifeline().resolve().unwrap());
}

#[test]
fn one_that_stands_down_is_not_written_to() {
    let (from, to) = (Stores::new(thing1(0)), Stores::new(thing1(0)));
    let mut way = way(&from.state, &to.state);
    now(from.map.insert(1, thing1(1))).unwrap();
    assert_eq!(way.following.stand_down("it is over"), Some(Outcome::Over));
    drop(way.following);
    now(from.map.insert(2, thing1(2))).unwrap();
    assert!(!way.way.is_open());
    assert_eq!(way.lost.load(Ordering::Relaxed), 0, "nobody misses it");
    assert_eq!(way.way.offer().unwrap(), Sent::Refused);
}
