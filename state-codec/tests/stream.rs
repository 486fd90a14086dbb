//! Whole streams: what is written is read, however it is cut into pieces.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use common::*;
use heirloom_state_codec::*;
use proptest::prelude::*;

#[test]
fn a_snapshot_with_every_kind_of_frame_reads_back_in_pieces_of_any_size() {
    let bytes = small_snapshot();
    let whole = read(&bytes).model();
    assert_eq!(whole.len(), 7, "{whole:?}");
    assert_eq!(whole[&(NOTES, b"first".to_vec())], (2, b"eins".to_vec()));
    assert!(!whole.contains_key(&(NOTES, b"second".to_vec())));
    assert_eq!(whole[&(NOTES, b"large".to_vec())], (1, vec![0x5A; 600]));
    for piece in [1, 2, 31, 32, 33, 71, 72, 73, 257, 1000] {
        assert_eq!(
            read_in_pieces(&bytes, piece, Limits::default()).model(),
            whole,
            "{piece}"
        );
    }
}

#[test]
fn references_and_marks_come_through() {
    let bytes = small_snapshot();
    let mut reader = SnapshotReader::new(Limits::default());
    let mut seen = Vec::new();
    let mut rest = bytes.as_slice();
    loop {
        match reader.poll().unwrap() {
            Some(Event::Opened {
                header: read,
                manifest,
            }) => {
                assert_eq!(*read, header(256));
                assert_eq!(*manifest, every_kind());
            }
            Some(Event::Memfd { section, reference }) => {
                assert_eq!(section.id, BLOBS);
                assert_eq!((reference.key, reference.length), (&b"map"[..], 4096));
                assert_eq!(reference.content, Some([0xC0; 32]));
                seen.push("memfd");
            }
            Some(Event::Connection { section, reference }) => {
                assert_eq!(section.id, CONNECTIONS);
                assert_eq!(
                    (reference.connection, reference.unread),
                    (12, &b"GET /"[..])
                );
                seen.push("connection");
            }
            Some(Event::RoundEnd(round)) => {
                assert_eq!(round.dirty, if round.round == 0 { 2 } else { 1 });
                assert_eq!(round.records, if round.round == 0 { 6 } else { 3 });
                seen.push("round end");
            }
            Some(Event::Freeze(freeze)) => {
                assert_eq!(freeze.rounds, 2);
                assert!(reader.is_frozen());
                seen.push("freeze");
            }
            Some(Event::Delta {
                shard: 9, records, ..
            }) => {
                assert_eq!(records.len(), 1);
                seen.push("shard");
            }
            Some(Event::End(end)) => {
                assert_eq!(end.bytes, bytes.len() as u64 - 32 - 18 - 7 * 26 - 40);
                seen.push("end");
            }
            Some(_) => {}
            None if rest.is_empty() => break,
            None => {
                let count = reader.push(rest);
                rest = &rest[count..];
            }
        }
    }
    reader.finish().unwrap();
    let expected = [
        "memfd",
        "round end",
        "shard",
        "round end",
        "freeze",
        "connection",
        "end",
    ];
    assert_eq!(seen, expected);
    assert_eq!(reader.tally().bytes, bytes.len() as u64);
}

#[test]
fn a_typed_section_reads_what_it_wrote() {
    let bytes = small_snapshot();
    let model = read(&bytes).model();
    let mut reader = SnapshotReader::new(Limits::default());
    assert_eq!(reader.push(&bytes), bytes.len());
    let mut context = Context::default();
    let mut last = None;
    while let Some(event) = reader.poll().unwrap() {
        let (Event::Bulk {
            section, records, ..
        }
        | Event::Delta {
            section, records, ..
        }) = &event
        else {
            continue;
        };
        if section.id != SESSIONS {
            continue;
        }
        let typed = Section::<Bincode, String, SessionV3>::open(section).unwrap();
        for record in records.clone() {
            assert_eq!(typed.key(&record).unwrap(), "token");
            last = Some(typed.read(&record, None, &mut context).unwrap());
        }
    }
    let mut expected = session();
    expected.seen += 1;
    assert_eq!(
        last,
        Some(ReadChange::Put(ReadEntry {
            value: expected,
            attic: None
        }))
    );
    assert_eq!(
        model
            .keys()
            .filter(|(section, _)| *section == SESSIONS)
            .count(),
        1
    );
}

