//! The example in docs/snapshot-format.md is what the library writes, and what the document's own
//! rules give.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use common::*;
use heirloom_state_codec::*;

fn example() -> Vec<u8> {
    let manifest = Manifest {
        app: "raw".to_owned(),
        sections: vec![opaque(NOTES, "s1", SectionKind::Map)],
    };
    let mut header = Header::new(0, 1, BuildId::default());
    header.frame_cap = 256;
    let mut writer = SnapshotWriter::new(&header, &manifest, Limits::default()).unwrap();
    writer.freeze().unwrap();
    writer.bulk(NOTES, 1, b"k", b"v").unwrap();
    writer.end().unwrap();
    writer.ready().to_vec()
}

#[test]
fn the_document_and_the_library_write_the_same_bytes() {
    let mut by_document = raw::Stream::new(&[(1, 2)], 256);
    by_document.freeze(0);
    let record = raw::record(1, b"k", Some(b"v"));
    by_document.frame(1, 0, 1, 0, &record);
    by_document.end(&[(1, raw::entry_hash(&record))]);
    assert_eq!(by_document.bytes, example());
}

#[test]
fn the_documents_example_is_true() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/snapshot-format.md");
    let text = std::fs::read_to_string(document).unwrap();
    let (_, example_text) = text.rsplit_once("## A smallest example").unwrap();
    let (intro, hex) = example_text.split_once("```\n").unwrap();
    let hex: Vec<u8> = hex
        .trim_end()
        .trim_end_matches('`')
        .lines()
        .flat_map(|line| {
            line.split('#')
                .next()
                .unwrap_or_default()
                .split_whitespace()
        })
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let expected = example();
    let shown: Vec<_> = expected.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(hex == expected, "{}", shown.join(" "));
    assert!(
        intro.contains(&format!("{} bytes", hex.len())),
        "{}",
        hex.len()
    );
    read(&hex).model();
}
