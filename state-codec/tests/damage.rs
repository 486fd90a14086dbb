//! Damaged and dishonest streams: each is refused, at a known byte, at bounded cost.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use common::raw::{Stream, entry_hash, record};
use common::*;
use heirloom_state_codec::*;

#[test]
fn a_snapshot_cut_at_any_byte_is_refused() {
    let bytes = small_snapshot();
    for length in 0..bytes.len() {
        let error = read(&bytes[..length]).damage();
        assert!(
            matches!(error.defect, Defect::Truncated { .. }),
            "{length}: {error}"
        );
        assert_eq!(error.offset, length as u64);
    }
}

#[test]
fn a_snapshot_with_any_bit_flipped_is_refused() {
    let bytes = small_snapshot();
    let mut flipped = bytes.clone();
    for bit in 0..bytes.len() * 8 {
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = read(&flipped).damage();
        // The damage is found no later than at the end of the frame it is in.
        assert!(error.offset <= bit as u64 / 8, "bit {bit}: {error}");
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
    read(&flipped).model();
}

#[test]
fn any_byte_behind_the_end_is_refused() {
    let bytes = small_snapshot();
    let longer = [bytes.as_slice(), &[0]].concat();
    for piece in [1, bytes.len(), usize::MAX] {
        let error = read_in_pieces(&longer, piece, Limits::default()).damage();
        assert_eq!(
            error,
            ReadError {
                offset: bytes.len() as u64,
                defect: Defect::Trailing
            }
        );
    }
}

/// The frames of a snapshot, the envelope first.
fn pieces_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for at in 1..=bytes.len() {
        if bytes[at..].starts_with(&FRAME_SYNC) || at == bytes.len() {
            pieces.push(bytes[start..at].to_vec());
            start = at;
        }
    }
    pieces
}

#[test]
fn a_frame_lost_repeated_or_moved_is_refused() {
    let pieces = pieces_of(&small_snapshot());
    assert!(pieces.len() > 15);
    for number in 1..pieces.len() {
        let mut lost = pieces.clone();
        lost.remove(number);
        let mut repeated = pieces.clone();
        repeated.insert(number, pieces[number].clone());
        let mut moved = pieces.clone();
        moved.swap(number, number - 1);
        for (what, damaged) in [("lost", lost), ("repeated", repeated), ("moved", moved)] {
            read(&damaged.concat()).damage();
            println!("frame {number} {what}: refused");
        }
    }
}

#[test]
fn damage_is_reported_where_it_is() {
    let bytes = small_snapshot();
    let frame = bytes
        .windows(4)
        .position(|window| window == FRAME_SYNC)
        .unwrap();
    let at = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut damaged = bytes.clone();
        change(&mut damaged);
        read(&damaged).damage()
    };
    let text_mode = at(&|bytes| {
        bytes.remove(4);
    });
    assert!(
        text_mode.to_string().contains("copied as text"),
        "{text_mode}"
    );
    let seven_bit = at(&|bytes| bytes[0] &= 0x7F);
    assert!(seven_bit.to_string().contains("7-bit"), "{seven_bit}");
    let payload = at(&|bytes| bytes[frame + 40] ^= 1);
    assert_eq!(payload.offset, frame as u64 + 32);
    assert!(matches!(payload.defect, Defect::PayloadChecksum { .. }));
    let header = at(&|bytes| bytes[frame + 8] ^= 1);
    assert_eq!(header.offset, frame as u64);
    assert!(matches!(header.defect, Defect::FrameHeaderChecksum { .. }));
    let major = at(&|bytes| bytes[8] = 9);
    assert!(matches!(major.defect, Defect::FormatMajor { found: 9 }));
    let foreign = read(b"PK").damage();
    assert!(matches!(foreign.defect, Defect::Magic { .. }), "{foreign}");
}

const MAP: u8 = 2;

fn refused(build: impl FnOnce(&mut Stream)) -> Defect {
    let mut stream = Stream::new(&[(1, MAP), (2, 3), (3, 4), (4, 5)], 256);
    build(&mut stream);
    read(&stream.bytes).damage().defect
}

