//! Takes connections off a listener, as long as the drain has not begun.
//!
//! What becomes of a connection is the caller's affair.

use std::{io, sync::Arc, time::Duration};

use nix::errno::Errno;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    time::sleep,
};

use crate::{
    Drain, Listener,
    drain::Begun,
    inherit::Socket,
    moving::{Phase, PhaseWatch},
    stream::Stream,
};

/// The first and the longest wait when accepting fails for lack of something.
const WAIT_MIN: Duration = Duration::from_millis(10);
const WAIT_MAX: Duration = Duration::from_secs(1);

/// A listener registered with the runtime.
#[derive(Debug)]
pub(crate) enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    pub(crate) fn register(listener: Listener) -> io::Result<Self> {
        match listener.into_socket() {
            Socket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpListener::from_std(socket)?))
            }
            Socket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                Ok(Self::Unix(UnixListener::from_std(socket)?))
            }
        }
    }

    /// Takes the listener off the runtime until this generation serves again; none if the drain begins instead,
    /// or the listener cannot be watched any more.
    async fn rest(self, phases: &mut PhaseWatch, begun: &mut Begun) -> Option<Self> {
        let listener = match self {
            Self::Tcp(listener) => Socket::Tcp(listener.into_std().ok()?),
            Self::Unix(listener) => Socket::Unix(listener.into_std().ok()?),
        };
        tokio::select! {
            biased;
            () = begun => return None,
            () = phases.serves() => {}
        }
        let watched = match listener {
            Socket::Tcp(listener) => TcpListener::from_std(listener).map(Self::Tcp),
            Socket::Unix(listener) => UnixListener::from_std(listener).map(Self::Unix),
        };
        watched
            .inspect_err(|error| tracing::error!(%error, "a listener cannot be watched any more"))
            .ok()
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Responses are written whole: waiting for more to send only adds latency.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::trace!(%error, "the client was gone before it was served");
                }
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

/// How many connections are served. Clones count the same ones.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    served: Arc<watch::Sender<usize>>,
}

/// One connection that is served, counted as long as this lives.
#[derive(Debug)]
pub(crate) struct Seat(Room);

impl Room {
    pub(crate) fn new() -> Self {
        Self {
            served: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Counts a connection in, however many there are: one that comes from another generation is
    /// served in any case.
    pub(crate) fn enter(&self) -> Seat {
        self.served.send_modify(|served| *served += 1);
        Seat(self.clone())
    }

    /// Waits until there are less than `connections_max`.
    async fn below(&self, connections_max: usize) {
        let mut served = self.served.subscribe();
        // Never an error, for the sender lives in `self`.
        let _number = served.wait_for(|served| *served < connections_max).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.served.send_modify(|served| *served -= 1);
    }
}

/// Accepts until the drain begins, as long as less than `connections_max` are served; `handle` gets
/// each connection with its seat, to be dropped when the connection has ended.
pub(crate) async fn run(
    mut acceptor: Acceptor,
    name: &str,
    room: &Room,
    connections_max: usize,
    drain: &Drain,
    handle: impl Fn(Stream, Seat),
) {
    let mut begun = drain.begun();
    let mut phases = drain.phases().watch();
    let mut wait = WAIT_MIN;
    loop {
        // Between freeze and commit, what comes waits in the queue for whoever will serve it.
        let phase = tokio::select! {
            biased;
            () = &mut begun => break,
            phase = phases.settled() => phase,
        };
        if let Phase::Moving(_) = phase {
            // What comes now is the next generation's. The state may yet come back, so the listener is kept,
            // and not watched.
            match acceptor.rest(&mut phases, &mut begun).await {
                Some(kept) => acceptor = kept,
                None => {
                    tracing::debug!(listener = name, "no longer accepting");
                    return;
                }
            }
            continue;
        }
        // Room comes first: a connection that cannot be served must stay in the queue, where
        // another generation can take it.
        tokio::select! {
            biased;
            () = &mut begun => break,
            () = phases.left_serving() => continue,
            () = room.below(connections_max) => {}
        }
        // Accepting is one system call: either branch leaves nothing accepted and unserved.
        let accepted = tokio::select! {
            biased;
            () = &mut begun => break,
            () = phases.left_serving() => continue,
            accepted = acceptor.accept() => accepted,
        };
        let error = match accepted {
            Ok(stream) => {
                wait = WAIT_MIN;
                handle(stream, room.enter());
                continue;
            }
            Err(error) => error,
        };
        match Trouble::of(&error) {
            Trouble::WithOneConnection => {
                tracing::debug!(listener = name, %error, "a connection ended before it was accepted");
            }
            Trouble::WithThisProcess => {
                tracing::warn!(
                    listener = name, %error, wait_ms = wait.as_millis(),
                    "cannot accept; new connections wait in the queue"
                );
                tokio::select! {
                    () = &mut begun => break,
                    () = sleep(wait) => {}
                }
                wait = (wait * 2).min(WAIT_MAX);
            }
        }
    }
    // Dropping deregisters the listener before closing this process's descriptor. Merely closing
    // would leave it in the epoll set, as other processes have it open.
    drop(acceptor);
    tracing::debug!(listener = name, "no longer accepting");
}

/// What is wrong when accepting failed, and so whether to try again at once.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    /// This connection is spoilt, and off the queue; the next may be well (accept(2)).
    WithOneConnection,
    /// The next attempt would fail too: no descriptors, no memory, or something unknown.
    WithThisProcess,
}

impl Trouble {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(
                Errno::ECONNABORTED
                | Errno::EINTR
                | Errno::EPERM
                | Errno::EPROTO
                | Errno::ENETDOWN
                | Errno::ENOPROTOOPT
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::EHOSTUNREACH
                | Errno::EOPNOTSUPP
                | Errno::ENETUNREACH
                | Errno::ETIMEDOUT,
            ) => Self::WithOneConnection,
            Some(_) | None => Self::WithThisProcess,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::{net::TcpStream, sync::mpsc};

