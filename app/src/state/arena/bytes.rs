//! Objects travel as bytes, to a file: chunk by chunk, as entries under name and offset.
//!
//! A key is `u32 length of the name | name | u64 offset`, little-endian; a value is at most 256 KiB, and
//! all chunks but an object's last are as long as that.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs::File,
    os::unix::fs::FileExt,
    sync::Arc,
};

use heirloom_state_codec::{
    ApplyError, Change, CodecId, EntryHash, Record, SchemaRef, SectionDescriptor, SectionId,
    SectionKind, SectionTotal, StateDigest,
};

use super::{CHUNK_BYTES, Object, memory};
use crate::state::{
    error::StoreError,
    store::{Budget, Outlet, Pending, Progress},
};

/// A chunk: the object's address, which is its own as long as it is held here, and its number.
type Chunk = (usize, u64);

/// A copy on its way out.
#[derive(Debug)]
pub(super) struct Giving {
    section: SectionId,
    /// Objects of this copy, by address.
    objects: HashMap<usize, Arc<Object>>,
    /// Objects that are not written yet, from which chunk on.
    left: VecDeque<(Arc<Object>, u64)>,
    sent: HashMap<Chunk, EntryHash>,
    dirty: BTreeSet<Chunk>,
    /// Chunks that were sent and whose object is gone.
    graves: Vec<(Vec<u8>, EntryHash)>,
    /// Each record is newer than all before it.
    clock: u64,
    buffer: Vec<u8>,
}

fn address(object: &Arc<Object>) -> usize {
    Arc::as_ptr(object).addr()
}

fn chunks(object: &Object) -> u64 {
    object.size.div_ceil(CHUNK_BYTES)
}

fn key(name: &str, chunk: u64) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let mut key = length.to_le_bytes().to_vec();
    key.extend_from_slice(name.as_bytes());
    key.extend_from_slice(&(chunk * CHUNK_BYTES).to_le_bytes());
    key
}

fn parse(key: &[u8]) -> Option<(&str, u64)> {
    let (length, rest) = key.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (name, offset) = rest.split_at_checked(length)?;
    let offset = u64::from_le_bytes(offset.try_into().ok()?);
    Some((std::str::from_utf8(name).ok()?, offset))
}

impl Giving {
    pub(super) fn new(section: SectionId, objects: Vec<Arc<Object>>) -> Self {
        let mut giving = Self {
            section,
            objects: HashMap::new(),
            left: VecDeque::new(),
            sent: HashMap::new(),
            dirty: BTreeSet::new(),
            graves: Vec::new(),
            clock: 0,
            buffer: Vec::new(),
        };
        for object in objects {
            giving.made(&object);
        }
        giving
    }

    /// The section's entry in the manifest.
    pub(super) fn declare(&self, name: &str) -> SectionDescriptor {
        SectionDescriptor {
            id: self.section,
            kind: SectionKind::Map,
            required: true,
            codec: CodecId::RAW,
            attic_of: None,
            name: format!("{name}.bytes"),
            key_shape: String::new(),
            schema: SchemaRef::opaque(),
            entries_hint: self.left.iter().map(|(object, _)| chunks(object)).sum(),
            bytes_hint: 0,
        }
    }

    pub(super) fn made(&mut self, object: &Arc<Object>) {
        self.objects.insert(address(object), Arc::clone(object));
        self.left.push_back((Arc::clone(object), 0));
    }

    pub(super) fn removed(&mut self, object: &Arc<Object>) {
        let gone = address(object);
        self.left.retain(|(other, _)| address(other) != gone);
        self.dirty.retain(|(of, _)| *of != gone);
        let graves = &mut self.graves;
        self.sent.retain(|(of, chunk), hash| {
            if *of == gone {
                graves.push((key(&object.name, *chunk), *hash));
            }
            *of != gone
        });
        self.objects.remove(&gone);
    }

    pub(super) fn written(&mut self, object: &Arc<Object>, chunk: u64) {
        let chunk = (address(object), chunk);
        if self.sent.contains_key(&chunk) {
            self.dirty.insert(chunk);
        }
    }

    pub(super) fn pending(&self) -> Pending {
        let left = self.left.iter().map(|(object, from)| chunks(object) - from);
        let chunks = self.dirty.len() as u64 + left.sum::<u64>();
        Pending {
            entries: chunks + self.graves.len() as u64,
            bytes: chunks * CHUNK_BYTES,
        }
    }

