//! The old generation: its machine, and what its library makes of the world.
//!
//! Mirrors `app/src/state/keeper/giver.rs`, `giver/orders.rs` and `giving.rs`. Each call of [`act`] is
//! one thing that somebody else can see; what nobody sees goes along with it.

use heirloom_handover::source::{self, Action, Event, State};

use super::kernel::{self, Read};
use super::world::{Frame, FromOld, Mutation, Said, ToOld, World};

/// Rounds of changes behind the base. More only repeat the same.
const MOST_ROUNDS: u8 = 1;

/// How far the copy is, as `giving::Stage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// No copy is under way.
    None,
    Base,
    /// A round's end was written; `left` more may follow.
    Unapplied {
        left: u8,
    },
    Round {
        left: u8,
    },
    Converged,
    /// Frozen: the rest is to be written, then the end mark, then the stream is closed.
    Rest,
    EndMark,
    Ending,
    Complete,
}

/// Where clients' writes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Gate {
    Open,
    Tracking,
    Closed,
    Elsewhere,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Old {
    pub(super) alive: bool,
    /// The supervisor has killed it; it dies when the system comes to it.
    pub(super) doomed: bool,
    pub(super) state: State,
    /// What is still to be done of what the table said.
    pub(super) pending: &'static [Action],
    /// What follows from an action that was done.
    next: Option<Event>,
    /// `Event::Retire` or `Event::SupervisorGone`, heard while it was open who owns the state.
    unheeded: Option<Event>,
    supervised: bool,
    pub(super) stage: Stage,
    pub(super) gate: Gate,
    /// Writes in its state.
    pub(super) writes: u8,
    /// The freeze's deadline runs.
    pub(super) deadline: bool,
    /// It finishes and will end.
    pub(super) draining: bool,
    /// It was told to finish.
    pub(super) told_to_finish: bool,
    /// The lifeline is shut down, and not read to its end yet.
    shut: bool,
}

impl Old {
    pub(super) fn new() -> Self {
        Self {
            alive: true,
            doomed: false,
            state: State::Serving,
            pending: &[],
            next: None,
            unheeded: None,
            supervised: true,
            stage: Stage::None,
            gate: Gate::Open,
            writes: 0,
            deadline: false,
            draining: false,
            told_to_finish: false,
            shut: false,
        }
    }

    /// All that is left of a dead one: what it held and whether it was to end are over.
    pub(super) fn dead(&self) -> Self {
        Self {
            alive: false,
            told_to_finish: self.told_to_finish,
            state: self.state,
            ..Self::new()
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.alive && matches!(self.gate, Gate::Open | Gate::Tracking)
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.pending.is_empty() || self.next.is_some()
    }

    /// Nothing of a migration is left, and the state is its own.
    pub(super) fn is_as_before(&self) -> bool {
        self.state == State::Serving
            && self.gate == Gate::Open
            && self.stage == Stage::None
            && !self.deadline
            && self.unheeded.is_none()
    }
}

/// Something it can do by itself, beside going on with what it has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Turn {
    /// Goes on with what the table said.
    Act,
    /// Reads from the supervisor's socket.
    Listen,
    /// Reads from the lifeline; if that says that a round was applied, it is `close` enough, or not.
    Hear { close: bool },
    /// Writes the next part of the copy.
    Copy,
    /// Finds that the state has stood still for as long as it may.
    Deadline,
    /// Something of its own breaks the copy: a fault.
    Break,
    /// It has finished what it had begun, and ends.
    Exit,
}

