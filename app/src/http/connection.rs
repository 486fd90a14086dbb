//! One connection from its first byte to its end: which protocol it speaks, and how it drains.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use hyper::{
    Request, Response,
    body::{Body, Bytes, Incoming},
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};

use super::{
    BoxError, Options,
    activity::Expiry,
    service::{Observed, Observer},
    stream::{Rewound, Stream},
    watch::{Clock, Watch, Watched},
};
use crate::Drain;

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The answer to a request whose head never became complete.
const HEAD_TOO_SLOW: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// How often an HTTP/2 client that is silent is asked whether it still lives, and how long it has
/// for the answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What a connection needs besides its socket.
pub(super) struct Connection<S> {
    pub(super) service: Arc<S>,
    pub(super) drain: Drain,
    pub(super) options: Arc<Options>,
}

/// How far a connection got with HTTP/1.
enum Stop {
    /// hyper is done with it, whatever the reason.
    Done,
    /// The patience with it has ended.
    Expired(Expiry),
}

impl<S, B> Connection<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + Sync + 'static,
    S::Future: Future<Output = Result<Response<B>, S::Error>> + Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// Serves `stream` to its end.
    pub(super) async fn run(self, mut stream: Stream) {
        let watch = Watch::new();
        let mut clock = Clock::new(&watch, &self.options, &self.drain);
        match sniff(&mut stream, &watch, &mut clock).await {
            Sniffed::Http1(head) => self.http1(head, stream, &watch, &mut clock).await,
            Sniffed::Http2(head) => self.http2(Rewound::new(head, stream)).await,
            Sniffed::Quiet => stream.close().await,
            Sniffed::Gone => {}
        }
    }

    async fn http1(&self, mut head: Bytes, mut stream: Stream, watch: &Watch, clock: &mut Clock) {
        let mut builder = http1::Builder::new();
        // The limits are the clock's, which knows an idle connection from a slow head.
        builder.header_read_timeout(None).half_close(true);
        loop {
            let io = Watched {
                inner: Rewound::new(head, stream),
                watch: watch.clone(),
            };
            let service = Observed {
                service: Arc::clone(&self.service),
                observer: watch.clone(),
                drain: self.drain.clone(),
            };
            let mut http = builder.serve_connection(TokioIo::new(io), service);
            let stop = poll_fn(|context| {
                if let Poll::Ready(result) = http.poll_without_shutdown(context) {
                    log_end(result);
                    return Poll::Ready(Stop::Done);
                }
                clock.poll(context).map(Stop::Expired)
            })
            .await;
            let quiet = match &stop {
                Stop::Expired(Expiry::Quiet) => {
                    // An idle connection ends here without a byte read or written.
                    Pin::new(&mut http).graceful_shutdown();
                    let ended = poll_fn(|context| http.poll_without_shutdown(context));
                    match timeout(self.options.write_timeout, ended).await {
                        Ok(result) => log_end(result),
                        Err(_) => return,
                    }
                    true
                }
                Stop::Expired(Expiry::HeadTooSlow | Expiry::WriteBlocked) | Stop::Done => false,
            };
            let parts = http.into_parts();
            let (unread, mut socket) = parts.io.into_inner().inner.into_parts();
            if quiet && (!parts.read_buf.is_empty() || socket.has_unread_bytes()) {
                // A request came at the last moment. It is answered, and says that it is the last.
                head = [parts.read_buf, unread].concat().into();
                stream = socket;
                watch.lock().bytes_arrived(Instant::now());
                continue;
            }
            match stop {
                Stop::Expired(Expiry::HeadTooSlow) => {
                    let answer = socket.write_all(HEAD_TOO_SLOW);
                    if let Ok(Ok(())) = timeout(self.options.write_timeout, answer).await {
                        socket.close().await;
                    }
                }
                // Closing politely would wait for room that does not come.
                Stop::Expired(Expiry::WriteBlocked) => {}
                Stop::Expired(Expiry::Quiet) | Stop::Done => socket.close().await,
            }
            return;
        }
    }

    async fn http2(&self, stream: Rewound) {
        let streams = Streams::default();
        let service = Observed {
            service: Arc::clone(&self.service),
            observer: streams.clone(),
            drain: self.drain.clone(),
        };
        let mut http = pin!(
            http2::Builder::new(self.drain.clone())
                .timer(TokioTimer::new())
                .max_concurrent_streams(self.options.streams_max)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
        );
        let mut begun = self.drain.begun();
        let mut idle = pin!(sleep_until(Instant::now() + self.options.idle_timeout));
        let finished = poll_fn(|context| {
            if let Poll::Ready(result) = http.as_mut().poll(context) {
                return Poll::Ready(Some(result));
            }
            if Pin::new(&mut begun).poll(context).is_ready() {
                return Poll::Ready(None);
            }
            while idle.as_mut().poll(context).is_ready() {
                let end = streams.quiet_since() + self.options.idle_timeout;
                if end <= Instant::now() {
                    return Poll::Ready(None);
                }
                idle.as_mut().reset(end);
            }
            Poll::Pending
        })
        .await;
        match finished {
            Some(result) => log_end(result),
            None => {
                // GOAWAY: streams the client has opened before it reads this are served.
                http.as_mut().graceful_shutdown();
                log_end(http.await);
            }
        }
    }
}

