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
            understood_is_said_again(input);
        });
}

/// All keys that messages have, but the first.
const KEYS: [&str; 21] = [
    "ALONE",
    "AT_USEC",
    "BYTES",
    "CUT",
    "ENTRIES",
    "FREEZE_USEC",
    "FROM",
    "LEFT",
    "MIGRATION",
    "MIGRATION",
    "MOVED",
    "PAUSE_USEC",
    "PROTOCOL",
    "PURPOSE",
    "READS",
    "REASON",
    "ROUNDS",
    "STALL_USEC",
    "TO",
    "VERSION",
    "OF_A_LATER_VERSION",
];

/// Messages of the known form, with keys that are known, any values, in any order. What is understood
/// is said again in the same words.
#[test]
fn any_values_of_known_keys() {
    const NAMES: [&str; 22] = [
        "BEGIN",
        "RECEIVE",
        "RESTORE",
        "SEND",
        "FREEZE",
        "COMMIT",
        "ABORT",
        "RETIRE",
        "SAVE",
        "STOP",
        "HELLO",
        "CONVERGED",
        "FROZEN",
        "READY",
        "REJECT",
        "COMMITTED",
        "FAILED",
        "THAWED",
        "YIELDED",
        "MOVED",
        "GONE",
        "SAVED",
    ];
    check!()
        .with_iterations(ITERATIONS)
        .with_type::<(u8, Vec<(u8, u8, String, u64)>)>()
        .for_each(|(name, lines)| {
            let name = NAMES[usize::from(*name) % NAMES.len()];
            // With the one key that nearly all have.
            let mut text = format!("MESSAGE={name}\nMIGRATION=1\n");
            for (key, form, word, number) in lines {
                let key = KEYS[usize::from(*key) % KEYS.len()];
                let value = match form % 6 {
                    0 => word.replace('\n', " "),
                    1 => number.to_string(),
                    2 => (number % 3).to_string(),
                    3 => format!("http/1:{number},{}:{number}", word.replace('\n', "")),
                    4 => ["handover", "rehearsal", ""][*number as usize % 3].to_owned(),
                    _ => format!("sessions\tSession\t{number}\t{number:032x}"),
                };
                text.push_str(&format!("{key}={value}\n"));
            }
            understood_is_said_again(text.as_bytes());
        });
}

fn understood_is_said_again(message: &[u8]) {
    if let Ok(order) = message::Order::parse(message) {
        assert_eq!(message::Order::parse(&order.to_bytes()).unwrap(), order);
    }
    if let Ok(report) = message::Report::parse(message) {
        assert_eq!(message::Report::parse(&report.to_bytes()).unwrap(), report);
    }
}

#[test]
fn any_notification() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| {
            let _either = notify::parse(input);
        });
}

/// Notifications of known keys, any values, in any order: what a descriptor is stored under is fit for
/// `LISTEN_FDNAMES`, and what is shown is short.
#[test]
fn any_values_of_a_known_notification() {
    const KEYS: [&str; 14] = [
        "READY",
        "STATUS",
        "STOPPING",
        "RELOADING",
        "MONOTONIC_USEC",
        "EXTEND_TIMEOUT_USEC",
        "WATCHDOG",
        "WATCHDOG_USEC",
        "ERRNO",
        "FDSTORE",
        "FDNAME",
        "FDSTOREREMOVE",
        "FDPOLL",
        "BARRIER",
    ];
    check!()
        .with_iterations(ITERATIONS)
        .with_type::<Vec<(u8, u8, String, u64)>>()
        .for_each(|lines| {
            let mut text = String::new();
            for (key, form, word, number) in lines {
                let key = KEYS[usize::from(*key) % KEYS.len()];
                let value = match form % 4 {
                    0 => word.replace('\n', " "),
                    1 => number.to_string(),
                    2 => "1".to_owned(),
                    _ => word.repeat(usize::from(*form)).replace('\n', ""),
                };
                text.push_str(&format!("{key}={value}\n"));
            }
            let Ok(understood) = notify::parse(text.as_bytes()) else {
                return;
            };
            if let Some(status) = understood.status {
                assert!(status.len() <= 1024, "{status}");
            }
            if let Some(notify::Store::Keep { name, .. } | notify::Store::Remove { name }) =
                understood.store
            {
                assert!(
                    !name.is_empty() && !name.contains([':', '\n', '\0']),
                    "{name}"
                );
            }
        });
}
