//! A copy gives what a plain map would hold, whatever is done while it is made.

mod races;

use std::{
    collections::{BTreeMap, HashMap},
    marker::PhantomData,
};

use futures_util::FutureExt;
use heirloom_state_codec::{
    Bincode, Change, Codec, Context, MigrateError, SectionKind, State as Schema, Step, StepError,
    shape_of,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Handle, Kind, Value, lock};
use crate::state::{
    State,
    error::StoreError,
    store::{Store, Wanted},
    testing::{Relay, least},
    transaction::commit_groups,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Schema)]
#[state(name = "item", version = 1, oldest)]
struct Item1 {
    count: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Schema)]
#[state(name = "item", version = 2)]
struct Item2 {
    count: u64,
    note: String,
}

impl Step for Item2 {
    type Older = Item1;
    type Attic = String;

    fn up(old: Item1, attic: Option<String>, _: &mut Context) -> Result<Self, StepError> {
        Ok(Self {
            count: u64::from(old.count),
            note: attic.unwrap_or_default(),
        })
    }

    fn down(self, _: &mut Context) -> Result<(Item1, Option<String>), StepError> {
        let count = u32::try_from(self.count).map_err(StepError::new)?;
        // An empty note is what `up` makes up by itself.
        let note = Some(self.note).filter(|note| !note.is_empty());
        Ok((Item1 { count }, note))
    }
}

/// Few shards, so that keys meet in one.
#[derive(Debug)]
struct Few<V>(PhantomData<V>);

/// A value of a test.
trait Item: Value<Bincode> + std::fmt::Debug + Serialize + DeserializeOwned {}

impl<T: Value<Bincode> + std::fmt::Debug + Serialize + DeserializeOwned> Item for T {}

impl<V: Item> Kind for Few<V> {
    type Key = u8;
    type Value = V;
    type Codec = Bincode;
    const SECTION: SectionKind = SectionKind::Map;
    const SHARDS: usize = 2;

    fn key_shape() -> String {
        shape_of::<u8>()
    }

    fn encode_key(key: &u8, out: &mut Vec<u8>) -> Result<(), MigrateError> {
        out.push(*key);
        Ok(())
    }

    fn decode_key(bytes: &[u8]) -> Result<u8, MigrateError> {
        Ok(Bincode::decode(bytes)?)
    }
}

/// A store that codes so many entries under one lock.
fn store<V: Item>(batch_entries: usize) -> (State, Handle<Few<V>>) {
    let state = State::new();
    let handle = Handle::new(&state, "items");
    lock(&handle.0.copies).batch_entries = batch_entries;
    (state, handle)
}

fn now<T>(operation: impl Future<Output = T>) -> T {
    operation.now_or_never().expect("the gate is open")
}

fn held<V: Item>(handle: &Handle<Few<V>>) -> BTreeMap<u8, (u64, V)> {
    let keys = now(handle.entries())
        .unwrap()
        .into_iter()
        .map(|(key, _)| key);
    let each = keys.map(|key| {
        let (version, value) = now(handle.see(&key)).unwrap();
        (key, (version, value.unwrap()))
    });
    each.collect()
}

/// What is done while a copy is made.
#[derive(Clone, Copy, Debug)]
enum Act {
    Put(u8, u8),
    Remove(u8),
    /// As another generation does it, over the link.
    Stage(u8, u8),
    Slice,
    /// Gives the copy up and begins another.
    Anew,
}

fn acts(most: usize) -> impl Strategy<Value = Vec<Act>> {
    let key = || 0_u8..10;
    let act = prop_oneof![
        4 => (key(), any::<u8>()).prop_map(|(key, value)| Act::Put(key, value)),
        3 => key().prop_map(Act::Remove),
        1 => (key(), any::<u8>()).prop_map(|(key, value)| Act::Stage(key, value)),
        5 => Just(Act::Slice),
        1 => Just(Act::Anew),
    ];
    proptest::collection::vec(act, 0..most)
}

/// Changes a store and a plain map alike; `make` makes a value out of a number.
fn change<V: Item>(
    (state, handle): &(State, Handle<Few<V>>),
    act: Act,
    make: impl Fn(u8) -> V,
    model: &mut impl FnMut(u8, Option<u8>),
) {
    match act {
        Act::Put(key, value) => {
            now(handle.update(key, |held| *held = Some(make(value)))).unwrap();
            model(key, Some(value));
        }
        Act::Remove(key) => {
            now(handle.remove(&key)).unwrap();
            model(key, None);
        }
        Act::Stage(key, value) => {
            let (expected, _) = now(handle.see(&key)).unwrap();
            let mut bytes = Vec::new();
            let old = Item1 {
                count: u32::from(value),
            };
            Bincode::encode(&old, &mut bytes).unwrap();
            let wanted = Wanted {
                key: &[key],
                expected,
                change: Some(Change::Put(&bytes)),
            };
            let group = handle.stage(1, &[wanted]).unwrap();
            assert!(now(commit_groups(&state.core.gate, vec![group])).unwrap());
            model(key, Some(value));
        }
        Act::Slice | Act::Anew => {}
    }
}

