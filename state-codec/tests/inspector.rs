//! The inspector: what it says of sound snapshots and of damaged ones.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use common::*;
use heirloom_state_codec::*;

fn report(bytes: &[u8]) -> Report {
    inspect(bytes, Limits::default()).unwrap()
}

#[test]
fn a_sound_snapshot_is_counted_without_its_program() {
    let report = report(&small_snapshot());
    assert!(report.is_sound(), "{report}");
    assert_eq!(report.app.as_deref(), Some("shop"));
    assert_eq!(report.header, Some(header(256)));
    let section = |id| {
        report
            .sections
            .iter()
            .find(|report| report.section.id == id)
            .unwrap()
    };
    let notes = section(NOTES);
    assert_eq!((notes.puts, notes.removals, notes.state.entries), (4, 1, 2));
    assert_eq!((section(BLOBS).references, section(BLOBS).bytes), (1, 4096));
    assert_eq!(section(SESSIONS).section.schema.version, 3);
    assert_eq!(report.tally.frames(FrameKind::RoundEnd), 2);
}

#[test]
fn a_damaged_snapshot_is_read_up_to_the_damage() {
    let mut bytes = small_snapshot();
    let at = bytes.len() - 100;
    bytes[at] ^= 4;
    let damaged = report(&bytes);
    assert!(!damaged.is_sound());
    assert!(damaged.header.is_some() && damaged.sections.len() == 7);
    let error = damaged.damage.as_ref().unwrap();
    assert!(
        error.offset <= at as u64 && error.offset > at as u64 - 300,
        "{error}"
    );
    assert!(
        damaged
            .to_string()
            .contains(&format!("damaged at byte {}", error.offset)),
        "{damaged}"
    );
    assert!(
        damaged.to_string().ends_with("not to be used\n"),
        "{damaged}"
    );
    let short = report(&small_snapshot()[..200]);
    assert!(
        short
            .to_string()
            .contains("damaged at byte 200: the stream ends here"),
        "{short}"
    );
    assert!(!report(b"").is_sound());
}

#[test]
fn a_state_that_is_not_the_declared_one_is_named() {
    let mut stream = raw::Stream::new(&[(1, 2)], 256);
    stream.frame(1, 0, 1, 0, &raw::record(1, b"k", Some(b"v")));
    stream.freeze(0);
    stream.end(&[(5, 0)]);
    let wrong = report(&stream.bytes);
    assert!(!wrong.is_sound());
    assert!(
        wrong
            .to_string()
            .contains("wrong state: section 1: the writer holds 5 entries"),
        "{wrong}"
    );
    let mut stream = raw::Stream::new(&[(1, 2)], 256);
    let twice = raw::record(1, b"k", Some(b"v")).repeat(2);
    let frame_at = stream.bytes.len();
    stream.frame(1, 0, 1, 0, &twice);
    stream.freeze(0);
    stream.end(&[(1, 0)]);
    let wrong = report(&stream.bytes);
    assert!(
        wrong.to_string().contains(&format!(
            "wrong at byte {frame_at}: section 1: the base has a key twice"
        )),
        "{wrong}"
    );
}
