//! What several tests share: versions of a schema, a small complete snapshot, and ways to read one.

#![allow(dead_code, reason = "each test uses its own part")]
#![allow(clippy::unwrap_used, reason = "this is part of tests")]

use std::collections::BTreeMap;

use heirloom_state_codec::*;
use serde::{Deserialize, Serialize};

pub(crate) mod raw;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
#[state(name = "session", version = 1, oldest)]
pub(crate) struct SessionV1 {
    pub(crate) user: String,
    pub(crate) seen: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
#[state(name = "session", version = 2)]
pub(crate) struct SessionV2 {
    pub(crate) user: String,
    pub(crate) seen: u64,
    pub(crate) tags: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
#[state(name = "session", version = 3)]
pub(crate) struct SessionV3 {
    pub(crate) user: Name,
    pub(crate) seen: u64,
    pub(crate) tags: Vec<String>,
    pub(crate) plan: Plan,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
pub(crate) struct Name {
    pub(crate) first: String,
    pub(crate) last: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, State)]
pub(crate) enum Plan {
    Free,
    Paid { until: u64 },
    Trial(u8, char),
}

impl Step for SessionV2 {
    type Older = SessionV1;
    type Attic = (u64, Vec<String>);

    fn up(old: SessionV1, attic: Option<Self::Attic>, _: &mut Context) -> Result<Self, StepError> {
        let (seen, tags) = attic.unwrap_or_else(|| (u64::from(old.seen), Vec::new()));
        Ok(Self {
            user: old.user,
            seen,
            tags,
        })
    }

    fn down(self, _: &mut Context) -> Result<(SessionV1, Option<Self::Attic>), StepError> {
        let seen = u32::try_from(self.seen);
        let old = SessionV1 {
            user: self.user,
            seen: seen.unwrap_or(u32::MAX),
        };
        let lost = seen.is_err() || !self.tags.is_empty();
        Ok((old, lost.then_some((self.seen, self.tags))))
    }
}

impl Step for SessionV3 {
    type Older = SessionV2;
    type Attic = (Name, Plan);

    fn up(
        old: SessionV2,
        attic: Option<Self::Attic>,
        context: &mut Context,
    ) -> Result<Self, StepError> {
        let (user, plan) = attic.unwrap_or_else(|| {
            context.note("a session without a plan is free");
            (
                Name {
                    first: old.user,
                    last: None,
                },
                Plan::Free,
            )
        });
        Ok(Self {
            user,
            seen: old.seen,
            tags: old.tags,
            plan,
        })
    }

