//! Inputs of a few bytes that claim to be huge or nest without end. Each must be refused in a
//! process with little memory and little time, because a decoder that trusts them aborts or hangs
//! and cannot be caught.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::{BTreeMap, HashMap};
use std::process::Command;

use heirloom_state_codec::{Bincode, Bytes, Cbor, Codec, CodecError, DEPTH_MAX};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Nested {
    Leaf,
    Deeper(Box<Self>),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Tree {
    children: Vec<Self>,
}

/// Memory that the process under test may have.
const MEMORY_KIB: u32 = 512 * 1024;
/// Time that it may take.
const SECONDS: u32 = 20;

/// Runs one of this file's ignored tests in a process of its own, under limits.
fn survives(name: &str) {
    let script = format!("ulimit -v {MEMORY_KIB} && exec timeout -s KILL {SECONDS} \"$0\" \"$@\"");
    let program = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", &script])
        .arg(program)
        .args(["--exact", name, "--ignored", "--test-threads", "1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

macro_rules! bombs {
    ($($outer:ident runs $inner:ident $body:block)*) => {$(
        #[test]
        fn $outer() {
            survives(stringify!($inner));
        }

        #[test]
        #[ignore = "run under limits by the test of the same name"]
        fn $inner() $body
    )*};
}

fn claims(length: u64) -> Vec<u8> {
    [&length.to_le_bytes()[..], &[0]].concat()
}

fn refused<C: Codec<T>, T: std::fmt::Debug>(bytes: &[u8]) -> String {
    match C::decode(bytes) {
        Err(CodecError::Decode { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

bombs! {
    bincode_lengths_are_not_believed runs bincode_lengths {
        for length in [1 << 20, 1 << 36, u64::MAX / 16, u64::MAX] {
            let bytes = claims(length);
            refused::<Bincode, Vec<u8>>(&bytes);
            refused::<Bincode, Vec<u64>>(&bytes);
            refused::<Bincode, String>(&bytes);
            refused::<Bincode, Bytes>(&bytes);
            refused::<Bincode, HashMap<u64, u64>>(&bytes);
            refused::<Bincode, BTreeMap<String, u8>>(&bytes);
            refused::<Bincode, Option<Vec<[u64; 32]>>>(&[&[1], &bytes[..]].concat());
        }
    }

    bincode_elements_of_no_size_do_not_hang runs bincode_elements_of_no_size {
        for length in [10, 1 << 40, u64::MAX] {
            let reason = refused::<Bincode, Vec<()>>(&claims(length));
            // A length beyond the address space is refused by bincode itself.
            assert!(reason.contains("elements of no bytes") || length == u64::MAX, "{reason}");
        }
    }

    bincode_depth_is_bounded runs bincode_depth {
        let tags = 1_u32.to_le_bytes().repeat(1 << 18);
        let reason = refused::<Bincode, Nested>(&tags);
        assert!(reason.contains("nested deeper"), "{reason}");
        let counts = 1_u64.to_le_bytes().repeat(1 << 17);
        let reason = refused::<Bincode, Tree>(&counts);
        assert!(reason.contains("nested deeper"), "{reason}");
    }

    cbor_lengths_are_not_believed runs cbor_lengths {
        let claim = |major: u8, length: u64| [&[major << 5 | 27], &length.to_be_bytes()[..]].concat();
        for length in [1 << 36, u64::MAX / 16, u64::MAX] {
            refused::<Cbor, Bytes>(&claim(2, length));
            refused::<Cbor, String>(&claim(3, length));
            refused::<Cbor, Vec<u64>>(&claim(4, length));
            refused::<Cbor, Vec<()>>(&claim(4, length));
            refused::<Cbor, BTreeMap<String, u8>>(&claim(5, length));
        }
    }

    cbor_depth_is_bounded runs cbor_depth {
        let inner = [&[0xA1, 0x68], &b"children"[..], &[0x81]].concat();
        let reason = refused::<Cbor, Tree>(&inner.repeat(50_000));
        assert!(reason.contains("nested deeper"), "{reason}");
        let variants = [&[0xA1, 0x66], &b"Deeper"[..]].concat();
        let reason = refused::<Cbor, Nested>(&variants.repeat(50_000));
        assert!(reason.contains("nested deeper"), "{reason}");
        // An unknown field is skipped, whatever it holds.
        let skipped = [&[0xA1, 0x61, b'x'][..], &[0x81; 500_000]].concat();
        refused::<Cbor, Tree>(&skipped);
        let tags = [&[0xA1, 0x68], &b"children"[..], &[0xC1; 500_000]].concat();
        refused::<Cbor, Tree>(&tags);
    }

    wincode_lengths_are_not_believed runs wincode_lengths {
        for length in [1 << 20, 1 << 36, u64::MAX] {
            assert!(wincode::deserialize::<Vec<u8>>(&claims(length)).is_err());
            assert!(wincode::deserialize::<String>(&claims(length)).is_err());
        }
    }
}

#[test]
fn what_is_deep_but_allowed_fits_a_thread_of_two_mebibytes() {
    let levels = (DEPTH_MAX / 2 - 1) as usize;
    let run = move || {
        let value = (0..levels).fold(Nested::Leaf, |inner, _| Nested::Deeper(Box::new(inner)));
        for (encode, decode) in [
            (
                Bincode::encode as fn(&Nested, &mut Vec<u8>) -> _,
                Bincode::decode as fn(&[u8]) -> _,
            ),
            (Cbor::encode, Cbor::decode),
        ] {
            let mut bytes = Vec::new();
            encode(&value, &mut bytes).unwrap();
            assert_eq!(
                decode(&bytes),
                Ok((0..levels).fold(Nested::Leaf, |inner, _| { Nested::Deeper(Box::new(inner)) }))
            );
        }
    };
    std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(run)
        .unwrap()
        .join()
        .unwrap();
}
