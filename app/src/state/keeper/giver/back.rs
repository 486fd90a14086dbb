//! The way back, at both its ends: in reserve, and with a generation in reserve.
//!
//! Carries out what [`heirloom_handover::reserve`] comes to, and begins and answers an offer. The bytes are
//! [`crate::state::way_back`]'s.

use std::time::Instant;

use heirloom_handover::{
    fault::{self, Point},
    lifeline::Sent,
    message::Report,
    source::{Event, State},
    way_back::Said,
};

use super::{Giver, Offered};
use crate::{
    moving::{self, Phase},
    state::{
        keeper::monotonic_usec,
        link,
        way_back::{
            WayBack,
            following::{Following, Outcome},
        },
    },
};

impl Giver {
    /// The state has gone: follows what becomes of it, if there is a way back.
    pub(super) fn begin_to_follow(&mut self) -> Option<Event> {
        let ends = self.ends.take()?;
        match Following::begin(ends, self.keeper.core.stores()) {
            Ok(following) => {
                self.following = Some(following);
                fault::reached(Point::OldInReserve);
                Some(Event::Follow)
            }
            Err(error) => {
                // Both ends are closed, which the new generation sees.
                tracing::warn!(%error, "the way back cannot be followed");
                None
            }
        }
    }

    /// Goes on with what the new generation has changed.
    pub(super) fn follow(&mut self) -> Option<Event> {
        let outcome = self.following.as_mut()?.go_on()?;
        Some(self.followed(outcome))
    }

    /// The supervisor needs no reserve any more.
    pub(super) fn stand_down(&mut self) -> Option<Event> {
        let Some(following) = self.following.as_mut() else {
            match self.state {
                State::Yielded => self.has_stood_down(),
                State::Freezing | State::Frozen | State::Resolving => self.dismissed = true,
                State::Serving
                | State::Copying
                | State::Converged
                | State::Rehearsed
                | State::Reserve => {}
            }
            return None;
        };
        let outcome = following.stand_down("the supervisor needs no reserve any more")?;
        Some(self.followed(outcome))
    }

    /// Whoever asks does not know that it was told already, or that there never was a reserve here.
    pub(super) fn has_stood_down(&self) {
        self.keeper.tell(&Report::StoodDown {
            migration: self.migration,
            reason: "this generation does not follow the changes of the new one".to_owned(),
        });
    }

    pub(super) fn followed(&mut self, outcome: Outcome) -> Event {
        let Some(following) = self.following.take() else {
            return Event::StoodDown;
        };
        self.reason.clone_from(&following.reason);
        match outcome {
            Outcome::Ours => {
                fault::reached(Point::OldReturned);
                self.receive_back(following);
                Event::Returned
            }
            Outcome::Over => {
                fault::reached(Point::OldStoodDown);
                Event::StoodDown
            }
        }
    }

    /// What still runs in the generation that has given the state back is carried out here, and its
    /// connections are taken; nobody speaks there if it is dead.
    fn receive_back(&self, following: Following) {
        let keeper = &self.keeper;
        let Following { fate, link, .. } = following;
        if let Err(error) = link::server::start(link, &keeper.core, &keeper.drain, &keeper.runtime)
        {
            tracing::warn!(%error, "operations of the other generation cannot be served");
        }
        let lifeline = fate.into_lifeline();
        if let Err(error) = moving::taking::start(lifeline, &keeper.drain, &keeper.runtime) {
            tracing::warn!(%error, "connections of the other generation cannot be taken");
        }
    }

    /// Whether there is a generation in reserve to which the state can be given back.
    pub(super) fn may_return(&self, migration: u64) -> Result<(), &'static str> {
        let back = self.keeper.way_back.as_ref();
        if back.is_none_or(|back| back.migration != migration) {
            return Err("there is no way back, or it is of another migration");
        }
        if self.state != State::Serving {
            return Err("the state is being copied, or has gone already");
        }
        if self.keeper.core.gate.way_back().is_none() {
            return Err("there is no way back any more");
        }
        Ok(())
    }

    /// Lets the state stand still, and offers it to the generation in reserve.
    pub(super) fn offer(&mut self) -> Option<Event> {
        let gate = &self.keeper.core.gate;
        let way = gate.way_back();
        let back = self.keeper.way_back.take();
        self.frozen_at = Some(Instant::now());
        self.frozen_usec = monotonic_usec();
        gate.close();
        self.keeper.drain.phases().begin(Phase::Paused);
        for store in self.keeper.core.stores() {
            store.settle();
        }
        let (Some(way), Some(back)) = (way, back) else {
            "there is no way back any more".clone_into(&mut self.reason);
            return Some(Event::Broken);
        };
        self.link = Some(back.link);
        self.versions.clone_from(way.versions());
        way.reads().clone_into(&mut self.reads);
        let offered = way.fate().and_then(|fate| {
            let lifeline = fate.try_clone()?.into_lifeline();
            self.offered = Some(Offered { lifeline, fate });
            way.offer()
        });
        match offered {
            Ok(Sent::Queued) => None,
            Ok(_) => {
                "the former generation is gone".clone_into(&mut self.reason);
                Some(Event::PeerGone)
            }
            Err(error) => {
                self.reason = format!("the state cannot be offered: {error}");
                way.give_up(&self.reason);
                Some(Event::Broken)
            }
        }
    }

    /// Whether the generation in reserve is still there: it never says anything here before the state is
    /// offered to it.
    pub(super) fn look_at_way_back(&mut self, way: Option<&WayBack>) {
        let Some(way) = way.filter(|_| self.offered.is_none()) else {
            return;
        };
        match way.hear() {
            Ok(Said::Nothing) => return,
            Ok(Said::Closed) => way.close(),
            // It may be alive, and must not take the end of the records for a death.
            Ok(_) => way.give_up("the former generation spoke out of turn"),
            Err(error) => way.give_up(&format!("the former generation cannot be heard: {error}")),
        }
        self.keeper.way_back = None;
    }

    pub(super) fn refuse_to_return(&self, migration: u64, reason: &str) {
        self.keeper.tell(&Report::Failed {
            migration,
            reason: reason.to_owned(),
        });
    }
}
