//! The probation of a state, explored: the three machines of a way back, joined by a simulated system, in every
//! order in which anything can happen. `docs/model.md` says what is in it and what must hold.
//!
//! Here is what is explored; the world, its steps and what must hold are [`world`]'s.

mod world;

use world::{Mutation, Setup, Step, World};

use crate::core::exploration::{World as _, explore};

/// Explores without an error put in; at least so much must have been seen.
fn holds(what: &str, faults: u8, stalls: u8, at_least: usize) {
    let setup = Setup {
        faults,
        stalls,
        successors: 0,
        sockets_are_kept: false,
        mutation: None,
    };
    holds_in(what, setup, at_least);
}

fn holds_in(what: &str, setup: Setup, at_least: usize) {
    match explore(World::new(setup)) {
        Ok(explored) => {
            println!("{what}: {explored}");
            assert!(explored.states >= at_least, "only {explored}");
        }
        Err(wrong) => panic!(
            "{what}: {wrong:#?}\n{:#?}",
            at_the_end_of(setup, &wrong.way)
        ),
    }
}

/// What it has come to after these steps.
fn at_the_end_of(setup: Setup, way: &[Step]) -> World {
    let taken = |world: World, step: &Step| world.after(*step);
    way.iter().fold(World::new(setup), taken)
}

#[test]
fn a_probation_with_one_fault_and_a_stall() {
    holds("a probation, one fault, one stall", 1, 1, 50_000);
}

#[test]
fn a_probation_with_two_faults_and_a_stall() {
    holds("a probation, two faults, one stall", 2, 1, 120_000);
}

#[test]
fn a_probation_with_three_faults_and_two_stalls() {
    holds("a probation, three faults, two stalls", 3, 2, 250_000);
}

/// A probation in which supervisors die and are followed.
fn followed(sockets_are_kept: bool) -> Setup {
    Setup {
        faults: 3,
        stalls: 1,
        successors: 2,
        sockets_are_kept,
        mutation: None,
    }
}

#[test]
fn a_probation_with_three_faults_and_two_more_supervisors() {
    let what = "a probation, three faults, one stall, two more supervisors";
    holds_in(what, followed(false), 600_000);
}

#[test]
fn a_probation_with_three_faults_and_two_more_supervisors_that_have_the_sockets() {
    let what = "a probation, three faults, one stall, two more supervisors with the sockets";
    holds_in(what, followed(true), 1_100_000);
}

/// The exploration finds this error, and says so in these words.
fn finds(mutation: Mutation, words: &str) {
    let setup = Setup {
        faults: 2,
        stalls: 2,
        successors: 0,
        sockets_are_kept: false,
        mutation: Some(mutation),
    };
    finds_in(setup, words);
}

/// The same where nobody is late: what a deadline would put an end to shows.
fn finds_in_time(mutation: Mutation, words: &str) {
    let setup = Setup {
        faults: 2,
        stalls: 0,
        successors: 1,
        sockets_are_kept: false,
        mutation: Some(mutation),
    };
    finds_in(setup, words);
}

fn finds_in(setup: Setup, words: &str) {
    let found = explore(World::new(setup)).expect_err("the error was not found");
    assert!(found.what.contains(words), "{found:#?}");
}

#[test]
fn an_acknowledgement_ahead_of_the_record_is_found() {
    finds(
        Mutation::AcknowledgedFirst,
        "lacks a write that was answered",
    );
}

#[test]
fn a_loss_that_is_told_after_the_acknowledgement_is_found() {
    finds(Mutation::LossToldLater, "lacks a write that was answered");
}

#[test]
fn a_thaw_by_a_time_that_has_passed_is_found() {
    finds(Mutation::ThawsByTime, "two generations own the state");
}

#[test]
fn an_offer_that_is_taken_back_without_a_look_is_found() {
    finds(Mutation::TakenBackBlindly, "two generations own the state");
}

#[test]
fn one_in_reserve_that_is_given_up_and_left_alive_is_found() {
    finds(Mutation::LeftAlive, "that was given up");
}

#[test]
fn one_that_reads_the_fate_alone_is_found() {
    finds(
        Mutation::RecordsLeftUnread,
        "lacks a write that was answered",
    );
}

#[test]
fn a_supervisor_that_asks_nobody_is_found() {
    finds_in_time(Mutation::NobodyIsAsked, "which has nothing to say");
}

#[test]
fn a_dismissal_that_is_forgotten_is_found() {
    finds_in_time(Mutation::DismissalForgotten, "which has nothing to say");
}
