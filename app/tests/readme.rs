//! The example in the readme is a program that works, and the one that is shown.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::path::{Path, PathBuf};

use support::{Client, Start, supervisor::Native, tcp_listener};

/// The example as it was built beside the demo.
fn visits() -> PathBuf {
    let demo = Path::new(env!("CARGO_BIN_EXE_heirloom-demo"));
    let path = demo.with_file_name("examples").join("visits");
    assert!(
        path.exists(),
        "{} is not built; run `cargo build -p heirloom-app --examples`",
        path.display()
    );
    path
}

#[test]
fn the_readme_shows_the_example_as_it_is() {
    let readme = include_str!("../../README.md");
    let shown = readme
        .split_once("```rust\n")
        .and_then(|(_, rest)| rest.split_once("```\n"))
        .map(|(code, _)| code);
    let example = include_str!("../examples/visits.rs");
    // But for its head, which says what the text around it says.
    let (_, code) = example.split_once("\n\n").unwrap();
    assert_eq!(shown, Some(code));
}

#[test]
fn the_example_goes_on_where_it_was() {
    let listener = tcp_listener();
    let mut client = Client::connect(listener.local_addr().unwrap()).unwrap();
    let start = |generation| Start {
        generation,
        program: Some(visits()),
        ..Start::default()
    };
    let mut serving = Native::first(&listener, &start(1));
    for generation in 2..=4 {
        let visits = client.get("/page").unwrap().body;
        assert_eq!(visits, (generation - 1).to_string());
        let (next, old) = serving.hand_over(&listener, &start(generation));
        let (status, stderr) = old.wait();
        assert!(status.success(), "{stderr}");
        serving = next;
    }
    assert_eq!(client.get("/page").unwrap().body, "4");
    assert_eq!(client.get("/other").unwrap().body, "1");
}
