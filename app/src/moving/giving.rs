//! The sending side: parked connections, one after the other, and the answers to them.
//!
//! A task of its own owns the lifeline. It sends no more than a window of connections ahead of the
//! answers: descriptors that are under way count against the sender's limit on open files
//! (`ETOOMANYREFS` of `unix(7)`).
//!
//! When it ends, for whatever reason, connections may be under way whose answer is too. Which of the two
//! generations has each is decided as a commit is, by the lifeline itself ([`Sender::resolve`]).

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use heirloom_handover::{
    fault::{self, Point},
    fds,
    message::{Counts, Reads},
};
use nix::{
    errno::Errno,
    sys::{
        memfd::{MFdFlags, memfd_create},
        resource::{Resource, getrlimit},
        socket::{Shutdown, shutdown},
    },
    unistd::write,
};
use tokio::{
    io::unix::AsyncFd,
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use crate::sys;

use super::{
    Parked,
    census::Census,
    wire::{Announced, Answered, BYTES_MAX, INLINE_BYTES_MAX},
};

/// The most connections that are under way without an answer.
const WINDOW_MAX: usize = 64;

/// How long the receiver may take to answer. One that is silent for so long is as good as dead.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// When nothing was to be sent for so long, those that were at rest have all gone; how often it is looked
/// whether none is left at all.
const CALM: Duration = Duration::from_millis(10);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// So many parked connections may wait to be sent; more wait where they are.
const QUEUE: usize = 1024;

/// How long to wait before sending is tried again while descriptors of others are in the way, and for
/// how long at most. They count for a user, not for a process, and somebody else's are soon received.
const CROWDED_PAUSE: Duration = Duration::from_millis(10);
const CROWDED_LIMIT: Duration = Duration::from_secs(20);

/// An answer is one short line.
const ANSWER_BYTES: usize = 64;

/// Where parked connections are given. Clones of the `Arc` are handles to the same way.
#[derive(Debug)]
pub(crate) struct Mover {
    queue: mpsc::Sender<(Parked, oneshot::Sender<Option<Parked>>)>,
    open: Arc<AtomicBool>,
    moved: Arc<Mutex<Counts>>,
    /// What the next generation can read.
    reads: Vec<Reads>,
}

/// Called with the connections that have moved so far, and those that are still here.
pub(crate) type Tell = Box<dyn Fn(Counts, Counts) + Send + Sync>;

impl Mover {
    /// Begins to send over this lifeline.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn start(
        lifeline: OwnedFd,
        reads: Vec<Reads>,
        census: Arc<Census>,
        tell: Tell,
        runtime: &Handle,
    ) -> io::Result<Self> {
        let _entered = runtime.enter();
        let lifeline = sys::register(lifeline)?;
        let (queue, parked) = mpsc::channel(QUEUE);
        let open = Arc::new(AtomicBool::new(true));
        let moved = Arc::new(Mutex::new(Counts::default()));
        let sender = Sender {
            lifeline,
            parked,
            under_way: VecDeque::new(),
            held_up: None,
            window: window(),
            open: Arc::clone(&open),
            moved: Arc::clone(&moved),
            census,
            tell,
        };
        runtime.spawn(sender.run());
        Ok(Self {
            queue,
            open,
            moved,
            reads,
        })
    }

    /// Gives a connection away. If it cannot be moved, it comes back and stays this generation's.
    pub(crate) async fn give(&self, parked: Parked) -> Option<Parked> {
        if !self.is_open() {
            return Some(parked);
        }
        let (answer, answered) = oneshot::channel();
        if let Err(refused) = self.queue.send((parked, answer)).await {
            return Some(refused.0.0);
        }
        // A sender that ends answers everybody first.
        answered.await.ok().flatten()
    }

    /// The newest of these versions in which the next generation can read the state of connections of
    /// this name; none if it knows no such connections.
    pub(crate) fn version_for(&self, name: &str, versions: &[u32]) -> Option<u32> {
        let known = self.reads.iter().filter(|one| one.section == name);
        let common = known
            .map(|one| one.version)
            .filter(|one| versions.contains(one));
        common.max()
    }

    /// Whether connections can be moved at all.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Those that have been moved, by protocol, as they are counted.
    pub(crate) fn counted(&self) -> Arc<Mutex<Counts>> {
        Arc::clone(&self.moved)
    }
}

