//! HTTP/2 with prior knowledge: answers, and a drain by GOAWAY.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Version,
    body::Bytes,
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{Generation, PATIENCE, Start, tcp_listener};
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

#[test]
fn requests_go_on_over_a_takeover() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let first = Generation::serving(&listener, &Start::default());
    within_patience(async {
        let (seen, mut last_seen) = tokio::sync::watch::channel(0_u64);
        let client = tokio::spawn(async move {
            let (mut sender, mut connection) = connect(address).await;
            let mut answered = 0_u64;
            let mut by_second = 0;
            while by_second < 200 {
                // A request that was never sent, as GOAWAY came first, is given back: it goes over
                // a new connection. Any other failure is one.
                let response = loop {
                    match sender.try_send_request(request(address, "/hello")).await {
                        Ok(response) => break response,
                        Err(mut error) => {
                            assert!(error.take_message().is_some(), "{}", error.into_error());
                            (sender, connection) = connect(address).await;
                        }
                    }
                };
                let body = response.into_body().collect().await.unwrap().to_bytes();
                let body = String::from_utf8(body.to_vec()).unwrap();
                answered += 1;
                if body.contains("generation=2,") {
                    by_second += 1;
                }
                seen.send_replace(answered);
            }
            drop(connection);
            answered
        });
        last_seen
            .wait_for(|answered| *answered >= 200)
            .await
            .unwrap();
        let second = Start {
            generation: 2,
            ..Start::default()
        };
        let second = tokio::task::spawn_blocking(move || {
            let second = Generation::serving(&listener, &second);
            first.drain();
            assert!(first.wait().0.success());
            second
        });
        let second = second.await.unwrap();
        assert!(client.await.unwrap() >= 400);
        drop(second);
    });
}
