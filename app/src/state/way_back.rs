//! The way back: every change of a generation that has just taken the state over, written to the one it took
//! it from, before it is acknowledged.
//!
//! A store writes under its own lock, so the changes of a key are in their order, and what is in the pipe
//! outlives this process. A reader that does not keep up must not hold the service up: after
//! [`LONGEST_STALL`] the way back is given up, which is said on the fate before the change that it lacks is
//! acknowledged.
//!
//! Owns the writing end: how a change becomes a record, and giving the way back up or the state back. The
//! record's bytes are [`record`]'s, the reading end is [`following`]'s, and what follows from its end is
//! decided by [`heirloom_handover::reserve`].

pub(crate) mod following;
pub(crate) mod record;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use heirloom_handover::{
    lifeline::Sent,
    message::Reads,
    way_back::{Fate, Said},
};
use heirloom_state_codec::{AtticRecord, Codec, Context, MigrateError, write_entry};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{keyed::Value, store::Store, turn::lock};
use record::{Draft, Fate as Change};

/// How long changes may wait for the reader within [`STALL_WINDOW`], all together: then there is no way back
/// any more.
const LONGEST_STALL: Duration = Duration::from_millis(100);

/// After so long what was waited for counts no more.
const STALL_WINDOW: Duration = Duration::from_secs(1);

/// So many descriptors may travel in one probation: no more than surely fit into the fate's queue beside its
/// last word.
const DESCRIPTORS_MAX: u32 = 64;

/// How long the fate's last word is tried when the system is short of memory.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(2);

/// Called once, with the reason, when the way back was given up.
pub(crate) type TellLost = Box<dyn Fn(&str) + Send + Sync>;

/// The writing end.
pub(crate) struct WayBack {
    pipe: Mutex<Pipe>,
    fate: Fate,
    open: AtomicBool,
    descriptors: AtomicU32,
    /// The versions in which the generation in reserve reads the stores.
    versions: HashMap<String, u32>,
    /// All that it can read.
    reads: Vec<Reads>,
    tell: TellLost,
}

/// Where changes are written.
struct Pipe {
    /// None once nothing is written any more.
    file: Option<File>,
    /// How long the reader was waited for since `since`.
    stalled: Duration,
    since: Instant,
}

impl Pipe {
    /// How long the reader may be waited for now.
    fn patience(&mut self) -> Duration {
        if self.since.elapsed() > STALL_WINDOW {
            self.since = Instant::now();
            self.stalled = Duration::ZERO;
        }
        LONGEST_STALL.saturating_sub(self.stalled)
    }
}

impl fmt::Debug for WayBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WayBack")
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

impl WayBack {
    /// A way back to a generation that can read these. Stores it cannot read are left out: what it takes back
    /// of them is what it had.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn new(
        pipe: OwnedFd,
        fate: OwnedFd,
        stores: &[Arc<dyn Store>],
        reads: &[Reads],
        tell: TellLost,
    ) -> io::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let common = |store: &Arc<dyn Store>| {
            let known = |version| {
                let mut all = reads.iter();
                all.any(|one| one.section == store.name() && one.version == version)
            };
            let schemas = store.reads();
            let newest = schemas.iter().find(|schema| known(schema.version))?;
            Some((store.name().to_owned(), newest.version))
        };
        Ok(Self {
            pipe: Mutex::new(Pipe {
                file: Some(File::from(pipe)),
                stalled: Duration::ZERO,
                since: Instant::now(),
            }),
            fate: Fate::new(fate),
            open: AtomicBool::new(true),
            descriptors: AtomicU32::new(0),
            versions: stores.iter().filter_map(common).collect(),
            reads: reads.to_vec(),
            tell,
        })
    }

    /// Whether changes are still written.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// The versions in which the generation in reserve reads the stores.
    pub(crate) fn versions(&self) -> &HashMap<String, u32> {
        &self.versions
    }

    /// All that the generation in reserve can read.
    pub(crate) fn reads(&self) -> &[Reads] {
        &self.reads
    }

    /// What the other end says, without waiting.
    ///
    /// # Errors
    ///
    /// As [`Fate::hear`].
    pub(crate) fn hear(&self) -> io::Result<Said> {
        self.fate.hear()
    }

    /// Another handle to the fate.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn fate(&self) -> io::Result<Fate> {
        self.fate.try_clone()
    }

    /// Offers the state to the generation in reserve: nothing is written after that. To be called when nothing
    /// can change the state.
    ///
    /// # Errors
    ///
    /// The system's; nothing was offered then.
    pub(crate) fn offer(&self) -> io::Result<Sent> {
        let mut pipe = lock(&self.pipe);
        if pipe.file.is_none() {
            return Ok(Sent::Refused);
        }
        let sent = self.fate.offer()?;
        self.end(&mut pipe);
        Ok(sent)
    }

    /// The other end is closed: there is nothing to say any more.
    pub(crate) fn close(&self) {
        self.end(&mut lock(&self.pipe));
    }

    /// Writes a record whole, behind the descriptors that it speaks of, or gives the way back up.
    fn write(&self, bytes: &[u8], descriptors: &[OwnedFd]) {
        let mut pipe = lock(&self.pipe);
        if pipe.file.is_none() {
            return;
        }
        for descriptor in descriptors {
            if let Err(error) = self.fate.send(descriptor.as_fd()) {
                if error.kind() == io::ErrorKind::BrokenPipe {
                    return self.end(&mut pipe);
                }
                return self.lose(&mut pipe, &format!("an object could not be sent: {error}"));
            }
        }
        let mut left = bytes;
        while !left.is_empty() {
            let patience = pipe.patience();
            let Some(file) = pipe.file.as_mut() else {
                return;
            };
            let error = match file.write(left) {
                Ok(count) => {
                    left = left.get(count..).unwrap_or_default();
                    continue;
                }
                Err(error) => error,
            };
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => {
                    if patience.is_zero() {
                        let reason = format!(
                            "the former generation did not read the changes of this one for {LONGEST_STALL:?}"
                        );
                        return self.lose(&mut pipe, &reason);
                    }
                    let began = Instant::now();
                    let mut room = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                    let wait = PollTimeout::try_from(patience.as_millis() + 1);
                    // A wait that fails is tried again, for as long as there is time.
                    let _again = poll(&mut room, wait.unwrap_or(PollTimeout::ZERO));
                    pipe.stalled += began.elapsed();
                }
                io::ErrorKind::BrokenPipe => return self.end(&mut pipe),
                _other => {
                    let reason = format!("a change could not be written: {error}");
                    return self.lose(&mut pipe, &reason);
                }
            }
        }
    }

    /// The other one has stood down, or is dead; the supervisor knows.
    fn end(&self, pipe: &mut Pipe) {
        pipe.file = None;
        self.open.store(false, Ordering::Relaxed);
    }

    /// There is no way back any more.
    pub(crate) fn give_up(&self, reason: &str) {
        let mut pipe = lock(&self.pipe);
        if pipe.file.is_some() {
            self.lose(&mut pipe, reason);
        }
    }

    /// The word comes before the end of the pipe, and both before whoever made the change goes on.
    fn lose(&self, pipe: &mut Pipe, reason: &str) {
        say_lost(&self.fate, reason);
        self.end(pipe);
        tracing::warn!(
            reason,
            "there is no way back to the former generation any more"
        );
        (self.tell)(reason);
    }
}

