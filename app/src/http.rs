//! HTTP/1.1 and HTTP/2 with prior knowledge on a listener, with a drain that fails no request.
//!
//! When the next generation takes the state over ([`crate::state`]), connections move to it: an idle
//! HTTP/1.1 connection at once, a busy one when its response is out, with whatever has been read of
//! the next request. Meanwhile no new request is read, and none is refused. What cannot move, HTTP/2
//! among it, is drained.
//!
//! What happens when the drain begins, to connections that do not move:
//!
//! * The listener is no longer accepted from, and deregistered; connections in its queue stay there
//!   for whoever else holds it. Nothing that was accepted is dropped.
//! * An HTTP/1.1 connection stays open, and its next response says `Connection: close`. So a client
//!   that keeps a connection busy learns of the end from an answer, never from a closed socket.
//! * A connection on which no request runs for the *linger time* is closed, after one more look
//!   whether a request has arrived on it. A connection that has not sent its first request yet is
//!   treated in the same way.
//! * An HTTP/2 connection is sent GOAWAY at once; the streams it has finish.
//!
//! TLS, and what the answers are, is left to others.

mod activity; // decides, without I/O, how long a connection may stay as it is
mod body; // the body of a request, which tells when it has been read
mod connection; // drives a connection from its first byte to its end
mod service; // reports the requests of the caller's service
mod watch; // sees what a connection does, and keeps its time

use std::{error::Error, future::Future, io, sync::Arc, time::Duration};

use tokio::runtime::Handle;

use hyper::{Request, Response, body::Body, service::Service};

pub use body::RequestBody;

use crate::{
    Drain, Listener,
    accept::{self, Acceptor, Room},
    moving::Kind,
};

/// Limits of serving. All have defaults fit for a service behind a proxy or on its own.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// How many connections are served at a time (16,384). Further ones wait in the listener's
    /// queue and are refused nothing. Those that come from the generation before count, and are
    /// served in any case.
    pub connections_max: usize,
    /// After the drain began, how long a connection without a request stays open (2 s).
    pub linger: Duration,
    /// Without a drain, how long a connection without a request stays open (10 min).
    pub idle_timeout: Duration,
    /// From the first byte of a request's head to its last (15 s).
    pub head_timeout: Duration,
    /// How long a client may take no byte of a response that is ready for it (60 s).
    pub write_timeout: Duration,
    /// How many streams an HTTP/2 connection may have open (200).
    pub streams_max: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            linger: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(600),
            head_timeout: Duration::from_secs(15),
            write_timeout: Duration::from_secs(60),
            streams_max: 200,
        }
    }
}

/// An error as hyper wants it from a service and its bodies.
type BoxError = Box<dyn Error + Send + Sync>;

/// Accepts connections from `listener` and answers them with `service`, until `drain` begins.
///
/// Returns as soon as the listener is registered: from then on connections are accepted, and it
/// is time for [`Notifier::ready`](crate::Notifier::ready). Sets O_NONBLOCK on the listener, which
/// is shared with every other process that holds it. The tasks it starts are `drain`'s: wait for
/// [`Drain::finished`]. May be called for several listeners with one drain.
///
/// An error returned by `service` closes the connection without an answer; answer with a status
/// instead.
///
/// # Errors
///
/// The system's, if the listener cannot be made non-blocking or registered.
///
/// # Panics
///
/// If called outside of a Tokio runtime.
pub fn serve<S, B>(
    listener: Listener,
    service: S,
    drain: &Drain,
    options: Options,
) -> io::Result<()>
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Send + Sync + 'static,
    S::Future: Future<Output = Result<Response<B>, S::Error>> + Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let name = listener.name().to_owned();
    let acceptor = Acceptor::register(listener)?;
    let service = Arc::new(service);
    let options = Arc::new(options);
    let connections_max = options.connections_max;
    let room = Room::new();
    let serving = drain.clone();
    let connection = {
        let name: Arc<str> = Arc::from(name.as_str());
        move || connection::Connection {
            service: Arc::clone(&service),
            drain: serving.clone(),
            options: Arc::clone(&options),
            name: Arc::clone(&name),
        }
    };
    for start in connection::Start::ALL {
        let (connection, spawning, room) = (connection.clone(), drain.clone(), room.clone());
        let runtime = Handle::current();
        let serve = move |parked| {
            let _entered = runtime.enter();
            let (connection, seat) = (connection(), room.enter());
            spawning.spawn(async move {
                connection.go_on(start, parked).await;
                drop(seat);
            });
        };
        let kind = Kind {
            protocol: start.protocol().to_owned(),
            name: name.clone(),
        };
        drain.arrivals().serve(kind, Arc::new(serve));
    }
    let accepting = drain.clone();
    drain.spawn(async move {
        let handle = |stream, seat| {
            let connection = connection();
            accepting.spawn(async move {
                connection.run(stream).await;
                drop(seat);
            });
        };
        accept::run(acceptor, &name, &room, connections_max, &accepting, handle).await;
    });
    Ok(())
}
