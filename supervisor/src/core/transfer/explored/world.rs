//! The three and what lies between them, and every step that can follow.

use std::hash::{Hash, Hasher};

use super::super::Purpose;
use super::invariants;
use super::kernel::Channel;
use super::new::{self, Life, New};
use super::old::{self, Gate, Old};
use super::supervisor::{self, Supervisor};
use crate::core::exploration;

/// Writes that clients make. One is enough to find one that is lost, for it may come at any moment, and
/// no other write changes what becomes of it.
const MOST_WRITES: u8 = 1;

/// Orders to the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ToOld {
    Send,
    Freeze,
    Abort,
    Retire,
}

/// Reports of the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FromOld {
    Converged,
    Frozen,
    Failed,
    Thawed,
    Yielded,
}

/// Orders to the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ToNew {
    Receive,
    Commit,
    CommitAlone,
    Abort,
}

/// Reports of the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FromNew {
    Ready,
    Reject,
    Committed,
}

/// What the new one says on the lifeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Said {
    Applied,
    Committed,
}

/// What the stream consists of. A number is how many writes the reader has when it has applied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Frame {
    /// The base, or a round.
    Changes(u8),
    /// What had changed when the state stood still.
    Rest(u8),
    End,
}

/// Whose the state is, or was when it was last anybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Old,
    New,
}

/// What is broken on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mutation {
    /// The old one thaws without shutting the lifeline down first.
    LifelineLeftOpen,
    /// The new one takes the end of the stream for the end of the copy.
    EndMarkNotAwaited,
    /// `COMMIT` is sent with `ALONE=1` though the old one lives.
    AloneThoughNot,
    /// `RETIRE` is sent before the old one knows who owns the state, and it does not come back to it.
    RetireForgotten,
    /// The old one does not come back to the supervisor's end either.
    SupervisorsEndForgotten,
    /// The old one answers before it has said that it thawed.
    ThawedToldLater,
    /// A reset connection is taken for one on which nothing more is to be read.
    ResetIsTheEnd,
    /// The new one ends as soon as its commit is refused.
    RefusalIsFinal,
    /// A `YIELDED` after the handover was given up is passed over.
    LateYieldPassedOver,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) purpose: Purpose,
    /// Deaths, and disturbances if they are allowed, at most.
    pub(super) faults: u8,
    /// Whether anybody may be so slow that a deadline passes: then each may pass as soon as it runs.
    pub(super) stalls: bool,
    /// Whether the copy may break, be refused, and the old one be told to finish, at any time.
    pub(super) disturbances: bool,
    pub(super) mutation: Option<Mutation>,
}

/// It is the same in every world of an exploration.
impl Hash for Setup {
    fn hash<H: Hasher>(&self, _hasher: &mut H) {}
}

impl Setup {
    pub(super) fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub(super) fn rehearsal(&self) -> bool {
        self.purpose == Purpose::Rehearsal
    }
}

/// All of it, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) setup: Setup,
    pub(super) old: Old,
    pub(super) new: New,
    pub(super) supervisor: Supervisor,
    pub(super) to_old: Channel<ToOld>,
    pub(super) from_old: Channel<FromOld>,
    pub(super) to_new: Channel<ToNew>,
    pub(super) from_new: Channel<FromNew>,
    pub(super) lifeline: Channel<Said>,
    pub(super) pipe: Channel<Frame>,
    /// How many may still happen.
    pub(super) faults: u8,
    /// Writes that were answered.
    pub(super) acknowledged: u8,
    pub(super) last_owner: Owner,
    /// The old one died when the copy was complete and it had not taken the state back.
    pub(super) bequeathed: bool,
}

