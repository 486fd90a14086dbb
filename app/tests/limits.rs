//! The limits of serving, and the corners of the drain that need a service of their own.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::{
    convert::Infallible,
    io::{Read, Write},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use heirloom_app::{Drain, Listener, Outcome, http};
use http_body_util::{Either, Full, StreamBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame},
    service::service_fn,
};
use support::{Client, PATIENCE};
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};

type Chunks = mpsc::UnboundedReceiver<Result<Frame<Bytes>, Infallible>>;

/// A server in this process, for which `/stream` is answered with whatever the test sends.
struct Server {
    runtime: Runtime,
    drain: Drain,
    address: SocketAddr,
    chunks: mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>,
}

impl Server {
    fn start(change: impl FnOnce(&mut http::Options)) -> Self {
        let mut options = http::Options::default();
        change(&mut options);
        let listener = Listener::bind_tcp("http", "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.tcp_address().unwrap();
        let drain = Drain::new(PATIENCE);
        let (chunks, stream) = mpsc::unbounded_channel();
        let stream = Arc::new(Mutex::new(Some(stream)));
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let service = service_fn(move |request| answer(Arc::clone(&stream), request));
            http::serve(listener, service, &drain, options).unwrap();
        });
        Self {
            runtime,
            drain,
            address,
            chunks,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    fn finished(&self) -> Outcome {
        self.runtime
            .block_on(async { timeout(PATIENCE, self.drain.finished()).await.unwrap() })
    }
}

async fn answer(
    stream: Arc<Mutex<Option<Chunks>>>,
    request: Request<http::RequestBody>,
) -> Result<Response<Either<Full<Bytes>, StreamBody<Receiving>>>, Infallible> {
    let body = match request.uri().path() {
        "/stream" => {
            let chunks = stream.lock().unwrap().take().expect("asked for once");
            Either::Right(StreamBody::new(Receiving { chunks }))
        }
        "/endless" => {
            let (sender, chunks) = mpsc::unbounded_channel();
            for _ in 0..1000 {
                sender
                    .send(Ok(Frame::data(Bytes::from_static(&[0; 65_536]))))
                    .unwrap();
            }
            Either::Right(StreamBody::new(Receiving { chunks }))
        }
        "/panic" => panic!("a test of a service that panics"),
        path => Either::Left(Full::new(Bytes::from(path.to_owned()))),
    };
    Ok(Response::new(body))
}

/// A channel as the stream a body is made of.
struct Receiving {
    chunks: Chunks,
}

impl futures_util::Stream for Receiving {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.chunks.poll_recv(context)
    }
}

const MOMENT: Duration = Duration::from_millis(150);

#[test]
fn a_head_that_does_not_get_complete_is_answered_with_408() {
    let server = Server::start(|options| options.head_timeout = MOMENT);
    let mut fresh = server.client();
    fresh.send("GET / HTTP/1.1\r\nho").unwrap();
    let mut kept = server.client();
    kept.get("/").unwrap();
    kept.send("GET").unwrap();
    for client in [&mut fresh, &mut kept] {
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.closes), (408, true));
        client.wait_for_close().unwrap();
    }
}

#[test]
fn an_idle_connection_is_closed_without_a_drain_too() {
    let server = Server::start(|options| options.idle_timeout = MOMENT);
    let began = Instant::now();
    let mut fresh = server.client();
    let mut kept = server.client();
    kept.get("/").unwrap();
    fresh.wait_for_close().unwrap();
    kept.wait_for_close().unwrap();
    assert!(began.elapsed() >= MOMENT);
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let server = Server::start(|options| options.write_timeout = MOMENT);
    let mut deaf = server.client();
    deaf.send("GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    // Its head only: from there on the client reads no more, and 64 MiB fill every buffer.
    let mut other = server.client();
    other.get("/").unwrap();
    other.end_sending();
    server.drain.begin();
    assert_eq!(server.finished(), Outcome::Drained);
}

#[test]
fn a_service_that_panics_costs_its_own_connection_only() {
    let server = Server::start(|_| {});
    let mut other = server.client();
    other.get("/").unwrap();
    let mut unlucky = server.client();
    assert!(unlucky.get("/panic").is_err());
    assert_eq!(other.get("/still").unwrap().body, "/still");
    drop((other, unlucky));
    server.drain.begin();
    assert_eq!(server.finished(), Outcome::Drained);
}

#[test]
fn a_response_that_began_before_the_drain_is_not_cut() {
    let server = Server::start(|options| options.linger = Duration::ZERO);
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    server
        .chunks
        .send(Ok(Frame::data(Bytes::from_static(b"first"))))
        .unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"first\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    let mut idle = server.client();
    idle.get("/").unwrap();
    server.drain.begin();
    // By the end of the idle connection the linger time is over for the other one, too.
    idle.wait_for_close().unwrap();
    server
        .chunks
        .send(Ok(Frame::data(Bytes::from_static(b"second"))))
        .unwrap();
    let Server {
        runtime,
        drain,
        chunks,
        ..
    } = server;
    drop(chunks);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "6\r\nsecond\r\n0\r\n\r\n");
    drop((stream, idle));
    let outcome = runtime.block_on(async { timeout(PATIENCE, drain.finished()).await });
    assert_eq!(outcome.unwrap(), Outcome::Drained);
}

#[test]
fn a_request_seen_when_the_linger_time_is_over_is_answered() {
    let server = Server::start(|options| options.linger = MOMENT);
    let mut client = server.client();
    // Half of the second request comes in one piece with the first: it has been read, but nothing
    // of it is known until the connection is about to be closed.
    client
        .send("GET /first HTTP/1.1\r\nhost: x\r\n\r\nGET /second HTTP/1.1\r\nho")
        .unwrap();
    let first = client.answer().unwrap();
    assert_eq!((first.body.as_str(), first.closes), ("/first", false));
    let mut idle = server.client();
    idle.get("/").unwrap();
    server.drain.begin();
    idle.wait_for_close().unwrap();
    assert!(!client.is_closed());
    client.send("st: x\r\n\r\n").unwrap();
    let second = client.answer().unwrap();
    assert_eq!((second.body.as_str(), second.closes), ("/second", true));
    client.wait_for_close().unwrap();
    drop((client, idle));
    assert_eq!(server.finished(), Outcome::Drained);
}