/// Says that the former generation is not to own the state, whatever becomes of this one.
pub(crate) fn say_lost(fate: &Fate, reason: &str) {
    let end = Instant::now() + LAST_WORD_LIMIT;
    while let Err(error) = fate.lose(reason) {
        if Instant::now() >= end {
            tracing::error!(%error, "the former generation cannot be told that it lacks a change");
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

impl AsFd for WayBack {
    /// The fate, to hear whether it is closed at the other end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fate.as_fd()
    }
}

/// Changes that are written together, whole or not at all.
#[derive(Debug)]
pub(crate) struct Record {
    way: Arc<WayBack>,
    draft: Draft,
    /// Those of the objects in it.
    descriptors: Vec<OwnedFd>,
    broken: Option<String>,
}

impl Record {
    pub(super) fn new(way: Arc<WayBack>) -> Self {
        Self {
            way,
            draft: Draft::default(),
            descriptors: Vec::new(),
            broken: None,
        }
    }

    /// Adds what has become of an entry, with what newer programs put aside.
    pub(crate) fn change<C: Codec<V>, V: Value<C>>(
        &mut self,
        store: &str,
        key: impl FnOnce() -> Result<Vec<u8>, MigrateError>,
        entry_version: u64,
        value: Option<(&V, Option<&AtticRecord>)>,
    ) {
        let Some(version) = self.way.versions.get(store).copied() else {
            return;
        };
        // What the app's own code does here must not tear the change it speaks of.
        let add = || -> Result<(), MigrateError> {
            let key = key()?;
            let Some((value, stored)) = value else {
                self.draft
                    .add(store, version, &key, entry_version, Change::Remove);
                return Ok(());
            };
            let mut bytes = Vec::new();
            let context = &mut Context::default();
            let attic = write_entry::<C, V>(value, version, stored, &mut bytes, context)?;
            let attic = attic
                .as_ref()
                .map(AtticRecord::to_bytes)
                .unwrap_or_default();
            let put = Change::Put {
                value: &bytes,
                attic: &attic,
            };
            self.draft.add(store, version, &key, entry_version, put);
            Ok(())
        };
        let broken = match catch_unwind(AssertUnwindSafe(add)) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("{store}: {error}"),
            Err(_panic) => format!("{store}: a step down, or a codec, panicked"),
        };
        self.broken.get_or_insert(broken);
    }

    /// Adds that an object in a memory file was made, or has gone.
    pub(crate) fn object(&mut self, store: &str, name: &str, made: Option<(BorrowedFd<'_>, u64)>) {
        let Some(version) = self.way.versions.get(store).copied() else {
            return;
        };
        let Some((descriptor, bytes)) = made else {
            return self
                .draft
                .add(store, version, name.as_bytes(), 0, Change::Remove);
        };
        let before = self.way.descriptors.fetch_add(1, Ordering::Relaxed);
        let kept = if before < DESCRIPTORS_MAX {
            descriptor
                .try_clone_to_owned()
                .map_err(|error| error.to_string())
        } else {
            Err(format!("more than {DESCRIPTORS_MAX} objects were made"))
        };
        match kept {
            Ok(descriptor) => {
                self.descriptors.push(descriptor);
                let object = Change::Object { bytes };
                self.draft.add(store, version, name.as_bytes(), 0, object);
            }
            Err(reason) => {
                self.broken
                    .get_or_insert_with(|| format!("{store}: {reason}"));
            }
        }
    }

    /// Writes it. To be called under the locks under which the changes were made.
    pub(crate) fn write(self) {
        let Self {
            way,
            draft,
            descriptors,
            broken,
        } = self;
        if let Some(reason) = broken {
            return way.give_up(&format!(
                "a change cannot be written for the former generation: {reason}"
            ));
        }
        match draft.finish() {
            Ok(None) => {}
            Ok(Some(bytes)) => way.write(&bytes, &descriptors),
            Err(reason) => way.give_up(reason),
        }
    }
}
