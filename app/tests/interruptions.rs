//! The supervisor, or the old generation, is gone or out of step just at the commit. The test plays the
//! supervisor, and stops the side that is to find everything at once.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::os::fd::{AsFd, OwnedFd};

use heirloom_handover::message::{Order, Purpose, Report};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use support::{Client, PATIENCE, Start, supervisor::Native, tcp_listener};

fn start(generation: u64) -> Start<'static> {
    Start {
        generation,
        ..Start::default()
    }
}

fn commit(migration: u64, alone: bool) -> Order {
    Order::Commit { migration, alone }
}

fn abort(migration: u64) -> Order {
    let reason = "the test says so".to_owned();
    Order::Abort { migration, reason }
}

/// Adds one to a counter; its value then.
fn add(address: std::net::SocketAddr) -> String {
    let answer = Client::connect(address).unwrap().post("/counters/k", "");
    answer.unwrap().body
}

#[test]
fn an_old_one_that_finds_the_supervisor_gone_and_the_commit_done_ends() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let old = Native::first(&listener, &start(1));
    assert_eq!(add(address), "1");
    let new = Native::start(&listener, &start(2));
    old.agree(&new, Purpose::Handover).unwrap();
    old.generation.halt();
    new.order(&commit(2, false), &[]);
    assert!(matches!(new.says(), Report::Committed { .. }));
    let old = old.leave();
    old.signal(Signal::SIGCONT);
    let (status, stderr) = old.wait();
    assert!(status.success(), "{stderr}");
    assert_eq!(add(address), "2");
}

#[test]
fn a_commit_refused_by_a_death_is_done_alone() {
    for told_at_once in [true, false] {
        let listener = tcp_listener();
        let address = listener.local_addr().unwrap();
        let old = Native::first(&listener, &start(1));
        assert_eq!(add(address), "1");
        let new = Native::start(&listener, &start(2));
        old.agree(&new, Purpose::Handover).unwrap();
        new.generation.halt();
        new.order(&commit(2, false), &[]);
        let old = old.leave();
        old.signal(Signal::SIGKILL);
        old.wait();
        if told_at_once {
            new.order(&commit(2, true), &[]);
            new.generation.signal(Signal::SIGCONT);
        } else {
            new.generation.signal(Signal::SIGCONT);
            new.order(&commit(2, true), &[]);
        }
        assert!(matches!(new.says(), Report::Committed { .. }));
        new.generation.wait_for("READY=1");
        assert_eq!(add(address), "2");
    }
}

#[test]
fn a_commit_that_is_refused_and_never_explained_ends_the_new_one() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let old = Native::first(&listener, &start(1));
    let new = Native::start(&listener, &start(2));
    old.agree(&new, Purpose::Handover).unwrap();
    old.order(&abort(2), &[]);
    assert!(matches!(old.says(), Report::Thawed { .. }));
    new.order(&commit(2, false), &[]);
    let (status, _) = new.generation.wait();
    assert!(!status.success());
    assert_eq!(add(address), "1");
}

#[test]
fn an_abort_of_another_migration_is_passed_over() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let old = Native::first(&listener, &start(1));
    let new = Native::start(&listener, &start(2));
    old.agree(&new, Purpose::Handover).unwrap();
    old.order(&abort(1), &[]);
    // Once this one is answered, that one has been read.
    old.send_to_nobody(9);
    old.says_that_it_failed(9);
    new.order(&commit(2, false), &[]);
    assert!(matches!(new.says(), Report::Committed { .. }));
    assert!(matches!(old.says(), Report::Yielded { .. }));
    new.generation.wait_for("READY=1");
    assert_eq!(add(address), "1");
}

#[test]
fn nothing_of_a_copy_that_was_called_off_stays_open() {
    let listener = tcp_listener();
    let old = Native::first(&listener, &start(1));
    let ends = old.send_to_nobody(2);
    old.order(&abort(2), &[]);
    for end in &ends {
        wait_for_the_other_end(end);
    }
}

fn wait_for_the_other_end(end: &OwnedFd) {
    let mut polled = [PollFd::new(end.as_fd(), PollFlags::empty())];
    let limit = PollTimeout::try_from(PATIENCE).unwrap();
    let closed = poll(&mut polled, limit).unwrap() == 1;
    assert!(closed, "the other end stays open");
}
