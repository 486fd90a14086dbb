//! One world of a probation: both generations, the supervisor, the clients, and what the system keeps between
//! them.
//!
//! The tables are the real ones. What carries them out is mirrored: of the one in reserve the library's
//! `way_back/following.rs`, of both `keeper/giver.rs` and `keeper/giver/back.rs`, of the new one
//! `way_back.rs`, of the supervisor `runner/reserves.rs` and `runner/inquiries.rs`. Who changes one of these
//! changes the mirror.

use std::collections::VecDeque;

use heirloom_handover::{
    reserve::{self, Event as Way},
    source,
};

use crate::core::exploration;
use crate::core::reserve::{Action, Event, Outcome, State, resumed, step};

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Setup {
    /// Deaths, and failures for which the supervisor kills.
    pub(super) faults: u8,
    /// Deadlines that pass, and a reader that does not keep up.
    pub(super) stalls: u8,
    /// Supervisors that may follow one that died.
    pub(super) successors: u8,
    /// Whether the sockets to the two generations outlive a supervisor, with all that is in them.
    pub(super) sockets_are_kept: bool,
    pub(super) mutation: Option<Mutation>,
}

/// An error put in on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mutation {
    /// A change is acknowledged before its record is written.
    AcknowledgedFirst,
    /// That the way back is lost is said after the change it lacks was acknowledged.
    LossToldLater,
    /// The one in reserve takes the state when it has waited for long enough.
    ThawsByTime,
    /// An offer that took too long is taken back without a look at the fate.
    TakenBackBlindly,
    /// The supervisor gives up one in reserve that does not answer, and does not kill it.
    LeftAlive,
    /// The one in reserve does not read the records to their end.
    RecordsLeftUnread,
    /// The next supervisor goes by the record alone.
    NobodyIsAsked,
    /// What was sent to one that had not seen the commit is passed over.
    DismissalForgotten,
}

/// A write of a client, by number.
type Writes = u8;

/// There are so many: one before and one after anything.
const WRITES: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    Lost,
    Yours,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum FromOld {
    Returned,
    StoodDown,
    /// It owns the state: the answer to a supervisor that was not there when it came to.
    Owning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum FromNew {
    Lost,
    Yielded,
}

/// The one in reserve.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Old {
    alive: bool,
    /// It has seen that it is in reserve.
    began: bool,
    /// It was told to stand down before that.
    dismissed: bool,
    way: reserve::State,
    open: bool,
    /// It is the owner, has said so, and is about to open its gate.
    thaws: bool,
    has: Writes,
    fate_ended: bool,
    records_ended: bool,
}

/// The one that has the state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct New {
    alive: bool,
    /// It was killed, and the system has not come to it yet.
    killed: bool,
    state: source::State,
    open: bool,
    has: Writes,
    /// A write that is carried out and not acknowledged; whether its record is written.
    pending: Option<(u8, bool)>,
    /// It has said, or is to say, that there is no way back any more.
    loses: bool,
    /// It offers: the gate is closed, and nothing is said yet.
    offers: bool,
    /// The fate is shut for answers, and not looked at yet.
    shut: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Supervisor {
    alive: bool,
    state: State,
    deadline: bool,
    outcome: Option<Outcome>,
    wants: bool,
    /// What the record says of both.
    recorded: (State, Option<Outcome>),
}

/// What one can see of another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    setup: Setup,
    old: Old,
    new: New,
    supervisor: Supervisor,
    pipe: VecDeque<u8>,
    pipe_written: bool,
    pipe_read: bool,
    fate: VecDeque<Fate>,
    /// What takes the offer is in the new one's queue.
    accepted: bool,
    to_old: bool,
    to_new: bool,
    /// The old one is asked what it has to do with the state.
    asked: bool,
    from_old: VecDeque<FromOld>,
    from_new: VecDeque<FromNew>,
    answered: Writes,
    written: u8,
}