/// One step of one of them, or of the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Old(old::Turn),
    New(new::Turn),
    Supervisor(supervisor::Turn),
    /// A client's write is carried out and answered.
    Write(Owner),
    /// The system ends a process that was killed.
    OldKilled,
    NewKilled,
    /// Faults.
    OldDies,
    NewDies,
    SupervisorDies,
    /// The old one is told to finish: a fault as far as the handover is concerned.
    RetireComes,
}

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        Self {
            setup,
            old: Old::new(),
            new: New::started(),
            supervisor: Supervisor::new(),
            to_old: Channel::new(),
            from_old: Channel::new(),
            to_new: Channel::new(),
            from_new: Channel::new(),
            lifeline: Channel::new(),
            pipe: Channel::new(),
            faults: setup.faults,
            acknowledged: 0,
            last_owner: Owner::Old,
            bequeathed: false,
        }
    }
}

impl exploration::World for World {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let (mut old, mut new, mut supervisor) = (Vec::new(), Vec::new(), Vec::new());
        old::turns(self, &mut old);
        new::turns(self, &mut new);
        supervisor::turns(self, &mut supervisor);
        steps.extend(old.into_iter().map(Step::Old));
        steps.extend(new.into_iter().map(Step::New));
        steps.extend(supervisor.into_iter().map(Step::Supervisor));
        if self.acknowledged < MOST_WRITES {
            if self.old.is_open() {
                steps.push(Step::Write(Owner::Old));
            }
            if self.new.is_open() {
                steps.push(Step::Write(Owner::New));
            }
        }
        if self.old.doomed {
            steps.push(Step::OldKilled);
        }
        if self.new.doomed {
            steps.push(Step::NewKilled);
        }
        if self.faults > 0 {
            if self.old.alive {
                steps.push(Step::OldDies);
                if self.setup.disturbances && self.supervisor.alive && !self.old.told_to_finish {
                    steps.push(Step::RetireComes);
                }
            }
            if self.new.life != Life::Dead {
                steps.push(Step::NewDies);
            }
            if self.supervisor.alive {
                steps.push(Step::SupervisorDies);
            }
        }
        steps
    }

    fn after(&self, step: Step) -> Self {
        let mut world = self.clone();
        match step {
            Step::Old(turn) => old::take(&mut world, turn),
            Step::New(turn) => new::take(&mut world, turn),
            Step::Supervisor(turn) => supervisor::take(&mut world, turn),
            Step::Write(owner) => {
                world.acknowledged += 1;
                match owner {
                    Owner::Old => world.old.writes += 1,
                    Owner::New => world.new.writes += 1,
                }
            }
            Step::OldKilled => old::die(&mut world),
            Step::NewKilled => new::die(&mut world),
            Step::OldDies => {
                world.faults -= 1;
                let complete = matches!(world.old.stage, old::Stage::Ending | old::Stage::Complete);
                world.bequeathed = complete && world.old.gate == Gate::Closed;
                old::die(&mut world);
            }
            Step::NewDies => {
                world.faults -= 1;
                new::die(&mut world);
            }
            Step::SupervisorDies => {
                world.faults -= 1;
                supervisor::die(&mut world);
            }
            Step::RetireComes => {
                world.faults -= 1;
                let _queued = world.to_old.send(ToOld::Retire);
            }
        }
        world
    }

    /// That somebody may yet write or die is nothing to wait for.
    fn is_optional(step: &Step) -> bool {
        match step {
            Step::Write(_)
            | Step::OldDies
            | Step::NewDies
            | Step::SupervisorDies
            | Step::RetireComes
            | Step::Old(old::Turn::Break)
            | Step::New(new::Turn::Refuse) => true,
            Step::Old(_)
            | Step::New(_)
            | Step::Supervisor(_)
            | Step::OldKilled
            | Step::NewKilled => false,
        }
    }

    fn always(&self) -> Result<(), &'static str> {
        invariants::always(self)
    }

    fn at_rest(&self) -> Result<(), &'static str> {
        invariants::at_the_end(self)?;
        if self.setup.stalls {
            return Ok(());
        }
        invariants::without_stalls(self, &self.setup)
    }
}
