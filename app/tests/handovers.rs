//! The state of the demo moves from process to process, and between its two versions. The test plays
//! the supervisor.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::{
    io::Seek,
    time::{Duration, Instant},
};

use heirloom_handover::message::Purpose;
use support::{
    Client, Version,
    demo::{ended, field, get, open_session, post, start},
    supervisor::Native,
    tcp_listener,
};

#[test]
fn all_that_an_app_holds_is_there_in_the_next_generation() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let first = Native::first(&listener, &start(Version::One, 1));
    let nobody = "hello, version=1.0.0, generation=1, oldversion=, oldgeneration=0";
    assert_eq!(get(address, "/hello"), nobody);
    for value in 1..=3 {
        assert_eq!(post(address, "/counters/a", ""), value.to_string());
    }
    let token = open_session(address, "ann");
    get(address, &format!("/sessions/{token}"));
    post(
        address,
        "/transfers",
        r#"{"from":"a","to":"b","amount":300}"#,
    );
    let id = field(&post(address, "/transactions", ""), "id");
    let add = format!("/transactions/{id}/add");
    post(address, &add, r#"{"key":"a","n":4}"#);
    let mut idle = Client::connect(address).unwrap();
    idle.get("/version").unwrap();

    let (second, old) = first.hand_over(&listener, &start(Version::One, 2));
    ended(old);
    let hello = "hello, version=1.0.0, generation=2, oldversion=1.0.0, oldgeneration=1";
    assert_eq!(idle.get("/hello").unwrap().body, hello);
    assert_eq!(get(address, "/counters/a"), "3");
    assert_eq!(
        get(address, &format!("/sessions/{token}")),
        r#"{"user":"ann","visits":2}"#
    );
    let ledger = r#"{"accounts":2,"total":2000,"transfers":1}"#;
    assert_eq!(get(address, "/ledger"), ledger);
    post(address, &add, r#"{"key":"b","n":1}"#);
    let commit = format!("/transactions/{id}/commit");
    assert_eq!(post(address, &commit, ""), r#"{"counters":{"a":7,"b":1}}"#);
    drop(second);
}

#[test]
fn versions_alternate_and_what_the_older_one_does_not_know_survives() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let mut serving = Native::first(&listener, &start(Version::One, 1));
    let of_one = open_session(address, "old");
    let id = field(&post(address, "/transactions", ""), "id");
    let add = format!("/transactions/{id}/add");
    let mut of_two = None;
    for generation in 2..=7 {
        let version = if generation % 2 == 0 {
            Version::Two
        } else {
            Version::One
        };
        post(address, "/counters/k", "");
        let added = post(address, &add, r#"{"key":"sum","n":2}"#);
        assert_eq!(field(&added, "total"), ((generation - 1) * 2).to_string());
        let (next, old) = serving.hand_over(&listener, &start(version, generation));
        ended(old);
        serving = next;
        assert_eq!(get(address, "/counters/k"), (generation - 1).to_string());
        let session = get(address, &format!("/sessions/{of_one}"));
        assert_eq!(field(&session, "visits"), (generation - 1).to_string());
        if generation == 2 {
            of_two = Some(open_session(address, "new"));
        }
        if generation % 2 == 0 {
            // Version 1 had it in between, and has no room for where it was opened.
            let session = get(address, &format!("/sessions/{}", of_two.as_ref().unwrap()));
            assert_eq!(field(&session, "opened_in"), "2");
            assert_eq!(field(&session, "user"), "new");
        }
    }
    let commit = format!("/transactions/{id}/commit");
    assert_eq!(post(address, &commit, ""), r#"{"counters":{"sum":12}}"#);
}

/// A request that was begun before a handover writes after it, where the state is then.
fn a_slow_request_straddles(from: Version, to: Version) {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let first = Native::first(&listener, &start(from, 1));
    let mut slow = Client::connect(address).unwrap();
    // The first of two answers: the second request is begun for sure when it has arrived.
    slow.get("/slow?ms=0&key=s").unwrap();
    let (known, new) = (500, 900);
    slow.send(&format!(
        "GET /slow?ms={known}&key=s HTTP/1.1\r\nhost: demo\r\n\r\n"
    ))
    .unwrap();
    let mut other = Client::connect(address).unwrap();
    other
        .send(&format!(
            "GET /slow?ms={new}&key=t HTTP/1.1\r\nhost: demo\r\n\r\n"
        ))
        .unwrap();
    // Both have been accepted once these have been answered, for they came later.
    for _ in 0..2 {
        get(address, "/version");
    }
    let (second, old) = first.hand_over(&listener, &start(to, 2));
    assert_eq!(
        get(address, "/counters/s"),
        "1",
        "the handover was too slow"
    );
    post(address, "/counters/s", "");
    assert_eq!(slow.answer().unwrap().body, "value=3 generation=1");
    assert_eq!(get(address, "/counters/s"), "3");
    // One that was not there when the state moved.
    assert_eq!(other.answer().unwrap().body, "value=1 generation=1");
    assert_eq!(get(address, "/counters/t"), "1");
    ended(old);
    // Both connections have moved meanwhile.
    for client in [&mut slow, &mut other] {
        let hello = client.get("/hello").unwrap().body;
        assert!(hello.contains("generation=2, "), "{hello}");
    }
    drop(second);
}

#[test]
fn a_slow_request_writes_after_the_handover() {
    a_slow_request_straddles(Version::One, Version::One);
}

#[test]
fn a_slow_request_of_version_1_writes_into_version_2() {
    a_slow_request_straddles(Version::One, Version::Two);
}

#[test]
fn a_slow_request_of_version_2_writes_into_version_1() {
    a_slow_request_straddles(Version::Two, Version::One);
}

#[test]
fn a_rehearsal_changes_nothing() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let first = Native::first(&listener, &start(Version::One, 1));
    post(address, "/counters/a", "");
    let version = get(address, "/version");
    for generation in 2..=3 {
        let next = Native::start(&listener, &start(Version::Two, generation));
        first.migrate(&next, Purpose::Rehearsal).unwrap();
        let (status, stderr) = next.generation.wait();
        assert_eq!(status.code(), Some(1));
        assert!(stderr.contains("it was a rehearsal"), "{stderr}");
        assert_eq!(get(address, "/version"), version);
        post(address, "/counters/a", "");
    }
    let (_second, old) = first.hand_over(&listener, &start(Version::Two, 4));
    ended(old);
    assert_eq!(get(address, "/counters/a"), "3");
}

/// Stops one version and starts another with what was saved.
fn a_cold_restart(from: Version, to: Version) {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let first = Native::first(&listener, &start(from, 5));
    post(address, "/counters/a", "");
    let token = open_session(address, "ann");
    post(
        address,
        "/transfers",
        r#"{"from":"a","to":"b","amount":300}"#,
    );
    let mut slow = Client::connect(address).unwrap();
    slow.get("/version").unwrap();
    slow.send("GET /slow?ms=300&key=a HTTP/1.1\r\nhost: demo\r\n\r\n")
        .unwrap();
    get(address, "/version");
    let mut file = tempfile::tempfile().unwrap();
    first.stop(&file);
    // What ran was waited for, and is saved.
    assert_eq!(slow.answer().unwrap().body, "value=2 generation=5");

    file.rewind().unwrap();
    let second = Native::restored(&listener, &start(to, 1), &file);
    assert_eq!(get(address, "/counters/a"), "2");
    let session = get(address, &format!("/sessions/{token}"));
    assert_eq!(field(&session, "visits"), "1");
    let ledger = r#"{"accounts":2,"total":2000,"transfers":1}"#;
    assert_eq!(get(address, "/ledger"), ledger);
    assert!(get(address, "/hello").contains("oldgeneration=5"));
    drop(second);
}

#[test]
fn state_that_was_saved_is_there_after_a_restart() {
    a_cold_restart(Version::One, Version::One);
}

#[test]
fn version_2_takes_up_what_version_1_saved() {
    a_cold_restart(Version::One, Version::Two);
}

/// So long a request may take while a copy waits for its reader, on the slowest machine. A blocked
/// generation would not answer at all.
const LATENCY_LIMIT: Duration = Duration::from_secs(2);

#[test]
fn a_new_generation_that_does_not_read_holds_nobody_up() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let first = Native::first(&listener, &start(Version::One, 1));
    // Far more than a pipe holds.
    post(address, "/fill?entries=50000&bytes=1000", "");
    let mut client = Client::connect(address).unwrap();
    let mut value = 0;
    for migration in 2..=4 {
        let unread = first.send_to_nobody(migration);
        let begun = Instant::now();
        for _ in 0..300 {
            value += 1;
            let asked = Instant::now();
            let answer = client.post("/counters/a", "").unwrap();
            assert_eq!(answer.body, value.to_string());
            assert!(asked.elapsed() < LATENCY_LIMIT, "{:?}", asked.elapsed());
        }
        assert!(first.is_silent(), "it gave up after {:?}", begun.elapsed());
        // As if the new one had died.
        drop(unread);
        first.says_that_it_failed(migration);
    }
    let (_second, old) = first.hand_over(&listener, &start(Version::One, 5));
    ended(old);
    assert_eq!(get(address, "/counters/a"), value.to_string());
}