/// One thing that another can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A client's write is carried out where a gate is open.
    Write,
    Record,
    ReaderTooSlow,
    SayLost,
    Acknowledge,
    OldBegins,
    OldReads,
    OldHearsFate,
    OldAccepts,
    OldThaws,
    OldIsToldToStandDown,
    OldIsAsked,
    OldWaitsTooLong,
    NewIsToldToReturn,
    NewOffers,
    NewHears,
    NewResolves,
    NewLooks,
    SupervisorWants(bool),
    SupervisorHearsOld,
    SupervisorHearsNew,
    SupervisorSeesNewDead,
    SupervisorSeesOldDead,
    SupervisorDeadline,
    SupervisorRecords,
    NextSupervisor,
    /// It misses its watchdog, or its health fails.
    NewFails,
    OldDies,
    NewDies,
    SupervisorDies,
    /// The system comes to one that was killed.
    NewEnds,
}

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        Self {
            setup,
            old: Old {
                alive: true,
                began: false,
                dismissed: false,
                way: reserve::State::Following,
                open: false,
                thaws: false,
                has: 0,
                fate_ended: false,
                records_ended: false,
            },
            new: New {
                alive: true,
                killed: false,
                state: source::State::Serving,
                open: true,
                has: 0,
                pending: None,
                loses: false,
                offers: false,
                shut: false,
            },
            supervisor: Supervisor {
                alive: true,
                state: State::Standing,
                deadline: false,
                outcome: None,
                wants: true,
                recorded: (State::Standing, None),
            },
            pipe: VecDeque::new(),
            pipe_written: true,
            pipe_read: true,
            fate: VecDeque::new(),
            accepted: false,
            to_old: false,
            to_new: false,
            asked: false,
            from_old: VecDeque::new(),
            from_new: VecDeque::new(),
            answered: 0,
            written: 0,
        }
    }

    fn has(&self, mutation: Mutation) -> bool {
        self.setup.mutation == Some(mutation)
    }

    fn follows(&self) -> bool {
        let over = matches!(self.old.way, reserve::State::Ours | reserve::State::Over);
        self.old.alive && self.old.began && !over
    }

    /// Whether the old one has its end of the fate.
    fn pipe_read_by_old(&self) -> bool {
        self.old.alive && self.old.way != reserve::State::Over
    }

    fn take(&mut self, taken: Step) {
        match taken {
            Step::Write => {
                let write = self.written;
                self.written += 1;
                if self.new.alive && self.new.open {
                    self.new.has |= bit(write);
                    self.new.pending = Some((write, false));
                } else {
                    self.old.has |= bit(write);
                    self.answered |= bit(write);
                }
            }
            Step::Record => {
                let Some((write, _)) = self.new.pending else {
                    return;
                };
                if self.pipe_written {
                    if self.pipe_read {
                        self.pipe.push_back(write);
                    } else {
                        self.pipe_written = false;
                    }
                }
                let answered = self.answered & bit(write) != 0;
                self.new.pending = (!answered).then_some((write, true));
            }
            Step::ReaderTooSlow => {
                self.setup.stalls -= 1;
                let Some((write, _)) = self.new.pending else {
                    return;
                };
                self.new.loses = true;
                self.new.pending = Some((write, true));
            }
            Step::SayLost => {
                self.new.loses = false;
                self.fate.push_back(Fate::Lost);
                self.pipe_written = false;
                self.tell_of_new(FromNew::Lost);
            }
            Step::Acknowledge => {
                let Some((write, recorded)) = self.new.pending else {
                    return;
                };
                self.answered |= bit(write);
                if recorded {
                    self.new.pending = None;
                }
            }
            Step::OldBegins => {
                self.old.began = true;
                if self.old.dismissed {
                    self.way(Way::StandDown);
                }
            }
            Step::OldReads => match self.pipe.pop_front() {
                Some(write) => self.old.has |= bit(write),
                None => {
                    self.old.records_ended = true;
                    self.way(Way::RecordsEnd);
                }
            },
            Step::OldHearsFate => match self.fate.pop_front() {
                Some(Fate::Lost) => self.way(Way::Lost),
                Some(Fate::Yours) => self.way(Way::Offer),
                None => {
                    self.old.fate_ended = true;
                    if self.has(Mutation::RecordsLeftUnread) {
                        self.way(Way::RecordsEnd);
                    }
                    self.way(Way::FateEnd);
                }
            },
            Step::OldAccepts => {
                let heard =
                    self.new.alive && self.new.state == source::State::Frozen && !self.new.shut;
                self.accepted |= heard;
                self.way(if heard { Way::Queued } else { Way::Refused });
            }
            Step::OldThaws => {
                self.old.thaws = false;
                self.old.open = true;
            }
            Step::OldIsToldToStandDown => {
                self.to_old = false;
                if !self.old.began {
                    self.old.dismissed = !self.has(Mutation::DismissalForgotten);
                } else if self.old.way == reserve::State::Over {
                    self.tell_of_old(FromOld::StoodDown);
                } else {
                    self.way(Way::StandDown);
                }
            }
            Step::OldIsAsked => {
                self.asked = false;
                match self.old.way {
                    reserve::State::Ours => self.tell_of_old(FromOld::Owning),
                    reserve::State::Over => self.tell_of_old(FromOld::StoodDown),
                    // It is in reserve.
                    reserve::State::Following
                    | reserve::State::Offered
                    | reserve::State::Orphaned
                    | reserve::State::Ended
                    | reserve::State::Accepting
                    | reserve::State::Doubting => {}
                }
            }
            Step::OldWaitsTooLong => {
                self.setup.stalls -= 1;
                if self.has(Mutation::ThawsByTime) {
                    self.own();
                } else {
                    self.way(Way::StandDown);
                }
            }
            Step::NewIsToldToReturn => {
                self.to_new = false;
                if self.new.state == source::State::Serving && self.pipe_written {
                    self.source(source::Event::GiveBack);
                    // What runs is finished first; nothing new begins.
                    self.new.open = false;
                    self.new.offers = true;
                } else {
                    self.tell_of_new(FromNew::Lost);
                }
            }
            Step::NewOffers => {
                self.new.offers = false;
                if self.pipe_written && self.pipe_read_by_old() {
                    self.fate.push_back(Fate::Yours);
                    self.pipe_written = false;
                } else {
                    self.source(source::Event::PeerGone);
                    self.new.shut = true;
                }
            }
            Step::NewHears => {
                if self.accepted {
                    self.source(source::Event::Committed);
                    self.tell_of_new(FromNew::Yielded);
                } else {
                    self.source(source::Event::PeerGone);
                    self.new.shut = true;
                }
            }
            Step::NewResolves => {
                self.setup.stalls -= 1;
                self.source(source::Event::Deadline);
                self.new.shut = true;
            }
            Step::NewLooks => {
                self.new.shut = false;
                if self.accepted && !self.has(Mutation::TakenBackBlindly) {
                    self.source(source::Event::ResolvedTheirs);
                    self.tell_of_new(FromNew::Yielded);
                } else {
                    self.source(source::Event::ResolvedOurs);
                    self.fate.push_back(Fate::Lost);
                    self.tell_of_new(FromNew::Lost);
                    self.new.open = true;
                }
            }
            Step::SupervisorWants(back) => {
                self.supervisor.wants = false;
                self.supervise(if back {
                    Event::GiveBack
                } else {
                    Event::Dismiss
                });
            }
            Step::SupervisorHearsOld => match self.from_old.pop_front() {
                Some(FromOld::Returned) => self.supervise(Event::Returned),
                Some(FromOld::StoodDown) => self.supervise(Event::StoodDown),
                Some(FromOld::Owning) => {
                    if self.new.alive && self.supervisor.state == State::Standing {
                        self.supervisor.state = State::Returning;
                    }
                    self.supervise(Event::Returned);
                }
                None => {}
            },
            Step::SupervisorHearsNew => match self.from_new.pop_front() {
                Some(FromNew::Lost) => self.supervise(Event::Lost),
                Some(FromNew::Yielded) | None => {}
            },
            Step::SupervisorSeesNewDead => self.supervise(Event::NewDied),
            Step::SupervisorSeesOldDead => self.supervise(Event::OldDied),
            Step::SupervisorDeadline => {
                self.setup.stalls -= 1;
                self.supervise(Event::Deadline);
            }
            Step::NewFails => {
                self.setup.faults -= 1;
                self.supervise(Event::NewDied);
            }
            Step::OldDies => {
                self.setup.faults -= 1;
                self.old_dies();
            }
            Step::NewDies => {
                self.setup.faults -= 1;
                self.new_dies();
            }
            Step::NewEnds => self.new_dies(),
            Step::SupervisorDies => {
                self.setup.faults -= 1;
                self.supervisor.alive = false;
                self.supervisor.deadline = false;
                self.asked = false;
                if !self.setup.sockets_are_kept {
                    self.from_old.clear();
                    self.from_new.clear();
                }
            }
            Step::SupervisorRecords => {
                self.supervisor.recorded = (self.supervisor.state, self.supervisor.outcome);
            }
            Step::NextSupervisor => {
                self.setup.successors -= 1;
                self.supervisor.alive = true;
                (self.supervisor.state, self.supervisor.outcome) = self.supervisor.recorded;
                self.asked = self.old.alive && !self.has(Mutation::NobodyIsAsked);
                self.act(resumed(self.supervisor.state));
            }
        }
    }

    /// `Following::feed`.
    fn way(&mut self, event: Way) {
        let (state, actions) = reserve::step(self.old.way, event);
        self.old.way = state;
        for action in actions {
            match action {
                // In a step of its own.
                reserve::Action::Accept => {}
                reserve::Action::Own => self.own(),
                reserve::Action::Leave => {
                    self.pipe_read = false;
                    self.pipe.clear();
                    self.tell_of_old(FromOld::StoodDown);
                }
            }
        }
    }

    /// What `Returned` leads to: first said, then done.
    fn own(&mut self) {
        self.old.way = reserve::State::Ours;
        self.tell_of_old(FromOld::Returned);
        self.old.thaws = true;
    }

    /// What is said to nobody is lost, and so is what is said before another supervisor has been met.
    fn tell_of_old(&mut self, report: FromOld) {
        let is_met = self.supervisor.alive && !self.asked;
        if is_met || self.setup.sockets_are_kept {
            self.from_old.push_back(report);
        }
    }

    fn tell_of_new(&mut self, report: FromNew) {
        if self.supervisor.alive || self.setup.sockets_are_kept {
            self.from_new.push_back(report);
        }
    }

    fn source(&mut self, event: source::Event) {
        self.new.state = source::step(self.new.state, event).0;
    }

    /// `Runner::reserve_within`.
    fn supervise(&mut self, event: Event) {
        let (state, actions) = step(self.supervisor.state, event);
        self.supervisor.state = state;
        self.act(actions);
    }

    fn act(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::StandDown => self.to_old = true,
                Action::Return => self.to_new = true,
                Action::KillNew => self.new.killed = true,
                Action::KillOld if self.has(Mutation::LeftAlive) => {}
                Action::KillOld => self.old_dies(),
                Action::Allow => self.supervisor.deadline = true,
                Action::Done(outcome) => {
                    self.supervisor.outcome = Some(*outcome);
                    self.supervisor.deadline = false;
                    // Whoever has lost its place and lives on is killed.
                    self.new.killed |= *outcome == Outcome::Returned;
                }
            }
        }
    }

    fn old_dies(&mut self) {
        self.old.alive = false;
        self.old.open = false;
        self.old.thaws = false;
        self.pipe_read = false;
        self.pipe.clear();
        self.to_old = false;
        self.asked = false;
    }

    fn new_dies(&mut self) {
        self.new.alive = false;
        self.new.open = false;
        self.new.pending = None;
        self.new.offers = false;
        self.new.shut = false;
        self.new.loses = false;
        self.pipe_written = false;
        self.to_new = false;
    }
}

