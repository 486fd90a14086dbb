//! What must hold at every moment, and when nothing more can happen.

use heirloom_handover::{source, target};

use super::super::Outcome;
use super::new::Life;
use super::old::Gate;
use super::world::{Owner, Setup, World};

/// What holds at every moment.
pub(super) fn always(world: &World) -> Result<(), &'static str> {
    let (old, new) = (&world.old, &world.new);
    if old.is_open() && new.is_open() {
        return Err("two generations own the state");
    }
    if old.is_open() && old.writes != world.acknowledged {
        return Err("the old generation owns a state that lacks a write that was answered");
    }
    if new.is_open() {
        if !new.whole {
            return Err("the new generation owns a copy that is not complete");
        }
        if new.writes != world.acknowledged {
            return Err("the new generation owns a state that lacks a write that was answered");
        }
        if world.setup.rehearsal() {
            return Err("a rehearsal was committed");
        }
    }
    if old.is_open() && world.last_owner == Owner::New {
        return Err("the old generation serves a state that the new one has owned");
    }
    match world.supervisor.verdict {
        Some(Outcome::Committed | Outcome::Fallen) if world.last_owner == Owner::Old => {
            Err("the supervisor reports a commit that never was")
        }
        Some(Outcome::Rehearsed) if !new.whole && new.life == Life::Alive => {
            Err("the supervisor reports a rehearsal of a copy that is not complete")
        }
        Some(Outcome::Committed | Outcome::Fallen | Outcome::Rehearsed | Outcome::Aborted)
        | None => Ok(()),
    }
}

/// What holds when nothing more can happen, whatever went wrong before.
pub(super) fn at_the_end(world: &World) -> Result<(), &'static str> {
    let (old, new, supervisor) = (&world.old, &world.new, &world.supervisor);
    if supervisor.alive && supervisor.verdict.is_none() {
        return Err("the supervisor waits for ever");
    }
    if old.alive {
        match old.state {
            source::State::Serving if old.is_as_before() => {}
            source::State::Yielded if old.draining => {}
            source::State::Yielded => {
                return Err("the old generation has yielded and never finishes");
            }
            source::State::Serving => {
                return Err("the old generation serves, and is not as it was");
            }
            source::State::Copying
            | source::State::Converged
            | source::State::Freezing
            | source::State::Frozen
            | source::State::Rehearsed
            | source::State::Resolving
            | source::State::Reserve => return Err("the old generation waits for ever"),
        }
        if old.told_to_finish && !old.draining {
            return Err("the old generation was told to finish and never does");
        }
    }
    match new.life {
        Life::Alive if new.state != target::State::Owning || !new.is_open() => {
            return Err("the new generation waits for ever");
        }
        Life::Leaving => return Err("the new generation never ends"),
        Life::Alive | Life::Dead => {}
    }
    let owner_lives = match world.last_owner {
        Owner::Old => old.alive,
        Owner::New => new.life == Life::Alive,
    };
    if owner_lives && !old.is_open() && !new.is_open() {
        return Err("nobody owns the state, though its last owner lives");
    }
    agreement(world)
}

/// The supervisor's report is what the two have come to, as far as they are there to ask.
fn agreement(world: &World) -> Result<(), &'static str> {
    let (old, new) = (&world.old, &world.new);
    let old_has_yielded = !old.alive || old.gate == Gate::Elsewhere;
    let old_serves = !old.alive || old.is_open();
    let agree = match world.supervisor.verdict {
        None => true,
        Some(Outcome::Committed) => old_has_yielded && world.last_owner == Owner::New,
        Some(Outcome::Fallen) => old_has_yielded && new.life == Life::Dead,
        Some(Outcome::Aborted) => old_serves && new.life == Life::Dead,
        Some(Outcome::Rehearsed) => old_serves && new.life == Life::Dead,
    };
    if agree {
        Ok(())
    } else {
        Err("the supervisor reports something else than the generations have come to")
    }
}

/// What holds at the end of a run in which nobody was slow, beside the rest.
pub(super) fn without_stalls(world: &World, setup: &Setup) -> Result<(), &'static str> {
    let new = &world.new;
    let verdict = world.supervisor.verdict;
    let as_wished = match setup.rehearsal() {
        true => Outcome::Rehearsed,
        false => Outcome::Committed,
    };
    let unharmed = world.faults == setup.faults;
    if unharmed && verdict != Some(as_wished) {
        return Err("nothing went wrong, and it did not come about");
    }
    let one_died = world.faults + 1 == setup.faults && !setup.disturbances;
    if one_died && !setup.rehearsal() && world.bequeathed && !new.is_open() {
        return Err("the old generation died behind a complete copy, and its state is lost");
    }
    Ok(())
}
