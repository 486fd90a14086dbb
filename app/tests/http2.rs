//! HTTP/2 with prior knowledge: answers, and a drain by GOAWAY.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::{error::Error, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Version,
    body::Bytes,
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{Client, Generation, PATIENCE, Start, tcp_listener};
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};

type Sender = SendRequest<Empty<Bytes>>;

/// A connection, and the task that drives it and ends with it.
async fn connect(address: SocketAddr) -> (Sender, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    (sender, tokio::spawn(connection))
}

fn request(address: SocketAddr, target: &str) -> Request<Empty<Bytes>> {
    Request::builder()
        .uri(format!("http://{address}{target}"))
        .body(Empty::new())
        .unwrap()
}

async fn get(sender: &mut Sender, address: SocketAddr, target: &str) -> hyper::Result<String> {
    let response = sender.send_request(request(address, target)).await?;
    assert_eq!(response.version(), Version::HTTP_2);
    assert!(!response.headers().contains_key("connection"));
    let body = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

/// Runs a test's part that must end in time.
fn within_patience<T>(part: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(async { timeout(PATIENCE, part).await.unwrap() })
}

#[test]
fn many_requests_share_a_connection() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let _generation = Generation::serving(&listener, &Start::default());
    within_patience(async {
        let (sender, _connection) = connect(address).await;
        let answers: Vec<_> = (0..50)
            .map(|_| {
                let mut sender = sender.clone();
                tokio::spawn(async move { get(&mut sender, address, "/hello").await })
            })
            .collect();
        for answer in answers {
            assert_eq!(
                answer.await.unwrap().unwrap(),
                "hello, version=1.0.0, generation=1, oldversion=, oldgeneration=0"
            );
        }
    });
}

#[test]
fn a_drain_lets_streams_finish_and_says_goaway() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let start = Start {
        // GOAWAY comes at once: nothing here waits for the linger time.
        arguments: &["--linger", "60s"],
        ..Start::default()
    };
    let generation = Generation::serving(&listener, &start);
    within_patience(async {
        let (mut sender, connection) = connect(address).await;
        get(&mut sender, address, "/hello").await.unwrap();
        let (mut idle, idle_connection) = connect(address).await;
        get(&mut idle, address, "/hello").await.unwrap();
        let began = Instant::now();
        let slow = tokio::spawn({
            let mut sender = sender.clone();
            async move { get(&mut sender, address, "/slow?ms=700&key=k").await }
        });
        // A request of the same connection that is answered: the slow one was sent before it.
        get(&mut sender, address, "/hello").await.unwrap();
        generation.drain();
        // The idle connection ends by GOAWAY, without an error, while the slow stream still runs.
        idle_connection.await.unwrap().unwrap();
        assert!(began.elapsed() < Duration::from_millis(700));
        assert_eq!(slow.await.unwrap().unwrap(), "value=1 generation=1");
        connection.await.unwrap().unwrap();
    });
    assert!(generation.wait().0.success());
}

/// How many requests each generation answers before the test goes on.
const REQUESTS_PER_GENERATION: u64 = 200;

#[test]
fn requests_go_on_over_a_takeover() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let start = Start {
        arguments: &["--linger", "60s"],
        ..Start::default()
    };
    let first = Generation::serving(&listener, &start);
    // Keeps the first generation, to be asked at the end what it has counted.
    let mut witness = Client::connect(address).unwrap();
    witness.get("/hello").unwrap();
    within_patience(async {
        let (seen, mut last_seen) = tokio::sync::watch::channel(0);
        let client = tokio::spawn(async move {
            let (mut sender, mut connection) = connect(address).await;
            let mut answered_by = [0_u64; 2];
            while answered_by[1] < REQUESTS_PER_GENERATION {
                let response = match sender
                    .send_request(request(address, "/slow?ms=0&key=k"))
                    .await
                {
                    Ok(response) => response,
                    // The client refuses a request when GOAWAY has come before it, and the server
                    // has not seen it then, as the count shows. It goes over a new connection.
                    Err(error) if error.is_canceled() || was_told_to_go(&error) => {
                        (sender, connection) = connect(address).await;
                        continue;
                    }
                    Err(error) => panic!("{error:?}"),
                };
                let body = response.into_body().collect().await.unwrap().to_bytes();
                let body = String::from_utf8(body.to_vec()).unwrap();
                let generation = if body.ends_with(" generation=1") {
                    0
                } else {
                    1
                };
                answered_by[generation] += 1;
                seen.send_replace(answered_by[0]);
            }
            drop(connection);
            answered_by
        });
        let enough = |answered: &u64| *answered >= REQUESTS_PER_GENERATION;
        last_seen.wait_for(enough).await.unwrap();
        let second = tokio::task::spawn_blocking(move || {
            let second = Start {
                generation: 2,
                ..Start::default()
            };
            let second = Generation::serving(&listener, &second);
            first.drain();
            (first, second)
        });
        let (first, second) = second.await.unwrap();
        let answered_by = client.await.unwrap();
        let counted = witness.get("/counters/k").unwrap();
        assert_eq!(counted.body, answered_by[0].to_string());
        drop(witness);
        assert!(first.wait().0.success());
        drop(second);
    });
}

/// Whether a request failed as the server had announced, in peace, that the connection ends.
fn was_told_to_go(error: &hyper::Error) -> bool {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}
