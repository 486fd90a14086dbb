//! The side that gives the state away, and serves until then.
//!
//! Carries [`heirloom_handover::source`] out, order by order. The copy itself is [`Giving`]'s, or
//! [`saving`](crate::state::saving)'s when it goes to a file. What is changed here is to be changed in the mirror of docs/model.md.

mod back;
mod orders;

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use heirloom_handover::{
    fault::{self, Point},
    lifeline::{Lifeline, Said},
    message::{Counts, Purpose, Reads, Report},
    rendezvous::Rendezvous,
    source::{self, Action, Event, State},
    way_back::Fate,
};
use nix::poll::{PollFd, PollFlags};

use super::{Heard, Keeper, monotonic_usec, usec, wait_for};
use crate::{
    Outcome,
    moving::{
        Phase,
        giving::{Mover, Tell},
    },
    state::{
        gate::Mode,
        giving::{Broken, Giving, Went},
        link::Link,
        turn::lock,
        way_back::{
            following::{Ends, Following},
            say_lost,
        },
    },
};

/// How long the state may stand still while it is offered to the generation in reserve, which has it all but
/// for what the pipe holds.
const LONGEST_OFFER: Duration = Duration::from_secs(1);

/// The connections that have moved, as they are counted.
type Moved = Arc<Mutex<Counts>>;

/// Serves as long as the process lives, or until no supervisor can be spoken to any more.
pub(super) fn serve(keeper: Keeper) {
    Giver {
        keeper,
        supervision: Supervision::On,
        state: State::Serving,
        migration: 0,
        giving: None,
        lifeline: None,
        link: None,
        versions: HashMap::new(),
        reads: Vec::new(),
        frozen_at: None,
        frozen_usec: 0,
        reason: String::new(),
        unheeded: None,
        dismissed: false,
        ends: None,
        following: None,
        offered: None,
        moved: Arc::default(),
    }
    .serve();
}

/// Whether there is a supervisor.
enum Supervision {
    On,
    /// It is gone; the next one is met there.
    Awaited(Rendezvous),
    /// It is gone, and no other can come.
    Over,
}

struct Giver {
    keeper: Keeper,
    supervision: Supervision,
    state: State,
    /// The migration that is, or was last, under way.
    migration: u64,
    giving: Option<Giving>,
    /// The lifeline of a copy that has ended.
    lifeline: Option<Lifeline>,
    link: Option<OwnedFd>,
    /// The versions in which the new generation has the sections.
    versions: HashMap<String, u32>,
    /// What the new generation can read.
    reads: Vec<Reads>,
    frozen_at: Option<Instant>,
    frozen_usec: u64,
    /// Why what is told next has happened.
    reason: String,
    /// `Retire` or `SupervisorGone`, which came while it was open who owns the state: facts, which are
    /// acted upon once that is clear.
    unheeded: Option<Event>,
    /// The supervisor needs no reserve here, and said so before it was clear that there is one.
    dismissed: bool,
    /// The reading end of the way back from the new generation, until that owns the state.
    ends: Option<Ends>,
    /// The same from then on.
    following: Option<Following>,
    /// The state is offered to the generation in reserve.
    offered: Option<Offered>,
    /// What is told of connections at the end of the drain; none as long as none can move.
    moved: Arc<Mutex<Option<(u64, Moved)>>>,
}

/// A state that is offered to the generation in reserve.
struct Offered {
    /// Its fate, on which it answers, and takes connections.
    lifeline: Lifeline,
    fate: Fate,
}