/// What it may do now.
pub(super) fn turns(world: &World, out: &mut Vec<Turn>) {
    let old = &world.old;
    if !old.alive {
        return;
    }
    if old.is_busy() {
        out.push(Turn::Act);
        return;
    }
    if old.supervised && world.to_old.peek() != Read::Nothing {
        out.push(Turn::Listen);
    }
    if old.stage != Stage::None {
        match (world.lifeline.peek(), old.stage) {
            (Read::Nothing, _) => {}
            (Read::Message(Said::Applied), Stage::Unapplied { left }) => {
                out.push(Turn::Hear { close: true });
                if left > 0 {
                    out.push(Turn::Hear { close: false });
                }
            }
            _something => out.push(Turn::Hear { close: true }),
        }
    }
    match old.stage {
        Stage::Base | Stage::Round { .. } | Stage::Rest | Stage::EndMark | Stage::Ending => {
            out.push(Turn::Copy);
        }
        Stage::None | Stage::Unapplied { .. } | Stage::Converged | Stage::Complete => {}
    }
    if old.deadline && world.setup.stalls {
        out.push(Turn::Deadline);
    }
    if old.stage != Stage::None && world.faults > 0 && world.setup.disturbances {
        out.push(Turn::Break);
    }
    if old.draining && matches!(old.gate, Gate::Open | Gate::Elsewhere) {
        out.push(Turn::Exit);
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
        Turn::Hear { close } => {
            if let Some(event) = hear(world, close) {
                happens(world, event);
            }
        }
        Turn::Copy => {
            if let Some(event) = copy(world) {
                happens(world, event);
            }
        }
        Turn::Deadline => happens(world, Event::Deadline),
        Turn::Break => {
            world.faults -= 1;
            happens(world, Event::Broken);
        }
        Turn::Exit => die(world),
    }
}

/// Its end, by whatever cause: the system closes all it had.
pub(super) fn die(world: &mut World) {
    world.old = world.old.dead();
    kernel::close(&mut world.to_old, &mut world.from_old);
    world.pipe.close_writer();
    world.lifeline.close_reader();
}

/// `Keeper::wait` and `Giver::ordered`.
fn listen(world: &mut World) -> Option<Event> {
    let old = &mut world.old;
    match world.to_old.receive() {
        Read::Message(order) => match order {
            ToOld::Send => {
                old.stage = Stage::Base;
                old.gate = Gate::Tracking;
                Some(Event::Send)
            }
            ToOld::Freeze => (old.stage != Stage::None).then_some(Event::Freeze),
            ToOld::Abort => Some(Event::Abort),
            ToOld::Retire => {
                old.told_to_finish = true;
                Some(Event::Retire)
            }
        },
        Read::Reset if !world.setup.has(Mutation::ResetIsTheEnd) => None,
        Read::Reset | Read::End => {
            old.supervised = false;
            Some(Event::SupervisorGone)
        }
        Read::Nothing => None,
    }
}

/// `Giver::hear` and `Giving::applied`.
fn hear(world: &mut World, close: bool) -> Option<Event> {
    let old = &mut world.old;
    match world.lifeline.receive() {
        Read::Message(Said::Applied) => {
            let Stage::Unapplied { left } = old.stage else {
                return None;
            };
            if close {
                old.stage = Stage::Converged;
                return Some(Event::Converged);
            }
            old.stage = Stage::Round { left: left - 1 };
            None
        }
        Read::Message(Said::Committed) => Some(Event::Committed),
        Read::Reset => None,
        Read::End => Some(Event::PeerGone),
        Read::Nothing => None,
    }
}

/// `Giving::go_on`.
fn copy(world: &mut World) -> Option<Event> {
    let old = &mut world.old;
    let (frame, next) = match old.stage {
        Stage::Base => {
            let left = MOST_ROUNDS;
            (Frame::Changes(old.writes), Stage::Unapplied { left })
        }
        Stage::Round { left } => (Frame::Changes(old.writes), Stage::Unapplied { left }),
        Stage::Rest => (Frame::Rest(old.writes), Stage::EndMark),
        Stage::EndMark => (Frame::End, Stage::Ending),
        Stage::Ending => {
            old.stage = Stage::Complete;
            world.pipe.close_writer();
            return Some(if world.setup.rehearsal() {
                Event::CompleteRehearsal
            } else {
                Event::Complete
            });
        }
        Stage::None | Stage::Unapplied { .. } | Stage::Converged | Stage::Complete => return None,
    };
    old.stage = next;
    let written = world.pipe.send(frame);
    (!written).then_some(Event::Broken)
}