/// Most connections that end in an error were ended by the client, so this is for debugging.
fn log_end(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// What the first bytes of a connection say.
enum Sniffed {
    /// HTTP/1, with the bytes read so far.
    Http1(Bytes),
    /// HTTP/2, with the bytes read so far.
    Http2(Bytes),
    /// Nothing came in the time there was.
    Quiet,
    /// The client went away, or did not get beyond a part of the preface.
    Gone,
}

/// Reads until it is clear whether the client speaks HTTP/2 with prior knowledge.
async fn sniff(stream: &mut Stream, watch: &Watch, clock: &mut Clock) -> Sniffed {
    let mut head = Vec::with_capacity(1024);
    loop {
        let read = {
            let mut reading = pin!(stream.read_buf(&mut head));
            poll_fn(|context| match reading.as_mut().poll(context) {
                Poll::Ready(result) => Poll::Ready(Ok(result)),
                Poll::Pending => clock.poll(context).map(Err),
            })
            .await
        };
        match read {
            Ok(Ok(0)) if head.is_empty() => return Sniffed::Gone,
            // hyper knows best how to answer half a request.
            Ok(Ok(0)) => return Sniffed::Http1(head.into()),
            Ok(Ok(_)) => watch.lock().bytes_arrived(Instant::now()),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection ended before its first request");
                return Sniffed::Gone;
            }
            Err(Expiry::Quiet) if stream.has_unread_bytes() => {
                watch.lock().bytes_arrived(Instant::now());
            }
            Err(Expiry::Quiet) => return Sniffed::Quiet,
            Err(Expiry::HeadTooSlow | Expiry::WriteBlocked) => return Sniffed::Gone,
        }
        if head.len() >= PREFACE.len() && head.starts_with(PREFACE) {
            return Sniffed::Http2(head.into());
        }
        if !PREFACE.starts_with(&head) {
            return Sniffed::Http1(head.into());
        }
    }
}

/// The streams of an HTTP/2 connection: how many are open, and since when none is.
#[derive(Debug, Clone)]
struct Streams {
    state: Arc<Mutex<(usize, Instant)>>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            state: Arc::new(Mutex::new((0, Instant::now()))),
        }
    }
}

impl Streams {
    /// Since when no stream has been open; now, if one is.
    fn quiet_since(&self) -> Instant {
        match *self.lock() {
            (0, since) => since,
            _ => Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Streams {
    fn request_started(&self) {
        self.lock().0 += 1;
    }

    fn response_ended(&self) {
        let mut state = self.lock();
        state.0 = state.0.saturating_sub(1);
        state.1 = Instant::now();
    }
}
