//! The bytes on a link: `docs/protocol.md` is the normative text.
//!
//! A frame is `u32 length | u64 id | u8 kind | body`, all little-endian; the length counts what
//! follows it. An answer bears the id of its question. Answers may come in any order.

use std::io;

use heirloom_state_codec::Change;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::state::store::Seen;

/// The longest frame, in bytes: what one entry may have at most.
const FRAME_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The bytes of id and kind.
const FRAME_BYTES_MIN: usize = 9;

const SEE: u8 = 1;
const SEE_ALL: u8 = 2;
const COMMIT: u8 = 3;

const SEEN: u8 = 1;
const ALL: u8 = 2;
const DONE: u8 = 3;
const REFUSED: u8 = 4;

const STAY: u8 = 0;
const PUT: u8 = 1;
const REMOVE: u8 = 2;

/// The changes of one transaction to one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The store's name.
    pub(crate) section: String,
    /// The changes.
    pub(crate) changes: Vec<WantedChange>,
}

/// As [`Wanted`](crate::state::store::Wanted), owning its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedChange {
    /// The key.
    pub(crate) key: Vec<u8>,
    /// The version the entry must have; 0 for that it is not there.
    pub(crate) expected: u64,
    /// What is to become of it.
    pub(crate) change: Fate,
}

/// What is to become of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was only read, and must still be as it was.
    Stay,
    /// It gets this value.
    Put(Vec<u8>),
    /// It goes.
    Remove,
}

impl Fate {
    /// The change as a store reads it.
    pub(crate) fn as_change(&self) -> Option<Change<'_>> {
        match self {
            Self::Stay => None,
            Self::Put(value) => Some(Change::Put(value)),
            Self::Remove => Some(Change::Remove),
        }
    }
}

/// What is asked, with the version of the schema in which entries are spoken of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    See {
        section: String,
        version: u32,
        key: Vec<u8>,
    },
    SeeAll {
        section: String,
        version: u32,
    },
    Commit(Vec<(u32, Part)>),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Seen(Option<Seen>),
    All(Vec<(Vec<u8>, Vec<u8>)>),
    Done(bool),
    Refused(String),
}

impl Question {
    /// The whole frame; none if it would be too long.
    pub(crate) fn to_frame(&self, id: u64) -> Option<Vec<u8>> {
        let mut out = Out::new(id);
        match self {
            Self::See {
                section,
                version,
                key,
            } => {
                out.byte(SEE);
                out.bytes(section.as_bytes());
                out.u32(*version);
                out.bytes(key);
            }
            Self::SeeAll { section, version } => {
                out.byte(SEE_ALL);
                out.bytes(section.as_bytes());
                out.u32(*version);
            }
            Self::Commit(parts) => {
                out.byte(COMMIT);
                out.count(parts.len());
                for (version, part) in parts {
                    out.bytes(part.section.as_bytes());
                    out.u32(*version);
                    out.count(part.changes.len());
                    for change in &part.changes {
                        out.bytes(&change.key);
                        out.u64(change.expected);
                        match &change.change {
                            Fate::Stay => out.byte(STAY),
                            Fate::Put(value) => {
                                out.byte(PUT);
                                out.bytes(value);
                            }
                            Fate::Remove => out.byte(REMOVE),
                        }
                    }
                }
            }
        }
        out.finish()
    }

    /// Reads a frame's kind and body; none for what is no question.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let mut input = In(body);
        let question = match input.byte()? {
            SEE => Self::See {
                section: input.text()?,
                version: input.u32()?,
                key: input.bytes()?.to_vec(),
            },
            SEE_ALL => Self::SeeAll {
                section: input.text()?,
                version: input.u32()?,
            },
            COMMIT => {
                let mut parts = Vec::new();
                for _ in 0..input.u32()? {
                    let section = input.text()?;
                    let version = input.u32()?;
                    let mut changes = Vec::new();
                    for _ in 0..input.u32()? {
                        changes.push(WantedChange {
                            key: input.bytes()?.to_vec(),
                            expected: input.u64()?,
                            change: match input.byte()? {
                                STAY => Fate::Stay,
                                PUT => Fate::Put(input.bytes()?.to_vec()),
                                REMOVE => Fate::Remove,
                                _unknown => return None,
                            },
                        });
                    }
                    parts.push((version, Part { section, changes }));
                }
                Self::Commit(parts)
            }
            _unknown => return None,
        };
        input.0.is_empty().then_some(question)
    }
}

impl Answer {
    /// The whole frame; none if it would be too long.
    pub(crate) fn to_frame(&self, id: u64) -> Option<Vec<u8>> {
        let mut out = Out::new(id);
        match self {
            Self::Seen(seen) => {
                out.byte(SEEN);
                match seen {
                    Some(Seen { version, value }) => {
                        out.byte(1);
                        out.u64(*version);
                        out.bytes(value);
                    }
                    None => out.byte(0),
                }
            }
            Self::All(entries) => {
                out.byte(ALL);
                out.count(entries.len());
                for (key, value) in entries {
                    out.bytes(key);
                    out.bytes(value);
                }
            }
            Self::Done(done) => {
                out.byte(DONE);
                out.byte(u8::from(*done));
            }
            Self::Refused(reason) => {
                out.byte(REFUSED);
                out.bytes(reason.as_bytes());
            }
        }
        out.finish()
    }

