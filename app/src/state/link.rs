//! The link: operations on the state that a generation which has given it away carries out in the one
//! that owns it. The asking end; the answering one is [`server`], the bytes are [`wire`]'s.
//!
//! Operations are optimistic: an entry is seen with its version, changed here, and committed there if
//! the version still holds. So each takes effect once, in the owner, or not at all.

pub(crate) mod server;
pub(crate) mod wire;

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    os::unix::net::UnixStream as StdStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedReadHalf},
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{error::StateError, store::Seen};
use wire::{Answer, Question};
pub(crate) use wire::{Fate, Part, WantedChange};

/// How long an answer is waited for. The owner may be frozen itself, for a second or so.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// So many questions may wait to be written.
const QUEUE: usize = 1024;

/// Who waits for which answer; none once the link is broken.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

/// The asking end, in the generation that has given its state away.
#[derive(Debug)]
pub(crate) struct Link {
    versions: HashMap<String, u32>,
    questions: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    last: AtomicU64,
}

impl Link {
    /// A link over this socket. `versions` are those in which the sections were written.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn start(
        socket: OwnedFd,
        versions: HashMap<String, u32>,
        runtime: &Handle,
    ) -> io::Result<Self> {
        let stream = StdStream::from(socket);
        stream.set_nonblocking(true)?;
        let _entered = runtime.enter();
        let (reading, mut writing) = UnixStream::from_std(stream)?.into_split();
        let (questions, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let writer = Broken(Arc::clone(&waiting));
        runtime.spawn(async move {
            let _broken = writer;
            while let Some(question) = queue.recv().await {
                if writing.write_all(&question).await.is_err() {
                    break;
                }
            }
        });
        let answers = Arc::clone(&waiting);
        runtime.spawn(hear(reading, answers));
        Ok(Self {
            versions,
            questions,
            waiting,
            last: AtomicU64::new(0),
        })
    }

    /// The version of a store's schema in which both sides speak of its entries.
    pub(crate) fn version_of(&self, section: &str) -> u32 {
        self.versions.get(section).copied().unwrap_or(0)
    }

    /// An entry as the owner has it.
    pub(crate) async fn see(&self, section: &str, key: &[u8]) -> Result<Option<Seen>, StateError> {
        let question = Question::See {
            section: section.to_owned(),
            version: self.version_of(section),
            key: key.to_vec(),
        };
        match self.ask(&question).await? {
            Answer::Seen(seen) => Ok(seen),
            other => Err(unexpected(other)),
        }
    }

    /// All entries at one instant, as pairs of key and value.
    pub(crate) async fn see_all(
        &self,
        section: &str,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError> {
        let question = Question::SeeAll {
            section: section.to_owned(),
            version: self.version_of(section),
        };
        match self.ask(&question).await? {
            Answer::All(entries) => Ok(entries),
            other => Err(unexpected(other)),
        }
    }

    /// Carries a transaction out: all of it or, if an entry has changed since it was read, nothing.
    pub(crate) async fn commit(&self, parts: Vec<Part>) -> Result<bool, StateError> {
        let parts = parts
            .into_iter()
            .map(|part| (self.version_of(&part.section), part))
            .collect();
        match self.ask(&Question::Commit(parts)).await? {
            Answer::Done(done) => Ok(done),
            other => Err(unexpected(other)),
        }
    }

    async fn ask(&self, question: &Question) -> Result<Answer, StateError> {
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        let frame = question
            .to_frame(id)
            .ok_or(StateError::NotThere("an operation of more than 256 MiB"))?;
        let (answer, arrival) = oneshot::channel();
        match &mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(waiting) => waiting.insert(id, answer),
            None => return Err(StateError::OwnerGone),
        };
        let asked = async {
            self.questions.send(frame).await.ok()?;
            arrival.await.ok()
        };
        match timeout(ANSWER_LIMIT, asked).await {
            Ok(Some(Answer::Refused(reason))) => Err(StateError::Refused(reason)),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(_) => {
                if let Some(waiting) =
                    &mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
                {
                    waiting.remove(&id);
                }
                Err(StateError::OwnerGone)
            }
        }
    }
}

/// An answer to another question than was asked: the other side is at fault.
fn unexpected(answer: Answer) -> StateError {
    StateError::Refused(match answer {
        Answer::Refused(reason) => reason,
        Answer::Seen(_) | Answer::All(_) | Answer::Done(_) => {
            "it answered another question than was asked".to_owned()
        }
    })
}

/// Tells everybody who waits, once this is dropped, that no answer will come.
struct Broken(Waiting);

impl Drop for Broken {
    fn drop(&mut self) {
        // Whoever waits sees its sender dropped.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

async fn hear(reading: OwnedReadHalf, waiting: Waiting) {
    let broken = Broken(waiting);
    let mut reading = BufReader::new(reading);
    while let Ok(Some((id, body))) = wire::read_frame(&mut reading).await {
        let Some(answer) = Answer::parse(&body) else {
            return;
        };
        let waiting = match &mut *broken.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(waiting) => waiting.remove(&id),
            None => return,
        };
        if let Some(waiting) = waiting {
            // Whoever asked may have given up.
            let _gone = waiting.send(answer);
        }
    }
}

/// A connected pair, for tests of both ends together.
#[cfg(test)]
pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
    let (here, there) = StdStream::pair().unwrap();
    (here.into(), there.into())
}
