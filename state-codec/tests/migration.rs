//! Versions: every step goes both ways, steps compose, and what a downgrade put aside comes back.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use common::*;
use heirloom_state_codec::*;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

fn v1() -> impl Strategy<Value = SessionV1> {
    (".{0,12}", any::<u32>()).prop_map(|(user, seen)| SessionV1 { user, seen })
}

fn v2() -> impl Strategy<Value = SessionV2> {
    let seen = prop_oneof![any::<u64>(), 0_u64..10];
    (".{0,12}", seen, proptest::collection::vec(".{0,6}", 0..3))
        .prop_map(|(user, seen, tags)| SessionV2 { user, seen, tags })
}

fn v3() -> impl Strategy<Value = SessionV3> {
    let plan = prop_oneof![
        Just(Plan::Free),
        any::<u64>().prop_map(|until| Plan::Paid { until }),
        any::<(u8, char)>().prop_map(|(days, mark)| Plan::Trial(days, mark)),
    ];
    let name =
        (".{0,8}", proptest::option::of(".{0,8}")).prop_map(|(first, last)| Name { first, last });
    (name, v2(), plan).prop_map(|(user, old, plan)| SessionV3 {
        user,
        seen: old.seen,
        tags: old.tags,
        plan,
    })
}

/// Bytes of a value in an older version, and its attic.
fn lowered<C: Codec<T>, T: Step + Lineage<C> + Clone>(
    value: &T,
    version: u32,
    stored: Option<&AtticRecord>,
) -> (Vec<u8>, Option<AtticRecord>) {
    let mut bytes = Vec::new();
    let attic =
        write_entry::<C, T>(value, version, stored, &mut bytes, &mut Context::default()).unwrap();
    (bytes, attic)
}

fn raised<C: Codec<T>, T: Step + Lineage<C>>(
    version: u32,
    bytes: &[u8],
    attic: Option<AtticRecord>,
) -> ReadEntry<T> {
    read_entry::<C, T>(version, bytes, attic, &mut Context::default()).unwrap()
}

fn there_and_back<C>(value: &SessionV3)
where
    C: Codec<SessionV3> + Codec<SessionV2> + Codec<SessionV1> + Codec<()>,
    C: Codec<(u64, Vec<String>)> + Codec<(Name, Plan)>,
{
    for version in 1..=3 {
        let (bytes, attic) = lowered::<C, _>(value, version, None);
        let back = raised::<C, SessionV3>(version, &bytes, attic);
        assert_eq!(
            back,
            ReadEntry {
                value: value.clone(),
                attic: None
            },
            "by way of {version}"
        );
    }
}

