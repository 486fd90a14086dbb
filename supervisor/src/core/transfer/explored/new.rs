//! The new generation: its machine, and what its library makes of the world.
//!
//! Mirrors `app/src/state/keeper/taker.rs` and `taking.rs`. Each turn is one thing that somebody else
//! can see.

use heirloom_handover::target::{self, Action, Event, State};

use super::kernel::{self, Read};
use super::world::{Frame, FromNew, Mutation, Owner, Said, ToNew, World};

/// Whether its process is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Life {
    Alive,
    /// It has given up and closed what it had; its process is about to end.
    Leaving,
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct New {
    pub(super) life: Life,
    /// The supervisor has killed it; it dies when the system comes to it.
    pub(super) doomed: bool,
    pub(super) state: State,
    pending: &'static [Action],
    next: Option<Event>,
    supervised: bool,
    /// It has read the end mark.
    pub(super) whole: bool,
    /// Its gate.
    open: bool,
    /// Writes in its state.
    pub(super) writes: u8,
}

impl New {
    pub(super) fn started() -> Self {
        Self {
            life: Life::Alive,
            doomed: false,
            state: State::Greeting,
            pending: &[],
            next: None,
            supervised: true,
            whole: false,
            open: false,
            writes: 0,
        }
    }

    fn gone(life: Life, doomed: bool) -> Self {
        Self {
            life,
            doomed: doomed && life == Life::Leaving,
            state: State::Dismissed,
            ..Self::started()
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.life == Life::Alive && self.open
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Turn {
    /// Goes on with what the table said.
    Act,
    /// Reads from the supervisor's socket.
    Listen,
    /// Reads from the stream.
    Read,
    /// Has waited long enough to be told why its commit was refused.
    Deadline,
    /// Finds that it cannot take the copy, for a reason of its own: a fault.
    Refuse,
    /// Its process ends.
    Exit,
}

pub(super) fn turns(world: &World, out: &mut Vec<Turn>) {
    let new = &world.new;
    match new.life {
        Life::Dead => return,
        Life::Leaving => {
            out.push(Turn::Exit);
            return;
        }
        Life::Alive => {}
    }
    if !new.pending.is_empty() || new.next.is_some() {
        out.push(Turn::Act);
        return;
    }
    // Once it owns the state it is the old generation of another handover.
    if new.state == State::Owning {
        return;
    }
    if new.supervised && world.to_new.peek() != Read::Nothing {
        out.push(Turn::Listen);
    }
    if new.state == State::Refused && world.setup.stalls {
        out.push(Turn::Deadline);
    }
    if new.state == State::Receiving {
        if world.pipe.peek() != Read::Nothing {
            out.push(Turn::Read);
        }
        if world.faults > 0 && world.setup.disturbances {
            out.push(Turn::Refuse);
        }
    }
}

pub(super) fn take(world: &mut World, turn: Turn) {
    match turn {
        Turn::Act => go_on(world),
        Turn::Listen => {
            if let Some(event) = listen(world) {
                happens(world, event);
            }
        }
        Turn::Read => {
            if let Some(event) = read(world) {
                happens(world, event);
            }
        }
        Turn::Deadline => happens(world, Event::Deadline),
        Turn::Refuse => {
            world.faults -= 1;
            happens(world, Event::Unusable);
        }
        Turn::Exit => die(world),
    }
}

/// Its end, by whatever cause.
pub(super) fn die(world: &mut World) {
    close_all(world);
    world.new = New::gone(Life::Dead, false);
}

fn close_all(world: &mut World) {
    kernel::close(&mut world.to_new, &mut world.from_new);
    world.pipe.close_reader();
    world.lifeline.close_writer();
}

/// `Keeper::wait` and `Taker::ordered`.
fn listen(world: &mut World) -> Option<Event> {
    match world.to_new.receive() {
        Read::Message(order) => Some(match order {
            ToNew::Receive => Event::Receive,
            ToNew::Commit => Event::Commit,
            ToNew::CommitAlone => Event::CommitAlone,
            ToNew::Abort => Event::Abort,
        }),
        Read::Reset if !world.setup.has(Mutation::ResetIsTheEnd) => None,
        Read::Reset | Read::End => {
            world.new.supervised = false;
            Some(Event::SupervisorGone)
        }
        Read::Nothing => None,
    }
}

/// `Taking::go_on`.
fn read(world: &mut World) -> Option<Event> {
    let new = &mut world.new;
    match world.pipe.receive() {
        Read::Message(Frame::Changes(writes)) => {
            new.writes = writes;
            // That nobody hears it is no error.
            let _queued = world.lifeline.send(Said::Applied);
            None
        }
        Read::Message(Frame::Rest(writes)) => {
            new.writes = writes;
            None
        }
        Read::Message(Frame::End) => {
            new.whole = true;
            None
        }
        Read::End if new.whole || world.setup.has(Mutation::EndMarkNotAwaited) => {
            Some(Event::Verified)
        }
        Read::End | Read::Reset => Some(Event::Unusable),
        Read::Nothing => None,
    }
}

fn happens(world: &mut World, event: Event) {
    let refused = (world.new.state, event) == (State::Committing, Event::Refused);
    if refused && world.setup.has(Mutation::RefusalIsFinal) {
        world.new.state = State::Dismissed;
        world.new.pending = &[Action::GiveUp];
        return go_on(world);
    }
    let (state, actions) = target::step(world.new.state, event);
    world.new.state = state;
    world.new.pending = actions;
    go_on(world);
}

fn go_on(world: &mut World) {
    while let Some((action, rest)) = world.new.pending.split_first() {
        world.new.pending = rest;
        if act(world, *action) {
            return;
        }
    }
    if let Some(event) = world.new.next.take() {
        happens(world, event);
    }
}

/// `Taker::act`; says whether anybody else can see it.
fn act(world: &mut World, action: Action) -> bool {
    let said = match action {
        Action::Read => return false,
        Action::TellReady => FromNew::Ready,
        Action::TellReject => FromNew::Reject,
        Action::TellCommitted => FromNew::Committed,
        Action::SayCommitted => {
            let queued = world.lifeline.send(Said::Committed);
            if queued {
                world.last_owner = Owner::New;
            }
            world.new.next = Some(if queued {
                Event::Queued
            } else {
                Event::Refused
            });
            return true;
        }
        Action::Own => {
            world.new.open = true;
            world.last_owner = Owner::New;
            return true;
        }
        Action::GiveUp => {
            close_all(world);
            world.new = New::gone(Life::Leaving, world.new.doomed);
            return true;
        }
    };
    let _queued = world.from_new.send(said);
    true
}
