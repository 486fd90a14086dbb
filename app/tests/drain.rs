//! What a generation does with its connections when it is told to end.

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::{Answer, Client, Generation, Start, tcp_listener};

const HELLO: &str = "GET /hello HTTP/1.1\r\nhost: demo\r\n\r\n";

fn hello_from(generation: u64, closes: bool) -> Answer {
    Answer {
        status: 200,
        body: format!(
            "hello, version=1.0.0, generation={generation}, oldversion=, oldgeneration=0"
        ),
        closes,
    }
}

/// A linger time no test waits for.
const PATIENT: &[&str] = &["--linger", "60s"];

#[test]
fn a_kept_connection_learns_of_the_drain_from_an_answer() {
    let listener = tcp_listener();
    let start = Start {
        arguments: PATIENT,
        ..Start::default()
    };
    let generation = Generation::serving(&listener, &start);
    let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(client.get("/hello").unwrap(), hello_from(1, false));
    generation.drain();
    assert!(!client.is_closed());
    assert_eq!(client.get("/hello").unwrap(), hello_from(1, true));
    client.wait_for_close().unwrap();
    assert!(generation.wait().0.success());
}

#[test]
fn a_first_request_that_comes_after_the_drain_began_is_answered() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let start = Start {
        arguments: PATIENT,
        ..Start::default()
    };
    let generation = Generation::serving(&listener, &start);
    let mut silent = Client::connect(address).unwrap();
    // Connections are accepted in order: when this one is answered, the silent one is accepted.
    let mut after = Client::connect(address).unwrap();
    after.get("/hello").unwrap();
    drop(after);
    generation.drain();
    assert_eq!(silent.get("/hello").unwrap(), hello_from(1, true));
    silent.wait_for_close().unwrap();
    assert!(generation.wait().0.success());
}

#[test]
fn half_a_request_may_become_a_whole_one() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    // The linger time is shorter than what the client takes: a request on its way counts as one.
    let start = Start {
        arguments: &["--linger", "50ms"],
        ..Start::default()
    };
    let generation = Generation::serving(&listener, &start);
    let mut fresh = Client::connect(address).unwrap();
    let mut kept = Client::connect(address).unwrap();
    kept.get("/hello").unwrap();
    let (head, tail) = HELLO.split_at(HELLO.len() / 2);
    fresh.send(head).unwrap();
    kept.send(head).unwrap();
    // Answered after both halves have arrived: they were sent before it.
    let mut slow = Client::connect(address).unwrap();
    slow.send("GET /slow?ms=400 HTTP/1.1\r\nhost: demo\r\n\r\n")
        .unwrap();
    let mut idle = Client::connect(address).unwrap();
    idle.get("/hello").unwrap();
    generation.drain();
    idle.wait_for_close().unwrap();
    assert_eq!(slow.answer().unwrap().body, "value=1 generation=1");
    for client in [&mut fresh, &mut kept] {
        client.send(tail).unwrap();
        assert_eq!(client.answer().unwrap(), hello_from(1, true));
        client.wait_for_close().unwrap();
    }
    assert!(generation.wait().0.success());
}

#[test]
fn an_idle_connection_is_closed_after_the_linger_time_and_not_before() {
    let listener = tcp_listener();
    let start = Start {
        arguments: &["--linger", "700ms"],
        ..Start::default()
    };
    let generation = Generation::serving(&listener, &start);
    let mut idle = Client::connect(listener.local_addr().unwrap()).unwrap();
    idle.get("/hello").unwrap();
    let began = Instant::now();
    generation.drain();
    idle.wait_for_close().unwrap();
    let lingered = began.elapsed();
    assert!(lingered >= Duration::from_millis(700), "{lingered:?}");
    assert!(lingered < Duration::from_secs(5), "{lingered:?}");
    drop(idle);
    assert!(generation.wait().0.success());
}

