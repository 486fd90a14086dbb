//! The side that takes the state over.
//!
//! Carries [`heirloom_handover::target`] out: from the hello to the moment at which this generation owns
//! the state, or never will. Reading the copy is [`Taking`]'s. What is changed here is to be changed in
//! the mirror of docs/model.md.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use heirloom_handover::{
    fault::{self, Point},
    lifeline::{Lifeline, Sent},
    message::{self, Order, Reads, Report, Standing},
    target::{self, Action, Event, State},
};
use nix::poll::{PollFd, PollFlags};

use super::{Back, Heard, Keeper, monotonic_usec};
use crate::{
    moving,
    state::{
        Origin,
        error::TakeError,
        link,
        taking::{Taking, Took},
        way_back::WayBack,
    },
};

/// How long a commit that was refused waits for the supervisor to say why: a death is seen by it
/// in a moment, and whoever has taken the state back needs nothing of this generation.
const LONGEST_DOUBT: Duration = Duration::from_secs(1);

/// Says hello and takes the state over; whether this generation owns it then.
pub(super) fn take_over(keeper: &mut Keeper) -> bool {
    fault::reached(Point::NewGreeting);
    keeper.tell(&Report::Hello {
        protocol: message::PROTOCOL,
        version: keeper.tenure.version.clone(),
        reads: keeper.core.reads(),
        way_back: true,
    });
    fault::reached(Point::NewGreeted);
    let mut taker = Taker {
        keeper,
        state: State::Greeting,
        taking: None,
        link: None,
        way_back: None,
        migration: 0,
        origin: Origin::Fresh,
        counts: (0, 0),
        error: None,
        doubt_ends: None,
    };
    taker.run();
    taker.state == State::Owning
}

struct Taker<'a> {
    keeper: &'a mut Keeper,
    state: State,
    taking: Option<Taking>,
    link: Option<OwnedFd>,
    /// The way back, and where operations are carried out once the state has gone back.
    way_back: Option<(WayBack, OwnedFd)>,
    migration: u64,
    origin: Origin,
    /// Entries and bytes taken.
    counts: (u64, u64),
    /// Why the state was not taken.
    error: Option<TakeError>,
    /// Until when the supervisor may say why the commit was refused.
    doubt_ends: Option<Instant>,
}

