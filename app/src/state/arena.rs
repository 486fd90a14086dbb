//! The arena: large objects in memory that outlives the process.
//!
//! An object is a memory file. The next generation gets its descriptor, so nothing of it is copied,
//! however large it is; only where the state goes to a file are its bytes written.
//!
//! Owns the objects and the operations on them. [`memory`] makes the files, [`descriptors`] and [`bytes`]
//! are the two ways in which they travel, [`serving`] puts these together. Which objects there are
//! travels as the entries of a keyed store.

mod bytes;
mod descriptors;
mod memory;
mod serving;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
    sync::{Arc, Mutex},
};

use heirloom_state_codec::{Bincode, Codec, MigrateError, SectionKind, State as Schema, shape_of};
use serde::{Deserialize, Serialize};

use super::{
    State,
    error::StateError,
    gate::Gate,
    keyed::{Handle, Kind},
    turn::{Turn, changing, lock, reading},
};

/// Bytes of an object that are written, and noted as changed, together.
const CHUNK_BYTES: u64 = 256 * 1024;

/// The longest name of an object, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Large objects by name, that move to the next generation without being copied. Clones are handles to
/// the same arena.
///
/// ```
/// # use heirloom_app::state::{Arena, State};
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let state = State::new();
/// let arena = Arena::new(&state, "tiles");
/// let map = arena.create("map", 1 << 20).await?;
/// map.write_at(4096, b"here").await?;
/// let mut found = [0; 4];
/// arena.blob("map").await?.expect("was made").read_at(4096, &mut found).await?;
/// assert_eq!(&found, b"here");
/// # Ok::<(), heirloom_app::state::StateError>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Arena {
    shared: Arc<Shared>,
}

/// One object of an [`Arena`]: bytes of a fixed number, at first 0. Clones are handles to the same
/// object, which stays as long as there is one, also when it has been removed.
#[derive(Clone, Debug)]
pub struct Blob {
    object: Arc<Object>,
    arena: Arc<Shared>,
}

/// The arena and its gate.
struct Shared {
    name: String,
    gate: Arc<Gate>,
    /// Which objects there are, and how large.
    index: Handle<Index>,
    /// Locked before the index, and before `moving`.
    objects: Mutex<HashMap<String, Arc<Object>>>,
    moving: Mutex<serving::Moving>,
}

/// An object.
#[derive(Debug)]
struct Object {
    name: String,
    file: File,
    size: u64,
    /// Held while bytes are written.
    writing: Mutex<()>,
}

/// What is said of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[state(name = "arena-object", version = 1, oldest)]
struct Extent {
    bytes: u64,
}

/// Objects by name.
#[derive(Debug)]
struct Index;

impl Kind for Index {
    type Key = String;
    type Value = Extent;
    type Codec = Bincode;
    const SECTION: SectionKind = SectionKind::Map;
    const SHARDS: usize = 1;

    fn key_shape() -> String {
        shape_of::<String>()
    }

    fn encode_key(key: &String, out: &mut Vec<u8>) -> Result<(), MigrateError> {
        Ok(Bincode::encode(key, out)?)
    }

