//! The receiving side: connections of the generation before, each to whoever serves its kind.
//!
//! Those that come before somebody serves their kind wait: the app accepts only after it owns the
//! state, and the former generation begins to move at the same instant.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use heirloom_handover::{
    fault::{self, Point},
    fds,
    lifeline::Lifeline,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::resource::{Resource, getrlimit},
};
use tokio::{
    io::unix::AsyncFd,
    runtime::Handle,
    time::{sleep, timeout},
};

use crate::{Drain, sys};

use super::{
    Kind, Parked,
    wire::{Announced, Answered, LARGEST_BYTES},
};

/// How long a connection waits for somebody who serves its kind. A generation that serves no such
/// connections any more would otherwise keep them for ever.
const WAITING_LIMIT: Duration = Duration::from_secs(30);

/// So many connections wait at most for somebody who serves their kind.
const WAITING_MAX: usize = 65_536;

/// So many descriptors are left for other things: accepting, files, the next handover.
const RESERVE: u64 = 16;

/// How long the former generation may take no answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Goes on with connections of one kind.
pub(crate) type Serve = Arc<dyn Fn(Parked) + Send + Sync>;

/// Who serves which kind.
#[derive(Default)]
pub(crate) struct Arrivals {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    serving: HashMap<Kind, Serve>,
    waiting: VecDeque<Parked>,
}

impl Arrivals {
    /// Serves connections of this kind from now on, those that wait already first.
    pub(crate) fn serve(&self, kind: Kind, serve: Serve) {
        let waiting: Vec<Parked> = {
            let mut inner = self.lock();
            inner.serving.insert(kind.clone(), Arc::clone(&serve));
            let all = std::mem::take(&mut inner.waiting);
            let (own, others) = all.into_iter().partition(|parked| parked.kind == kind);
            inner.waiting = others;
            own.into()
        };
        for parked in waiting {
            serve(parked);
        }
    }

    /// Whether a connection could be kept; it is not used before [`Self::arrived`].
    fn has_room(&self) -> bool {
        self.lock().waiting.len() < WAITING_MAX
    }

    fn arrived(self: &Arc<Self>, parked: Parked) {
        let serve = {
            let mut inner = self.lock();
            match inner.serving.get(&parked.kind) {
                Some(serve) => Arc::clone(serve),
                None => {
                    if inner.waiting.is_empty() {
                        let arrivals = Arc::clone(self);
                        tokio::spawn(async move { arrivals.give_up_later().await });
                    }
                    inner.waiting.push_back(parked);
                    return;
                }
            }
        };
        serve(parked);
    }

    /// Closes what nobody has come to serve.
    async fn give_up_later(&self) {
        sleep(WAITING_LIMIT).await;
        let unserved = std::mem::take(&mut self.lock().waiting);
        if let Some(first) = unserved.front() {
            let (connections, kind) = (unserved.len(), &first.kind);
            tracing::warn!(
                connections,
                ?kind,
                "nobody serves these connections; they are closed"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that holds the lock can panic half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        formatter
            .debug_struct("Arrivals")
            .field("serving", &inner.serving.keys())
            .field("waiting", &inner.waiting.len())
            .finish()
    }
}

/// Takes connections off this lifeline until the former generation closes it. The drain waits for that:
/// what the former generation still has to give may have to go on from here to the next.
///
/// # Errors
///
/// The system's.
pub(crate) fn start(lifeline: Lifeline, drain: &Drain, runtime: &Handle) -> io::Result<()> {
    let lifeline = OwnedFd::from(lifeline);
    fcntl(&lifeline, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let _entered = runtime.enter();
    let lifeline = sys::register(lifeline)?;
    let arrivals = Arc::clone(drain.arrivals());
    drain.spawn(async move {
        if let Err(error) = take_all(&lifeline, &arrivals).await
            // The former generation gives no more, and keeps what is under way.
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::warn!(%error, "no more connections come from the former generation");
        }
    });
    Ok(())
}

async fn take_all(lifeline: &AsyncFd<OwnedFd>, arrivals: &Arc<Arrivals>) -> io::Result<()> {
    let mut room = vec![0; LARGEST_BYTES];
    loop {
        let mut ready = lifeline.readable().await?;
        let received =
            match ready.try_io(|lifeline| fds::receive_into(lifeline.get_ref(), &mut room)) {
                Ok(received) => received,
                Err(_would_block) => continue,
            };
        let parked = match received {
            Ok((0, _, _)) => return Ok(()),
            Ok((length, descriptors, _)) => {
                if !has_room_behind(&descriptors) || !arrivals.has_room() {
                    answer(lifeline, Answered::Full).await?;
                    continue;
                }
                unpack(&room[..length], descriptors)
            }
            // The descriptors did not fit. The sender still has the connection.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                answer(lifeline, Answered::Full).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match parked {
            Some(parked) => {
                fault::reached(Point::NewConnection);
                // First said, then touched: a connection is never served by two.
                answer(lifeline, Answered::Taken).await?;
                fault::reached(Point::NewTookConnection);
                arrivals.arrived(parked);
                fault::reached(Point::NewServesConnection);
            }
            None => answer(lifeline, Answered::Declined).await?,
        }
    }
}

/// Descriptors are numbered from below, so the number of a new one tells how many there are.
fn has_room_behind(descriptors: &[OwnedFd]) -> bool {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let highest = descriptors.iter().map(|fd| fd.as_raw_fd()).max();
    let used = highest.map_or(0, |fd| u64::try_from(fd).unwrap_or(u64::MAX));
    used.saturating_add(RESERVE) < limit
}

fn unpack(bytes: &[u8], descriptors: Vec<OwnedFd>) -> Option<Parked> {
    let (announced, inline) = Announced::parse(bytes)?;
    let mut descriptors = descriptors.into_iter();
    let socket = descriptors.next()?;
    let mut unread = if announced.in_file {
        let file = File::from(descriptors.next()?);
        let mut all =
            vec![0; announced.unread_bytes + announced.state_bytes + announced.attic_bytes];
        file.read_exact_at(&mut all, 0).ok()?;
        all
    } else {
        inline.to_vec()
    };
    let mut state = unread.split_off(announced.unread_bytes);
    let attic = state.split_off(announced.state_bytes);
    Some(Parked {
        kind: announced.kind,
        socket,
        unread,
        version: announced.version,
        state,
        attic,
    })
}

async fn answer(lifeline: &AsyncFd<OwnedFd>, answered: Answered) -> io::Result<()> {
    let sending = async {
        loop {
            let mut ready = lifeline.writable().await?;
            let sent = ready.try_io(|lifeline| {
                fds::send(lifeline.get_ref(), answered.text(), &[] as &[OwnedFd])
            });
            if let Ok(result) = sent {
                return result;
            }
        }
    };
    // An answer that cannot be given leaves the connection with the former generation, as it is not
    // touched here.
    timeout(ANSWER_LIMIT, sending)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
