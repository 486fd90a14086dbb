//! Handovers explored in full: the three machines joined by a simulated system, in every order in which
//! anything can happen.
//!
//! Owns what is explored, and that each error that is put in on purpose is found. How the three make the
//! world into their machines' events is in [`old`], [`new`] and [`supervisor`], each a mirror of the code
//! it names; what lies between them is in [`kernel`], what must hold in [`invariants`]. What is left out,
//! and how to read what is found: docs/model.md.

mod invariants;
mod kernel;
mod new;
mod old;
mod story;
mod supervisor;
mod world;

use story::story;
use world::{Mutation, Setup, World};

use crate::core::exploration::explore;

use super::{Event, Purpose, State, step};

/// Any one thing goes wrong, and anybody may be as slow as he likes.
const ONE_FAULT: Setup = Setup {
    purpose: Purpose::Handover,
    faults: 1,
    stalls: true,
    disturbances: true,
    mutation: None,
};

/// One of them dies, and nobody is slow.
const ONE_DEATH: Setup = Setup {
    stalls: false,
    disturbances: false,
    ..ONE_FAULT
};

/// Explores all of it, and says how much that is; it must not become less unnoticed.
fn holds(name: &str, setup: Setup, least: usize) {
    match explore(World::new(setup)) {
        Ok(explored) => {
            println!("{name}: {explored}");
            assert!(explored.states >= least, "only {} states", explored.states);
        }
        Err(wrong) => panic!("{name}: {}\n{}", wrong.what, story(setup, &wrong.way)),
    }
}

/// With an error put in, the exploration fails, and says what it ought to.
fn finds(mutation: Mutation, setup: Setup, expected: &str) {
    let mutation = Some(mutation);
    let setup = Setup { mutation, ..setup };
    let Err(wrong) = explore(World::new(setup)) else {
        panic!("{mutation:?} is not found");
    };
    let story = story(setup, &wrong.way);
    println!("{mutation:?}: {}\n{story}", wrong.what);
    assert_eq!(wrong.what, expected);
}

#[test]
fn one_fault_with_any_stall() {
    holds("one fault, any stall", ONE_FAULT, 55_000);
}

#[test]
fn two_faults_with_any_stall() {
    let setup = Setup {
        faults: 2,
        ..ONE_FAULT
    };
    holds("two faults, any stall", setup, 160_000);
}

#[test]
fn three_deaths_with_any_stall() {
    let setup = Setup {
        faults: 3,
        disturbances: false,
        ..ONE_FAULT
    };
    holds("three deaths, any stall", setup, 25_000);
}

#[test]
fn one_death_without_stalls() {
    holds("one death, no stall", ONE_DEATH, 2_000);
}

#[test]
fn a_rehearsal_with_two_faults_and_any_stall() {
    let setup = Setup {
        purpose: Purpose::Rehearsal,
        faults: 2,
        ..ONE_FAULT
    };
    holds("rehearsal, two faults, any stall", setup, 90_000);
}

#[test]
fn a_rehearsal_with_one_death_without_stalls() {
    let setup = Setup {
        purpose: Purpose::Rehearsal,
        ..ONE_DEATH
    };
    holds("rehearsal, one death, no stall", setup, 1_700);
}

/// The exploration takes the one for the other.
#[test]
fn a_time_out_and_a_change_of_mind_are_the_same_to_the_table() {
    for purpose in [Purpose::Handover, Purpose::Rehearsal] {
        for state in [
            State::Copying,
            State::Freezing,
            State::Frozen,
            State::Verified,
            State::Orphaned,
            State::Committing,
            State::Yielded,
            State::Alone,
            State::Resolving,
            State::Ended,
        ] {
            let timeout = step(purpose, state, Event::Timeout);
            assert_eq!(timeout, step(purpose, state, Event::Cancel), "{state:?}");
        }
    }
}

#[test]
fn a_thaw_without_shutting_the_lifeline_down_is_found() {
    finds(
        Mutation::LifelineLeftOpen,
        ONE_FAULT,
        "the old generation serves a state that the new one has owned",
    );
}

#[test]
fn a_copy_taken_for_complete_without_its_end_mark_is_found() {
    finds(
        Mutation::EndMarkNotAwaited,
        ONE_FAULT,
        "the new generation owns a copy that is not complete",
    );
}

#[test]
fn a_commit_alone_while_the_old_one_lives_is_found() {
    finds(
        Mutation::AloneThoughNot,
        ONE_FAULT,
        "two generations own the state",
    );
}

#[test]
fn a_retire_before_it_has_yielded_that_is_not_remembered_is_found() {
    finds(
        Mutation::RetireForgotten,
        ONE_FAULT,
        "the old generation was told to finish and never does",
    );
}

#[test]
fn a_supervisors_end_that_is_not_remembered_is_found() {
    finds(
        Mutation::SupervisorsEndForgotten,
        ONE_FAULT,
        "the old generation has yielded and never finishes",
    );
}

#[test]
fn a_thaw_told_after_the_first_answer_is_found() {
    finds(
        Mutation::ThawedToldLater,
        ONE_FAULT,
        "the new generation owns a state that lacks a write that was answered",
    );
}

#[test]
fn a_reset_connection_that_is_not_read_to_its_end_is_found() {
    let setup = Setup {
        faults: 2,
        ..ONE_FAULT
    };
    finds(
        Mutation::ResetIsTheEnd,
        setup,
        "the new generation owns a state that lacks a write that was answered",
    );
}

#[test]
fn a_refusal_that_is_not_asked_about_is_found() {
    finds(
        Mutation::RefusalIsFinal,
        ONE_DEATH,
        "the old generation died behind a complete copy, and its state is lost",
    );
}

#[test]
fn a_late_yield_that_is_passed_over_is_found() {
    finds(
        Mutation::LateYieldPassedOver,
        ONE_FAULT,
        "the old generation has yielded and never finishes",
    );
}
