//! The supervisor: its table, and what the daemon makes of the world.
//!
//! Mirrors `daemon/runner/migrations.rs`, `natives.rs`, `outcomes.rs` and `partings.rs`. That a report of
//! a failure is put off for a moment, in case a death explains it, is nothing but a message that comes
//! later, which it may here at any time.

use super::super::{Action, Event, Outcome, State, step};
use super::kernel::{self, Read};
use super::new::Life;
use super::world::{FromNew, FromOld, Mutation, ToNew, ToOld, World};

/// What it knows of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Known {
    /// All it said has been heard, and its socket is closed.
    deaf: bool,
    /// What follows from that, for a process that lives on, has been done.
    told_deaf: bool,
    /// Its death has been acted upon.
    died: bool,
}

const NOTHING: Known = Known {
    deaf: false,
    told_deaf: false,
    died: false,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Supervisor {
    pub(super) alive: bool,
    pub(super) state: State,
    /// Orders by which it begins, still to be sent.
    opening: u8,
    pending: &'static [Action],
    pub(super) verdict: Option<Outcome>,
    deadline: bool,
    timed_out: bool,
    old: Known,
    new: Known,
    /// The old one has said that it knows who owns the state.
    yielded: bool,
    /// It was told to finish and end.
    pub(super) retired: bool,
}

/// `RECEIVE` and `SEND`.
const OPENING: u8 = 2;

impl Supervisor {
    pub(super) fn new() -> Self {
        Self {
            alive: true,
            state: State::Copying,
            opening: OPENING,
            pending: &[],
            verdict: None,
            deadline: false,
            timed_out: false,
            old: NOTHING,
            new: NOTHING,
            yielded: false,
            retired: false,
        }
    }

    fn dead() -> Self {
        Self {
            alive: false,
            opening: 0,
            ..Self::new()
        }
    }

    fn is_passed_on(&self) -> bool {
        matches!(self.verdict, Some(Outcome::Committed | Outcome::Fallen))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Turn {
    /// Sends the next of the orders by which it begins.
    Open,
    /// Goes on with what the table said.
    Act,
    /// Reads what the old one says.
    HearOld,
    /// Reads what the new one says.
    HearNew,
    /// The old process is dead, and all it said has been heard.
    OldDied,
    /// The same of the new one.
    NewDied,
    /// The new one's socket is closed, and it does not end.
    NewDeaf,
    /// The time for the step is over.
    Deadline,
    /// The time to take over is over, or it is not wanted any more: the table knows no difference.
    Timeout,
    /// The old one is told to finish, which its successor waits for.
    Retire,
}

pub(super) fn turns(world: &World, out: &mut Vec<Turn>) {
    let supervisor = &world.supervisor;
    if !supervisor.alive {
        return;
    }
    if supervisor.opening > 0 {
        out.push(Turn::Open);
        return;
    }
    if !supervisor.pending.is_empty() {
        out.push(Turn::Act);
        return;
    }
    if !supervisor.old.deaf && world.from_old.peek() != Read::Nothing {
        out.push(Turn::HearOld);
    }
    if !supervisor.new.deaf && world.from_new.peek() != Read::Nothing {
        out.push(Turn::HearNew);
    }
    if supervisor.old.deaf && !supervisor.old.died && !world.old.alive {
        out.push(Turn::OldDied);
    }
    let known = &supervisor.new;
    if known.deaf && !known.died && world.new.life == Life::Dead {
        out.push(Turn::NewDied);
    }
    let may = |event| step(world.setup.purpose, supervisor.state, event).0 != supervisor.state;
    if world.setup.stalls {
        if known.deaf && !known.told_deaf && world.new.life != Life::Dead && may(Event::NewDeaf) {
            out.push(Turn::NewDeaf);
        }
        if supervisor.deadline && may(Event::Deadline) {
            out.push(Turn::Deadline);
        }
        if !supervisor.timed_out && may(Event::Timeout) {
            out.push(Turn::Timeout);
        }
    }
    let may_retire = supervisor.yielded || world.setup.has(Mutation::RetireForgotten);
    if supervisor.is_passed_on() && may_retire && !supervisor.retired {
        out.push(Turn::Retire);
    }
}

pub(super) fn take(world: &mut World, turn: Turn) {
    match turn {
        Turn::Open => open(world),
        Turn::Act => go_on(world),
        Turn::HearOld => hear_old(world),
        Turn::HearNew => hear_new(world),
        Turn::OldDied => {
            world.supervisor.old.died = true;
            happens(world, Event::OldDied);
        }
        Turn::NewDied => {
            world.supervisor.new.died = true;
            happens(world, Event::NewDied);
        }
        Turn::NewDeaf => {
            world.supervisor.new.told_deaf = true;
            happens(world, Event::NewDeaf);
        }
        Turn::Deadline => happens(world, Event::Deadline),
        Turn::Timeout => {
            world.supervisor.timed_out = true;
            happens(world, Event::Timeout);
        }
        Turn::Retire => {
            world.supervisor.retired = true;
            let _queued = world.to_old.send(ToOld::Retire);
        }
    }
}

/// Its end. What it had not given away of the pipe and the lifeline goes with it.
pub(super) fn die(world: &mut World) {
    kernel::close(&mut world.from_old, &mut world.to_old);
    kernel::close(&mut world.from_new, &mut world.to_new);
    let unsent = world.supervisor.opening;
    if unsent > 0 {
        world.pipe.close_writer();
        world.lifeline.close_reader();
    }
    if unsent == OPENING {
        world.pipe.close_reader();
        world.lifeline.close_writer();
    }
    world.supervisor = Supervisor::dead();
}

/// `Runner::migrate`. An order that cannot be sent goes to a process that is dying.
fn open(world: &mut World) {
    let _queued = match world.supervisor.opening {
        OPENING => world.to_new.send(ToNew::Receive),
        _last => world.to_old.send(ToOld::Send),
    };
    world.supervisor.opening -= 1;
}

fn hear_old(world: &mut World) {
    let said = match world.from_old.receive() {
        Read::Message(said) => said,
        Read::Reset if !world.setup.has(Mutation::ResetIsTheEnd) => return,
        Read::Reset | Read::End => {
            world.supervisor.old.deaf = true;
            return;
        }
        Read::Nothing => return,
    };
    let supervisor = &mut world.supervisor;
    supervisor.yielded |= said == FromOld::Yielded;
    if supervisor.verdict.is_some() {
        // `Runner::said_afterwards`: what was taken for called off was a commit.
        let known = supervisor.is_passed_on() || world.setup.has(Mutation::LateYieldPassedOver);
        if said == FromOld::Yielded && !known {
            world.old.doomed = world.old.alive;
        }
        return;
    }
    let event = match said {
        FromOld::Converged => Event::Converged,
        FromOld::Frozen => Event::Frozen,
        FromOld::Failed => Event::Failed,
        FromOld::Thawed => Event::Thawed,
        FromOld::Yielded => Event::Yielded,
    };
    happens(world, event);
}

fn hear_new(world: &mut World) {
    let event = match world.from_new.receive() {
        Read::Message(FromNew::Ready) => Event::Ready,
        Read::Message(FromNew::Reject) => Event::Reject,
        Read::Message(FromNew::Committed) => Event::Committed,
        Read::Reset if !world.setup.has(Mutation::ResetIsTheEnd) => return,
        Read::Reset | Read::End => {
            world.supervisor.new.deaf = true;
            return;
        }
        Read::Nothing => return,
    };
    happens(world, event);
}

/// `Runner::transfer`, up to and with the first thing that somebody else can see.
fn happens(world: &mut World, event: Event) {
    // A migration that is over is forgotten.
    if world.supervisor.verdict.is_some() {
        return;
    }
    let (state, actions) = step(world.setup.purpose, world.supervisor.state, event);
    world.supervisor.state = state;
    world.supervisor.pending = actions;
    go_on(world);
}

fn go_on(world: &mut World) {
    while let Some((action, rest)) = world.supervisor.pending.split_first() {
        world.supervisor.pending = rest;
        if act(world, *action) {
            break;
        }
    }
    // What only concerns itself needs no turn of its own.
    while let Some((action @ (Action::Allow | Action::Done(_)), rest)) =
        world.supervisor.pending.split_first()
    {
        world.supervisor.pending = rest;
        act(world, *action);
    }
}

/// `Runner::carry_out`; says whether anybody else can see it.
fn act(world: &mut World, action: Action) -> bool {
    match action {
        Action::Freeze => world.to_old.send(ToOld::Freeze),
        Action::Commit if world.setup.has(Mutation::AloneThoughNot) => {
            world.to_new.send(ToNew::CommitAlone)
        }
        Action::Commit => world.to_new.send(ToNew::Commit),
        Action::CommitAlone => world.to_new.send(ToNew::CommitAlone),
        Action::AbortOld => world.to_old.send(ToOld::Abort),
        Action::AbortNew => world.to_new.send(ToNew::Abort),
        Action::KillNew => {
            let dead = world.new.life == Life::Dead;
            world.new.doomed = !dead;
            !dead
        }
        Action::Allow => {
            world.supervisor.deadline = true;
            false
        }
        Action::Done(outcome) => {
            world.supervisor.verdict = Some(outcome);
            world.supervisor.deadline = false;
            false
        }
    }
}