/// `Giver::feed`, up to and with the first thing that somebody else can see.
fn happens(world: &mut World, event: Event) {
    let old = &mut world.old;
    let before = old.state;
    let (state, actions) = source::step(before, event);
    old.state = state;
    old.pending = mutated(world.setup.mutation, actions);
    let old = &mut world.old;
    let nobodys = matches!(before, State::Freezing | State::Frozen | State::Resolving);
    match event {
        Event::Retire if nobodys && !world.setup.has(Mutation::RetireForgotten) => {
            old.unheeded = Some(event);
        }
        // An order to finish says more.
        Event::SupervisorGone if nobodys && !world.setup.has(Mutation::SupervisorsEndForgotten) => {
            old.unheeded.get_or_insert(event);
        }
        Event::Retire
        | Event::SupervisorGone
        | Event::Send
        | Event::Converged
        | Event::Freeze
        | Event::Complete
        | Event::CompleteRehearsal
        | Event::Broken
        | Event::Abort
        | Event::Deadline
        | Event::Committed
        | Event::PeerGone
        | Event::ResolvedOurs
        | Event::ResolvedTheirs
        // Here there is no way back: what follows from one is explored by itself.
        | Event::Follow
        | Event::Returned
        | Event::StoodDown
        | Event::GiveBack => {}
    }
    go_on(world);
}

fn mutated(mutation: Option<Mutation>, actions: &'static [Action]) -> &'static [Action] {
    const THAWS_FIRST: &[Action] = &[Action::Thaw, Action::TellThawed, Action::EndCopy];
    match (mutation, actions) {
        (Some(Mutation::ThawedToldLater), [Action::TellThawed, Action::Thaw, Action::EndCopy]) => {
            THAWS_FIRST
        }
        _as_it_is => actions,
    }
}

fn go_on(world: &mut World) {
    while let Some((action, rest)) = world.old.pending.split_first() {
        // The lifeline is looked at in two calls.
        if *action == Action::Resolve && !world.old.shut {
            world.old.shut = true;
            if !world.setup.has(Mutation::LifelineLeftOpen) {
                world.lifeline.shut_reading();
            }
            return;
        }
        world.old.pending = rest;
        let seen = act(world, *action);
        if rest.is_empty() {
            settle(&mut world.old);
        }
        if seen {
            return;
        }
    }
    if let Some(event) = world.old.next.take() {
        happens(world, event);
    }
}

/// What was put off is acted upon once it is clear who owns the state.
fn settle(old: &mut Old) {
    if matches!(old.state, State::Serving | State::Yielded) && old.next.is_none() {
        old.next = old.unheeded.take();
    }
}

/// `Giver::act`; says whether anybody else can see it.
fn act(world: &mut World, action: Action) -> bool {
    let old = &mut world.old;
    let said = match action {
        // The copy began when the order came.
        Action::Copy | Action::Refuse => return false,
        // There is no way back here.
        Action::TellReturned | Action::TellStoodDown | Action::Offer => return false,
        Action::TellConverged => FromOld::Converged,
        Action::TellFrozen => FromOld::Frozen,
        Action::TellFailed => FromOld::Failed,
        Action::TellThawed => FromOld::Thawed,
        Action::TellYielded => FromOld::Yielded,
        Action::Freeze => {
            old.gate = Gate::Closed;
            old.deadline = true;
            old.stage = Stage::Rest;
            return true;
        }
        Action::EndCopy => {
            old.stage = Stage::None;
            if old.gate == Gate::Tracking {
                old.gate = Gate::Open;
            }
            world.pipe.close_writer();
            // Connections go over it from here on; otherwise it is closed.
            if old.state != State::Yielded {
                world.lifeline.close_reader();
            }
            return true;
        }
        Action::Resolve => {
            old.shut = false;
            world.old.next = Some(look(world));
            return true;
        }
        Action::Thaw => {
            old.gate = Gate::Open;
            old.deadline = false;
            return true;
        }
        Action::Yield => {
            old.gate = Gate::Elsewhere;
            old.deadline = false;
            return false;
        }
        Action::Drain => {
            old.draining = true;
            return false;
        }
    };
    // A supervisor that is gone takes nothing; nobody minds.
    let _queued = world.from_old.send(said);
    true
}

/// `Lifeline::resolve`, behind the shutdown.
fn look(world: &mut World) -> Event {
    loop {
        match world.lifeline.receive() {
            Read::Message(Said::Committed) => return Event::ResolvedTheirs,
            Read::Message(Said::Applied) => {}
            Read::Reset => {}
            Read::End | Read::Nothing => return Event::ResolvedOurs,
        }
    }
}
