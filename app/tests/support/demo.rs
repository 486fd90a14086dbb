//! Asking a demo for one thing, each time on a connection of its own, where the answer must be a good one.

use std::net::SocketAddr;

use super::{Client, Generation, Start, Version};

/// How to start a generation of a version.
pub(crate) fn start(version: Version, generation: u64) -> Start<'static> {
    Start {
        version,
        generation,
        ..Start::default()
    }
}

pub(crate) fn get(address: SocketAddr, target: &str) -> String {
    let answer = Client::connect(address).unwrap().get(target).unwrap();
    assert_eq!(answer.status, 200, "{target}: {}", answer.body);
    answer.body
}

pub(crate) fn post(address: SocketAddr, target: &str, body: &str) -> String {
    let answer = Client::connect(address).unwrap().post(target, body);
    let answer = answer.unwrap();
    assert!(
        matches!(answer.status, 200 | 201),
        "{target}: {}",
        answer.body
    );
    answer.body
}

/// A field of a JSON answer, as text.
pub(crate) fn field(json: &str, name: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    match &json[name] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn open_session(address: SocketAddr, user: &str) -> String {
    let body = format!(r#"{{"user":"{user}"}}"#);
    field(&post(address, "/sessions", &body), "token")
}

/// Ends a generation that has handed over, and checks that it ended well.
pub(crate) fn ended(generation: Generation) {
    let (status, stderr) = generation.wait();
    assert!(status.success(), "{stderr}");
}
