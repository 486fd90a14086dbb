//! Arbitrary input, bounded, under plain `cargo test`: nothing panics, hangs or is believed.
//!
//! Random bytes seldom get past a checksum, so most of these make streams with right checksums and
//! wrong content. `PROPTEST_CASES` runs more of them.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use common::raw::{MAGIC, Stream, entry_hash, envelope, manifest, record};
use common::*;
use heirloom_state_codec::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// Reads in pieces of a few sizes; all must come to the same end.
fn read_all_ways(bytes: &[u8]) -> Outcome {
    let whole = read(bytes);
    for piece in [1, 7, 100] {
        let pieces = read_in_pieces(bytes, piece, Limits::default());
        assert_eq!(
            format!("{pieces:?}"),
            format!("{whole:?}"),
            "pieces of {piece}"
        );
    }
    whole
}

#[derive(Debug, Clone)]
struct AnyFrame {
    kind: u8,
    flags: u8,
    section: u16,
    shard: u32,
    payload: Vec<u8>,
}

fn any_record() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![vec(any::<u8>(), 0..3), vec(0_u8..2, 8)];
    (
        0_u64..6,
        key,
        proptest::option::weighted(0.8, vec(any::<u8>(), 0..40)),
    )
        .prop_map(|(version, key, value)| record(version, &key, value.as_deref()))
}

fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(any_record(), 1..4).prop_map(|records| records.concat()),
        2 => vec(any::<u8>(), 0..80),
        1 => (0_u32..4).prop_map(|round| round.to_le_bytes().to_vec()),
        1 => (0_u32..4).prop_map(|round| {
            [&round.to_le_bytes()[..], &[0; 24]].concat()
        }),
        1 => (any::<u64>(), any::<u32>(), vec(any::<u8>(), 0..9), vec(any::<u8>(), 0..9)).prop_map(
            |(connection, descriptor, unread, state)| {
                ConnectionRef { connection, descriptor, unread: &unread, state: &state }.to_bytes()
            }
        ),
    ]
}

fn any_frame() -> impl Strategy<Value = AnyFrame> {
    let kind = prop_oneof![6 => 1_u8..3, 3 => 3_u8..9, 1 => any::<u8>()];
    let flags = prop_oneof![8 => Just(0_u8), 2 => Just(1), 1 => any::<u8>()];
    (kind, flags, 0_u16..8, 0_u32..2, any_payload()).prop_map(
        |(kind, flags, section, shard, payload)| AnyFrame {
            kind,
            flags,
            section,
            shard,
            payload,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The envelope: random bytes behind a right magic, and random manifests behind a right header.
    #[test]
    fn any_envelope_is_survived(head in vec(any::<u8>(), 0..200), cap in any::<u32>()) {
        let behind_magic = [&MAGIC[..], &head].concat();
        prop_assert!(matches!(read_all_ways(&behind_magic), Outcome::Damaged(_)));
        prop_assert!(matches!(read_all_ways(&envelope(&head, 4096)), Outcome::Damaged(_)));
        let outcome = read_all_ways(&envelope(&manifest(&[(1, 2)]), cap));
        prop_assert!(matches!(outcome, Outcome::Damaged(_)));
    }

    /// A true manifest with some of its bytes changed and its checksum made right again.
    #[test]
    fn any_changed_manifest_is_survived(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = manifest(&[(1, 2), (2, 3), (3, 4), (4, 6)]);
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        prop_assert!(matches!(read_all_ways(&envelope(&bytes, 4096)), Outcome::Damaged(_)));
    }

    /// Frames with right checksums and any content. Without an end mark none of them is a snapshot.
    #[test]
    fn any_frames_are_survived(frames in vec(any_frame(), 0..12)) {
        let mut stream = Stream::new(&[(1, 2), (2, 3), (3, 1), (4, 4), (5, 5)], 256);
        for frame in &frames {
            stream.frame(frame.kind, frame.flags, frame.section, frame.shard, &frame.payload);
        }
        let outcome = read_all_ways(&stream.bytes);
        prop_assert!(!matches!(outcome, Outcome::Verified(..)), "{:?}", outcome);
        let report = inspect(stream.bytes.as_slice(), Limits::default()).unwrap();
        prop_assert!(!report.is_sound());
        prop_assert!(report.to_string().contains("not to be used"));
    }

    /// Deltas in any order: either they are refused, or the state is what a plain map holds.
    #[test]
    fn deltas_lead_to_the_state_of_a_plain_map(
        base in vec(any_record(), 0..5),
        deltas in vec(any_record(), 0..20),
    ) {
        let mut stream = Stream::new(&[(1, 2)], 4096);
        let mut model = std::collections::BTreeMap::new();
        let live: Vec<_> = base.into_iter().filter(|record| record[12..16] != [0xFF; 4]).collect();
        if !live.is_empty() {
            stream.frame(1, 0, 1, 0, &live.concat());
        }
        if !deltas.is_empty() {
            stream.frame(2, 0, 1, 0, &deltas.concat());
        }
        let mut refused = false;
        for (number, record) in live.iter().chain(&deltas).enumerate() {
            let key_len = u32::from_le_bytes(record[8..12].try_into().unwrap()) as usize;
            let (version, key) = (record[..8].to_vec(), record[16..16 + key_len].to_vec());
            let version = u64::from_le_bytes(version.try_into().unwrap());
            let held = model.get(&key).map(|(version, _): &(u64, Vec<u8>)| *version);
            refused |= held.is_some_and(|held| number < live.len() || version <= held);
            if record[12..16] == [0xFF; 4] {
                model.remove(&key);
            } else {
                model.insert(key, (version, record.clone()));
            }
        }
        let sum = model.values().fold(0_u128, |sum, (_, record)| sum.wrapping_add(entry_hash(record)));
        stream.freeze(0);
        stream.end(&[(model.len() as u64, sum)]);
        match read_all_ways(&stream.bytes) {
            Outcome::Verified(_, read) => {
                prop_assert!(!refused);
                prop_assert_eq!(read.len(), model.len());
            }
            Outcome::Misapplied(_) => prop_assert!(refused),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// Random bytes as an entry of any type: an error or a value, in bounded time.
    #[test]
    fn any_bytes_are_survived_by_the_codecs(bytes in vec(any::<u8>(), 0..200)) {
        let bincode: Result<SessionV3, _> = Bincode::decode(&bytes);
        let cbor: Result<SessionV3, _> = Cbor::decode(&bytes);
        for value in [bincode, cbor].into_iter().flatten() {
            let mut again = Vec::new();
            Bincode::encode(&value, &mut again).unwrap();
            prop_assert_eq!(<Bincode as Codec<SessionV3>>::decode(&again), Ok(value));
        }
        let mut context = Context::default();
        for version in 0..5 {
            let _either = read_entry::<Bincode, SessionV3>(version, &bytes, None, &mut context);
        }
        let _either = AtticRecord::parse(&bytes);
        let _either = ConnectionRef::parse(&bytes);
    }

    /// Any two texts can be compared as shapes.
    #[test]
    fn any_shapes_can_be_compared(left in "[a-c,:;|<>(){}\\[\\]]{0,60}", right in "[a-c,:;|<>(){}\\[\\]]{0,60}") {
        prop_assert_eq!(differences(&left, &right).is_empty(), left == right);
    }
}
