//! The probation of a state, explored: the three machines of a way back, joined by a simulated system, in every
//! order in which anything can happen. `docs/model.md` says what is in it and what must hold.
//!
//! Here is the search, breadth first, and what it is asked; the world and its steps are [`world`]'s.

mod world;

use std::collections::{HashMap, VecDeque};

use world::{Mutation, Setup, Step, World};

/// What an exploration came to.
#[derive(Debug)]
struct Explored {
    states: usize,
    steps: usize,
    ends: usize,
}

/// The way to a world in which something is wrong.
#[derive(Debug)]
#[expect(dead_code, reason = "all of it is printed")]
struct Counterexample {
    wrong: &'static str,
    way: Vec<Step>,
    world: World,
}

/// Every world that can come about, each checked.
fn explore(setup: Setup) -> Result<Explored, Box<Counterexample>> {
    let mut seen: HashMap<World, Option<(World, Step)>> = HashMap::new();
    let first = World::new(setup);
    let mut queue = VecDeque::from([first.clone()]);
    seen.insert(first, None);
    let (mut steps, mut ends) = (0, 0);
    while let Some(world) = queue.pop_front() {
        let possible = world.steps();
        let wrong = world.always().err().or_else(|| {
            let rests = possible.iter().all(|step| step.is_optional());
            rests.then(|| world.at_rest().err()).flatten()
        });
        if let Some(wrong) = wrong {
            let mut way = Vec::new();
            let mut at = world.clone();
            while let Some(Some((before, step))) = seen.get(&at) {
                way.push(*step);
                at = before.clone();
            }
            way.reverse();
            return Err(Box::new(Counterexample { wrong, way, world }));
        }
        ends += usize::from(possible.is_empty());
        for step in possible {
            steps += 1;
            let mut next = world.clone();
            next.take(step);
            if !seen.contains_key(&next) {
                seen.insert(next.clone(), Some((world.clone(), step)));
                queue.push_back(next);
            }
        }
    }
    Ok(Explored {
        states: seen.len(),
        steps,
        ends,
    })
}

/// Explores without an error put in; at least so much must have been seen.
fn holds(what: &str, faults: u8, stalls: u8, at_least: usize) {
    let setup = Setup {
        faults,
        stalls,
        mutation: None,
    };
    match explore(setup) {
        Ok(Explored {
            states,
            steps,
            ends,
        }) => {
            println!("{what}: {states} states, {steps} steps, {ends} ends");
            assert!(states >= at_least, "only {states} states");
        }
        Err(found) => panic!("{what}: {found:#?}"),
    }
}

#[test]
fn a_probation_with_one_fault_and_a_stall() {
    holds("a probation, one fault, one stall", 1, 1, 13_000);
}

#[test]
fn a_probation_with_two_faults_and_a_stall() {
    holds("a probation, two faults, one stall", 2, 1, 34_000);
}

#[test]
fn a_probation_with_three_faults_and_two_stalls() {
    holds("a probation, three faults, two stalls", 3, 2, 71_000);
}

/// The exploration finds this error, and says so in these words.
fn finds(mutation: Mutation, words: &str) {
    let setup = Setup {
        faults: 2,
        stalls: 2,
        mutation: Some(mutation),
    };
    let found = explore(setup).expect_err("the error was not found");
    assert!(found.wrong.contains(words), "{found:#?}");
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