impl Giver {
    fn serve(mut self) {
        loop {
            let event = match self.next() {
                Ok(event) => event,
                Err(error) => {
                    tracing::error!(%error, "the handover protocol ends here; the app serves on");
                    self.supervision = Supervision::Over;
                    Some(Event::SupervisorGone)
                }
            };
            if event == Some(Event::SupervisorGone) && matches!(self.supervision, Supervision::On) {
                let next = self.keeper.await_next_supervisor();
                self.supervision = next.map_or(Supervision::Over, Supervision::Awaited);
            }
            if let Some(event) = event {
                self.feed(event);
            }
            let busy = self.giving.is_some()
                || self.offered.is_some()
                || self.following.is_some()
                || self.state == State::Resolving
                || self.keeper.core.gate.way_back().is_some();
            if matches!(self.supervision, Supervision::Over) && !busy {
                return;
            }
        }
    }

    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let before = self.state;
            let (state, actions) = source::step(before, event);
            self.state = state;
            let nobodys = matches!(
                before,
                State::Freezing | State::Frozen | State::Resolving | State::Reserve
            );
            if nobodys && event == Event::Retire {
                self.unheeded = Some(event);
            } else if nobodys && event == Event::SupervisorGone {
                // An order to finish that came before says more.
                self.unheeded.get_or_insert(event);
            }
            for action in actions {
                events.extend(self.act(*action));
            }
            let settled = match state {
                // Events that are still to be heeded come first: it may go on to the reserve.
                State::Yielded => {
                    if events.is_empty() && std::mem::take(&mut self.dismissed) {
                        self.has_stood_down();
                    }
                    events.is_empty()
                }
                State::Serving => {
                    self.dismissed = false;
                    true
                }
                State::Reserve => {
                    let dismissed = std::mem::take(&mut self.dismissed);
                    if dismissed || self.unheeded == Some(Event::Retire) {
                        events.extend(self.stand_down());
                    }
                    false
                }
                State::Copying
                | State::Converged
                | State::Freezing
                | State::Frozen
                | State::Rehearsed
                | State::Resolving => false,
            };
            if settled {
                events.extend(self.unheeded.take());
            }
        }
    }

    /// Goes on with the copy as far as nobody has to be waited for, else waits.
    fn next(&mut self) -> io::Result<Option<Event>> {
        if let Some(event) = self.follow() {
            return Ok(Some(event));
        }
        let supervised = matches!(self.supervision, Supervision::On);
        let way_back = self.keeper.core.gate.way_back();
        if way_back.is_none() {
            self.keeper.way_back = None;
        }
        let mut went = Went::Waiting;
        if let Some(giving) = &mut self.giving {
            match giving.go_on() {
                Ok(now) => went = now,
                Err(broken) => return Ok(Some(self.broken(broken))),
            }
        }
        if let Some(event) = self.event_of(&went) {
            return Ok(Some(event));
        }
        let end = match went {
            Went::On => Some(Instant::now()),
            Went::Blocked | Went::Waiting | Went::Converged | Went::Complete => {
                let following = self.following.as_ref().filter(|_| !supervised);
                let frozen = self.frozen_at.zip(self.freeze_limit());
                frozen
                    .map(|(at, limit)| at + limit)
                    .or_else(|| following.map(Following::end))
            }
        };
        let mut others = Vec::new();
        if let Some(giving) = &self.giving {
            others.push(PollFd::new(giving.lifeline.as_fd(), PollFlags::POLLIN));
            if let Some(stream) = giving.blocked_on() {
                others.push(PollFd::new(stream.as_fd(), PollFlags::POLLOUT));
            }
        }
        if let Some(offered) = &self.offered {
            others.push(PollFd::new(offered.lifeline.as_fd(), PollFlags::POLLIN));
        } else if let Some(way_back) = &way_back {
            others.push(PollFd::new(way_back.as_fd(), PollFlags::POLLIN));
        }
        if let Some(following) = &self.following {
            others.extend(following.waits_for());
        }
        let heard = match &self.supervision {
            Supervision::On => self.keeper.wait(&others, end)?,
            Supervision::Awaited(rendezvous) => {
                others.push(PollFd::new(rendezvous.as_fd(), PollFlags::POLLIN));
                wait_for(&mut others, end)?;
                if let Some(socket) = rendezvous.accept()? {
                    tracing::info!("another supervisor has come");
                    self.keeper.supervisor.succeeded_by(socket)?;
                    self.supervision = Supervision::On;
                }
                Heard::Other
            }
            Supervision::Over => {
                wait_for(&mut others, end)?;
                Heard::Other
            }
        };
        match heard {
            Heard::Order(order, descriptors) => return Ok(self.ordered(order, descriptors)),
            Heard::SupervisorGone => {
                "the supervisor is gone".clone_into(&mut self.reason);
                return Ok(Some(Event::SupervisorGone));
            }
            Heard::Other => {}
        }
        if let Some(event) = self.hear() {
            return Ok(Some(event));
        }
        self.look_at_way_back(way_back.as_deref());
        if !supervised
            && let Some(following) = &mut self.following
            && following.end() <= Instant::now()
        {
            let reason = "the time for it is over, and there is no supervisor to say so";
            let outcome = following.stand_down(reason);
            return Ok(outcome.map(|outcome| self.followed(outcome)));
        }
        if let Some((at, limit)) = self.frozen_at.zip(self.freeze_limit())
            && at.elapsed() >= limit
        {
            self.reason = format!("the state stood still for {limit:?}, as long as it may");
            return Ok(Some(Event::Deadline));
        }
        Ok(None)
    }

    fn event_of(&self, went: &Went) -> Option<Event> {
        match went {
            Went::Converged => Some(Event::Converged),
            Went::Complete => match self.giving.as_ref().map(|giving| giving.purpose) {
                Some(Purpose::Rehearsal) => Some(Event::CompleteRehearsal),
                Some(Purpose::Handover) | None => Some(Event::Complete),
            },
            Went::On | Went::Blocked | Went::Waiting => None,
        }
    }

    /// The longest that the state may stand still.
    fn freeze_limit(&self) -> Option<Duration> {
        let giving = self.giving.as_ref().map(|giving| giving.freeze_limit);
        giving.or_else(|| self.offered.as_ref().map(|_| LONGEST_OFFER))
    }

    /// What the new generation says on the lifeline.
    fn hear(&mut self) -> Option<Event> {
        if let Some(offered) = &self.offered {
            return match offered.lifeline.hear() {
                Ok(Said::Committed) => Some(Event::Committed),
                Ok(Said::Closed) => {
                    "the former generation is gone".clone_into(&mut self.reason);
                    Some(Event::PeerGone)
                }
                Ok(_) => None,
                Err(error) => {
                    self.reason = format!("the former generation cannot be heard ({error})");
                    Some(Event::Broken)
                }
            };
        }
        let giving = self.giving.as_mut()?;
        match giving.hear() {
            Ok(Said::Applied { round }) => match giving.applied(round) {
                Ok(went) => {
                    let throttle = giving.throttle();
                    self.keeper.core.gate.set_throttle(throttle);
                    self.event_of(&went)
                }
                Err(broken) => Some(self.broken(broken)),
            },
            Ok(Said::Committed) => {
                fault::reached(Point::OldCommitted);
                Some(Event::Committed)
            }
            Ok(Said::Closed) => {
                "the new generation is gone".clone_into(&mut self.reason);
                Some(Event::PeerGone)
            }
            Ok(_) => None,
            Err(broken) => Some(self.broken(broken)),
        }
    }

    fn broken(&mut self, broken: Broken) -> Event {
        self.reason = broken.to_string();
        Event::Broken
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            // The copy was prepared when the order came, and one that cannot be was refused then.
            Action::Copy | Action::Refuse => None,
            Action::TellConverged => {
                fault::reached(Point::OldConverged);
                let giving = self.giving.as_ref()?;
                self.keeper.tell(&Report::Converged {
                    migration: giving.migration,
                    rounds: u64::from(giving.copy.rounds),
                    bytes: giving.copy.writer.stream_bytes(),
                });
                fault::reached(Point::OldToldConverged);
                None
            }
            Action::Freeze => {
                fault::reached(Point::OldFreezing);
                self.frozen_at = Some(Instant::now());
                self.frozen_usec = monotonic_usec();
                self.keeper.core.gate.close();
                self.keeper.drain.phases().begin(Phase::Paused);
                fault::reached(Point::OldClosed);
                match self.giving.as_mut()?.freeze() {
                    Ok(()) => None,
                    Err(broken) => Some(self.broken(broken)),
                }
            }
            Action::TellFrozen => {
                fault::reached(Point::OldFrozen);
                let giving = self.giving.as_ref()?;
                self.keeper.tell(&Report::Frozen {
                    migration: giving.migration,
                    at_usec: self.frozen_usec,
                    rounds: u64::from(giving.copy.rounds),
                    bytes: giving.copy.writer.stream_bytes(),
                    stall_usec: usec(giving.copy.longest_slice),
                });
                fault::reached(Point::OldToldFrozen);
                None
            }
            Action::EndCopy => {
                self.end_copy();
                None
            }
            Action::TellFailed => {
                self.keeper.tell(&Report::Failed {
                    migration: self.migration,
                    reason: self.reason.clone(),
                });
                None
            }
            Action::Resolve => {
                fault::reached(Point::OldResolving);
                let giving = self.giving.as_ref().map(|giving| &giving.lifeline);
                let offered = || self.offered.as_ref().map(|offered| &offered.lifeline);
                let Some(lifeline) = giving.or_else(offered) else {
                    // Nothing was offered to anybody.
                    return Some(Event::ResolvedOurs);
                };
                Some(match lifeline.resolve() {
                    Ok(true) => Event::ResolvedTheirs,
                    Ok(false) => Event::ResolvedOurs,
                    Err(error) => {
                        // Without an answer the state must not have two owners: it has none here.
                        tracing::error!(%error, "the lifeline cannot be looked at");
                        Event::ResolvedTheirs
                    }
                })
            }
            Action::Thaw => {
                // Before anything changes here that the one in reserve lacks.
                if let Some(offered) = self.offered.take() {
                    say_lost(&offered.fate, "the offer was taken back");
                }
                self.frozen_at = None;
                self.keeper.core.gate.return_here();
                self.keeper.drain.phases().begin(Phase::Serving);
                fault::reached(Point::OldThawed);
                None
            }
            Action::TellThawed => {
                fault::reached(Point::OldResolved);
                self.keeper.tell(&Report::Thawed {
                    migration: self.migration,
                    at_usec: monotonic_usec(),
                    reason: self.reason.clone(),
                });
                fault::reached(Point::OldToldThawed);
                None
            }
            Action::Yield => {
                self.yield_state();
                fault::reached(Point::OldYielded);
                self.begin_to_follow()
            }
            Action::TellYielded => {
                self.keeper.tell(&Report::Yielded {
                    migration: self.migration,
                    at_usec: monotonic_usec(),
                });
                fault::reached(Point::OldToldYielded);
                None
            }
            Action::Drain => {
                self.keeper.drain.begin();
                None
            }
            Action::TellReturned => {
                self.keeper.tell(&Report::Returned {
                    migration: self.migration,
                    at_usec: monotonic_usec(),
                    reason: self.reason.clone(),
                });
                None
            }
            Action::TellStoodDown => {
                self.keeper.tell(&Report::StoodDown {
                    migration: self.migration,
                    reason: self.reason.clone(),
                });
                None
            }
            Action::Offer => self.offer(),
        }
    }
}