    fn down(self, _: &mut Context) -> Result<(SessionV2, Option<Self::Attic>), StepError> {
        let user = match &self.user.last {
            Some(last) => format!("{} {last}", self.user.first),
            None => self.user.first.clone(),
        };
        let lost = self.user.last.is_some() || self.plan != Plan::Free;
        let old = SessionV2 {
            user,
            seen: self.seen,
            tags: self.tags,
        };
        Ok((old, lost.then_some((self.user, self.plan))))
    }
}

pub(crate) const NOTES: SectionId = SectionId(1);
pub(crate) const LOG: SectionId = SectionId(2);
pub(crate) const CONFIG: SectionId = SectionId(3);
pub(crate) const BLOBS: SectionId = SectionId(4);
pub(crate) const CONNECTIONS: SectionId = SectionId(5);
pub(crate) const SESSIONS: SectionId = SectionId(6);
pub(crate) const ATTIC: SectionId = SectionId(7);

pub(crate) fn header(frame_cap: u32) -> Header {
    let mut header = Header::new(0x1122_3344, 7, BuildId::from_note(&[0xAB; 20]));
    header.frame_cap = frame_cap;
    header
}

pub(crate) fn opaque(id: SectionId, name: &str, kind: SectionKind) -> SectionDescriptor {
    SectionDescriptor {
        id,
        kind,
        required: true,
        codec: CodecId::RAW,
        attic_of: None,
        name: name.to_owned(),
        key_shape: String::new(),
        schema: SchemaRef::opaque(),
        entries_hint: 0,
        bytes_hint: 0,
    }
}

pub(crate) fn notes_only() -> Manifest {
    Manifest {
        app: "notes".to_owned(),
        sections: vec![opaque(NOTES, "notes", SectionKind::Map)],
    }
}

pub(crate) type Sessions = Section<Bincode, String, SessionV3>;

/// The section of sessions, in the version that the newest program writes.
pub(crate) fn sessions() -> Sessions {
    Section::new(SESSIONS)
}

/// A manifest with one section of every kind.
pub(crate) fn every_kind() -> Manifest {
    let sessions_descriptor = sessions().descriptor("sessions", SectionKind::Map).unwrap();
    Manifest {
        app: "shop".to_owned(),
        sections: vec![
            opaque(NOTES, "notes", SectionKind::Map),
            opaque(LOG, "log", SectionKind::Log),
            opaque(CONFIG, "config", SectionKind::Value),
            opaque(BLOBS, "blobs", SectionKind::Blob),
            opaque(CONNECTIONS, "connections", SectionKind::Connection),
            sessions_descriptor,
            sessions().attic_descriptor(ATTIC, "sessions"),
        ],
    }
}

pub(crate) fn session() -> SessionV3 {
    SessionV3 {
        user: Name {
            first: "Ann".to_owned(),
            last: Some("Lee".to_owned()),
        },
        seen: 1 << 40,
        tags: vec!["new".to_owned()],
        plan: Plan::Trial(3, 'ß'),
    }
}

/// A small snapshot with every kind of frame and a continued entry.
pub(crate) fn small_snapshot() -> Vec<u8> {
    let mut writer = SnapshotWriter::new(&header(256), &every_kind(), Limits::default()).unwrap();
    let mut context = Context::default();
    let first = writer.bulk(NOTES, 1, b"first", b"one").unwrap();
    let second = writer.bulk(NOTES, 1, b"second", b"two").unwrap();
    writer.bulk(NOTES, 1, b"large", &[0x5A; 600]).unwrap();
    writer.bulk(LOG, 1, &0_u64.to_le_bytes(), b"began").unwrap();
    writer.bulk(CONFIG, 1, b"", b"limit=3").unwrap();
    let content = Some([0xC0; 32]);
    let blob = MemfdRef {
        key: b"map",
        descriptor: 0,
        seals: 2,
        offset: 0,
        length: 4096,
        content,
    };
    writer.memfd(BLOBS, &blob).unwrap();
    let key = "token".to_owned();
    let written = sessions()
        .bulk(&mut writer, 1, &key, &session(), None, &mut context)
        .unwrap();
    writer.round_end(2).unwrap();
    writer.set_shard(9);
    writer
        .upsert(NOTES, 2, b"first", b"eins", Some(first))
        .unwrap();
    writer.set_shard(0);
    writer.tombstone(NOTES, 2, b"second", Some(second)).unwrap();
    writer
        .upsert(LOG, 1, &1_u64.to_le_bytes(), b"went on", None)
        .unwrap();
    writer.round_end(1).unwrap();
    writer.freeze().unwrap();
    let mut changed = session();
    changed.seen += 1;
    let replaced = Some(written.hash);
    sessions()
        .upsert(&mut writer, 2, &key, &changed, replaced, None, &mut context)
        .unwrap();
    let attic = AtticRecord {
        base: 1,
        layers: vec![AtticLayer {
            version: 4,
            bytes: vec![1],
        }],
    };
    let key_bytes = Sessions::key_bytes(&key).unwrap();
    writer
        .upsert(ATTIC, 1, &key_bytes, &attic.to_bytes(), None)
        .unwrap();
    let connection = ConnectionRef {
        connection: 12,
        descriptor: 1,
        unread: b"GET /",
        state: b"idle",
    };
    writer.connection(CONNECTIONS, &connection).unwrap();
    writer.end().unwrap();
    let mut bytes = Vec::new();
    writer.write_to(&mut bytes).unwrap();
    bytes
}

/// What a snapshot's records lead to: section, key → version, value.
pub(crate) type Model = BTreeMap<(SectionId, Vec<u8>), (u64, Vec<u8>)>;

/// Applies the records of an event in the plainest way.
pub(crate) fn apply(model: &mut Model, event: &Event<'_>) {
    let (Event::Bulk {
        section, records, ..
    }
    | Event::Delta {
        section, records, ..
    }) = event
    else {
        return;
    };
    for record in records.clone() {
        let key = (section.id, record.key.to_vec());
        match record.change {
            Change::Put(value) => model.insert(key, (record.version, value.to_vec())),
            Change::Remove => model.remove(&key),
        };
    }
}

/// How reading a snapshot ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Verified(Verified, Model),
    Damaged(ReadError),
    Misapplied(ApplyError),
    Mismatch(StateMismatch),
}

impl Outcome {
    pub(crate) fn model(self) -> Model {
        match self {
            Self::Verified(_, model) => model,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn damage(self) -> ReadError {
        match self {
            Self::Damaged(error) => error,
            other => panic!("{other:?}"),
        }
    }
}

/// Reads a snapshot that arrives in pieces of `piece` bytes.
pub(crate) fn read_in_pieces(bytes: &[u8], piece: usize, limits: Limits) -> Outcome {
    let mut reader = SnapshotReader::new(limits);
    let mut model = Model::new();
    let mut ledger = None;
    let mut end = None;
    let mut rest = bytes;
    loop {
        match reader.poll() {
            Ok(Some(event)) => {
                if let Event::Opened { manifest, .. } = &event {
                    ledger = Some(EntryLedger::new(manifest, &limits));
                }
                if let Some(Err(error)) = ledger.as_mut().map(|ledger| ledger.apply(&event)) {
                    return Outcome::Misapplied(error);
                }
                apply(&mut model, &event);
                if let Event::End(mark) = event {
                    end = Some(mark);
                }
            }
            Ok(None) if rest.is_empty() => break,
            Ok(None) => {
                let count = reader.push(&rest[..piece.min(rest.len())]);
                rest = &rest[count..];
            }
            Err(error) => return Outcome::Damaged(error),
        }
    }
    if let Err(error) = reader.finish() {
        return Outcome::Damaged(error);
    }
    let totals = ledger.expect("a finished stream has a manifest").totals();
    match end.expect("a finished stream has an end").verify(&totals) {
        Ok(verified) => Outcome::Verified(verified, model),
        Err(mismatch) => Outcome::Mismatch(mismatch),
    }
}

pub(crate) fn read(bytes: &[u8]) -> Outcome {
    read_in_pieces(bytes, usize::MAX, Limits::default())
}
