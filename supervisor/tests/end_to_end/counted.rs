//! Connections that move are counted: in the report, in the status, and in events.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::harness::{PATIENCE, Setup, Supervisor};

/// A connection on which one request has been answered.
fn used(supervisor: &Supervisor) -> TcpStream {
    let mut client = TcpStream::connect(supervisor.address("http")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    ask(&mut client);
    client
}

fn ask(client: &mut TcpStream) {
    client
        .write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let mut byte = [0];
        assert_eq!(client.read(&mut byte).unwrap(), 1, "it was closed");
        answer.push(byte[0]);
    }
}

#[test]
fn what_moved_and_what_is_left_is_told() {
    // The old one stays at least as long as its request.
    let mut supervisor = Setup::demo().args(["--probation", "2s"]).start();
    let mut events = supervisor.events();
    let mut idle: Vec<TcpStream> = (0..5).map(|_| used(&supervisor)).collect();
    let mut busy = used(&supervisor);
    busy.write_all(b"GET /slow?ms=1500&key=a HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    // It has been begun when one that came later is answered.
    drop(used(&supervisor));
    let reload = supervisor.heirloom(["reload", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&reload.stdout).unwrap();
    assert_eq!(report["outcome"], "committed", "{report}");
    // By then the slow request may have ended as well.
    assert!(report["connections_moved"].as_u64() >= Some(5), "{report}");
    let first = events.wait_for("moved");
    let text = first["text"].as_str().unwrap();
    assert!(text.contains("5 http/1; left to drain: 1 http/1"), "{text}");
    // When the request is over, its connection goes as well, and the old one ends.
    supervisor.wait_until("all have moved", |status| {
        let told = &status["services"][0]["last_handover"];
        told["connections_moved"] == 6 && told["connections"]["left"] == serde_json::json!({})
    });
    for client in &mut idle {
        ask(client);
    }
    let last = events.wait_for("drained");
    let text = last["text"].as_str().unwrap();
    assert!(text.contains("6 http/1; cut off: 0"), "{text}");
    drop((idle, busy));
    supervisor.stop();
}