#[test]
fn a_running_request_is_finished_however_short_the_linger_time() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let start = Start {
        arguments: &["--linger", "0s"],
        ..Start::default()
    };
    let generation = Generation::serving(&listener, &start);
    let mut slow = Client::connect(address).unwrap();
    slow.send("GET /slow?ms=600&key=k HTTP/1.1\r\nhost: demo\r\n\r\n")
        .unwrap();
    let mut other = Client::connect(address).unwrap();
    other.get("/hello").unwrap();
    generation.drain();
    other.wait_for_close().unwrap();
    assert_eq!(
        slow.answer().unwrap(),
        Answer {
            status: 200,
            body: "value=1 generation=1".to_owned(),
            closes: true
        }
    );
    slow.wait_for_close().unwrap();
    assert!(generation.wait().0.success());
}

#[test]
fn a_client_that_ends_its_side_still_gets_its_answer() {
    let listener = tcp_listener();
    let generation = Generation::serving(&listener, &Start::default());
    let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
    client
        .send("GET /slow?ms=200 HTTP/1.1\r\nhost: demo\r\n\r\n")
        .unwrap();
    client.end_sending();
    assert_eq!(client.answer().unwrap().body, "value=1 generation=1");
    drop(generation);
}

#[test]
fn what_waits_in_the_queue_is_left_to_the_next_generation() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let start = Start {
        arguments: PATIENT,
        ..Start::default()
    };
    let first = Generation::serving(&listener, &start);
    let mut kept = Client::connect(address).unwrap();
    kept.get("/hello").unwrap();
    first.drain();
    // The old generation lives on, for the sake of the kept connection, but takes nothing new.
    let mut queued = Client::connect(address).unwrap();
    queued.send(HELLO).unwrap();
    let second = Generation::serving(
        &listener,
        &Start {
            generation: 2,
            ..start
        },
    );
    assert_eq!(queued.answer().unwrap(), hello_from(2, false));
    assert_eq!(kept.get("/hello").unwrap(), hello_from(1, true));
    assert!(first.wait().0.success());
    drop(second);
}

#[test]
fn a_second_signal_ends_everything_at_once() {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let listener = tcp_listener();
        let generation = Generation::serving(&listener, &Start::default());
        let mut slow = Client::connect(listener.local_addr().unwrap()).unwrap();
        slow.get("/hello").unwrap();
        slow.send("GET /slow?ms=60000 HTTP/1.1\r\nhost: demo\r\n\r\n")
            .unwrap();
        let began = Instant::now();
        generation.drain();
        generation.signal(second);
        let (status, _) = generation.wait();
        assert!(status.success(), "{status}");
        assert!(began.elapsed() < Duration::from_secs(5));
        assert!(slow.answer().is_err());
    }
}

#[test]
fn the_drain_has_a_limit_and_says_so() {
    let listener = tcp_listener();
    let start = Start {
        arguments: &["--drain-timeout", "300ms"],
        ..Start::default()
    };
    let generation = Generation::serving(&listener, &start);
    let mut slow = Client::connect(listener.local_addr().unwrap()).unwrap();
    slow.get("/hello").unwrap();
    slow.send("GET /slow?ms=60000 HTTP/1.1\r\nhost: demo\r\n\r\n")
        .unwrap();
    generation.drain();
    let (status, stderr) = generation.wait();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("1 tasks had not finished"), "{stderr}");
    assert!(stderr.contains("--drain-timeout"), "{stderr}");
}

#[test]
fn a_signal_during_a_slow_start_ends_it() {
    let listener = tcp_listener();
    let start = Start {
        arguments: &["--slow-start", "60s"],
        ..Start::default()
    };
    let generation = Generation::start(listener, &start);
    generation.wait_until_handled(Signal::SIGTERM);
    generation.signal(Signal::SIGTERM);
    let (status, _) = generation.wait();
    assert!(status.success(), "{status}");
}
