//! Moving the whole state at once, as is done without tracking: everything stands still, all of it is
//! copied, then the other process goes on.
//!
//! Two ways. [`Way::Stream`] is this project's own stream with all its checks, written after the
//! freeze instead of before it. [`Way::Whole`] is what handing state to a child usually comes to: one
//! buffer, one blocking write, one decode. Both ends are here; the processes are `bin/transfer.rs`'s.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use heirloom_state_codec::{
    BuildId, Change, Codec, Event, Header, Limits, Manifest, Section, SectionId, SectionKind,
    SectionTotal, SnapshotReader, SnapshotWriter, StateDigest,
};

use super::record::{Coding, Record};

/// The one section.
const SECTION: SectionId = SectionId(1);
/// Bytes that are encoded before they are written: as the library does it.
const SLICE_BYTES: usize = 512 * 1024;

/// All entries.
pub type Entries = HashMap<u64, Record>;

/// How all of it is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// As a snapshot stream, slice by slice.
    Stream,
    /// As one piece.
    Whole,
}

/// `count` entries as a holder begins with them.
#[must_use]
pub fn entries(count: u64) -> Entries {
    (0..count).map(|key| (key, Record::of(key))).collect()
}

/// Writes all of it.
///
/// # Errors
/// If the other side stops reading.
pub fn send<C: Coding>(entries: &Entries, way: Way, output: &mut impl Write) -> Result<()> {
    match way {
        Way::Stream => {
            let section = Section::<C, u64, Record>::new(SECTION);
            let descriptor = section.descriptor("records", SectionKind::Map)?;
            let manifest = Manifest {
                app: "transfer".to_owned(),
                sections: vec![descriptor],
            };
            let header = Header::new(1, 1, BuildId::default());
            let mut writer = SnapshotWriter::new(&header, &manifest, Limits::default())?;
            for (key, record) in entries {
                writer.bulk_with::<C, u64, Record>(SECTION, 1, key, record)?;
                if writer.backlog_bytes() >= SLICE_BYTES {
                    writer.write_to(output)?;
                }
            }
            writer.freeze()?;
            writer.end()?;
            writer.write_to(output)?;
        }
        Way::Whole => {
            let mut bytes = Vec::new();
            for (key, record) in entries {
                encode::<C>(key, record, &mut bytes)?;
            }
            output.write_all(&(bytes.len() as u64).to_le_bytes())?;
            output.write_all(&bytes)?;
        }
    }
    Ok(())
}

/// How long it takes to encode all of it, into a buffer that is used again and again: the codec alone.
///
/// # Errors
/// If the codec cannot express an entry.
pub fn time_encoding<C: Coding>(entries: &Entries) -> Result<Duration> {
    let mut bytes = Vec::with_capacity(2 * SLICE_BYTES);
    let start = Instant::now();
    for (key, record) in entries {
        encode::<C>(key, record, &mut bytes)?;
        if bytes.len() >= SLICE_BYTES {
            std::hint::black_box(&bytes);
            bytes.clear();
        }
    }
    Ok(start.elapsed())
}

/// What was received.
#[derive(Debug)]
pub struct Received {
    /// All of it.
    pub entries: Entries,
    /// How long decoding took after all of it had arrived; none if it was decoded as it came.
    pub decoding: Option<Duration>,
}

/// Reads all of it.
///
/// # Errors
/// If it is damaged, or ends too early.
pub fn receive<C: Coding>(way: Way, input: &mut impl Read) -> Result<Received> {
    match way {
        Way::Stream => Ok(Received {
            entries: receive_stream::<C>(input)?,
            decoding: None,
        }),
        Way::Whole => {
            let mut length = [0; 8];
            input.read_exact(&mut length)?;
            let mut bytes = Vec::new();
            let length = u64::from_le_bytes(length);
            input.take(length).read_to_end(&mut bytes)?;
            if bytes.len() as u64 != length {
                bail!("{} of {length} bytes came", bytes.len());
            }
            let start = Instant::now();
            let entries = decode_all::<C>(&bytes)?;
            Ok(Received {
                entries,
                decoding: Some(start.elapsed()),
            })
        }
    }
}

fn receive_stream<C: Coding>(input: &mut impl Read) -> Result<Entries> {
    let mut reader = SnapshotReader::new(Limits::default());
    let mut entries = Entries::new();
    let mut state = StateDigest::default();
    let mut end = None;
    loop {
        let count = input.read(reader.space())?;
        if count == 0 {
            reader.finish()?;
            break;
        }
        reader.filled(count);
        while let Some(event) = reader.poll()? {
            match event {
                Event::Bulk { records, .. } => {
                    for record in records {
                        let Change::Put(value) = record.change else {
                            bail!("an entry of the base is gone");
                        };
                        let key = C::decode(record.key)?;
                        entries.insert(key, C::decode(value)?);
                        state.add(record.hash());
                    }
                }
                Event::End(mark) => end = Some(mark),
                _ => {}
            }
        }
    }
    let held = SectionTotal {
        section: SECTION,
        state,
    };
    end.context("there is no end mark")?.verify(&[held])?;
    Ok(entries)
}

/// Key and value with their lengths, so that each is decoded by itself as in the stream.
fn encode<C: Coding>(key: &u64, record: &Record, out: &mut Vec<u8>) -> Result<()> {
    <C as Codec<u64>>::encode(key, out)?;
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    <C as Codec<Record>>::encode(record, out)?;
    let length = u32::try_from(out.len() - at - 4)?;
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

fn decode_all<C: Coding>(mut bytes: &[u8]) -> Result<Entries> {
    let mut entries = Entries::new();
    while !bytes.is_empty() {
        let (key, rest) = bytes.split_at_checked(8).context("half a key")?;
        let (length, rest) = rest.split_first_chunk().context("half a length")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (value, rest) = rest.split_at_checked(length).context("half a value")?;
        entries.insert(C::decode(key)?, C::decode(value)?);
        bytes = rest;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use heirloom_state_codec::{Bincode, Wincode};

    use super::*;

    #[test]
    fn both_ways_bring_all_of_it() {
        let sent = entries(5000);
        for way in [Way::Stream, Way::Whole] {
            let mut bytes = Vec::new();
            send::<Bincode>(&sent, way, &mut bytes).unwrap();
            let received = receive::<Bincode>(way, &mut bytes.as_slice()).unwrap();
            assert_eq!(received.entries, sent);
            let cut = bytes.len() - 9;
            assert!(receive::<Bincode>(way, &mut &bytes[..cut]).is_err());
            bytes.clear();
            send::<Wincode>(&sent, way, &mut bytes).unwrap();
            let received = receive::<Wincode>(way, &mut bytes.as_slice()).unwrap();
            assert_eq!(received.entries, sent);
        }
        assert!(time_encoding::<Bincode>(&sent).unwrap() > Duration::ZERO);
    }
}