impl Giver {
    /// Gives the copy up: changes are no longer noted, and the stream ends. The lifeline stays with
    /// [`Self::lifeline`], for connections, if the state has gone; else nothing of the migration stays
    /// open.
    fn end_copy(&mut self) {
        let giving = self.giving.take().map(|giving| giving.lifeline);
        let offered = self.offered.take().map(|offered| offered.lifeline);
        self.lifeline = giving.or(offered);
        if self.state != State::Yielded {
            self.lifeline = None;
            self.link = None;
            self.ends = None;
        }
        let gate = &self.keeper.core.gate;
        gate.set_throttle(Duration::ZERO);
        if gate.mode() == Mode::Tracking {
            gate.open(false);
        }
    }

    /// From now on operations are carried out in the new generation.
    fn yield_state(&mut self) {
        self.frozen_at = None;
        let versions = std::mem::take(&mut self.versions);
        let reads = std::mem::take(&mut self.reads);
        let keeper = &self.keeper;
        let link = self.link.take().map_or_else(
            || Err(io::ErrorKind::NotConnected.into()),
            |link| Link::start(link, versions, &keeper.runtime),
        );
        match link {
            Ok(link) => keeper.core.gate.yield_to(Arc::new(link)),
            Err(error) => {
                tracing::error!(%error, "the new generation cannot be asked; operations fail");
                keeper.core.gate.lose();
            }
        }
        let mover = self
            .lifeline
            .take()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
            .and_then(|lifeline| {
                Mover::start(
                    lifeline.into(),
                    reads,
                    Arc::clone(keeper.drain.census()),
                    self.tell_moved(),
                    &keeper.runtime,
                )
            });
        match mover {
            Ok(mover) => {
                let mover = Arc::new(mover);
                self.tell_end(&mover);
                keeper.drain.phases().begin(Phase::Moving(mover));
            }
            Err(error) => {
                tracing::error!(%error, "connections cannot be moved; they are served here");
                keeper.drain.phases().begin(Phase::Serving);
            }
        }
    }
}