impl Taker<'_> {
    fn run(&mut self) {
        while !matches!(self.state, State::Owning | State::Dismissed) {
            let event = match self.next() {
                Ok(event) => event,
                Err(error) => {
                    self.error = Some(error);
                    Some(Event::Unusable)
                }
            };
            let mut events = VecDeque::from_iter(event);
            while let Some(event) = events.pop_front() {
                let (state, actions) = target::step(self.state, event);
                self.state = state;
                for action in actions {
                    events.extend(self.act(*action));
                }
            }
        }
    }

    /// Waits for what happens next.
    fn next(&mut self) -> Result<Option<Event>, TakeError> {
        let receiving = self.state == State::Receiving;
        let stream = self
            .taking
            .as_ref()
            .filter(|_| receiving)
            .map(Taking::stream);
        let others: Vec<PollFd<'_>> = stream
            .map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN))
            .into_iter()
            .collect();
        if self.doubt_ends.is_some_and(|end| Instant::now() >= end) {
            return Ok(Some(Event::Deadline));
        }
        match self.keeper.wait(&others, self.doubt_ends)? {
            Heard::Order(order, descriptors) => Ok(self.ordered(order, descriptors)),
            Heard::SupervisorGone => {
                let reason = "the supervisor is gone".to_owned();
                self.error.get_or_insert(TakeError::CalledOff(reason));
                Ok(Some(Event::SupervisorGone))
            }
            Heard::Other => match self.taking.as_mut().filter(|_| receiving) {
                None => Ok(None),
                Some(taking) => match taking.go_on()? {
                    Took::More => Ok(None),
                    Took::All { entries, bytes } => {
                        self.counts = (entries, bytes);
                        Ok(Some(Event::Verified))
                    }
                },
            },
        }
    }

    fn ordered(&mut self, order: Order, descriptors: Vec<OwnedFd>) -> Option<Event> {
        match order {
            Order::Begin => Some(Event::Begin),
            Order::Receive {
                migration,
                from,
                bytes_max,
                way_back,
            } => {
                fault::reached(Point::NewReceiving);
                self.migration = migration;
                self.origin = Origin::Generation(from);
                let mut descriptors = descriptors;
                let back = descriptors.split_off(descriptors.len().min(3));
                let back = self.take_way_back(way_back, back);
                let begun = descriptors.try_into().map_err(|_| short_of_descriptors());
                let begun = back.and(begun);
                let begun = begun.and_then(|[stream, lifeline, link]: [OwnedFd; 3]| {
                    self.link = Some(link);
                    let stores = self.keeper.core.stores();
                    Taking::new(stream, Some(migration), Some(lifeline), stores, bytes_max)
                });
                Some(self.begin(begun))
            }
            Order::Restore {
                migration,
                bytes_max,
            } => {
                self.migration = migration;
                self.origin = Origin::Saved;
                let begun = descriptors.try_into().map_err(|_| short_of_descriptors());
                let begun = begun.and_then(|[file]: [OwnedFd; 1]| {
                    Taking::new(file, None, None, self.keeper.core.stores(), bytes_max)
                });
                Some(self.begin(begun))
            }
            Order::Commit { migration, alone } if migration == self.migration => {
                if alone {
                    // Nobody is left to go back to.
                    self.way_back = None;
                    return Some(Event::CommitAlone);
                }
                Some(Event::Commit)
            }
            Order::Who => {
                let phase = match self.state {
                    State::Greeting => Standing::Greeting,
                    State::Owning => Standing::Owning,
                    State::Receiving
                    | State::Verified
                    | State::Committing
                    | State::Refused
                    | State::Dismissed => Standing::Receiving,
                };
                let migration = self.migration;
                self.keeper.tell(&Report::Phase { migration, phase });
                None
            }
            Order::Abort { reason, .. } => {
                self.error.get_or_insert(TakeError::CalledOff(reason));
                Some(Event::Abort)
            }
            // Not yet anybody's business here, or of another migration.
            other => {
                tracing::warn!(
                    ?other,
                    "an order came before this generation owns the state"
                );
                None
            }
        }
    }

    /// Takes the writing end of a way back to one that can read these.
    fn take_way_back(
        &mut self,
        reads: Option<Vec<Reads>>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), TakeError> {
        let Some(reads) = reads else {
            return if descriptors.is_empty() {
                Ok(())
            } else {
                Err(short_of_descriptors())
            };
        };
        let [pipe, fate, link]: [OwnedFd; 3] =
            descriptors.try_into().map_err(|_| short_of_descriptors())?;
        let supervisor = self.keeper.supervisor.clone();
        let migration = self.migration;
        let tell_lost = Box::new(move |reason: &str| {
            let reason = reason.to_owned();
            supervisor.tell(&Report::WayLost { migration, reason });
        });
        let stores = self.keeper.core.stores();
        let way = WayBack::new(pipe, fate, &stores, &reads, tell_lost)?;
        self.way_back = Some((way, link));
        Ok(())
    }

    fn begin(&mut self, begun: Result<Taking, TakeError>) -> Event {
        match begun {
            Ok(taking) => {
                self.taking = Some(taking);
                Event::Receive
            }
            Err(error) => {
                self.error = Some(error);
                Event::Abort
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            // From here on the stream is waited for as well.
            Action::Read => None,
            Action::TellReady => {
                fault::reached(Point::NewVerified);
                let (entries, bytes) = self.counts;
                self.keeper.tell(&Report::Ready {
                    migration: self.migration,
                    entries,
                    bytes,
                });
                fault::reached(Point::NewToldReady);
                None
            }
            Action::TellReject => {
                let reason = match &self.error {
                    Some(error) => error.to_string(),
                    None => "no reason is known".to_owned(),
                };
                self.keeper.tell(&Report::Reject {
                    migration: self.migration,
                    reason,
                });
                None
            }
            Action::SayCommitted => {
                fault::reached(Point::NewCommitting);
                let taking = self.taking.as_ref();
                let lifeline = taking.and_then(|taking| taking.lifeline.as_ref());
                match lifeline.map(Lifeline::commit) {
                    Some(Ok(Sent::Queued)) => {
                        fault::reached(Point::NewCommitted);
                        Some(Event::Queued)
                    }
                    // Nothing was queued, so nobody will take it for a commit.
                    Some(Ok(_) | Err(_)) | None => {
                        fault::reached(Point::NewRefused);
                        self.doubt_ends = Some(Instant::now() + LONGEST_DOUBT);
                        let reason = "the former generation has taken the state back".to_owned();
                        self.error.get_or_insert(TakeError::CalledOff(reason));
                        Some(Event::Refused)
                    }
                }
            }
            Action::Own => {
                self.own();
                None
            }
            Action::TellCommitted => {
                fault::reached(Point::NewOwned);
                self.keeper.tell(&Report::Committed {
                    migration: self.migration,
                    at_usec: monotonic_usec(),
                });
                fault::reached(Point::NewToldCommitted);
                None
            }
            Action::GiveUp => {
                let error = self
                    .error
                    .take()
                    .unwrap_or_else(|| TakeError::CalledOff("no reason was given".to_owned()));
                if let Some(owned) = self.keeper.owned.take() {
                    // The app may have stopped waiting.
                    let _gone = owned.send(Err(error));
                }
                None
            }
        }
    }

    fn own(&mut self) {
        let keeper = &mut *self.keeper;
        if let Some((way, link)) = self.way_back.take() {
            let (migration, way) = (self.migration, Arc::new(way));
            keeper.core.gate.write_back(way);
            keeper.way_back = Some(Back { migration, link });
        }
        keeper.core.gate.open(false);
        fault::reached(Point::NewOwning);
        if let Some(link) = self.link.take()
            && let Err(error) =
                link::server::start(link, &keeper.core, &keeper.drain, &keeper.runtime)
        {
            tracing::warn!(%error, "operations of the former generation cannot be served");
        }
        let lifeline = self.taking.take().and_then(|taking| taking.lifeline);
        if let Some(lifeline) = lifeline
            && let Err(error) = moving::taking::start(lifeline, &keeper.drain, &keeper.runtime)
        {
            tracing::warn!(%error, "connections of the former generation cannot be taken");
        }
        if let Some(owned) = keeper.owned.take() {
            // The app may have stopped waiting.
            let _gone = owned.send(Ok(self.origin));
        }
    }
}

fn short_of_descriptors() -> TakeError {
    TakeError::CalledOff(
        "the supervisor sent other descriptors than it announced; it is at fault".to_owned(),
    )
}
