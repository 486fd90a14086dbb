//! State that a program cannot take is refused, with the reason, and the old generation serves on. The
//! test plays the supervisor.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;
#[path = "../src/demo/schema/v1.rs"]
#[allow(dead_code, reason = "only what is in stores is needed")]
mod v1;

use std::{io::Seek, net::TcpListener, time::Duration};

use heirloom_app::{
    Drain, Inherited,
    state::{Cell, Map, State, Tenure},
};
use heirloom_handover::message::Purpose;
use heirloom_state_codec::State as Schema;
use serde::{Deserialize, Serialize};
use support::{
    Start, Version,
    demo::{ended, field, get, open_session, post, start},
    supervisor::Native,
    tcp_listener,
};

/// Says to this file's own binary that it is to be a program that a supervisor starts.
const PROGRAM: &str = "HEIRLOOM_TEST_IS_PROGRAM";

#[test]
fn what_version_1_cannot_hold_is_refused_with_the_reason() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let first = Native::first(&listener, &start(Version::Two, 1));
    let id = field(&post(address, "/transactions", ""), "id");
    for _ in 0..5 {
        let add = format!("/transactions/{id}/add");
        post(address, &add, r#"{"key":"high","n":1000000000}"#);
    }
    post(address, &format!("/transactions/{id}/commit"), "");
    let older = Native::start(&listener, &start(Version::One, 2));
    let reason = first.migrate(&older, Purpose::Handover).unwrap_err();
    assert!(
        reason.contains(
            "counter: the step from version 2 to 1 refused an entry: a counter stands at \
             5000000000, and version 1 counts to 4294967295 only"
        ),
        "{reason}"
    );
    let (status, stderr) = older.generation.wait();
    assert_eq!(status.code(), Some(1), "{stderr}");
    // The old one goes on, and can hand over to a program that has room.
    assert_eq!(post(address, "/counters/high", ""), "5000000001");
    let (_third, old) = first.hand_over(&listener, &start(Version::Two, 3));
    ended(old);
    assert_eq!(get(address, "/counters/high"), "5000000001");
}

/// A counter as somebody had it who changed the type and not its version.
#[derive(Clone, Debug, Serialize, Deserialize, Schema)]
#[state(name = "counter", version = 1, oldest)]
struct Counter {
    count: i64,
}

/// Not a test but a program: what a careless developer deploys, with all the stores or only one.
#[test]
#[ignore = "it is a program that other tests start"]
fn careless_program() {
    let Ok(stores) = std::env::var(PROGRAM) else {
        return;
    };
    let mut inherited = Inherited::from_env().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let taken = runtime.block_on(async {
        let state = State::new();
        let _counters: Map<String, Counter> = Map::new(&state, "counters");
        if stores == "all" {
            let _: Cell<v1::Identity> = Cell::new(&state, "identity", v1::Identity::default());
            let _: Map<String, v1::Session> = Map::new(&state, "sessions");
            let _: Map<String, v1::Account> = Map::new(&state, "accounts");
            let _: Map<String, v1::Pending> = Map::new(&state, "transactions");
            let _: Map<u64, v1::Filling> = Map::new(&state, "filling");
        }
        let drain = Drain::new(Duration::from_secs(1));
        let tenure = Tenure::new("careless", "1.0.1");
        state.take_over(&mut inherited, &drain, tenure).await
    });
    eprintln!("careless: {}", taken.unwrap_err());
    #[expect(clippy::exit, reason = "the harness would make it another status")]
    std::process::exit(1);
}

/// Hands over to the careless program, which must fail; the reason.
fn refused_by_careless(first: &Native, listener: &TcpListener, prelude: &str) -> String {
    let careless = Start {
        generation: 2,
        program: Some(std::env::current_exe().unwrap()),
        arguments: &["--ignored", "--exact", "careless_program", "--nocapture"],
        prelude,
        ..Start::default()
    };
    let next = Native::start(listener, &careless);
    let reason = first.migrate(&next, Purpose::Handover).unwrap_err();
    let (status, stderr) = next.generation.wait();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("careless: the state was not taken over"),
        "{stderr}"
    );
    reason
}

#[test]
fn a_type_that_was_changed_in_place_is_refused_with_what_differs() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let first = Native::first(&listener, &start(Version::One, 1));
    post(address, "/counters/a", "");
    let version = get(address, "/version");
    let reason = refused_by_careless(&first, &listener, "export HEIRLOOM_TEST_IS_PROGRAM=all;");
    for part in [
        "counters: counter@1 is not the same type in both programs: ",
        "`count`",
        "`value`",
        "give the changed type a version of its own",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(get(address, "/version"), version);
    assert_eq!(post(address, "/counters/a", ""), "2");
}

#[test]
fn a_program_that_forgot_a_store_is_refused() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let first = Native::first(&listener, &start(Version::One, 1));
    let token = open_session(address, "ann");
    let reason = refused_by_careless(&first, &listener, "export HEIRLOOM_TEST_IS_PROGRAM=one;");
    assert!(
        reason.contains("which this program does not know, so it would be lost"),
        "{reason}"
    );
    get(address, &format!("/sessions/{token}"));
}

#[test]
fn version_1_refuses_what_version_2_saved_and_says_why() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let first = Native::first(&listener, &start(Version::Two, 1));
    post(address, "/counters/a", "");
    let mut file = tempfile::tempfile().unwrap();
    first.stop(&file);
    file.rewind().unwrap();
    let older = Native::start(&listener, &start(Version::One, 1));
    let reason = older.restore(&file).unwrap_err();
    assert!(
        reason.contains("no version is known to both programs, here 1, there 2"),
        "{reason}"
    );
    let (status, stderr) = older.generation.wait();
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("no version is known"), "{stderr}");
    // What was saved is whole, for the program that knows it.
    file.rewind().unwrap();
    let newer = Native::start(&listener, &start(Version::Two, 2));
    newer.restore(&file).unwrap();
    newer.generation.wait_for("READY=1");
    assert_eq!(get(address, "/counters/a"), "1");
}