impl Giver {
    /// How the supervisor hears of connections that have moved.
    fn tell_moved(&self) -> Tell {
        let supervisor = self.keeper.supervisor.clone();
        let migration = self.migration;
        Box::new(move |moved, left| {
            supervisor.tell(&Report::Moved {
                migration,
                moved,
                left,
            });
        })
    }

    /// Has the supervisor told, at the end of the drain, what became of all connections.
    fn tell_end(&self, mover: &Arc<Mover>) {
        let told = Some((self.migration, mover.counted()));
        let former = std::mem::replace(&mut *lock(&self.moved), told);
        if former.is_some() {
            // The state has come back since, and goes once more.
            return;
        }
        let supervisor = self.keeper.supervisor.clone();
        let last = Arc::clone(&self.moved);
        self.keeper.drain.at_the_end(move |outcome| async move {
            let Some((migration, moved)) = lock(&last).take() else {
                return;
            };
            let cut = match outcome {
                Outcome::Drained => 0,
                Outcome::LimitPassed { cut } | Outcome::Forced { cut } => cut as u64,
            };
            let moved = lock(&moved).clone();
            fault::reached(Point::OldDrained);
            supervisor.tell(&Report::Gone {
                migration,
                moved,
                cut,
            });
            fault::reached(Point::OldToldGone);
        });
    }
}