proptest! {
    /// Up never fails, and down undoes it.
    #[test]
    fn down_after_up_is_the_same(value in v1()) {
        let (bytes, _) = lowered::<Bincode, _>(&value, 1, None);
        let newest = raised::<Bincode, SessionV3>(1, &bytes, None);
        let (again, attic) = lowered::<Bincode, _>(&newest.value, 1, newest.attic.as_ref());
        prop_assert_eq!(again, bytes);
        prop_assert_eq!(attic, None);
    }

    /// Up after down is the same, through the attic, in both codecs and over one step or two.
    #[test]
    fn up_after_down_is_the_same(value in v3()) {
        there_and_back::<Bincode>(&value);
        there_and_back::<Cbor>(&value);
    }

    /// Two steps at once are the two steps one after the other.
    #[test]
    fn a_chain_is_its_steps(value in v1()) {
        let (bytes, _) = lowered::<Bincode, _>(&value, 1, None);
        let at_once = raised::<Bincode, SessionV3>(1, &bytes, None).value;
        let middle = raised::<Bincode, SessionV2>(1, &bytes, None).value;
        let (middle_bytes, _) = lowered::<Bincode, _>(&middle, 2, None);
        prop_assert_eq!(raised::<Bincode, SessionV3>(2, &middle_bytes, None).value, at_once);
    }

    /// 3 → 2 → 1 → 2 → 3 over three programs: the one in the middle adds to an attic that it cannot
    /// read, takes its own part back out, and leaves the rest for the newest.
    #[test]
    fn an_attic_passes_through_a_program_in_the_middle(value in v3()) {
        let (bytes, attic) = lowered::<Bincode, _>(&value, 2, None);
        let middle = raised::<Bincode, SessionV2>(2, &bytes, attic);
        let (bytes, attic) = lowered::<Bincode, _>(&middle.value, 1, middle.attic.as_ref());
        let oldest = raised::<Bincode, SessionV1>(1, &bytes, attic);
        let (bytes, attic) = lowered::<Bincode, _>(&oldest.value, 1, oldest.attic.as_ref());
        let middle = raised::<Bincode, SessionV2>(1, &bytes, attic);
        let (bytes, attic) = lowered::<Bincode, _>(&middle.value, 2, middle.attic.as_ref());
        let newest = raised::<Bincode, SessionV3>(2, &bytes, attic);
        prop_assert_eq!(newest, ReadEntry { value, attic: None });
    }

    /// An entry that changed meanwhile does not get back what belonged to its former self.
    #[test]
    fn a_changed_entry_loses_its_attic(value in v3(), added in 1_u32..9) {
        let (bytes, attic) = lowered::<Bincode, _>(&value, 1, None);
        prop_assume!(attic.is_some());
        let mut old = raised::<Bincode, SessionV1>(1, &bytes, attic);
        old.value.seen = old.value.seen.wrapping_add(added);
        let mut context = Context::default();
        let mut bytes = Vec::new();
        let attic = write_entry::<Bincode, _>(
            &old.value, 1, old.attic.as_ref(), &mut bytes, &mut context,
        ).unwrap();
        prop_assert_eq!(attic, None);
        prop_assert_eq!(context.attic_dropped, 1);
        // Also if a program that knows nothing of attics passes the old record on.
        let newest = read_entry::<Bincode, SessionV3>(1, &bytes, old.attic, &mut context).unwrap();
        prop_assert_eq!(newest.value.seen, u64::from(old.value.seen));
        prop_assert_eq!(newest.value.plan, Plan::Free);
        prop_assert_eq!(context.attic_dropped, 2);
    }

    /// An attic record with any bytes does no harm.
    #[test]
    fn a_foreign_attic_does_no_harm(
        value in v1(),
        layers in proptest::collection::vec((0_u32..5, proptest::collection::vec(any::<u8>(), 0..30)), 0..4),
    ) {
        let (bytes, _) = lowered::<Bincode, _>(&value, 1, None);
        let layers = layers.into_iter().map(|(version, bytes)| AtticLayer { version, bytes }).collect();
        let attic = Some(AtticRecord { base: AtticRecord::base_of(&bytes), layers });
        let read = read_entry::<Bincode, SessionV3>(1, &bytes, attic, &mut Context::default());
        prop_assert!(read.is_ok());
    }
}

