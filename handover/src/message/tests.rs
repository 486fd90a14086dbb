//! Every message is read back, and nothing else is taken for one.

use std::time::Duration;

use super::*;
use proptest::prelude::*;

fn reads() -> Vec<Reads> {
    let one = Reads {
        section: "sessions".to_owned(),
        schema: "session".to_owned(),
        version: 2,
        fingerprint: 7,
    };
    let raw = Reads {
        section: "notes".to_owned(),
        schema: String::new(),
        version: 0,
        fingerprint: u128::MAX,
    };
    vec![one, raw]
}

fn counts(counts: &[(&str, u64)]) -> Counts {
    let owned = counts
        .iter()
        .map(|(protocol, count)| ((*protocol).to_owned(), *count));
    Counts(owned.collect())
}

fn orders() -> Vec<Order> {
    let (migration, reason) = (4, "no room".to_owned());
    vec![
        Order::Begin,
        Order::Receive {
            migration,
            from: 6,
            bytes_max: None,
            way_back: None,
        },
        Order::Receive {
            migration,
            from: 6,
            bytes_max: None,
            way_back: Some(reads()),
        },
        Order::StandDown { migration },
        Order::Return { migration },
        Order::Restore {
            migration,
            bytes_max: Some(1 << 40),
        },
        Order::Send {
            migration,
            to: 7,
            purpose: Purpose::Rehearsal,
            pause: Duration::from_millis(5),
            freeze: Duration::from_secs(1),
            reads: reads(),
            bytes_max: Some(1),
            way_back: None,
        },
        Order::Send {
            migration,
            to: 7,
            purpose: Purpose::Handover,
            pause: Duration::from_millis(5),
            freeze: Duration::from_secs(1),
            reads: reads(),
            bytes_max: None,
            way_back: Some(Duration::from_secs(10)),
        },
        Order::Freeze { migration },
        Order::Commit {
            migration,
            alone: false,
        },
        Order::Commit {
            migration,
            alone: true,
        },
        Order::Abort { migration, reason },
        Order::Retire,
        Order::Who,
        Order::Save {
            migration,
            bytes_max: None,
        },
        Order::Stop {
            migration,
            bytes_max: Some(1 << 30),
        },
    ]
}

fn reports() -> Vec<Report> {
    let (migration, at_usec, rounds, bytes) = (4, 5, 2, 1 << 40);
    let reason = "no room".to_owned();
    vec![
        Report::Hello {
            protocol: 1,
            version: "1.0.0".to_owned(),
            reads: reads(),
            way_back: true,
        },
        Report::Converged {
            migration,
            rounds,
            bytes,
        },
        Report::Frozen {
            migration,
            at_usec,
            rounds,
            bytes,
            stall_usec: 90,
        },
        Report::Ready {
            migration,
            entries: 9,
            bytes,
        },
        Report::Reject {
            migration,
            reason: reason.clone(),
        },
        Report::Committed { migration, at_usec },
        Report::Failed {
            migration,
            reason: reason.clone(),
        },
        Report::Thawed {
            migration,
            at_usec,
            reason: reason.clone(),
        },
        Report::Returned {
            migration,
            at_usec,
            reason: reason.clone(),
        },
        Report::StoodDown {
            migration,
            reason: reason.clone(),
        },
        Report::WayLost { migration, reason },
        Report::Yielded { migration, at_usec },
        Report::Moved {
            migration,
            moved: counts(&[("http/1", 800), ("session", 12)]),
            left: counts(&[]),
        },
        Report::Gone {
            migration,
            moved: counts(&[("http/1", 801)]),
            cut: 1,
        },
        Report::Saved {
            migration,
            entries: 9,
            bytes,
            rounds,
            pause_usec: 12,
        },
        Report::Phase {
            migration,
            phase: Standing::Frozen,
        },
    ]
}

#[test]
fn what_is_written_is_read() {
    for order in orders() {
        assert_eq!(Order::parse(&order.to_bytes()), Ok(order));
    }
    for report in reports() {
        assert_eq!(Report::parse(&report.to_bytes()), Ok(report));
    }
}

#[test]
fn the_text_is_that_of_the_protocol() {
    assert_eq!(
        Report::Hello {
            protocol: 1,
            version: "1.0.0".to_owned(),
            reads: reads(),
            way_back: false,
        }
        .to_bytes(),
        b"MESSAGE=HELLO\nPROTOCOL=1\nVERSION=1.0.0\n\
          READS=sessions\tsession\t2\t00000000000000000000000000000007\n\
          READS=notes\t\t0\tffffffffffffffffffffffffffffffff\n"
    );
}

#[test]
fn a_message_without_what_it_needs_is_refused() {
    for order in orders() {
        let text = String::from_utf8(order.to_bytes()).unwrap();
        let name = text.lines().next().unwrap();
        // Only those without any key are whole by their name alone.
        let whole = matches!(order, Order::Begin | Order::Retire | Order::Who);
        assert_eq!(Order::parse(name.as_bytes()).is_ok(), whole, "{name}");
    }
    assert_eq!(Order::parse(b""), Err(BadMessage::NoName));
    assert_eq!(
        Order::parse(b"MIGRATION=1\nMESSAGE=FREEZE"),
        Err(BadMessage::NoName)
    );
    assert_eq!(
        Order::parse(b"MESSAGE=DANCE"),
        Err(BadMessage::Unknown("DANCE".to_owned()))
    );
    assert_eq!(
        Order::parse(b"MESSAGE=FREEZE\nMIGRATION=-1"),
        Err(BadMessage::Value {
            key: "MIGRATION",
            value: "-1".to_owned()
        })
    );
    assert!(Report::parse(b"MESSAGE=HELLO\nPROTOCOL=1\nREADS=a\tb\t1\tff").is_err());
}

#[test]
fn what_people_read_has_no_control_characters() {
    let report = Report::parse(b"MESSAGE=FAILED\nMIGRATION=1\nREASON=\x1b[31mno\rway").unwrap();
    assert_eq!(
        report,
        Report::Failed {
            migration: 1,
            reason: " [31mno way".to_owned()
        }
    );
    assert_eq!(Report::parse(&report.to_bytes()), Ok(report));
    let hello = Report::parse(b"MESSAGE=HELLO\nPROTOCOL=1\nVERSION=1\x072").unwrap();
    assert_eq!(Report::parse(&hello.to_bytes()), Ok(hello));
}

#[test]
fn a_reason_is_one_line_of_bounded_length() {
    let reason = format!("first\nMESSAGE=COMMITTED {}", "ä".repeat(2000));
    let order = Order::Abort {
        migration: 1,
        reason,
    };
    let bytes = order.to_bytes();
    let Ok(Order::Abort { reason, .. }) = Order::parse(&bytes) else {
        panic!("it was an abort");
    };
    assert!(reason.starts_with("first MESSAGE=COMMITTED"));
    assert!(reason.len() <= LONGEST_REASON_BYTES);
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Order::parse(&bytes);
        let _ = Report::parse(&bytes);
    }

    #[test]
    fn any_change_of_a_message_is_answered(index in 0_usize..11, at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = orders().swap_remove(index).to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = Order::parse(&bytes);
    }
}