#[test]
fn frames_that_break_a_rule_are_refused_though_their_checksums_hold() {
    let unit = record(1, b"k", Some(b"v"));
    let oversized = refused(|s| s.frame(1, 0, 1, 0, &[0; 257]));
    assert_eq!(
        oversized,
        Defect::FrameLength {
            found: 257,
            cap: 256
        }
    );
    let unknown = refused(|s| s.frame(99, 0, 0, 0, b""));
    assert_eq!(unknown, Defect::UnknownFrame { kind: 99 });
    let flags = refused(|s| s.frame(1, 4, 1, 0, &unit));
    assert_eq!(flags, Defect::FrameFlags { kind: 1, flags: 4 });
    let optional = refused(|s| s.frame(1, 2, 1, 0, &unit));
    assert_eq!(optional, Defect::FrameFlags { kind: 1, flags: 2 });
    let continued_mark = refused(|s| s.frame(4, 1, 0, 0, &[0; 4]));
    assert_eq!(continued_mark, Defect::FrameFlags { kind: 4, flags: 1 });
    let undeclared = refused(|s| s.frame(1, 0, 9, 0, &unit));
    assert!(matches!(
        undeclared,
        Defect::FrameSection { section: 9, .. }
    ));
    let bulk_in_blob = refused(|s| s.frame(1, 0, 3, 0, &unit));
    assert!(matches!(
        bulk_in_blob,
        Defect::FrameSection { section: 3, .. }
    ));
    let sectioned_freeze = refused(|s| s.frame(4, 0, 1, 0, &[0; 4]));
    assert!(matches!(
        sectioned_freeze,
        Defect::FrameSection { section: 1, .. }
    ));
    let sharded_freeze = refused(|s| s.frame(4, 0, 0, 1, &[0; 4]));
    assert!(matches!(
        sharded_freeze,
        Defect::FrameSection { section: 0, .. }
    ));
    let empty = refused(|s| s.frame(1, 0, 1, 0, b""));
    assert_eq!(empty, Defect::Record(RecordDefect::Count));
    let dead_bulk = refused(|s| s.frame(1, 0, 1, 0, &record(1, b"k", None)));
    assert_eq!(dead_bulk, Defect::Record(RecordDefect::TombstoneInBulk));
    let log_key = refused(|s| s.frame(1, 0, 2, 0, &unit));
    assert_eq!(log_key, Defect::Record(RecordDefect::KeyForKind));
    let short = refused(|s| s.frame(1, 0, 1, 0, &unit[..unit.len() - 1]));
    assert_eq!(short, Defect::Record(RecordDefect::Short));
    let memfd = refused(|s| s.frame(5, 0, 3, 0, &[0; 10]));
    assert_eq!(
        memfd,
        Defect::Payload {
            kind: FrameKind::Memfd
        }
    );
    let connection = refused(|s| s.frame(6, 0, 4, 0, &[0; 10]));
    assert_eq!(
        connection,
        Defect::Payload {
            kind: FrameKind::Connection
        }
    );
    let early_end = refused(|s| s.end(&[(0, 0); 4]));
    assert_eq!(early_end, Defect::Order(OrderDefect::EndBeforeFreeze));
    let refreeze = refused(|s| {
        s.freeze(0);
        s.freeze(0);
    });
    assert_eq!(refreeze, Defect::Order(OrderDefect::Freeze));
}

#[test]
fn a_continued_entry_must_be_continued_by_its_own() {
    let large = record(1, b"key", Some(&[9; 300]));
    let (head, tail) = large.split_at(200);
    let interrupted = refused(|s| {
        s.frame(1, 1, 1, 0, head);
        s.freeze(0);
    });
    assert_eq!(interrupted, Defect::Continuation { kind: 4 });
    let other_shard = refused(|s| {
        s.frame(1, 1, 1, 0, head);
        s.frame(1, 0, 1, 7, tail);
    });
    assert_eq!(other_shard, Defect::Continuation { kind: 1 });
    let with_second = refused(|s| {
        s.frame(1, 1, 1, 0, head);
        s.frame(1, 0, 1, 0, &[tail, &record(1, b"b", Some(b""))].concat());
    });
    assert_eq!(with_second, Defect::Record(RecordDefect::Count));
    let idle = refused(|s| {
        s.frame(1, 1, 1, 0, head);
        s.frame(1, 1, 1, 0, b"");
    });
    assert_eq!(idle, Defect::Record(RecordDefect::Short));
    let limits = Limits {
        entry_bytes_max: 250,
        ..Limits::default()
    };
    let mut stream = Stream::new(&[(1, MAP)], 256);
    stream.frame(1, 1, 1, 0, head);
    stream.frame(1, 0, 1, 0, tail);
    let error = read_in_pieces(&stream.bytes, usize::MAX, limits).damage();
    assert!(
        matches!(error.defect, Defect::Limit { limit: 250, .. }),
        "{error}"
    );
}

#[test]
fn an_unknown_frame_that_says_it_is_optional_is_skipped() {
    let mut stream = Stream::new(&[(1, MAP)], 256);
    let unit = record(1, b"k", Some(b"v"));
    stream.frame(1, 0, 1, 0, &unit);
    stream.frame(200, 2, 77, 3, b"from the future");
    stream.freeze(0);
    stream.end(&[(1, entry_hash(&unit))]);
    assert_eq!(read(&stream.bytes).model().len(), 1);
}