#[test]
fn a_snapshot_for_an_older_reader_goes_down_and_comes_back_through_a_stream() {
    let (id, attic_id) = (SESSIONS, ATTIC);
    let newest = Section::<Bincode, String, SessionV3>::new(id).in_version(1);
    let manifest = Manifest {
        app: "shop".to_owned(),
        sections: vec![
            newest.descriptor("sessions", SectionKind::Map).unwrap(),
            newest.attic_descriptor(attic_id, "sessions"),
        ],
    };
    let mut writer = SnapshotWriter::new(&header(4096), &manifest, Limits::default()).unwrap();
    let mut context = Context::default();
    let key = "token".to_owned();
    let written = newest
        .bulk(&mut writer, 1, &key, &session(), None, &mut context)
        .unwrap();
    let attic = written.attic.expect("version 1 has no room for all of it");
    let key_bytes = Sessions::key_bytes(&key).unwrap();
    writer
        .bulk(attic_id, 1, &key_bytes, &attic.to_bytes())
        .unwrap();
    writer.freeze().unwrap();
    writer.end().unwrap();
    let model = read(writer.ready()).model();

    // The older program reads its own type and keeps the attic's bytes.
    let descriptor = &manifest.sections[0];
    Section::<Bincode, String, SessionV1>::open(descriptor).unwrap();
    let value = model
        .iter()
        .find(|((section, _), _)| *section == id)
        .unwrap()
        .1;
    let kept = &model[&(attic_id, key_bytes)].1;
    let stored = AtticRecord::parse(kept);
    assert_eq!(stored.as_ref(), Some(&attic));
    let old = raised::<Bincode, SessionV1>(1, &value.1, stored);
    assert_eq!(
        old.value,
        SessionV1 {
            user: "Ann Lee".to_owned(),
            seen: u32::MAX
        }
    );

    let (bytes, attic) = lowered::<Bincode, _>(&old.value, 1, old.attic.as_ref());
    let back = read_entry::<Bincode, SessionV3>(1, &bytes, attic, &mut context).unwrap();
    assert_eq!(back.value, session());
    assert_eq!(
        (context.lowered, context.raised, context.attic_restored),
        (1, 1, 2)
    );
}

#[test]
fn only_versions_in_the_chain_are_read_and_written() {
    let mut context = Context::default();
    let known = |asked, oldest, newest| MigrateError::UnknownVersion {
        schema: "session",
        oldest,
        newest,
        asked,
    };
    for asked in [0, 4] {
        let read = read_entry::<Bincode, SessionV3>(asked, &[], None, &mut context);
        assert_eq!(read, Err(known(asked, 1, 3)));
        let mut out = Vec::new();
        let written = write_entry::<Bincode, _>(&session(), asked, None, &mut out, &mut context);
        assert_eq!(written, Err(known(asked, 1, 3)));
    }
    let newer = read_entry::<Bincode, SessionV2>(3, &[], None, &mut context);
    assert_eq!(newer, Err(known(3, 1, 2)));
}

/// The chain as a program has it that dropped version 1, and whose step may refuse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
#[state(name = "limit", version = 2, oldest)]
struct LimitV2 {
    limit: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
#[state(name = "limit", version = 5)]
struct LimitV5 {
    limit: u8,
}

impl Step for LimitV5 {
    type Older = LimitV2;
    type Attic = ();

    fn up(old: LimitV2, _: Option<()>, _: &mut Context) -> Result<Self, StepError> {
        let limit = u8::try_from(old.limit);
        Ok(Self {
            limit: limit.map_err(|_| StepError::new(format!("limit {}", old.limit)))?,
        })
    }

