//! The load against servers that misbehave on purpose: it must see all of it, and nothing else.
#![expect(
    clippy::unwrap_used,
    reason = "a panic in a helper is how its test fails"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use heirloom_bench::load::{FailureKind, Load, Pace, Plan, Request, Reuse, StartError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"generation\":7}";
const LAST: &str =
    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 16\r\n\r\n{\"generation\":7}";

/// What a server does with the request of this number on a connection (from 1).
#[derive(Clone, Copy)]
enum Act {
    Answer(&'static str),
    AnswerAndClose(&'static str),
    Close,
    Reset,
    AnswerAfter(Duration, &'static str),
}

/// Serves each connection by `act(connection, request)`, both counted from 1.
async fn serve(act: impl Fn(u64, u64) -> Act + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let act = Arc::new(act);
    tokio::spawn(async move {
        let mut connection = 0;
        while let Ok((stream, _)) = listener.accept().await {
            connection += 1;
            let act = Arc::clone(&act);
            tokio::spawn(async move { converse(stream, |request| act(connection, request)).await });
        }
    });
    address
}

async fn converse(mut stream: TcpStream, act: impl Fn(u64) -> Act) {
    let mut request = 0;
    while let Some(close) = read_head(&mut stream).await {
        request += 1;
        let (answer, over) = match act(request) {
            Act::Answer(answer) => (answer, close),
            Act::AnswerAndClose(answer) => (answer, true),
            Act::AnswerAfter(wait, answer) => {
                tokio::time::sleep(wait).await;
                (answer, close)
            }
            Act::Close => return,
            Act::Reset => {
                stream.set_zero_linger().unwrap();
                return;
            }
        };
        if stream.write_all(answer.as_bytes()).await.is_err() || over {
            return;
        }
    }
}

/// Reads one request head; says whether it asks to close. `None` when the client has gone.
async fn read_head(stream: &mut TcpStream) -> Option<bool> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    Some(String::from_utf8_lossy(&head).contains("Connection: close"))
}

fn plan(server: SocketAddr) -> Plan {
    Plan::new(server, Request::get("/version")).deadline(Duration::from_secs(10))
}

const BUSY: Pace = Pace::Think(Duration::ZERO);

#[tokio::test]
async fn a_good_server_leaves_a_spotless_report() {
    let server = serve(|_, _| Act::Answer(GOOD)).await;
    let plan = plan(server)
        .keep_alive(4, BUSY, Reuse::Checked)
        .fresh(2, BUSY)
        .idle(20);
    let report = Load::start(plan.request_limit(600))
        .await
        .unwrap()
        .finish()
        .await;
    assert!(report.is_spotless(), "{report}");
    assert_eq!(report.requests, 600);
    assert_eq!(report.latency.count(), 600);
    assert_eq!((report.answered_by(7), report.generations.len()), (600, 1));
    assert_eq!(
        (report.idle.opened, report.idle.alive, report.idle.answered),
        (20, 20, 20)
    );
    assert!(
        report.connections_opened > 4,
        "fresh clients open one for each request: {report}"
    );
}

#[tokio::test]
async fn a_checked_client_counts_what_a_blind_one_falls_over() {
    // Each connection dies silently after its third answer.
    let short_lived = |_, request| match request {
        3 => Act::AnswerAndClose(GOOD),
        _ => Act::Answer(GOOD),
    };
    let pause = Pace::Think(Duration::from_millis(5));

    let server = serve(short_lived).await;
    let checked = plan(server)
        .keep_alive(1, pause, Reuse::Checked)
        .request_limit(30);
    let report = Load::start(checked).await.unwrap().finish().await;
    assert_eq!((report.failed, report.requests), (0, 30), "{report}");
    assert_eq!(
        (
            report.connections_opened,
            report.connections_closed_by_server
        ),
        (10, 9)
    );

    let server = serve(short_lived).await;
    let blind = plan(server)
        .keep_alive(1, pause, Reuse::Blind)
        .request_limit(32);
    let report = Load::start(blind).await.unwrap().finish().await;
    assert_eq!(
        (report.failed, report.requests),
        (8, 32),
        "every fourth request: {report}"
    );
    let seen =
        report.failed_by(FailureKind::ClosedBeforeResponse) + report.failed_by(FailureKind::Reset);
    assert_eq!(seen, 8, "{report}");
    assert!(!report.first_failures[0].text.is_empty());
}

#[tokio::test]
async fn connection_close_on_an_answer_is_not_an_error() {
    let server = serve(|_, request| match request {
        5 => Act::AnswerAndClose(LAST),
        _ => Act::Answer(GOOD),
    })
    .await;
    let plan = plan(server)
        .keep_alive(1, BUSY, Reuse::Checked)
        .request_limit(50);
    let report = Load::start(plan).await.unwrap().finish().await;
    assert_eq!(
        (report.failed, report.connections_closed_by_server),
        (0, 0),
        "{report}"
    );
    assert_eq!(
        (report.connections_told_to_close, report.connections_opened),
        (10, 10)
    );
}

#[tokio::test]
async fn each_failure_is_counted_with_its_kind_and_never_retried() {
    let seen = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&seen);
    let server = serve(move |connection, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        match connection {
            1 => Act::Close,
            2 => Act::Reset,
            3 => {
                Act::AnswerAndClose("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            }
            4 => Act::AnswerAndClose("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
            5 => Act::AnswerAndClose("nonsense\r\n\r\n"),
            6 => Act::AnswerAndClose("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"),
            _ => Act::Answer(GOOD),
        }
    })
    .await;
    let plan = plan(server)
        .fresh(1, BUSY)
        .request_limit(10)
        .check(|_, _, response| match response.text().as_str() {
            "bad" => Err("this answer is bad".to_owned()),
            _ => Ok(()),
        });
    let report = Load::start(plan).await.unwrap().finish().await;
    let kinds: Vec<_> = report
        .failures
        .iter()
        .map(|(kind, count)| (*kind, *count))
        .collect();
    let expected = [
        FailureKind::Reset,
        FailureKind::ClosedBeforeResponse,
        FailureKind::Truncated,
        FailureKind::BadStatus,
        FailureKind::Malformed,
        FailureKind::Unexpected,
    ];
    assert_eq!(kinds, expected.map(|kind| (kind, 1)), "{report}");
    assert_eq!((report.requests, report.failed), (10, 6));
    assert_eq!(
        seen.load(Ordering::Relaxed),
        10,
        "one attempt for each request"
    );
}

#[tokio::test]
async fn nobody_listening_is_refused_and_does_not_spin() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    drop(listener);
    let plan = plan(server)
        .keep_alive(2, BUSY, Reuse::Checked)
        .duration(Duration::from_millis(200));
    let report = Load::start(plan).await.unwrap().finish().await;
    assert_eq!(report.failed_by(FailureKind::Refused), report.requests);
    assert!((2..=42).contains(&report.requests), "{report}");
}

#[tokio::test]
async fn a_stall_is_seen_by_every_request_that_was_due_in_it() {
    let server = serve(|_, request| match request {
        10 => Act::AnswerAfter(Duration::from_millis(400), GOOD),
        _ => Act::Answer(GOOD),
    })
    .await;
    let plan = plan(server)
        .keep_alive(1, Pace::per_second(100), Reuse::Checked)
        .request_limit(80)
        .series(Duration::from_millis(50));
    let report = Load::start(plan).await.unwrap().finish().await;
    assert_eq!((report.requests, report.failed), (80, 0), "{report}");
    // One request waited 400 ms; the forty due meanwhile waited 390, 380, ... So 30 of 80 waited
    // 100 ms or longer, and a quarter of all must have.
    assert!(
        report.latency.quantile(0.75) >= Duration::from_millis(100),
        "{report}"
    );
    let silent = report
        .series
        .iter()
        .filter(|bucket| bucket.answered == 0)
        .count();
    assert!(silent >= 6, "the gap is in the series: {:?}", report.series);
    assert_eq!(
        report
            .series
            .iter()
            .map(|bucket| bucket.answered)
            .sum::<u64>(),
        80
    );
}

#[tokio::test]
async fn a_server_slower_than_the_rate_leaves_requests_unsent() {
    let server = serve(|_, _| Act::AnswerAfter(Duration::from_millis(50), GOOD)).await;
    let plan = plan(server)
        .keep_alive(1, Pace::per_second(100), Reuse::Checked)
        .duration(Duration::from_millis(500));
    let report = Load::start(plan).await.unwrap().finish().await;
    assert!(report.unsent >= 20, "{} unsent: {report}", report.unsent);
}

#[tokio::test]
async fn idle_connections_that_died_are_lost() {
    // Connections 1 to 3 are idle ones; the second is closed after its first answer.
    let server = serve(|connection, _| match connection {
        2 => Act::AnswerAndClose(GOOD),
        _ => Act::Answer(GOOD),
    })
    .await;
    let plan = plan(server)
        .idle(3)
        .keep_alive(1, BUSY, Reuse::Checked)
        .request_limit(100);
    let report = Load::start(plan).await.unwrap().finish().await;
    assert_eq!(
        (report.idle.opened, report.idle.alive, report.idle.answered),
        (3, 2, 2)
    );
    assert_eq!(report.idle.lost(), 1);
    assert!(!report.is_spotless());
}

#[tokio::test]
async fn a_load_that_cannot_begin_says_why() {
    let server = serve(|connection, _| match connection {
        3 => Act::Close,
        _ => Act::Answer(GOOD),
    })
    .await;
    let error = Load::start(plan(server).idle(5)).await.unwrap_err();
    assert!(
        matches!(
            error,
            StartError::Idle {
                index: 2,
                count: 5,
                ..
            }
        ),
        "{error}"
    );
    let error = Load::start(plan(server)).await.unwrap_err();
    assert!(matches!(error, StartError::NoClients), "{error}");
}

#[tokio::test]
async fn stop_lets_the_running_request_end() {
    let (sender, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let server = serve(move |_, _| {
        sender.send(()).unwrap();
        Act::AnswerAfter(Duration::from_millis(100), GOOD)
    })
    .await;
    let load = Load::start(plan(server).keep_alive(1, BUSY, Reuse::Checked))
        .await
        .unwrap();
    arrived.recv().await.unwrap();
    load.stop();
    let report = load.finish().await;
    assert_eq!((report.requests, report.failed), (1, 0), "{report}");
}

#[tokio::test]
async fn a_panicking_closure_is_a_failure() {
    let server = serve(|_, _| Act::Answer(GOOD)).await;
    let plan = plan(server)
        .keep_alive(1, BUSY, Reuse::Checked)
        .request_limit(1)
        .check(|_, _, _| panic!("on purpose"));
    let report = Load::start(plan).await.unwrap().finish().await;
    assert_eq!(report.failed_by(FailureKind::Local), 1, "{report}");
}