#[test]
fn an_end_mark_that_lies_is_refused() {
    let unit = record(1, b"k", Some(b"v"));
    let stream_with = |totals: &[(u64, u128)]| {
        let mut stream = Stream::new(&[(1, MAP), (3, 4)], 256);
        stream.frame(1, 0, 1, 0, &unit);
        stream.freeze(0);
        stream.end(totals);
        read(&stream.bytes)
    };
    stream_with(&[(1, entry_hash(&unit)), (0, 0)]).model();
    for lie in [(1, entry_hash(&unit) ^ 1), (2, entry_hash(&unit)), (0, 0)] {
        let outcome = stream_with(&[lie, (0, 0)]);
        assert!(matches!(outcome, Outcome::Mismatch(_)), "{outcome:?}");
    }
    let references = stream_with(&[(1, entry_hash(&unit)), (1, 0)]).damage();
    assert!(matches!(
        references.defect,
        Defect::EndCount {
            what: "references",
            ..
        }
    ));
    let unlisted = stream_with(&[(1, entry_hash(&unit))]).damage();
    assert!(
        matches!(
            unlisted.defect,
            Defect::Payload {
                kind: FrameKind::End
            }
        ),
        "{unlisted}"
    );
}

#[test]
fn records_that_break_a_rule_of_deltas_are_refused() {
    let misapplied = |frames: &[(u8, u16, Vec<u8>)]| {
        let mut stream = Stream::new(&[(1, MAP), (2, 3)], 256);
        for (kind, section, payload) in frames {
            stream.frame(*kind, 0, *section, 0, payload);
        }
        match read(&stream.bytes) {
            Outcome::Misapplied(error) => error,
            other => panic!("{other:?}"),
        }
    };
    let put = |version| record(version, b"k", Some(b"v"));
    let twice = misapplied(&[(1, 1, put(1)), (1, 1, put(2))]);
    assert_eq!(
        twice,
        ApplyError::Duplicate {
            section: SectionId(1)
        }
    );
    let stale = misapplied(&[(1, 1, put(5)), (2, 1, put(5))]);
    assert_eq!(
        stale,
        ApplyError::Stale {
            section: SectionId(1),
            held: 5,
            found: 5
        }
    );
    let dead = misapplied(&[(1, 1, put(5)), (2, 1, record(4, b"k", None))]);
    assert_eq!(
        dead,
        ApplyError::Stale {
            section: SectionId(1),
            held: 5,
            found: 4
        }
    );
    let line = |position: u64| record(1, &position.to_le_bytes(), Some(b""));
    let gap = misapplied(&[(1, 2, line(3)), (2, 2, line(5))]);
    assert_eq!(
        gap,
        ApplyError::LogGap {
            section: SectionId(2),
            expected: 4,
            found: 5
        }
    );
    let cut = misapplied(&[(2, 2, record(1, &[0; 8], None))]);
    assert_eq!(
        cut,
        ApplyError::LogRemoval {
            section: SectionId(2)
        }
    );
}

#[test]
fn a_reader_spends_no_more_than_its_limits() {
    let bytes = small_snapshot();
    let short = Limits {
        stream_bytes_max: 500,
        ..Limits::default()
    };
    let error = read_in_pieces(&bytes, usize::MAX, short).damage();
    assert!(
        matches!(
            error.defect,
            Defect::Limit {
                what: "a stream",
                limit: 500,
                ..
            }
        ),
        "{error}"
    );
    let few = Limits {
        entries_max: 3,
        ..Limits::default()
    };
    let outcome = read_in_pieces(&bytes, usize::MAX, few);
    assert!(
        matches!(
            outcome,
            Outcome::Misapplied(ApplyError::TooMany { limit: 3 })
        ),
        "{outcome:?}"
    );
    let small = Limits {
        entry_bytes_max: 100,
        ..Limits::default()
    };
    let error = read_in_pieces(&bytes, usize::MAX, small).damage();
    assert!(
        matches!(
            error.defect,
            Defect::Limit {
                what: "an entry",
                limit: 100,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn an_error_stays_an_error() {
    let mut bytes = small_snapshot();
    let position = bytes.len() - 1;
    bytes[position] ^= 1;
    let mut reader = SnapshotReader::new(Limits::default());
    reader.push(&bytes);
    let first = loop {
        if let Err(error) = reader.poll() {
            break error;
        }
    };
    reader.push(&small_snapshot());
    assert_eq!(reader.poll().unwrap_err(), first);
    assert_eq!(reader.finish().unwrap_err(), first);
}
