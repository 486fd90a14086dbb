//! `heirloom torture`: a program that loses nothing passes, one that loses something is found out, and what
//! a killed process took along is told apart.

use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{HEIRLOOM, built};

/// A server that answers slowly and ends at once when it is told to end, with all it had begun.
const RUDE: &str = r#"#!/usr/bin/env python3
import os, signal, socket, threading, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
listener = socket.socket(fileno=3)
def serve(connection):
    while connection.recv(65536):
        time.sleep(0.05)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
"#;

/// A server that counts, and forgets everything when another one takes over.
const FORGETFUL: &str = r#"#!/usr/bin/env python3
import socket, threading
listener = socket.socket(fileno=3)
lock, counts = threading.Lock(), {}
def serve(connection):
    while True:
        request = connection.recv(65536)
        if not request:
            return
        path = request.split()[1]
        with lock:
            counts[path] = counts.get(path, 0) + 1
            body = b"%d" % counts[path]
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
"#;

fn torture<'a>(words: impl IntoIterator<Item = &'a str>) -> Output {
    Command::new(HEIRLOOM)
        .args(["torture", "--json"])
        .args(words)
        .output()
        .unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn script(directory: &tempfile::TempDir, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.path().join("server");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What `scripts/soak` does a thousand times.
#[test]
fn the_demo_loses_nothing_when_new_generations_are_killed() {
    let output = torture([
        "--handovers",
        "25",
        "--every",
        "150ms",
        "--kill",
        "new",
        "--seed",
        "11",
        "--counter",
        "/counters/KEY",
        "--strict",
        "--alternate",
        built("heirloom-demo-v2").to_str().unwrap(),
        "--",
        built("heirloom-demo").to_str().unwrap(),
    ]);
    let report = report(&output);
    assert!(output.status.success(), "{report:#}");
    assert_eq!(report["seed"], 11);
    assert_eq!(report["handovers"]["tried"], 25);
    assert_eq!(report["handovers"]["failed_undisturbed"], 0);
    assert!(
        report["disturbed"]["kill-new"].as_u64().unwrap() > 5,
        "{report:#}"
    );
    assert_eq!(report["requests"]["lost"], 0);
    assert_eq!(report["requests"]["refused"], 0);
    assert_eq!(report["connections"]["closed"], 0);
    assert_eq!(report["writes"]["lost"], 0);
    assert!(report["writes"]["acknowledged"].as_u64().unwrap() > 100);
    assert!(report["lost"].as_object().unwrap().is_empty());
    let leaks = report["leaks"].as_object().unwrap();
    assert!(leaks.values().all(|left| left == 0), "{report:#}");
}

#[test]
fn a_program_that_is_stopped_and_not_killed_loses_nothing() {
    let output = torture([
        "--handovers",
        "8",
        "--every",
        "50ms",
        "--kill",
        "none",
        "--stall",
        "both",
        "--stall-for",
        "300ms",
        "--share",
        "100",
        "--path",
        "/hello",
        "--strict",
        "--",
        built("heirloom-demo").to_str().unwrap(),
    ]);
    let report = report(&output);
    assert!(output.status.success(), "{report:#}");
    assert_eq!(report["requests"]["sent"], report["requests"]["answered"]);
}

#[test]
fn a_program_that_drops_what_it_had_begun_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let program = script(&directory, RUDE);
    let output = torture(["--handovers", "3", "--kill", "none", "--", &program]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = report(&output);
    assert!(
        report["requests"]["lost"].as_u64().unwrap() > 0,
        "{report:#}"
    );
    assert_eq!(report["requests"]["refused"], 0, "{report:#}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("lost, first after "), "{told}");
    // What it wrote stays, to be looked at, and nothing else.
    let log = told_log(&report);
    assert!(log.exists(), "{log:?}");
    std::fs::remove_dir_all(log.parent().unwrap()).unwrap();
}

#[test]
fn a_program_that_forgets_what_it_acknowledged_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let program = script(&directory, FORGETFUL);
    let words = ["--handovers", "3", "--kill", "none", "--fresh", "0"];
    let output = torture(
        words
            .into_iter()
            .chain(["--counter", "/KEY", "--", &program]),
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = report(&output);
    assert!(report["writes"]["lost"].as_u64().unwrap() > 0, "{report:#}");
    std::fs::remove_dir_all(told_log(&report).parent().unwrap()).unwrap();
}

#[test]
fn a_program_that_does_not_speak_http_is_only_connected_to() {
    let directory = tempfile::tempdir().unwrap();
    let program = script(&directory, RUDE);
    let words = ["--handovers", "3", "--kill", "none", "--connect-only"];
    let output = torture(words.into_iter().chain(["--", &program]));
    let report = report(&output);
    assert_eq!(report["requests"]["refused"], 0, "{report:#}");
    assert!(
        report["requests"]["answered"].as_u64().unwrap() > 0,
        "{report:#}"
    );
    if !output.status.success() {
        std::fs::remove_dir_all(told_log(&report).parent().unwrap()).unwrap();
    }
}

#[test]
fn a_program_that_does_not_come_up_and_a_wish_that_makes_no_sense_have_statuses_of_their_own() {
    let failed = torture(["--ready-timeout", "5s", "--", "/bin/false"]);
    assert_eq!(failed.status.code(), Some(3), "{failed:?}");
    let told = String::from_utf8(failed.stderr).unwrap();
    assert!(told.contains("did not come up"), "{told}");
    for wrong in [
        &["--kill", "sideways", "--", "true"][..],
        &["--for", "1s", "--handovers", "2", "--", "true"],
        &["--connect-only", "--counter", "/x", "--", "true"],
        &["--share", "101", "--", "true"],
        &["--handovers", "0", "--", "true"],
        &[],
    ] {
        let output = torture(wrong.iter().copied());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
    }
}

/// Where the report says that the log is.
fn told_log(report: &Value) -> std::path::PathBuf {
    report["log"].as_str().unwrap().into()
}
