//! The demo's state outlives a stop of everything, also into another version.

use std::path::Path;

use super::{
    client::{Client, Habit},
    demo, number, text,
};
use crate::harness::{Setup, Supervisor};

/// A supervisor of this version whose state is kept in a directory that outlives it.
fn kept(directory: &Path, version: u32) -> Setup {
    let state = directory.join("state");
    Setup::demo()
        .with_program(&[demo(version)])
        .args(["--state-file", state.to_str().unwrap()])
}

fn client(supervisor: &Supervisor) -> Client {
    Client::new(supervisor.address("http"), Habit::Keeps)
}

/// Changes the state in every way; the session's token and the transaction's id.
fn write(supervisor: &Supervisor) -> (String, String) {
    let client = &mut client(supervisor);
    for _ in 0..3 {
        client.post("/counters/a", "");
    }
    let token = text(&client.post("/sessions", r#"{"user":"ann"}"#), "token");
    client.post("/transfers", r#"{"from":"a","to":"b","amount":300}"#);
    let id = text(&client.post("/transactions", ""), "id");
    let add = format!("/transactions/{id}/add");
    client.post(&add, r#"{"key":"a","n":4}"#);
    (token, id)
}

/// Whether all of it is there.
fn check(supervisor: &Supervisor, token: &str, id: &str) {
    let client = &mut client(supervisor);
    assert_eq!(client.get("/counters/a"), "3");
    let session = client.get(&format!("/sessions/{token}"));
    assert_eq!(text(&session, "user"), "ann");
    assert_eq!(number(&session, "visits"), 1);
    let ledger = r#"{"accounts":2,"total":2000,"transfers":1}"#;
    assert_eq!(client.get("/ledger"), ledger);
    let commit = format!("/transactions/{id}/commit");
    assert_eq!(client.post(&commit, ""), r#"{"counters":{"a":7}}"#);
}

fn moves(from: u32, to: u32) {
    let directory = tempfile::tempdir().unwrap();
    let first = kept(directory.path(), from).start();
    let (token, id) = write(&first);
    first.stop();
    let second = kept(directory.path(), to).start();
    let hello = client(&second).get("/hello");
    assert!(hello.contains(&format!("oldversion={from}.0.0")), "{hello}");
    check(&second, &token, &id);
    second.stop();
    // And once more, with what has changed since.
    let third = kept(directory.path(), to).start();
    assert_eq!(client(&third).get("/counters/a"), "7");
    third.stop();
}

#[test]
fn what_is_stopped_goes_on_where_it_was() {
    moves(1, 1);
}

#[test]
fn version_2_goes_on_where_version_1_was_stopped() {
    moves(1, 2);
}

#[test]
fn version_1_does_not_start_on_what_version_2_saved_and_harms_it_not() {
    let directory = tempfile::tempdir().unwrap();
    let first = kept(directory.path(), 2).start();
    let (token, id) = write(&first);
    first.stop();
    let saved = std::fs::read(directory.path().join("state")).unwrap();

    let mut older = kept(directory.path(), 1).spawn();
    assert_ne!(older.wait(), Some(0));
    assert!(
        older.log().contains("no version is known to both programs"),
        "{}",
        older.log()
    );
    let left = std::fs::read(directory.path().join("state")).unwrap();
    assert!(left == saved, "the file was changed");

    let newer = kept(directory.path(), 2).start();
    check(&newer, &token, &id);
    newer.stop();
}