impl exploration::World for World {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        let (old, new, supervisor) = (&self.old, &self.new, &self.supervisor);
        let (faults, stalls) = (self.setup.faults > 0, self.setup.stalls > 0);
        let follows = self.follows();
        let acts = new.alive && !new.loses;
        let can = [
            (
                Step::Write,
                self.written < WRITES && (new.open && new.pending.is_none() && acts || old.open),
            ),
            (
                Step::Record,
                acts && matches!(new.pending, Some((_, false))),
            ),
            (
                Step::ReaderTooSlow,
                stalls && acts && self.pipe_written && matches!(new.pending, Some((_, false))),
            ),
            (Step::SayLost, new.alive && new.loses),
            (
                Step::Acknowledge,
                new.alive
                    && match new.pending {
                        Some((_, true)) => !new.loses || self.has(Mutation::LossToldLater),
                        Some((write, false)) => {
                            self.has(Mutation::AcknowledgedFirst) && self.answered & bit(write) == 0
                        }
                        None => false,
                    },
            ),
            (Step::OldBegins, old.alive && !old.began),
            (
                Step::OldReads,
                follows && !old.records_ended && (!self.pipe.is_empty() || !self.pipe_written),
            ),
            (
                Step::OldHearsFate,
                follows
                    && !old.fate_ended
                    // It takes an offer as soon as it hears of it, before it hears any more.
                    && old.way != reserve::State::Accepting
                    && (!self.fate.is_empty() || !new.alive),
            ),
            (
                Step::OldAccepts,
                old.alive && old.way == reserve::State::Accepting,
            ),
            (Step::OldThaws, old.alive && old.thaws),
            (Step::OldIsToldToStandDown, old.alive && self.to_old),
            (Step::OldIsAsked, old.alive && self.asked && !self.to_old),
            (
                Step::OldWaitsTooLong,
                follows && stalls && (!supervisor.alive || self.has(Mutation::ThawsByTime)),
            ),
            (Step::NewIsToldToReturn, acts && self.to_new),
            (Step::NewOffers, acts && new.offers && new.pending.is_none()),
            (
                Step::NewHears,
                new.alive
                    && new.state == source::State::Frozen
                    && !new.offers
                    && (self.accepted || !self.pipe_read_by_old()),
            ),
            (
                Step::NewResolves,
                new.alive && new.state == source::State::Frozen && !new.offers && stalls,
            ),
            (Step::NewLooks, new.alive && new.shut),
            (
                Step::SupervisorHearsOld,
                supervisor.alive && !self.from_old.is_empty(),
            ),
            (
                Step::SupervisorHearsNew,
                supervisor.alive && !self.from_new.is_empty(),
            ),
            (
                Step::SupervisorSeesNewDead,
                supervisor.alive
                    && !new.alive
                    && self.from_new.is_empty()
                    && step(supervisor.state, Event::NewDied).0 != supervisor.state,
            ),
            (
                Step::SupervisorSeesOldDead,
                supervisor.alive
                    && !old.alive
                    && self.from_old.is_empty()
                    && step(supervisor.state, Event::OldDied).0 != supervisor.state,
            ),
            (
                Step::SupervisorDeadline,
                supervisor.alive && supervisor.deadline && stalls,
            ),
            (
                Step::NewFails,
                faults
                    && supervisor.alive
                    && new.alive
                    && !new.killed
                    && supervisor.outcome.is_none(),
            ),
            (
                Step::SupervisorRecords,
                supervisor.alive && supervisor.recorded != (supervisor.state, supervisor.outcome),
            ),
            (
                Step::NextSupervisor,
                !supervisor.alive && self.setup.successors > 0,
            ),
            (Step::OldDies, faults && old.alive),
            (Step::NewDies, faults && new.alive),
            (Step::SupervisorDies, faults && supervisor.alive),
            (Step::NewEnds, new.alive && new.killed),
        ];
        let wants = supervisor.alive && supervisor.wants && supervisor.state == State::Standing;
        let asks = [true, false].map(|back| (Step::SupervisorWants(back), wants));
        let all = can.into_iter().chain(asks);
        all.filter(|(_, can)| *can).map(|(step, _)| step).collect()
    }

    fn after(&self, step: Step) -> Self {
        let mut next = self.clone();
        next.take(step);
        next
    }

    fn is_optional(step: &Step) -> bool {
        match step {
            Step::Write
            | Step::ReaderTooSlow
            | Step::OldWaitsTooLong
            | Step::SupervisorWants(_)
            | Step::NewFails
            | Step::OldDies
            | Step::NewDies
            | Step::SupervisorDies
            | Step::NextSupervisor => true,
            Step::Record
            | Step::SayLost
            | Step::Acknowledge
            | Step::OldBegins
            | Step::OldReads
            | Step::OldHearsFate
            | Step::OldAccepts
            | Step::OldThaws
            | Step::OldIsToldToStandDown
            | Step::OldIsAsked
            | Step::NewIsToldToReturn
            | Step::NewOffers
            | Step::NewHears
            | Step::NewResolves
            | Step::NewLooks
            | Step::SupervisorHearsOld
            | Step::SupervisorHearsNew
            | Step::SupervisorSeesNewDead
            | Step::SupervisorSeesOldDead
            | Step::SupervisorDeadline
            | Step::SupervisorRecords
            | Step::NewEnds => false,
        }
    }

    fn always(&self) -> Result<(), &'static str> {
        let (old, new) = (&self.old, &self.new);
        if old.open && new.open {
            return Err("two generations own the state");
        }
        if old.open && self.answered & !old.has != 0 {
            return Err("the one in reserve owns a state that lacks a write that was answered");
        }
        if new.open && self.answered & !new.has != 0 {
            return Err("the new generation owns a state that lacks a write that was answered");
        }
        match self.supervisor.outcome {
            Some(Outcome::Kept | Outcome::Fallen) if old.open => {
                Err("one in reserve that was given up owns the state")
            }
            Some(Outcome::Returned | Outcome::GivenBack) if old.way != reserve::State::Ours => {
                Err("the supervisor reports a return that never was")
            }
            Some(_) | None => Ok(()),
        }
    }

    fn at_rest(&self) -> Result<(), &'static str> {
        let (old, new, supervisor) = (&self.old, &self.new, &self.supervisor);
        // What the one in reserve has taken back dies with it, as with any owner.
        let gone = new.state == source::State::Yielded && !old.alive;
        if new.alive && !old.open && !new.open && !gone {
            return Err("nobody owns the state, though the new generation lives");
        }
        if old.alive && !new.alive && !old.open && old.way != reserve::State::Over {
            return Err("the one in reserve waits for ever");
        }
        let waits = !matches!(supervisor.state, State::Standing | State::Ended);
        let alone = !(old.alive && new.alive);
        let undecided = supervisor.outcome.is_none() && (waits || alone);
        if supervisor.alive && undecided && old.alive {
            return Err("the supervisor waits for the one in reserve, which has nothing to say");
        }
        // A deadline that runs would yet pass.
        if supervisor.alive && undecided && !supervisor.deadline {
            return Err("the supervisor waits for ever");
        }
        Ok(())
    }
}

fn bit(write: u8) -> Writes {
    1 << write
}
