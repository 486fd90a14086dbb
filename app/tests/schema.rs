//! The demo's state in both versions: the steps between them lose nothing, and the types and bytes
//! are what they were when they were released.
//!
//! A golden file that differs means that a running program, or a saved state, can no longer be read.
//! If a file is new, and only then, `HEIRLOOM_BLESS=1` writes it.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

#[path = "../src/demo/schema/v2.rs"]
#[allow(
    unused_imports,
    reason = "the service uses what stayed as it was by way of version 2"
)]
mod v2;

use std::{fmt::Debug, fs, path::PathBuf};

use heirloom_state_codec::{
    Bincode, Bytes, Codec, Context, Lineage, Schema, Step, read_entry, schema_of, write_entry,
};
use proptest::{collection::vec, option, prelude::*};
use v2::v1;

fn adds() -> impl Strategy<Value = Vec<v1::Add>> {
    vec((".{0,8}", any::<u32>()), 0..5).prop_map(|adds| {
        let adds = adds.into_iter();
        adds.map(|(key, n)| v1::Add { key, n }).collect()
    })
}

prop_compose! {
    fn counter_v1()(value in any::<u32>()) -> v1::Counter {
        v1::Counter { value }
    }
}

prop_compose! {
    fn session_v1()(user in ".{0,12}", visits in any::<u64>()) -> v1::Session {
        v1::Session { user, visits }
    }
}

prop_compose! {
    /// As version 1 makes them: with the sum of what they add.
    fn pending_v1()(adds in adds()) -> v1::Pending {
        let total = adds.iter().map(|add| u64::from(add.n)).sum();
        v1::Pending { adds, total }
    }
}

prop_compose! {
    fn session_v2()(
        name in ".{0,12}", visits in any::<u64>(), opened_in in option::of(any::<u64>()),
    ) -> v2::Session {
        v2::Session { name, visits, opened_in }
    }
}

prop_compose! {
    fn talk_v1()(name in ".{0,12}", said in any::<u32>()) -> v1::Talk {
        v1::Talk { name, said }
    }
}

prop_compose! {
    fn talk_v2()(
        name in ".{0,12}", said in any::<u32>(), begun_in in option::of(any::<u64>()),
    ) -> v2::Talk {
        v2::Talk { name, said: said.into(), begun_in }
    }
}

/// Up, and down again: version 1 gets back what it gave.
fn down_undoes_up<T>(older: T::Older)
where
    T: Step,
    T::Older: Clone + PartialEq + Debug,
{
    let mut context = Context::default();
    let newer = T::up(older.clone(), None, &mut context).unwrap();
    let (again, attic) = newer.down(&mut context).unwrap();
    assert_eq!(again, older);
    assert!(attic.is_none(), "version 1 had all there is");
}

/// Down, through the bytes that version 1 and its attic have, and up again.
fn up_undoes_down<T>(newer: &T)
where
    T: Step + Lineage<Bincode> + Clone + PartialEq + Debug,
    Bincode: Codec<T>,
{
    let mut context = Context::default();
    let mut bytes = Vec::new();
    let attic = write_entry::<Bincode, T>(newer, 1, None, &mut bytes, &mut context).unwrap();
    let again = read_entry::<Bincode, T>(1, &bytes, attic, &mut context).unwrap();
    assert_eq!(&again.value, newer);
    assert_eq!(again.attic, None);
}

proptest! {
    #[test]
    fn every_value_of_version_1_goes_up_and_comes_back(
        counter in counter_v1(), session in session_v1(), pending in pending_v1(),
        talk in talk_v1(),
    ) {
        down_undoes_up::<v2::Counter>(counter);
        down_undoes_up::<v2::Session>(session);
        down_undoes_up::<v2::Pending>(pending);
        down_undoes_up::<v2::Talk>(talk);
    }

    #[test]
    fn no_value_of_version_1_is_refused(adds in adds(), total in any::<u64>()) {
        // Also one with a sum that its own program would not have made.
        let pending = v1::Pending { adds, total };
        prop_assert!(v2::Pending::up(pending, None, &mut Context::default()).is_ok());
    }

    #[test]
    fn what_goes_down_comes_back_up(
        value in any::<u32>(), session in session_v2(), adds in adds(), talk in talk_v2(),
    ) {
        up_undoes_down(&v2::Counter { value: value.into() });
        up_undoes_down(&session);
        up_undoes_down(&v2::Pending { adds });
        up_undoes_down(&talk);
    }

    #[test]
    fn a_counter_that_version_1_cannot_hold_is_refused_with_a_reason(
        value in u64::from(u32::MAX) + 1..,
    ) {
        let down = v2::Counter { value }.down(&mut Context::default());
        let reason = down.unwrap_err().to_string();
        prop_assert!(
            reason.contains(&value.to_string()) && reason.contains("version 1 counts to"),
            "{}", reason
        );
    }
}

/// Compares the shape and the bytes of a value with what they were.
fn golden<T>(value: &T)
where
    T: Schema + PartialEq + Debug,
    Bincode: Codec<T>,
{
    let schema = schema_of::<T>();
    let shape = format!("{}\n{}\n", schema.fingerprint, schema.shape);
    let mut bytes = Vec::new();
    Bincode::encode(value, &mut bytes).unwrap();
    for (kind, today) in [("shape", shape.as_bytes()), ("bincode", &bytes)] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(format!("{}@{}.{kind}", T::NAME, T::VERSION));
        if !path.exists() && std::env::var_os("HEIRLOOM_BLESS").is_some() {
            fs::write(&path, today).unwrap();
        }
        let then = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(then == today, "{} differs from today", path.display());
    }
    assert_eq!(Bincode::decode(&bytes).as_ref(), Ok(value));
}

#[test]
fn types_and_bytes_are_what_they_were() {
    let adds = || {
        vec![v1::Add {
            key: "k".to_owned(),
            n: 7,
        }]
    };
    golden(&v1::Identity {
        version: "1.0.0".to_owned(),
        generation: 3,
    });
    golden(&v1::Account {
        balance: 995,
        transfers: 1,
    });
    golden(&v1::Filling {
        bytes: Bytes(vec![1, 2, 3]),
    });
    golden(&v1::Counter { value: 7 });
    golden(&v2::Counter { value: 7 });
    golden(&v1::Session {
        user: "ann".to_owned(),
        visits: 2,
    });
    golden(&v2::Session {
        name: "ann".to_owned(),
        visits: 2,
        opened_in: Some(3),
    });
    golden(&v1::Pending {
        adds: adds(),
        total: 7,
    });
    golden(&v2::Pending { adds: adds() });
    golden(&v1::Talk {
        name: "ann".to_owned(),
        said: 2,
    });
    golden(&v2::Talk {
        name: "ann".to_owned(),
        said: 2,
        begun_in: Some(3),
    });
}
