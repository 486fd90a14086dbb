//! Objects arrive by descriptor or as bytes, whatever is done meanwhile.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use proptest::prelude::*;

use super::{Arena, CHUNK_BYTES};
use crate::state::{
    State, StateError,
    testing::{Relay, copy, least},
};

fn now<T>(operation: impl Future<Output = T>) -> T {
    operation.now_or_never().expect("the gate is open")
}

fn content(arena: &Arena) -> BTreeMap<String, Vec<u8>> {
    let names = arena.shared.index.held().into_iter().map(|(name, _)| name);
    let each = names.map(|name| {
        let blob = now(arena.blob(&name)).unwrap().unwrap();
        let mut bytes = vec![0; usize::try_from(blob.len()).unwrap()];
        now(blob.read_at(0, &mut bytes)).unwrap();
        (name, bytes)
    });
    each.collect()
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Create(u8, u8),
    Remove(u8),
    Write(u8, u8, u8),
    Slice,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let name = || 0_u8..3;
    let act = prop_oneof![
        2 => (name(), 0_u8..4).prop_map(|(name, halves)| Act::Create(name, halves)),
        1 => name().prop_map(Act::Remove),
        4 => (name(), any::<u8>(), any::<u8>()).prop_map(|(name, at, byte)| Act::Write(name, at, byte)),
        4 => Just(Act::Slice),
    ];
    proptest::collection::vec(act, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn objects_arrive_as_they_are(acts in acts(), descriptors in any::<bool>()) {
        let states = [State::new(), State::new()];
        let source = Arena::new(&states[0], "tiles");
        let target = Arena::new(&states[1], "tiles");
        let mut relay = Relay::begin(&source, &target, descriptors);
        let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Create(name, halves) => {
                    let name = name.to_string();
                    let bytes = u64::from(halves) * CHUNK_BYTES / 2;
                    let made = now(source.create(&name, bytes));
                    prop_assert_eq!(made.is_ok(), !model.contains_key(&name));
                    model.entry(name).or_insert_with(|| vec![0; bytes as usize]);
                }
                Act::Remove(name) => {
                    let name = name.to_string();
                    let was_there = model.remove(&name).is_some();
                    prop_assert_eq!(now(source.remove(&name)).unwrap(), was_there);
                }
                Act::Write(name, at, byte) => {
                    let name = name.to_string();
                    let Some(bytes) = model.get_mut(&name) else { continue };
                    let offset = bytes.len() * usize::from(at) / 256;
                    let piece = [byte; 3];
                    let blob = now(source.blob(&name)).unwrap().unwrap();
                    let written = now(blob.write_at(offset as u64, &piece));
                    match bytes.get_mut(offset..offset + piece.len()) {
                        Some(place) => {
                            written.unwrap();
                            place.copy_from_slice(&piece);
                        }
                        None => prop_assert!(matches!(written, Err(StateError::System(_)))),
                    }
                }
                Act::Slice => relay.slice(&least()).unwrap(),
            }
        }
        relay.finish().unwrap();
        prop_assert_eq!(content(&target), model);
    }
}

#[test]
fn a_handed_over_object_is_the_same_memory_in_both_generations() {
    let states = [State::new(), State::new()];
    let (old, new) = (Arena::new(&states[0], "a"), Arena::new(&states[1], "a"));
    let here = now(old.create("x", 3 * CHUNK_BYTES)).unwrap();
    copy(&old, &new, true);
    let there = now(new.blob("x")).unwrap().unwrap();
    let long = vec![7; CHUNK_BYTES as usize + 10];
    now(here.write_at(CHUNK_BYTES - 5, &long)).unwrap();
    let mut found = vec![0; long.len()];
    now(there.read_at(CHUNK_BYTES - 5, &mut found)).unwrap();
    assert_eq!(found, long);
}

#[test]
fn a_copy_without_descriptors_is_another_memory() {
    let states = [State::new(), State::new()];
    let (old, new) = (Arena::new(&states[0], "a"), Arena::new(&states[1], "a"));
    let here = now(old.create("x", 10)).unwrap();
    now(here.write_at(0, b"0123456789")).unwrap();
    now(old.create("empty", 0)).unwrap();
    copy(&old, &new, false);
    now(here.write_at(0, b"x")).unwrap();
    let found = content(&new);
    assert_eq!(found["x"], b"0123456789");
    assert_eq!(found["empty"], b"");
}