/// Copies while the acts are done, and proves that the digests hold.
fn copy_during<A: Item, B: Item>(
    source: &(State, Handle<Few<A>>),
    target: &Handle<Few<B>>,
    acts: &[Act],
    make: impl Fn(u8) -> A,
    model: &mut impl FnMut(u8, Option<u8>),
) -> Result<(), StoreError> {
    let mut relay = Relay::begin(&source.1, target, true);
    source.0.core.gate.open(true);
    for act in acts {
        match act {
            Act::Put(..) | Act::Remove(_) | Act::Stage(..) => change(source, *act, &make, model),
            Act::Slice => relay.slice(&least())?,
            Act::Anew => {
                source.1.end_copy();
                relay = Relay::begin(&source.1, target, true);
            }
        }
    }
    source.0.core.gate.close();
    relay.finish()?;
    source.0.core.gate.open(false);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Entries, versions and digests are the same on both sides and as in a plain map.
    #[test]
    fn a_copy_is_the_original(
        before in acts(30), during in acts(120), batch in 1_usize..5, again in acts(60),
    ) {
        let make = |value: u8| Item1 { count: u32::from(value) };
        let source = store::<Item1>(batch);
        let mut model = HashMap::new();
        let mut follow = |key: u8, value: Option<u8>| {
            match value {
                Some(value) => model.insert(key, value),
                None => model.remove(&key),
            };
        };
        for act in &before {
            change(&source, *act, make, &mut follow);
        }
        for acts in [&during, &again] {
            let (_state, target) = store::<Item1>(1);
            copy_during(&source, &target, acts, make, &mut follow).unwrap();
            prop_assert_eq!(held(&target), held(&source.1));
        }
        let values: HashMap<u8, u8> = held(&source.1)
            .into_iter()
            .map(|(key, (_, item))| (key, item.count as u8))
            .collect();
        prop_assert_eq!(values, model);
    }

    /// Version 2, to a program that knows version 1 only, and on and back: what version 1 has no room
    /// for comes back with every entry that it left alone.
    #[test]
    fn what_an_older_program_does_not_know_comes_back(
        before in acts(20), down in acts(60), across in acts(60), up in acts(60), batch in 1_usize..4,
    ) {
        // In the older program: the count, and the note with the count that it belongs to.
        type Aside = Option<(u8, String)>;
        let mut model: HashMap<u8, (u8, Aside)> = HashMap::new();
        let note = |value: u8| if value.is_multiple_of(3) { String::new() } else { format!("note {value}") };
        let make2 = |value: u8| Item2 { count: u64::from(value), note: note(value) };
        let make1 = |value: u8| Item1 { count: u32::from(value) };
        // The staged value of an older generation keeps the note that is there.
        let newest = store::<Item2>(batch);
        let mut follow = |key: u8, value: Option<u8>| match value {
            Some(value) => drop(model.insert(key, (value, Some((value, note(value)))))),
            None => drop(model.remove(&key)),
        };
        let puts = |acts: &[Act]| -> Vec<Act> {
            acts.iter().copied().filter(|act| !matches!(act, Act::Stage(..))).collect()
        };
        for act in puts(&before) {
            change(&newest, act, make2, &mut follow);
        }
        let older = store::<Item1>(batch);
        copy_during(&newest, &older.1, &puts(&down), make2, &mut follow).unwrap();
        let mut follow = |key: u8, value: Option<u8>| match value {
            Some(value) => {
                let aside = model.remove(&key).and_then(|(_, aside)| aside);
                model.insert(key, (value, aside));
            }
            None => drop(model.remove(&key)),
        };
        let oldest = store::<Item1>(batch);
        copy_during(&older, &oldest.1, &puts(&across), make1, &mut follow).unwrap();
        // A copy between equals gives on only what is not void.
        for (value, aside) in model.values_mut() {
            aside.take_if(|(count, _)| count != value);
        }
        let mut follow = |key: u8, value: Option<u8>| match value {
            Some(value) => {
                let aside = model.remove(&key).and_then(|(_, aside)| aside);
                model.insert(key, (value, aside));
            }
            None => drop(model.remove(&key)),
        };
        let (_state, back) = store::<Item2>(1);
        copy_during(&oldest, &back, &puts(&up), make1, &mut follow).unwrap();
        let expected: BTreeMap<u8, Item2> = model.into_iter().map(|(key, (value, aside))| {
            let aside = aside.filter(|(count, _)| *count == value);
            let note = aside.map(|(_, note)| note).unwrap_or_default();
            (key, Item2 { count: u64::from(value), note })
        }).collect();
        let found: BTreeMap<u8, Item2> =
            held(&back).into_iter().map(|(key, (_, item))| (key, item)).collect();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn what_an_older_generation_writes_late_keeps_what_it_does_not_know() {
    let newer = store::<Item2>(1);
    let item = Item2 {
        count: 1,
        note: "kept".to_owned(),
    };
    now(newer.1.insert(7, item)).unwrap();
    change(&newer, Act::Stage(7, 9), |_| unreachable!(), &mut |_, _| {});
    let (version, found) = now(newer.1.see(&7)).unwrap();
    let expected = Item2 {
        count: 9,
        note: "kept".to_owned(),
    };
    assert_eq!((version, found), (2, Some(expected)));
}

#[test]
fn what_a_change_did_before_it_panicked_counts() {
    let (_state, handle) = store::<Item1>(1);
    let one = Item1 { count: 1 };
    now(handle.insert(1, one.clone())).unwrap();
    let panicking = |held: &mut Option<Item1>| {
        *held = Some(Item1 { count: 2 });
        panic!("on purpose");
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _never: Result<(), _> = now(handle.update(1, panicking));
    }));
    assert!(outcome.is_err());
    assert_eq!(held(&handle)[&1], (2, Item1 { count: 2 }));
    let emptied = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _never: Result<(), _> = now(handle.update(1, |held| {
            *held = None;
            panic!("on purpose");
        }));
    }));
    assert!(emptied.is_err());
    assert_eq!(now(handle.len()).unwrap(), 0);
    now(handle.insert(1, one)).unwrap();
    assert_eq!(now(handle.len()).unwrap(), 1);
}
