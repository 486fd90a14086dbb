//! The way out of bincode, tried: wincode writes the same bytes and reads what bincode wrote.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;

use heirloom_state_codec::{Bincode, Codec};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
enum Plan {
    Free,
    Paid { until: u64 },
    Trial(u8, i16),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
struct Session {
    user: String,
    seen: u64,
    negative: i32,
    share: f64,
    blob: Vec<u8>,
    maybe: Option<u16>,
    plan: Plan,
    pair: (bool, char),
    names: Vec<String>,
    limits: BTreeMap<u32, String>,
    key: [u8; 16],
}

fn sessions() -> impl Strategy<Value = Session> {
    let plan = prop_oneof![
        Just(Plan::Free),
        any::<u64>().prop_map(|until| Plan::Paid { until }),
        any::<(u8, i16)>().prop_map(|(a, b)| Plan::Trial(a, b)),
    ];
    let numbers = (
        any::<u64>(),
        any::<i32>(),
        -1e9_f64..1e9,
        any::<Option<u16>>(),
        any::<[u8; 16]>(),
    );
    let texts = (
        ".{0,20}",
        proptest::collection::vec(".{0,5}", 0..4),
        proptest::collection::btree_map(any::<u32>(), ".{0,5}", 0..4),
    );
    (
        numbers,
        texts,
        proptest::collection::vec(any::<u8>(), 0..40),
        plan,
        any::<(bool, char)>(),
    )
        .prop_map(
            |((seen, negative, share, maybe, key), (user, names, limits), blob, plan, pair)| {
                Session {
                    user,
                    seen,
                    negative,
                    share,
                    blob,
                    maybe,
                    plan,
                    pair,
                    names,
                    limits,
                    key,
                }
            },
        )
}

proptest! {
    #[test]
    fn bincode_and_wincode_write_the_same_bytes(session in sessions()) {
        let mut by_bincode = Vec::new();
        Bincode::encode(&session, &mut by_bincode).unwrap();
        let by_wincode = wincode::serialize(&session).unwrap();
        prop_assert_eq!(&by_bincode, &by_wincode);
        prop_assert_eq!(&wincode::deserialize_exact::<Session>(&by_bincode).unwrap(), &session);
        prop_assert_eq!(<Bincode as Codec<Session>>::decode(&by_wincode).unwrap(), session);
    }
}