/// As many as a quarter of what this process may have open, so that what is under way never reaches
/// the limit.
fn window() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(64, |(soft, _)| soft);
    usize::try_from(limit / 4)
        .unwrap_or(WINDOW_MAX)
        .clamp(1, WINDOW_MAX)
}

/// The task that owns the lifeline.
struct Sender {
    lifeline: AsyncFd<OwnedFd>,
    parked: mpsc::Receiver<(Parked, oneshot::Sender<Option<Parked>>)>,
    /// Sent and not answered, in order.
    under_way: VecDeque<(Parked, oneshot::Sender<Option<Parked>>)>,
    /// The next to be sent, for which too many descriptors are under way; since when.
    held_up: Option<(Parked, oneshot::Sender<Option<Parked>>, Instant)>,
    window: usize,
    open: Arc<AtomicBool>,
    moved: Arc<Mutex<Counts>>,
    census: Arc<Census>,
    tell: Tell,
}

impl Sender {
    async fn run(mut self) {
        if let Err(error) = self.send_all().await {
            tracing::warn!(%error, "no more connections can be moved; the rest is served here");
        }
        self.open.store(false, Ordering::Relaxed);
        self.resolve();
        self.parked.close();
        // What was not answered is not touched either: the receiver answers first.
        let held_up = self
            .held_up
            .take()
            .map(|(parked, answer, _)| (parked, answer));
        for (parked, answer) in std::mem::take(&mut self.under_way)
            .into_iter()
            .chain(held_up)
        {
            let _gone = answer.send(Some(parked));
        }
        while let Some((parked, answer)) = self.parked.recv().await {
            let _gone = answer.send(Some(parked));
        }
    }

    async fn send_all(&mut self) -> io::Result<()> {
        let mut untold = true;
        let mut calm_since = Instant::now();
        loop {
            let held_up = self.held_up.is_some();
            let room = !held_up && self.under_way.len() < self.window;
            let calm = !held_up && self.under_way.is_empty() && untold;
            tokio::select! {
                biased;
                answered = next_answer(&self.lifeline, !self.under_way.is_empty()) => {
                    self.answered(answered?);
                    untold = true;
                    calm_since = Instant::now();
                    if !self.open.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    self.send_held_up().await?;
                }
                parked = self.parked.recv(), if room => match parked {
                    Some((parked, answer)) => self.send(parked, answer, Instant::now()).await?,
                    None => return Ok(()),
                },
                () = sleep(CROWDED_PAUSE), if held_up && self.under_way.is_empty() => {
                    self.send_held_up().await?;
                }
                () = sleep(LOOK_EVERY), if calm => {
                    let left = self.census.counts();
                    if left.0.is_empty() || calm_since.elapsed() >= CALM {
                        untold = false;
                        (self.tell)(self.counts(), left);
                    }
                }
            }
        }
    }

    /// Lets no further answer come, and hears those that have: each connection that is under way has
    /// been taken, or cannot be any more. The receiver's answers fail from here on.
    fn resolve(&mut self) {
        let socket = self.lifeline.get_ref();
        // Without a peer nobody can answer any more either.
        if let Err(errno) = shutdown(socket.as_raw_fd(), Shutdown::Read)
            && errno != Errno::ENOTCONN
        {
            tracing::error!(%errno, "the lifeline cannot be closed for answers");
        }
        while !self.under_way.is_empty() {
            let Ok(received) = fds::receive(self.lifeline.get_ref(), ANSWER_BYTES) else {
                return;
            };
            // What is no answer, or the end, answers nothing.
            let Some(answered) = Answered::parse(&received.bytes) else {
                return;
            };
            self.answered(answered);
        }
    }

    async fn send_held_up(&mut self) -> io::Result<()> {
        match self.held_up.take() {
            Some((parked, answer, since)) => self.send(parked, answer, since).await,
            None => Ok(()),
        }
    }

