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
    body::{Body, Bytes},
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
    body::RequestBody,
    service::{Observed, Observer},
    watch::{Clock, Watch, Watched},
};
use crate::{
    Drain,
    moving::{Kind, Parked, Phase, PhaseWatch, census::Speaks, giving::Mover},
    stream::{Rewound, Stream},
};

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
    /// The listener's name, by which the next generation knows whose the connection is.
    pub(super) name: Arc<str>,
}

/// Where in its life a connection is that comes from another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It has not shown which protocol it speaks.
    Unknown,
    /// It is an HTTP/1 connection, between two requests.
    Http1,
}

impl Start {
    pub(super) const ALL: [Self; 2] = [Self::Unknown, Self::Http1];

    /// What generations call it.
    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::Unknown => Speaks::Unknown.name(),
            Self::Http1 => Speaks::Http1.name(),
        }
    }
}

/// How far a connection got with HTTP/1.
enum Stop {
    /// hyper is done with it, whatever the reason.
    Done,
    /// The patience with it has ended.
    Expired(Expiry),
    /// It is between two requests, and the next generation serves.
    Move(Arc<Mover>),
}

impl<S, B> Connection<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>> + Send + Sync + 'static,
    S::Future: Future<Output = Result<Response<B>, S::Error>> + Send + 'static,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// Serves `stream` to its end.
    pub(super) async fn run(self, stream: Stream) {
        self.run_from(Start::Unknown, Vec::new(), stream).await;
    }

    /// Goes on with a connection of the generation before.
    pub(super) async fn go_on(self, start: Start, parked: Parked) {
        match Stream::from_descriptor(parked.socket) {
            Ok(stream) => self.run_from(start, parked.unread, stream).await,
            Err(error) => {
                tracing::warn!(%error, "a connection of the former generation cannot be served");
            }
        }
    }

    async fn run_from(self, start: Start, mut head: Vec<u8>, mut stream: Stream) {
        let watch = Watch::new();
        let mut clock = Clock::new(&watch, &self.options, &self.drain);
        let mut phases = self.drain.phases().watch();
        if !head.is_empty() {
            watch.lock().bytes_arrived(Instant::now());
        }
        let census = self.drain.census();
        loop {
            let counted = census.count(Speaks::Unknown);
            let sniffed = match start {
                Start::Http1 => Sniffed::Http1(head.into()),
                Start::Unknown => sniff(head, &mut stream, &watch, &mut clock, &mut phases).await,
            };
            if let Sniffed::Move(bytes, mover) = sniffed {
                let Some(back) = self.moved(Start::Unknown, bytes, stream, &mover).await else {
                    return;
                };
                // It stays here after all, and is served with the others that do.
                (head, stream) = back;
                phases.stay(&mover);
                continue;
            }
            drop(counted);
            match sniffed {
                Sniffed::Http1(head) => {
                    let _counted = census.count(Speaks::Http1);
                    self.http1(head, stream, &watch, &mut clock, &mut phases)
                        .await;
                }
                Sniffed::Http2(head) => {
                    let _counted = census.count(Speaks::Http2);
                    self.http2(Rewound::new(head, stream)).await;
                }
                Sniffed::Quiet => stream.close().await,
                Sniffed::Move(..) | Sniffed::Gone => {}
            }
            return;
        }
    }

    /// Gives a connection to the next generation; it comes back if that cannot have it.
    async fn moved(
        &self,
        start: Start,
        head: Vec<u8>,
        stream: Stream,
        mover: &Mover,
    ) -> Option<(Vec<u8>, Stream)> {
        let kind = Kind {
            protocol: start.protocol().to_owned(),
            name: self.name.to_string(),
        };
        let socket = match stream.into_descriptor() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(%error, "a connection ended while it was to be moved");
                return None;
            }
        };
        let parked = Parked {
            kind,
            socket,
            unread: head,
            version: 0,
            state: Vec::new(),
            attic: Vec::new(),
        };
        let back = mover.give(parked).await?;
        let stream = Stream::from_descriptor(back.socket).ok()?;
        Some((back.unread, stream))
    }

    async fn http1(
        &self,
        mut head: Bytes,
        mut stream: Stream,
        watch: &Watch,
        clock: &mut Clock,
        phases: &mut PhaseWatch,
    ) {
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
                let phase = phases.poll(context);
                watch.lock().hold(!matches!(phase, Phase::Serving));
                // From the freeze on no request is begun; what runs goes on, to its last byte.
                let goes_on =
                    matches!(phase, Phase::Serving) || !watch.lock().is_between_requests();
                if goes_on {
                    if let Poll::Ready(result) = http.poll_without_shutdown(context) {
                        log_end(result);
                        return Poll::Ready(Stop::Done);
                    }
                    watch.poll_discard(context);
                }
                match phase {
                    Phase::Serving => clock.poll(context).map(Stop::Expired),
                    Phase::Paused => Poll::Pending,
                    Phase::Moving(mover) if watch.lock().is_between_requests() => {
                        Poll::Ready(Stop::Move(mover))
                    }
                    Phase::Moving(_) if watch.lock().is_spoilt() => {
                        // hyper alone knows where the next request begins: it finishes this one.
                        Pin::new(&mut http).graceful_shutdown();
                        let ended = http.poll_without_shutdown(context).map(log_end);
                        ended.map(|()| Stop::Done)
                    }
                    Phase::Moving(_) => clock.poll(context).map(Stop::Expired),
                }
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
                // Between two requests hyper holds nothing that is still to be written.
                Stop::Expired(Expiry::HeadTooSlow | Expiry::WriteBlocked)
                | Stop::Done
                | Stop::Move(_) => false,
            };
            let parts = http.into_parts();
            let (unread, mut socket) = parts.io.into_inner().inner.into_parts();
            if let Stop::Done = &stop
                && let Some(upgrade) = watch.take_upgrade()
            {
                return upgrade.start(socket, [parts.read_buf, unread].concat());
            }
            if let Stop::Move(mover) = stop {
                let bytes = [parts.read_buf, unread].concat();
                let Some((bytes, back)) = self.moved(Start::Http1, bytes, socket, &mover).await
                else {
                    return;
                };
                // It stays here after all.
                (head, stream) = (bytes.into(), back);
                phases.stay(&mover);
                continue;
            }
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
                Stop::Move(_) => {}
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
        let mut phases = self.drain.phases().watch();
        let mut idle = pin!(sleep_until(Instant::now() + self.options.idle_timeout));
        let finished = poll_fn(|context| {
            if let Poll::Ready(result) = http.as_mut().poll(context) {
                return Poll::Ready(Some(result));
            }
            if Pin::new(&mut begun).poll(context).is_ready() {
                return Poll::Ready(None);
            }
            // It cannot move, and the next generation is the service.
            if matches!(phases.poll(context), Phase::Moving(_)) {
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
    /// The next generation serves; these bytes came before that was clear.
    Move(Vec<u8>, Arc<Mover>),
    /// Nothing came in the time there was.
    Quiet,
    /// The client went away, or did not get beyond a part of the preface.
    Gone,
}

/// Reads until it is clear whether the client speaks HTTP/2 with prior knowledge. Begins with what
/// has been read already.
async fn sniff(
    mut head: Vec<u8>,
    stream: &mut Stream,
    watch: &Watch,
    clock: &mut Clock,
    phases: &mut PhaseWatch,
) -> Sniffed {
    loop {
        if head.len() >= PREFACE.len() && head.starts_with(PREFACE) {
            return Sniffed::Http2(head.into());
        }
        if !PREFACE.starts_with(&head) {
            return Sniffed::Http1(head.into());
        }
        if let Phase::Moving(mover) = phases.settled().await {
            return Sniffed::Move(head, mover);
        }
        head.reserve(1024);
        let read = {
            let mut reading = pin!(stream.read_buf(&mut head));
            poll_fn(|context| {
                if !matches!(phases.poll(context), Phase::Serving) {
                    return Poll::Ready(None);
                }
                match reading.as_mut().poll(context) {
                    Poll::Ready(result) => Poll::Ready(Some(Ok(result))),
                    Poll::Pending => clock.poll(context).map(|expiry| Some(Err(expiry))),
                }
            })
            .await
        };
        let Some(read) = read else { continue };
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
    fn request_started(&self, _with_body: bool) {
        self.lock().0 += 1;
    }

    fn response_ended(&self) {
        let mut state = self.lock();
        state.0 = state.0.saturating_sub(1);
        state.1 = Instant::now();
    }

    /// HTTP/2 connections do not move.
    fn watch(&self) -> Option<Watch> {
        None
    }
}
