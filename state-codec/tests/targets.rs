//! Fuzz targets: the envelope, frames, and the application of deltas. Under `cargo test` each runs some
//! thousand inputs; `cargo bolero test -p heirloom-state-codec NAME` goes on from there, guided by coverage.
//!
//! Checksums would keep a fuzzer out, so what it finds is wrapped in right ones.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use bolero::check;
use common::raw::{Stream, envelope};
use common::*;
use heirloom_state_codec::*;

/// Enough for a smoke run of a second or two.
const ITERATIONS: usize = 4000;

/// One frame of the input: kind, flags, section, shard, length, payload.
fn frames(mut input: &[u8]) -> impl Iterator<Item = (u8, u8, u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = input.split_at_checked(5)?;
        let length = usize::from(head[4]).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        input = rest;
        // Mostly what there is, so that more than the first check is reached.
        let (kind, section) = (head[0] % 10, u16::from(head[2] % 7));
        Some((kind, head[1] % 4, section, u32::from(head[3] % 2), payload))
    })
}

#[test]
fn any_header_and_manifest() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| {
            assert!(!matches!(read(input), Outcome::Verified(..)));
            assert!(matches!(read(&envelope(input, 4096)), Outcome::Damaged(_)));
            let report = inspect(input, Limits::default()).unwrap();
            assert!(!report.is_sound());
        });
}

#[test]
fn any_frames() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| {
            let mut stream = Stream::new(&[(1, 2), (2, 3), (3, 1), (4, 4), (5, 5), (6, 6)], 256);
            for (kind, flags, section, shard, payload) in frames(input) {
                stream.frame(kind, flags, section, shard, payload);
            }
            // Without an end mark none of them is a snapshot, however the bytes come.
            let whole = read(&stream.bytes);
            assert!(!matches!(whole, Outcome::Verified(..)), "{whole:?}");
            let pieces = read_in_pieces(&stream.bytes, 7, Limits::default());
            assert_eq!(format!("{pieces:?}"), format!("{whole:?}"));
        });
}

#[test]
fn any_deltas() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| {
            let mut stream = Stream::new(&[(1, 2), (2, 3)], 1024);
            for (_, _, section, _, payload) in frames(input) {
                stream.frame(2, 0, section % 2 + 1, 0, payload);
            }
            let limits = Limits {
                entries_max: 64,
                ..Limits::default()
            };
            let mut reader = SnapshotReader::new(limits);
            let mut ledger = None;
            let mut rest = &stream.bytes[..];
            loop {
                match reader.poll() {
                    Ok(Some(Event::Opened { manifest, .. })) => {
                        ledger = Some(EntryLedger::new(manifest, &limits));
                    }
                    Ok(Some(event)) => {
                        if ledger.as_mut().unwrap().apply(&event).is_err() {
                            break;
                        }
                    }
                    Ok(None) if rest.is_empty() => break,
                    Ok(None) => {
                        let count = reader.push(rest);
                        rest = &rest[count..];
                    }
                    Err(_) => break,
                }
            }
            let held = ledger.map(|ledger| ledger.totals()).unwrap_or_default();
            assert!(held.iter().all(|total| total.state.entries <= 64));
        });
}