    /// Sends one that is to be sent since then.
    async fn send(
        &mut self,
        parked: Parked,
        answer: oneshot::Sender<Option<Parked>>,
        since: Instant,
    ) -> io::Result<()> {
        let total = parked.unread.len() + parked.state.len() + parked.attic.len();
        if total > BYTES_MAX {
            let _gone = answer.send(Some(parked));
            return Ok(());
        }
        let bytes = [&parked.unread[..], &parked.state[..], &parked.attic[..]].concat();
        let file = if total > INLINE_BYTES_MAX {
            match in_file(&bytes) {
                Ok(file) => Some(file),
                Err(error) => {
                    tracing::debug!(%error, "a connection with many bytes cannot be moved");
                    let _gone = answer.send(Some(parked));
                    return Ok(());
                }
            }
        } else {
            None
        };
        let announced = Announced {
            kind: parked.kind.clone(),
            version: parked.version,
            unread_bytes: parked.unread.len(),
            state_bytes: parked.state.len(),
            attic_bytes: parked.attic.len(),
            in_file: file.is_some(),
        };
        let inline = if file.is_some() { &[][..] } else { &bytes };
        let datagram = announced.to_bytes(inline);
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![parked.socket.as_fd()];
        descriptors.extend(file.as_ref().map(OwnedFd::as_fd));
        fault::reached(Point::OldConnection);
        let sending = async {
            loop {
                let mut ready = self.lifeline.writable().await?;
                match ready
                    .try_io(|lifeline| fds::send(lifeline.get_ref(), &datagram, &descriptors))
                {
                    Ok(result) => return result,
                    Err(_would_block) => {}
                }
            }
        };
        match timeout(ANSWER_LIMIT, sending).await {
            Ok(Ok(())) => {
                self.under_way.push_back((parked, answer));
                fault::reached(Point::OldSentConnection);
                Ok(())
            }
            Ok(Err(error))
                if error.raw_os_error() == Some(Errno::ETOOMANYREFS as i32)
                    && since.elapsed() < CROWDED_LIMIT =>
            {
                self.held_up = Some((parked, answer, since));
                Ok(())
            }
            Ok(Err(error)) => {
                let _gone = answer.send(Some(parked));
                Err(error)
            }
            Err(_) => {
                let _gone = answer.send(Some(parked));
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    fn counts(&self) -> Counts {
        self.moved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn answered(&mut self, answered: Answered) {
        let Some((parked, answer)) = self.under_way.pop_front() else {
            return;
        };
        fault::reached(Point::OldAnsweredConnection);
        let back = match answered {
            Answered::Taken => {
                let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
                *moved.0.entry(parked.kind.protocol.clone()).or_default() += 1;
                None
            }
            Answered::Declined => Some(parked),
            Answered::Full => {
                self.open.store(false, Ordering::Relaxed);
                Some(parked)
            }
        };
        // Whoever gave it waits; its socket is closed here if it was taken.
        let _gone = answer.send(back);
    }
}

/// The next answer; an error if one is awaited and does not come in time.
async fn next_answer(lifeline: &AsyncFd<OwnedFd>, awaited: bool) -> io::Result<Answered> {
    let receiving = async {
        loop {
            let mut ready = lifeline.readable().await?;
            let received =
                match ready.try_io(|lifeline| fds::receive(lifeline.get_ref(), ANSWER_BYTES)) {
                    Ok(received) => received?,
                    Err(_would_block) => continue,
                };
            if received.bytes.is_empty() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            return Answered::parse(&received.bytes).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the next generation answered what is no answer; it is at fault",
                )
            });
        }
    };
    if awaited {
        timeout(ANSWER_LIMIT, receiving)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    } else {
        receiving.await
    }
}

/// The bytes in a memory file, read from its beginning.
fn in_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create(c"heirloom-connection", MFdFlags::MFD_CLOEXEC)?;
    let mut left = bytes;
    while !left.is_empty() {
        let count = write(&file, left)?;
        left = &left[count..];
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
