//! An app's own store arrives as it was, whatever is done meanwhile.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use heirloom_state_codec::{Context, State as Schema, Step, StepError};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::Tracked;
use crate::state::{
    State,
    store::Store,
    testing::{Relay, Tree, copy, least},
    turn::lock,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Schema)]
#[state(name = "thing", version = 1, oldest)]
struct Thing1 {
    size: u8,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Schema)]
#[state(name = "thing", version = 2)]
struct Thing2 {
    size: u8,
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
        let label = Some(self.label).filter(|label| !label.is_empty());
        Ok((Thing1 { size: self.size }, label))
    }
}

fn now<T>(operation: impl Future<Output = T>) -> T {
    operation.now_or_never().expect("the gate is open")
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Put(u16, u8),
    Remove(u16),
    Slice,
    Anew,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let key = || 0_u16..12;
    let act = prop_oneof![
        4 => (key(), any::<u8>()).prop_map(|(key, value)| Act::Put(key, value)),
        3 => key().prop_map(Act::Remove),
        6 => Just(Act::Slice),
        1 => Just(Act::Anew),
    ];
    proptest::collection::vec(act, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn an_apps_own_store_goes_to_an_older_program_and_comes_back(
        acts in acts(), late in proptest::collection::btree_map(0_u16..12, any::<u8>(), 0..6),
    ) {
        let states = [State::new(), State::new(), State::new()];
        let source = Tracked::<Tree<Thing2>>::new(&states[0], "things", Tree::default());
        let older = Tracked::<Tree<Thing1>>::new(&states[1], "things", Tree::default());
        let back = Tracked::<Tree<Thing2>>::new(&states[2], "things", Tree::default());
        let mut model = BTreeMap::new();
        let mut relay = Relay::begin(&source, &older, true);
        for act in acts {
            match act {
                Act::Put(key, size) => {
                    let thing = Thing2 { size, label: format!("of {key}") };
                    model.insert(key, thing.clone());
                    now(source.change(key, |held| *held = Some(thing.clone()))).unwrap();
                }
                Act::Remove(key) => {
                    let removed = now(source.change(key, Option::take)).unwrap();
                    prop_assert_eq!(removed, model.remove(&key));
                }
                Act::Slice => relay.slice(&least()).unwrap(),
                Act::Anew => {
                    source.end_copy();
                    relay = Relay::begin(&source, &older, true);
                }
            }
        }
        relay.finish().unwrap();
        for (key, size) in late {
            now(older.change(key, |held| *held = Some(Thing1 { size }))).unwrap();
            let before = model.remove(&key).filter(|thing| thing.size == size);
            let thing = before.unwrap_or(Thing2 { size, label: String::new() });
            model.insert(key, thing);
        }
        copy(&older, &back, true);
        let found: BTreeMap<_, _> = now(back.entries()).unwrap().into_iter().collect();
        prop_assert_eq!(found, model.clone());
        prop_assert_eq!(&*lock(&back.store().0), &model);
    }
}
