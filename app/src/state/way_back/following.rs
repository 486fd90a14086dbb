//! The reading end of the way back, in the generation that is in reserve.
//!
//! Owns the pipe, the fate, and how far the changes have been applied. What the ends of both mean is decided
//! by [`heirloom_handover::reserve`]; what the generation does then by [`heirloom_handover::source`].

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use heirloom_handover::{
    lifeline::Sent,
    reserve::{self, Action, Event, State},
    way_back::{Fate, Said},
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags},
};

use super::record;
use crate::state::{
    error::StoreError,
    store::{Followed, Store},
};

/// What is read at a time: as much as the pipe holds mostly.
const READ_BYTES: usize = 256 * 1024;

/// After so much the supervisor is heard before more is read.
const TURN_BYTES: usize = 1024 * 1024;

/// What the way back came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The state is this generation's again, with every change that was acknowledged.
    Ours,
    /// It never is.
    Over,
}

/// The descriptors of a way back at its reading end.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) pipe: OwnedFd,
    pub(crate) fate: OwnedFd,
    /// Over which the other one asks once it has given the state back.
    pub(crate) link: OwnedFd,
    /// How long to wait once there is no supervisor.
    pub(crate) limit: Duration,
}

/// A way back that is followed.
#[derive(Debug)]
pub(crate) struct Following {
    state: State,
    pipe: File,
    pub(crate) fate: Fate,
    pub(crate) link: OwnedFd,
    stores: HashMap<String, Arc<dyn Store>>,
    /// What was read and is not applied.
    buffer: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    records_ended: bool,
    fate_ended: bool,
    began: Instant,
    limit: Duration,
    /// Why it came to what it came to.
    pub(crate) reason: String,
}

impl Following {
    /// Follows from now on.
    ///
    /// # Errors
    ///
    /// The system's.
    pub(crate) fn begin(ends: Ends, stores: Vec<Arc<dyn Store>>) -> io::Result<Self> {
        for socket in [ends.pipe.as_fd(), ends.fate.as_fd()] {
            fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let named = stores
            .into_iter()
            .map(|store| (store.name().to_owned(), store));
        Ok(Self {
            state: State::Following,
            pipe: File::from(ends.pipe),
            fate: Fate::new(ends.fate),
            link: ends.link,
            stores: named.collect(),
            buffer: Vec::new(),
            descriptors: VecDeque::new(),
            records_ended: false,
            fate_ended: false,
            began: Instant::now(),
            limit: ends.limit,
            reason: "the new generation is gone".to_owned(),
        })
    }

    /// What to wait for.
    pub(crate) fn waits_for(&self) -> Vec<PollFd<'_>> {
        // What has ended is always ready.
        let pipe = (!self.records_ended).then(|| self.pipe.as_fd());
        let fate = (!self.fate_ended).then(|| self.fate.as_fd());
        let all = pipe.into_iter().chain(fate);
        all.map(|one| PollFd::new(one, PollFlags::POLLIN)).collect()
    }

    /// When to stand down where nobody else decides.
    pub(crate) fn end(&self) -> Instant {
        self.began + self.limit
    }

    /// Reads what is there, and applies what is complete.
    pub(crate) fn go_on(&mut self) -> Option<Outcome> {
        // The fate first: a descriptor is sent ahead of its record, so it is there when the record is read;
        // and once the records have ended, their last word is.
        loop {
            let said = self.read_records();
            if let Some(outcome) = said.and_then(|event| self.feed(event)) {
                return Some(outcome);
            }
            match self.hear() {
                Some(event) => {
                    if let Some(outcome) = self.feed(event) {
                        return Some(outcome);
                    }
                }
                None => return None,
            }
        }
    }

    /// The supervisor needs no reserve any more.
    pub(crate) fn stand_down(&mut self, reason: &str) -> Option<Outcome> {
        reason.clone_into(&mut self.reason);
        self.feed(Event::StandDown)
    }

