//! Connections over handovers: clients that never retry and never connect again, in every state a
//! connection can be in when its generation gives way. Nothing is closed under them, each answer comes
//! from one generation, and what they changed is changed once.
//!
//! [`wire`] is a client that says byte by byte what it wants, [`crew`] many of them at work.

mod crew;
mod draining;
mod failures;
mod frames;
mod limits;
mod others;
mod requests;
mod scale;
mod streams;
mod talks;
mod wire;

use crate::harness::{Setup, Supervisor, built};

/// Handovers of one test.
const HANDOVERS: u64 = 50;

/// The demo of version 1 or 2, for a command line.
fn demo(version: u64) -> String {
    let name = match version {
        1 => "heirloom-demo",
        _ => "heirloom-demo-v2",
    };
    built(name).to_str().unwrap().to_owned()
}

/// A supervisor of the demo with a listener `chat`.
fn talking() -> Setup {
    Setup::demo().args(["--listen", "chat=tcp:127.0.0.1:0"])
}

/// Hands over so often, each time once those who serve have answered somebody.
fn hand_over(supervisor: &Supervisor, times: u64) {
    for _ in 0..times {
        supervisor.reload();
    }
}

/// The same, from version 1 to version 2 and back.
fn alternate(supervisor: &Supervisor, times: u64) {
    for turn in 0..times {
        let said = supervisor.heirloom(["reload", "--", &demo(2 - turn % 2)]);
        assert!(said.status.success(), "{said:?}\n{}", supervisor.log());
    }
}

/// The number behind `name=` in an answer.
fn number(answer: &str, name: &str) -> u64 {
    let name = format!("{name}=");
    let value = answer
        .split([' ', ',', '\n'])
        .find_map(|word| word.strip_prefix(&name));
    let value = value.unwrap_or_else(|| panic!("no {name} in {answer:?}"));
    value.parse().unwrap()
}