#[test]
fn the_writer_holds_no_more_than_its_limit() {
    let limits = Limits {
        backlog_bytes_max: 4096,
        ..Limits::default()
    };
    let mut writer = SnapshotWriter::new(&header(256), &notes_only(), limits).unwrap();
    let mut sent = Vec::new();
    let mut refused = 0;
    let mut number = 0_u32;
    while number < 1000 {
        match writer.bulk(NOTES, 1, &number.to_le_bytes(), &[7; 50]) {
            Ok(_) => number += 1,
            Err(WriteError::Backlog { held, limit }) => {
                assert!(held > limit && held < limit + 400, "{held}");
                refused += 1;
                // A reader that takes a little: the writer goes on where it was.
                let count = writer.ready().len().min(700);
                sent.extend_from_slice(&writer.ready()[..count]);
                writer.consume(count);
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 50, "{refused}");
    writer.freeze().unwrap_or_else(|_| {
        sent.extend_from_slice(writer.ready());
        writer.consume(usize::MAX);
        writer.freeze().unwrap();
    });
    writer.end().unwrap();
    writer.write_to(&mut sent).unwrap();
    assert_eq!(writer.backlog_bytes(), 0);
    assert_eq!(writer.stream_bytes(), sent.len() as u64);
    assert_eq!(read(&sent).model().len(), 1000);
}

#[test]
fn more_than_there_is_counts_as_all() {
    let mut writer = SnapshotWriter::new(&header(256), &notes_only(), Limits::default()).unwrap();
    let mut sent = writer.ready().to_vec();
    writer.consume(1);
    writer.consume(usize::MAX);
    writer.bulk(NOTES, 1, b"key", b"value").unwrap();
    writer.freeze().unwrap();
    writer.end().unwrap();
    sent.extend_from_slice(writer.ready());
    writer.consume(usize::MAX);
    assert_eq!((writer.ready(), writer.backlog_bytes()), (&b""[..], 0));

    let mut reader = SnapshotReader::new(Limits::default());
    let space = reader.space();
    space[..sent.len()].copy_from_slice(&sent);
    space[sent.len()..].fill(0xFF);
    reader.filled(usize::MAX);
    while let Ok(event) = reader.poll() {
        assert!(event.is_some(), "the bytes behind the end are seen");
    }
    let error = reader.finish().unwrap_err();
    assert_eq!(
        error,
        ReadError {
            offset: sent.len() as u64,
            defect: Defect::Trailing
        }
    );
}

#[test]
fn a_refused_entry_leaves_no_trace() {
    let limits = Limits {
        entry_bytes_max: 1000,
        ..Limits::default()
    };
    let mut writer = SnapshotWriter::new(&header(256), &every_kind(), limits).unwrap();
    let refusal = |result: Result<EntryHash, WriteError>| result.unwrap_err();
    writer.bulk(NOTES, 1, b"a", b"1").unwrap();
    let too_large = refusal(writer.bulk(NOTES, 1, b"b", &[0; 1000]));
    assert!(matches!(
        too_large,
        WriteError::EntryLength {
            found: 1001,
            limit: 1000,
            ..
        }
    ));
    let long_key = refusal(writer.bulk(NOTES, 1, &[0; 70_000], b""));
    assert!(matches!(long_key, WriteError::KeyLength { .. }));
    let keyed_value = refusal(writer.bulk(CONFIG, 1, b"key", b""));
    assert!(matches!(keyed_value, WriteError::SectionKind { .. }));
    let unknown = refusal(writer.bulk(SectionId(99), 1, b"", b""));
    assert_eq!(unknown, WriteError::UnknownSection(SectionId(99)));
    let in_blobs = refusal(writer.bulk(BLOBS, 1, b"", b""));
    assert!(matches!(in_blobs, WriteError::SectionKind { .. }));
    assert!(matches!(
        writer.end(),
        Err(WriteError::Order(OrderDefect::EndBeforeFreeze))
    ));
    writer.round_end(0).unwrap();
    let late = refusal(writer.bulk(NOTES, 1, b"c", b""));
    assert_eq!(late, WriteError::Order(OrderDefect::BulkAfterBase));
    writer.freeze().unwrap();
    writer.end().unwrap();
    let after = refusal(writer.upsert(NOTES, 2, b"a", b"", None));
    assert_eq!(after, WriteError::Order(OrderDefect::AfterEnd));
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    assert_eq!(read(&bytes).model().len(), 1);
}

#[test]
fn an_abort_reaches_the_reader_with_its_reason() {
    let mut writer = SnapshotWriter::new(&header(256), &notes_only(), Limits::default()).unwrap();
    writer.bulk(NOTES, 1, b"large", &[1; 10_000]).unwrap();
    writer
        .abort(AbortReason::Application, "the database is gone")
        .unwrap();
    assert!(writer.is_ended());
    let error = read(writer.ready()).damage();
    let message = "the database is gone".to_owned();
    assert_eq!(
        error.defect,
        Defect::Aborted {
            reason: AbortReason::Application,
            message
        }
    );
}

#[test]
fn an_output_that_would_block_loses_nothing() {
    /// Takes three bytes, then would block once, and so on.
    struct Slow(Vec<u8>, bool);
    impl std::io::Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1 = !self.1;
            if !self.1 {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(3);
            self.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut writer = SnapshotWriter::new(&header(256), &notes_only(), Limits::default()).unwrap();
    writer.bulk(NOTES, 1, b"key", &[3; 2000]).unwrap();
    writer.freeze().unwrap();
    writer.end().unwrap();
    let mut slow = Slow(Vec::new(), false);
    while let Err(error) = writer.write_to(&mut slow) {
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
    assert_eq!(read(&slow.0).model().len(), 1);
}

/// One step of a program that writes a snapshot while its state changes.
#[derive(Debug, Clone)]
enum Operation {
    Put(u8, Vec<u8>),
    Remove(u8),
    Round,
    Carry(usize),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let value = || {
        prop_oneof![
            8 => proptest::collection::vec(any::<u8>(), 0..40),
            1 => proptest::collection::vec(any::<u8>(), 200..1500),
        ]
    };
    let operation = prop_oneof![
        8 => (any::<u8>(), value()).prop_map(|(key, value)| Operation::Put(key % 24, value)),
        3 => any::<u8>().prop_map(|key| Operation::Remove(key % 24)),
        1 => Just(Operation::Round),
        2 => (0_usize..2000).prop_map(Operation::Carry),
    ];
    proptest::collection::vec(operation, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is written in whatever order, the reader holds what the writer's state was.
    #[test]
    fn the_reader_ends_with_the_writers_state(
        base in proptest::collection::btree_map(0_u8..24, proptest::collection::vec(any::<u8>(), 0..300), 0..20),
        operations in operations(),
        freeze_at in 0_usize..120,
        cap in prop_oneof![Just(256_u32), Just(300), Just(4096)],
        piece in 1_usize..3000,
    ) {
        let mut writer = SnapshotWriter::new(&header(cap), &notes_only(), Limits::default()).unwrap();
        let mut state = std::collections::BTreeMap::new();
        let mut sent = Vec::new();
        for (key, value) in base {
            let hash = writer.bulk(NOTES, 1, &[key], &value).unwrap();
            state.insert(key, (1_u64, value, hash));
        }
        writer.round_end(0).unwrap();
        let mut clock = 1_u64;
        let mut frozen = false;
        for (number, operation) in operations.into_iter().enumerate() {
            if number == freeze_at {
                writer.freeze().unwrap();
                frozen = true;
            }
            clock += 1;
            match operation {
                Operation::Put(key, value) => {
                    let replaced = state.get(&key).map(|(_, _, hash)| *hash);
                    let hash = writer.upsert(NOTES, clock, &[key], &value, replaced).unwrap();
                    state.insert(key, (clock, value, hash));
                }
                Operation::Remove(key) => {
                    let replaced = state.remove(&key).map(|(_, _, hash)| hash);
                    writer.tombstone(NOTES, clock, &[key], replaced).unwrap();
                }
                Operation::Round if !frozen => {
                    writer.round_end(0).unwrap();
                }
                Operation::Round => {}
                Operation::Carry(count) => {
                    let count = count.min(writer.ready().len());
                    sent.extend_from_slice(&writer.ready()[..count]);
                    writer.consume(count);
                }
            }
        }
        if !frozen {
            writer.freeze().unwrap();
        }
        writer.end().unwrap();
        writer.write_to(&mut sent).unwrap();
        let expected: Model = state
            .into_iter()
            .map(|(key, (version, value, _))| ((NOTES, vec![key]), (version, value)))
            .collect();
        prop_assert_eq!(read_in_pieces(&sent, piece, Limits::default()).model(), expected);
    }
}