    fn decode_key(bytes: &[u8]) -> Result<String, MigrateError> {
        Ok(Bincode::decode(bytes)?)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Arena {
    /// A new arena of this state, as [`Map::new`](super::Map::new).
    ///
    /// # Panics
    ///
    /// As there.
    #[must_use]
    pub fn new(state: &State, name: &str) -> Self {
        let arena = Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                gate: Arc::clone(&state.core.gate),
                index: Handle::part_of(state, &format!("{name}.index")),
                objects: Mutex::default(),
                moving: Mutex::default(),
            }),
        };
        state.core.add(Arc::new(arena.clone()));
        arena
    }

    /// Makes an object of this many bytes, all of them 0. Memory is taken as they are written.
    ///
    /// # Errors
    ///
    /// [`StateError::System`] if there is one of this name, or the name has more than 255 bytes, or the
    /// system refuses the memory; [`StateError::NotThere`] in a generation that has handed its state over.
    pub async fn create(&self, name: &str, bytes: u64) -> Result<Blob, StateError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(refused(io::ErrorKind::InvalidInput, "its name is too long"));
        }
        let turn = changing(&self.shared.gate, (), |()| {
            let mut objects = lock(&self.shared.objects);
            if !self.shared.gate.lets_pass() {
                return Err(());
            }
            if objects.contains_key(name) {
                let reason = "there is an object of this name already";
                return Ok(Err(refused(io::ErrorKind::AlreadyExists, reason)));
            }
            Ok(memory::create(bytes).map_err(StateError::from).map(|file| {
                let object = Arc::new(Object::new(name, file, bytes));
                objects.insert(name.to_owned(), Arc::clone(&object));
                self.shared.index.preset(name.to_owned(), Extent { bytes });
                lock(&self.shared.moving).made(&object);
                if let Some(mut record) = self.shared.gate.record() {
                    let made = Some((object.file.as_fd(), bytes));
                    record.object(&self.shared.name, name, made);
                    record.write();
                }
                object
            }))
        });
        match turn.await? {
            Turn::Here(object) => Ok(self.handle(object?)),
            Turn::There(_, ()) => Err(StateError::NotThere("making an object in an arena")),
        }
    }

    /// The object of this name. A generation that has handed its state over knows those it had then.
    ///
    /// # Errors
    ///
    /// As [`Map::get`](super::Map::get).
    pub async fn blob(&self, name: &str) -> Result<Option<Blob>, StateError> {
        let find = || lock(&self.shared.objects).get(name).map(Arc::clone);
        let turn = reading(&self.shared.gate, (), |()| {
            let object = find();
            self.shared.gate.lets_pass().then_some(object).ok_or(())
        });
        let object = match turn.await? {
            Turn::Here(object) => object,
            Turn::There(_, ()) => find(),
        };
        Ok(object.map(|object| self.handle(object)))
    }

    /// Removes an object; true if there was one. Its memory is given back when the last handle is.
    ///
    /// # Errors
    ///
    /// [`StateError::NotThere`] in a generation that has handed its state over.
    pub async fn remove(&self, name: &str) -> Result<bool, StateError> {
        let turn = changing(&self.shared.gate, (), |()| {
            let mut objects = lock(&self.shared.objects);
            if !self.shared.gate.lets_pass() {
                return Err(());
            }
            let Some(object) = objects.remove(name) else {
                return Ok(false);
            };
            self.shared.index.discard(&object.name);
            lock(&self.shared.moving).removed(&object);
            if let Some(mut record) = self.shared.gate.record() {
                record.object(&self.shared.name, name, None);
                record.write();
            }
            Ok(true)
        });
        match turn.await? {
            Turn::Here(was_there) => Ok(was_there),
            Turn::There(_, ()) => Err(StateError::NotThere("removing an object of an arena")),
        }
    }

    fn handle(&self, object: Arc<Object>) -> Blob {
        Blob {
            object,
            arena: Arc::clone(&self.shared),
        }
    }
}

impl Object {
    fn new(name: &str, file: File, size: u64) -> Self {
        Self {
            name: name.to_owned(),
            file,
            size,
            writing: Mutex::new(()),
        }
    }
}

impl Blob {
    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.object.size
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.object.size == 0
    }

    /// Reads bytes from an offset, as many as `into` has.
    ///
    /// # Errors
    ///
    /// [`StateError::System`] if the object has not so many. All others as [`Map::get`](super::Map::get).
    pub async fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StateError> {
        self.fits(offset, into.len())?;
        self.arena.gate.place().await?;
        // In whichever generation: the memory is the same.
        Ok(self.object.file.read_exact_at(into, offset)?)
    }

    /// Writes bytes at an offset. While the state stands still it waits, after each 256 KiB at most; what
    /// is written in between is one step for everybody else.
    ///
    /// # Errors
    ///
    /// As [`Self::read_at`].
    pub async fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StateError> {
        self.fits(offset, bytes.len())?;
        let (mut offset, mut left) = (offset, bytes);
        while !left.is_empty() {
            let room = CHUNK_BYTES - offset % CHUNK_BYTES;
            let count = usize::try_from(room).map_or(left.len(), |room| left.len().min(room));
            let (piece, rest) = left.split_at(count);
            let turn = changing(&self.arena.gate, (), |()| {
                let _writing = lock(&self.object.writing);
                if !self.arena.gate.lets_pass() {
                    return Err(());
                }
                let written = self.object.file.write_all_at(piece, offset);
                lock(&self.arena.moving).written(&self.object, offset / CHUNK_BYTES);
                Ok(written)
            });
            match turn.await? {
                Turn::Here(written) => written?,
                // The memory is the same.
                Turn::There(_, ()) => self.object.file.write_all_at(piece, offset)?,
            }
            (offset, left) = (offset + count as u64, rest);
        }
        Ok(())
    }

    fn fits(&self, offset: u64, count: usize) -> Result<(), StateError> {
        let end = offset.checked_add(count as u64);
        if end.is_some_and(|end| end <= self.object.size) {
            return Ok(());
        }
        let reason = "that is beyond the end of the object";
        Err(refused(io::ErrorKind::InvalidInput, reason))
    }
}

fn refused(kind: io::ErrorKind, reason: &str) -> StateError {
    StateError::System(io::Error::new(kind, reason))
}