    fn down(self, _: &mut Context) -> Result<(LimitV2, Option<()>), StepError> {
        match self.limit {
            0 => Err(StepError::new("no limit at all")),
            limit => Ok((
                LimitV2 {
                    limit: i64::from(limit),
                },
                None,
            )),
        }
    }
}

#[test]
fn a_step_that_refuses_an_entry_is_named() {
    let mut context = Context::default();
    let (bytes, _) = lowered::<Bincode, _>(&LimitV2 { limit: 300 }, 2, None);
    let up = read_entry::<Bincode, LimitV5>(2, &bytes, None, &mut context).unwrap_err();
    assert!(
        up.to_string()
            .starts_with("limit: the step from version 2 to 5 refused an entry: limit 300;"),
        "{up}"
    );
    let mut out = Vec::new();
    let down = write_entry::<Bincode, _>(&LimitV5 { limit: 0 }, 2, None, &mut out, &mut context);
    assert!(
        matches!(down, Err(MigrateError::Step { from: 5, to: 2, .. })),
        "{down:?}"
    );
    assert_eq!(<LimitV5 as Lineage<Bincode>>::OLDEST, Some(2));
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
#[state(name = "point", version = 1, oldest)]
struct Point {
    x: u32,
    y: u32,
}

mod swapped {
    use super::*;

    /// The same version with its fields swapped by somebody who should not have.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
    #[state(name = "point", version = 1, oldest)]
    pub(crate) struct Point {
        pub(crate) y: u32,
        pub(crate) x: u32,
    }
}

#[test]
fn swapped_fields_are_noticed_though_the_bytes_decode() {
    let mut bytes = Vec::new();
    Bincode::encode(&Point { x: 1, y: 2 }, &mut bytes).unwrap();
    // This is why there are shapes: bincode sees nothing wrong.
    assert_eq!(Bincode::decode(&bytes), Ok(swapped::Point { y: 1, x: 2 }));
    let written = Section::<Bincode, u64, Point>::new(NOTES);
    let descriptor = written.descriptor("points", SectionKind::Map).unwrap();
    let refusal = Section::<Bincode, u64, swapped::Point>::open(&descriptor).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "point@1 is not the same type in both programs: fields of the value are ordered y, x here and \
         x, y there; a version in use must stay as it is, so give the changed type a version of its own"
    );
    let keys = Section::<Bincode, u32, Point>::open(&descriptor).unwrap_err();
    assert!(
        keys.to_string()
            .contains("the value is u32 here and u64 there"),
        "{keys}"
    );
    let codec = Section::<Cbor, u64, Point>::open(&descriptor).unwrap_err();
    assert!(
        codec
            .to_string()
            .starts_with("`points` is coded with bincode, not with cbor;"),
        "{codec}"
    );
    let mut same_bytes = descriptor.clone();
    same_bytes.codec = CodecId::WINCODE;
    assert!(Section::<Bincode, u64, Point>::open(&same_bytes).is_ok());
    let name = Section::<Bincode, u64, LimitV2>::open(&descriptor).unwrap_err();
    assert!(matches!(name, SchemaMismatch::Name { .. }), "{name}");
}

#[test]
fn two_programs_agree_on_the_newest_version_both_know() {
    let knows_3 = <SessionV3 as Lineage<Bincode>>::schemas();
    let knows_2 = <SessionV2 as Lineage<Bincode>>::schemas();
    let knows_1 = <SessionV1 as Lineage<Bincode>>::schemas();
    assert_eq!(
        knows_3
            .iter()
            .map(|schema| schema.version)
            .collect::<Vec<_>>(),
        [3, 2, 1]
    );
    let version = |here, there| agree("session", here, there).map(|schema| schema.version);
    assert_eq!(version(&knows_3, &knows_2), Ok(2));
    assert_eq!(version(&knows_2, &knows_3), Ok(2));
    assert_eq!(version(&knows_1, &knows_3), Ok(1));
    assert_eq!(version(&knows_3, &knows_3), Ok(3));
    let only_3 = &knows_3[..1];
    let none = version(&knows_2, only_3).unwrap_err();
    assert_eq!(
        none.to_string(),
        "session: no version is known to both programs, here 2, 1, there 3; take a program that knows both"
    );
    let mut changed = knows_2.clone();
    changed[1].shape = "{user:str,seen:u16}".to_owned();
    changed[1].fingerprint = Fingerprint::of(&changed[1].shape);
    let refusal = version(&knows_3, &changed).unwrap_err();
    assert!(
        matches!(&refusal, SchemaMismatch::Shape { version: 1, differences, .. }
            if differences == &["`seen` is u32 here and u16 there"]),
        "{refusal}"
    );
}

#[test]
fn notes_are_kept_up_to_a_limit() {
    let mut context = Context::default();
    for number in 0..100 {
        context.note(number.to_string());
    }
    assert_eq!((context.notes().len(), context.notes_dropped), (64, 36));
}
