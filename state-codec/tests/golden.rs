//! Bytes that must never change: one snapshot of format 1.0, and shape and bytes of every schema
//! version.
//!
//! A failure here means that snapshots of released programs can no longer be read. If a file is
//! new, and only then, `HEIRLOOM_BLESS=1` writes it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::*;
use heirloom_state_codec::*;

fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if !path.exists() && std::env::var_os("HEIRLOOM_BLESS").is_some() {
        fs::write(&path, bytes).unwrap();
    }
    let expected = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(
        expected == bytes,
        "{} differs from what is written today",
        path.display()
    );
}

fn stored(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_format_is_what_it_was() {
    golden("format-1.0.hls", &small_snapshot());
    let model = read(&stored("format-1.0.hls")).model();
    assert_eq!(model.len(), 7);
}

#[test]
fn the_inspector_says_of_it_what_it_said() {
    let report = inspect(stored("format-1.0.hls").as_slice(), Limits::default()).unwrap();
    assert!(report.is_sound());
    golden("format-1.0.txt", report.to_string().as_bytes());
}

fn schema<T>(value: &T)
where
    T: Schema + Clone + PartialEq + std::fmt::Debug,
    Bincode: Codec<T>,
    Cbor: Codec<T>,
{
    let name = format!("{}@{}", T::NAME, T::VERSION);
    let schema = schema_of::<T>();
    golden(
        &format!("{name}.shape"),
        format!("{}\n{}\n", schema.fingerprint, schema.shape).as_bytes(),
    );
    let (mut bincode, mut cbor) = (Vec::new(), Vec::new());
    Bincode::encode(value, &mut bincode).unwrap();
    Cbor::encode(value, &mut cbor).unwrap();
    golden(&format!("{name}.bincode"), &bincode);
    golden(&format!("{name}.cbor"), &cbor);
    assert_eq!(
        Bincode::decode(&stored(&format!("{name}.bincode"))).as_ref(),
        Ok(value)
    );
    assert_eq!(
        Cbor::decode(&stored(&format!("{name}.cbor"))).as_ref(),
        Ok(value)
    );
}

#[test]
fn every_version_of_a_schema_is_what_it_was() {
    schema(&SessionV1 {
        user: "ann".to_owned(),
        seen: 7,
    });
    schema(&SessionV2 {
        user: "ann".to_owned(),
        seen: 7,
        tags: vec!["new".to_owned()],
    });
    schema(&session());
}

#[test]
fn the_newest_version_reads_every_older_one() {
    let mut context = Context::default();
    for version in 1..=3 {
        let bytes = stored(&format!("session@{version}.bincode"));
        read_entry::<Bincode, SessionV3>(version, &bytes, None, &mut context).unwrap();
    }
    assert_eq!(context.raised, 2);
    assert_eq!(context.notes(), ["a session without a plan is free"; 2]);
}
