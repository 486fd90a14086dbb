//! The demo as a process: what it takes over, what it answers, what it reports.

mod support;

use std::{
    net::UdpSocket,
    process::{Command, Stdio},
};

use support::{Answer, Client, Generation, Start, Version, tcp_listener, unix_listener};

fn text(body: &str) -> Answer {
    Answer {
        status: 200,
        body: body.to_owned(),
        closes: false,
    }
}

#[test]
fn a_generation_reports_ready_and_says_who_it_is() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let generation = Generation::start(
        listener,
        &Start {
            generation: 3,
            ..Start::default()
        },
    );
    let ready = generation.wait_for("READY=1");
    assert!(
        ready.contains(&format!(
            "STATUS=serving: version 1.0.0, generation 3, on http=tcp:{address}"
        )),
        "{ready}"
    );
    let mut client = Client::connect(address).unwrap();
    assert_eq!(
        client.get("/hello").unwrap(),
        text("hello, version=1.0.0, generation=3, oldversion=, oldgeneration=0")
    );
    let pid = generation.pid();
    assert_eq!(
        client.get("/version").unwrap(),
        text(&format!(
            r#"{{"version":"1.0.0","generation":3,"pid":{pid}}}"#
        ))
    );
}

#[test]
fn version_two_differs_in_its_version() {
    let listener = tcp_listener();
    let start = Start {
        version: Version::Two,
        ..Start::default()
    };
    let _generation = Generation::serving(&listener, &start);
    let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(
        client.get("/hello").unwrap(),
        text("hello, version=2.0.0, generation=1, oldversion=, oldgeneration=0")
    );
}

#[test]
fn all_requests_of_a_connection_see_one_state() {
    let listener = tcp_listener();
    let _generation = Generation::serving(&listener, &Start::default());
    let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(client.get("/counters/a").unwrap(), text("0"));
    assert_eq!(client.ask("POST", "/counters/a").unwrap(), text("1"));
    assert_eq!(client.ask("POST", "/counters/a").unwrap(), text("2"));
    assert_eq!(
        client.get("/slow?ms=1&key=a").unwrap(),
        text("value=3 generation=1")
    );
    assert_eq!(client.get("/counters/a").unwrap(), text("3"));
    assert_eq!(
        client.ask("POST", "/fill?entries=100&bytes=10").unwrap(),
        text("entries=100 bytes=10")
    );
    assert_eq!(client.get("/nowhere").unwrap().status, 404);
    assert_eq!(client.ask("PUT", "/hello").unwrap().status, 405);
    assert_eq!(client.get("/slow?ms=soon").unwrap().status, 400);
}

#[test]
fn a_unix_listener_serves_too() {
    let (listener, _directory, path) = unix_listener();
    let generation = Generation::start(listener, &Start::default());
    let ready = generation.wait_for("READY=1");
    assert!(ready.contains("on http=unix:/"), "{ready}");
    let mut client = Client::connect_unix(&path).unwrap();
    assert_eq!(client.get("/hello").unwrap().status, 200);
}

#[test]
fn the_only_listener_is_taken_whatever_its_name() {
    let listener = tcp_listener();
    let start = Start {
        listener_name: "web",
        ..Start::default()
    };
    let _generation = Generation::serving(&listener, &start);
    let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(client.get("/hello").unwrap().status, 200);
}

#[test]
fn what_is_no_listener_is_refused_with_a_reason() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (status, stderr) = Generation::start(socket, &Start::default()).wait();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("a datagram socket"), "{stderr}");
    assert!(stderr.contains("--listen http=tcp:HOST:PORT"), "{stderr}");
}

#[test]
fn without_a_listener_it_says_how_to_give_one() {
    let output = Command::new(Version::One.path())
        .env_remove("LISTEN_FDS")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("use --listen HOST:PORT"), "{stderr}");
    assert!(stderr.contains("heirloom run --listen http="), "{stderr}");
}

#[test]
fn the_binaries_know_their_version() {
    for (version, text) in [(Version::One, "1.0.0"), (Version::Two, "2.0.0")] {
        let output = Command::new(version.path())
            .arg("--version")
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.trim_end().ends_with(text), "{stdout}");
    }
}

#[test]
fn a_slow_start_reports_ready_only_when_it_accepts() {
    let listener = tcp_listener();
    let start = Start {
        arguments: &["--slow-start", "400ms"],
        ..Start::default()
    };
    let began = std::time::Instant::now();
    let generation = Generation::start(listener.try_clone().unwrap(), &start);
    generation.wait_for("READY=1");
    assert!(began.elapsed() >= std::time::Duration::from_millis(400));
    // What was queued while it booted is served.
    let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(client.get("/hello").unwrap().status, 200);
}

#[test]
fn running_out_of_descriptors_neither_ends_nor_spins() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let start = Start {
        prelude: "ulimit -n 40;",
        ..Start::default()
    };
    let generation = Generation::serving(&listener, &start);
    let mut crowd: Vec<Client> = (0..60).map(|_| Client::connect(address).unwrap()).collect();
    // The first of them are served, the last wait in the queue until somebody goes.
    assert_eq!(crowd[0].get("/hello").unwrap().status, 200);
    let mut last = crowd.pop().unwrap();
    last.send("GET /hello HTTP/1.1\r\nhost: demo\r\n\r\n")
        .unwrap();
    let before = generation.processor_ticks();
    let mut first = crowd.swap_remove(0);
    assert_eq!(
        first.get("/slow?ms=1500").unwrap().body,
        "value=1 generation=1"
    );
    let used = generation.processor_ticks() - before;
    assert!(
        used < 30,
        "{used} ticks of processor time in 150 of waiting"
    );
    drop(crowd);
    drop(first);
    assert_eq!(last.answer().unwrap().status, 200);
}