    /// Reads a frame's kind and body; none for what is no answer.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let mut input = In(body);
        let answer = match input.byte()? {
            SEEN => Self::Seen(match input.byte()? {
                0 => None,
                1 => Some(Seen {
                    version: input.u64()?,
                    value: input.bytes()?.to_vec(),
                }),
                _unknown => return None,
            }),
            ALL => {
                let mut entries = Vec::new();
                for _ in 0..input.u32()? {
                    entries.push((input.bytes()?.to_vec(), input.bytes()?.to_vec()));
                }
                Self::All(entries)
            }
            DONE => Self::Done(match input.byte()? {
                0 => false,
                1 => true,
                _unknown => return None,
            }),
            REFUSED => Self::Refused(input.text()?),
            _unknown => return None,
        };
        input.0.is_empty().then_some(answer)
    }
}

/// Reads one frame: its id, and kind and body. None at the end of the stream.
///
/// # Errors
///
/// The system's, and `InvalidData` for a length that no frame has. Nothing is allocated for a length
/// before its bytes have come.
pub(crate) async fn read_frame(
    reading: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<(u64, Vec<u8>)>> {
    let length = match reading.read_u32_le().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&length) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a frame of the link has a length that none may have; the other generation is at fault",
        ));
    }
    let id = reading.read_u64_le().await?;
    let wanted = length - size_of::<u64>();
    let mut body = Vec::new();
    let read = reading.take(wanted as u64).read_to_end(&mut body).await?;
    if read < wanted {
        return Ok(None);
    }
    Ok(Some((id, body)))
}

/// A frame as it grows.
struct Out(Vec<u8>);

impl Out {
    fn new(id: u64) -> Self {
        let mut out = vec![0; size_of::<u32>()];
        out.extend_from_slice(&id.to_le_bytes());
        Self(out)
    }

    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn u32(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// A number of things; one that does not fit makes the frame too long anyway.
    fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        let length = self.0.len() - size_of::<u32>();
        if length > FRAME_BYTES_MAX {
            return None;
        }
        let length = u32::try_from(length).ok()?;
        self.0[..size_of::<u32>()].copy_from_slice(&length.to_le_bytes());
        Some(self.0)
    }
}

/// What is left of a body.
pub(crate) struct In<'a>(pub(crate) &'a [u8]);

impl<'a> In<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        let bytes = self.take(size_of::<u32>())?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let bytes = self.take(size_of::<u64>())?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions() -> Vec<Question> {
        let section = "sessions".to_owned();
        let change = |key: &[u8], expected, change| WantedChange {
            key: key.to_vec(),
            expected,
            change,
        };
        let part = Part {
            section: section.clone(),
            changes: vec![
                change(b"a", 7, Fate::Put(b"value".to_vec())),
                change(b"b", 0, Fate::Stay),
                change(b"", 1, Fate::Remove),
            ],
        };
        vec![
            Question::See {
                section: section.clone(),
                version: 2,
                key: b"key".to_vec(),
            },
            Question::SeeAll {
                section,
                version: 1,
            },
            Question::Commit(vec![(2, part)]),
            Question::Commit(Vec::new()),
        ]
    }

    fn answers() -> Vec<Answer> {
        let seen = Seen {
            version: 9,
            value: b"value".to_vec(),
        };
        vec![
            Answer::Seen(Some(seen)),
            Answer::Seen(None),
            Answer::All(vec![(b"a".to_vec(), Vec::new())]),
            Answer::Done(true),
            Answer::Done(false),
            Answer::Refused("full".to_owned()),
        ]
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_no_part_of_it_is() {
        let frames = questions().into_iter().map(|question| {
            let frame = question.to_frame(3).unwrap();
            let parsed = |body: &[u8]| Question::parse(body).is_some_and(|read| read == question);
            assert!(parsed(&frame[12..]));
            frame
        });
        let frames: Vec<_> = frames.collect();
        for answer in answers() {
            let frame = answer.to_frame(4).unwrap();
            assert_eq!(Answer::parse(&frame[12..]), Some(answer));
            for length in 12..frame.len() {
                assert_eq!(Answer::parse(&frame[12..length]), None);
            }
        }
        for frame in frames {
            for length in 12..frame.len() {
                assert_eq!(Question::parse(&frame[12..length]), None);
                let read = read_frame(&mut &frame[..length]).await;
                assert!(matches!(read, Ok(None) | Err(_)), "{length}");
            }
            let (id, body) = read_frame(&mut &frame[..]).await.unwrap().unwrap();
            assert_eq!((id, &body[..]), (3, &frame[12..]));
        }
    }

    /// A fuzz target: what is understood is written as it was read.
    #[test]
    fn any_question_and_answer() {
        bolero::check!()
            .with_iterations(10_000)
            .for_each(|body: &[u8]| {
                if let Some(frame) = Question::parse(body).and_then(|read| read.to_frame(1)) {
                    assert_eq!(&frame[12..], body);
                }
                if let Some(frame) = Answer::parse(body).and_then(|read| read.to_frame(1)) {
                    assert_eq!(&frame[12..], body);
                }
            });
    }

    #[tokio::test]
    async fn a_length_that_no_frame_has_is_refused() {
        for length in [0_u32, 8, u32::MAX] {
            let bytes = [&length.to_le_bytes()[..], &[0; 64]].concat();
            assert!(read_frame(&mut &bytes[..]).await.is_err(), "{length}");
        }
    }
}