    /// Writes one chunk, or what is gone; true if there was anything.
    pub(super) fn step(&mut self, out: &mut Outlet<'_>, base: bool) -> Result<bool, StoreError> {
        if !self.graves.is_empty() {
            for (key, hash) in std::mem::take(&mut self.graves) {
                self.clock += 1;
                out.writer
                    .tombstone(self.section, self.clock, &key, Some(hash))?;
            }
            return Ok(true);
        }
        let next = self.left.front_mut().map(|(object, from)| {
            *from += 1;
            (Arc::clone(object), *from - 1)
        });
        if let Some((object, chunk)) = next {
            if chunk >= chunks(&object) {
                self.left.pop_front();
            } else {
                self.send(out, &object, chunk, base)?;
            }
            return Ok(true);
        }
        if base {
            return Ok(false);
        }
        let Some((of, chunk)) = self.dirty.pop_first() else {
            return Ok(false);
        };
        if let Some(object) = self.objects.get(&of).cloned() {
            self.send(out, &object, chunk, false)?;
        }
        Ok(true)
    }

    /// Whoever writes to the chunk at this moment notes that afterwards, so it comes again.
    fn send(
        &mut self,
        out: &mut Outlet<'_>,
        object: &Arc<Object>,
        chunk: u64,
        base: bool,
    ) -> Result<(), StoreError> {
        let offset = chunk * CHUNK_BYTES;
        let length = (object.size - offset).min(CHUNK_BYTES);
        // At most a chunk, so it fits.
        self.buffer.resize(length as usize, 0);
        object.file.read_exact_at(&mut self.buffer, offset)?;
        self.clock += 1;
        let key = key(&object.name, chunk);
        let place = (address(object), chunk);
        let (section, version, value) = (self.section, self.clock, &self.buffer[..]);
        let hash = if base {
            out.writer.bulk(section, version, &key, value)?
        } else {
            let replaced = self.sent.get(&place).copied();
            out.writer.upsert(section, version, &key, value, replaced)?
        };
        self.sent.insert(place, hash);
        Ok(())
    }

    pub(super) fn slice(
        &mut self,
        out: &mut Outlet<'_>,
        budget: &Budget,
        base: bool,
    ) -> Result<Progress, StoreError> {
        while self.step(out, base)? {
            if budget.is_spent(out.writer) {
                return Ok(Progress::More);
            }
        }
        Ok(Progress::Done)
    }
}

/// A copy on its way in.
#[derive(Debug)]
pub(super) struct Taking {
    pub(super) section: SectionId,
    held: HashMap<Vec<u8>, (u64, EntryHash)>,
    state: StateDigest,
}

impl Taking {
    pub(super) fn new(section: SectionId) -> Self {
        Self {
            section,
            held: HashMap::new(),
            state: StateDigest::default(),
        }
    }

    pub(super) fn total(&self) -> SectionTotal {
        SectionTotal {
            section: self.section,
            state: self.state,
        }
    }

    pub(super) fn apply(
        &mut self,
        files: &mut HashMap<String, File>,
        base: bool,
        record: &Record<'_>,
    ) -> Result<(), StoreError> {
        let section = self.section;
        if let Some((held, hash)) = self.held.get(record.key).copied() {
            let found = record.version;
            if base {
                return Err(ApplyError::Duplicate { section }.into());
            }
            if found <= held {
                return Err(ApplyError::Stale {
                    section,
                    held,
                    found,
                }
                .into());
            }
            self.state.remove(hash);
            self.held.remove(record.key);
        }
        let Change::Put(bytes) = record.change else {
            return Ok(());
        };
        let place = parse(record.key).filter(|(_, offset)| {
            let end = offset.checked_add(CHUNK_BYTES);
            offset % CHUNK_BYTES == 0 && end.is_some_and(|end| i64::try_from(end).is_ok())
        });
        let Some((name, offset)) = place.filter(|_| bytes.len() as u64 <= CHUNK_BYTES) else {
            return Err(StoreError::Other(
                "what should be a part of an object is none; the program that wrote it is at fault"
                    .to_owned(),
            ));
        };
        if !files.contains_key(name) {
            files.insert(name.to_owned(), memory::growing()?);
        }
        if let Some(file) = files.get(name) {
            file.write_all_at(bytes, offset)?;
        }
        let hash = record.hash();
        self.state.add(hash);
        self.held
            .insert(record.key.to_vec(), (record.version, hash));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_no_part_of_it_does() {
        let bytes = key("tiles", 3);
        assert_eq!(parse(&bytes), Some(("tiles", 3 * CHUNK_BYTES)));
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), None, "{length}");
        }
    }
}
