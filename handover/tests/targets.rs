//! Fuzz targets: what a supervisor and its programs read of each other. Under `cargo test` each runs some
//! thousand inputs; `cargo bolero test -p heirloom-handover NAME` goes on from there.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use bolero::check;
use heirloom_handover::{message, notify};

/// Enough for a smoke run of a second or two.
const ITERATIONS: usize = 10_000;

#[test]
fn any_order_and_report() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| {
            // What is understood is said again in the same words.
            if let Ok(order) = message::Order::parse(input) {
                assert_eq!(message::Order::parse(&order.to_bytes()).unwrap(), order);
            }
            if let Ok(report) = message::Report::parse(input) {
                assert_eq!(message::Report::parse(&report.to_bytes()).unwrap(), report);
            }
        });
}

#[test]
fn any_keys_of_a_known_message() {
    const NAMES: [&str; 8] = [
        "SEND", "RECEIVE", "COMMIT", "ABORT", "HELLO", "FROZEN", "MOVED", "SAVED",
    ];
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| {
            let Some((first, rest)) = input.split_first() else {
                return;
            };
            let name = NAMES[usize::from(*first) % NAMES.len()];
            let message = [b"MESSAGE=", name.as_bytes(), b"\nMIGRATION=1\n", rest].concat();
            let _either = message::Order::parse(&message);
            let _either = message::Report::parse(&message);
        });
}

#[test]
fn any_notification() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| {
            let _either = notify::parse(input);
        });
}