    fn feed(&mut self, event: Event) -> Option<Outcome> {
        let mut events = VecDeque::from([event]);
        let mut outcome = None;
        while let Some(event) = events.pop_front() {
            let (state, actions) = reserve::step(self.state, event);
            self.state = state;
            for action in actions {
                match action {
                    Action::Accept => {
                        "the new generation has given the state back".clone_into(&mut self.reason);
                        events.push_back(match self.fate.accept() {
                            Ok(Sent::Queued) => Event::Queued,
                            // Nothing was queued, so nobody takes it for an answer.
                            Ok(_) | Err(_) => Event::Refused,
                        });
                    }
                    Action::Own => outcome = Some(Outcome::Ours),
                    Action::Leave => outcome = Some(Outcome::Over),
                }
            }
        }
        outcome
    }

    /// What is said on the fate next.
    fn hear(&mut self) -> Option<Event> {
        if self.fate_ended {
            return None;
        }
        match self.fate.hear() {
            Ok(Said::Nothing) => None,
            Ok(Said::Lost { reason }) => {
                self.reason = reason;
                Some(Event::Lost)
            }
            Ok(Said::Offered) => Some(Event::Offer),
            Ok(Said::Descriptor(descriptor)) => {
                self.descriptors.push_back(descriptor);
                self.hear()
            }
            Ok(Said::Closed) => {
                self.fate_ended = true;
                Some(Event::FateEnd)
            }
            Ok(_unknown) => self.hear(),
            Err(error) => Some(self.unusable(&error.to_string())),
        }
    }

    /// Reads the pipe until nothing is there, or a turn's worth, and applies what is complete.
    fn read_records(&mut self) -> Option<Event> {
        let mut turn = 0;
        while !self.records_ended && turn < TURN_BYTES {
            let held = self.buffer.len();
            self.buffer.resize(held + READ_BYTES, 0);
            let read = self.pipe.read(&mut self.buffer[held..]);
            self.buffer
                .truncate(held + read.as_ref().map_or(0, |count| *count));
            match read {
                Ok(0) => {
                    // What is left is a record that is not whole, so it was never acknowledged.
                    self.records_ended = true;
                    return Some(Event::RecordsEnd);
                }
                Ok(count) => {
                    turn += count;
                    if let Err(reason) = self.apply() {
                        return Some(self.unusable(&reason));
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return None,
                    io::ErrorKind::Interrupted => {}
                    _other => return Some(self.unusable(&error.to_string())),
                },
            }
        }
        None
    }

    fn unusable(&mut self, reason: &str) -> Event {
        self.reason =
            format!("the changes of the new generation cannot be followed any more: {reason}");
        Event::Unusable
    }

    fn apply(&mut self) -> Result<(), String> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut at = 0;
        while let Some((changes, length)) = record::first(&buffer[at..])? {
            for change in changes {
                let store = self.stores.get(&change.store).map(Arc::clone);
                let store = store.ok_or_else(|| format!("there is no store {}", change.store))?;
                let name = change.store;
                let mut followed = Followed {
                    version: change.version,
                    key: change.key,
                    entry_version: change.entry_version,
                    fate: change.fate,
                    descriptor: None,
                };
                if let record::Fate::Object { .. } = change.fate {
                    followed.descriptor = Some(self.descriptor()?);
                }
                let applied = store.follow(followed);
                applied.map_err(|error: StoreError| format!("{name}: {error}"))?;
            }
            at += length;
        }
        self.buffer = buffer;
        self.buffer.drain(..at);
        Ok(())
    }

    /// The next descriptor. It was sent ahead of the record, so it is there.
    fn descriptor(&mut self) -> Result<OwnedFd, String> {
        if let Some(descriptor) = self.descriptors.pop_front() {
            return Ok(descriptor);
        }
        match self.fate.hear() {
            Ok(Said::Descriptor(descriptor)) => Ok(descriptor),
            Ok(_) => Err("the descriptor of an object did not come".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}
