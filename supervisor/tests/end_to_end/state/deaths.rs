//! The supervisor is killed in the middle of a handover. The next one finishes it or calls it off; one
//! generation owns the state, and all that was acknowledged is in it.

use super::{
    client::{Client, Habit},
    failures::MUCH,
    writers::{answers_come, while_writing},
};
use crate::harness::{Setup, is_alive};

/// Kills the supervisor when this has happened in a handover, under load; then the next one serves, and
/// hands over.
fn killed_when(kind: &str) {
    let first = Setup::demo().start();
    let address = first.address("http");
    Client::new(address, Habit::Fresh).post(MUCH, "");
    let (_, former) = first.serving();
    let mut last = None;
    while_writing(&first, || {
        let mut events = first.events();
        let reload = first.begin(["reload"]);
        events.wait_for_generation(kind, if kind == "taken-over" { 2 } else { 1 });
        first.kill();
        let (status, said) = first.finish(reload);
        assert_eq!(status, Some(4), "{said}");
        answers_come(address, "slow");
        let mut second = first.start_again();
        second.settle();
        let (generation, pid) = second.serving();
        if generation == 1 {
            assert_eq!(pid, former);
        } else {
            let service = second.service();
            let mut all = service["generations"].as_array().unwrap().iter();
            let stays = all.any(|one| one["phase"] == "reserve" && one["pid"] == former);
            assert_eq!(is_alive(former), stays, "{}", second.log());
        }
        answers_come(address, "slow");
        second.reload();
        second.settle();
        last = Some(second);
    });
    if let Some(second) = last {
        second.stop();
    }
}

#[test]
fn a_supervisor_killed_while_the_state_is_copied_leaves_one_owner() {
    killed_when("copying");
}

#[test]
fn a_supervisor_killed_when_the_copy_has_converged_leaves_one_owner() {
    killed_when("converged");
}

#[test]
fn a_supervisor_killed_while_the_state_stands_still_leaves_one_owner() {
    killed_when("frozen");
}

#[test]
fn a_supervisor_killed_once_the_new_generation_owns_the_state_leaves_one_owner() {
    killed_when("taken-over");
}