    use super::*;

    fn listener() -> (Listener, std::net::SocketAddr) {
        let listener = Listener::bind_tcp("http", "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.tcp_address().unwrap();
        (listener, address)
    }

    #[test]
    fn a_spoilt_connection_is_passed_over_and_a_shortage_waited_for() {
        for (errno, trouble) in [
            (Errno::ECONNABORTED, Trouble::WithOneConnection),
            (Errno::EHOSTUNREACH, Trouble::WithOneConnection),
            (Errno::EMFILE, Trouble::WithThisProcess),
            (Errno::ENFILE, Trouble::WithThisProcess),
            (Errno::ENOMEM, Trouble::WithThisProcess),
            (Errno::EBADF, Trouble::WithThisProcess),
        ] {
            assert_eq!(Trouble::of(&errno.into()), trouble, "{errno}");
        }
    }

    #[tokio::test]
    async fn without_room_connections_stay_in_the_queue() {
        let (listener, address) = listener();
        let acceptor = Acceptor::register(listener).unwrap();
        let drain = Drain::new(Duration::from_secs(5));
        let (accepted, mut arrivals) = mpsc::unbounded_channel();
        let watching = drain.clone();
        let room = Room::new();
        // As if it had come from another generation, which may be one more than there is room for.
        let (moved, another) = (room.enter(), room.enter());
        let task = tokio::spawn(async move {
            run(acceptor, "http", &room, 1, &watching, |stream, seat| {
                accepted.send((stream, seat)).unwrap();
            })
            .await;
        });
        let _first = TcpStream::connect(address).await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        // Often enough for the runtime to look for events in between, several times.
        let often = || async {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        };
        drop(moved);
        often().await;
        assert!(arrivals.try_recv().is_err());
        drop(another);
        let held = arrivals.recv().await.unwrap();
        often().await;
        assert!(arrivals.try_recv().is_err());
        drop(held);
        drop(arrivals.recv().await.unwrap());
        drain.begin();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_queued_when_the_drain_begins_is_left_to_others() {
        let (listener, address) = listener();
        let Socket::Tcp(socket) = listener.into_socket() else {
            panic!("bound as TCP");
        };
        let shared = socket.try_clone().unwrap();
        let acceptor = Acceptor::Tcp({
            socket.set_nonblocking(true).unwrap();
            TcpListener::from_std(socket).unwrap()
        });
        let drain = Drain::new(Duration::from_secs(5));
        drain.begin();
        let _client = TcpStream::connect(address).await.unwrap();
        let taken = Mutex::new(0);
        run(acceptor, "http", &Room::new(), 10, &drain, |_, _| {
            *taken.lock().unwrap() += 1;
        })
        .await;
        assert_eq!(*taken.lock().unwrap(), 0);
        shared.set_nonblocking(false).unwrap();
        shared.accept().unwrap();
    }
}
