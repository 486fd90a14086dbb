//! The orders of the supervisor: what each of them comes down to.

use std::{fs::File, os::fd::OwnedFd, sync::mpsc, time::Duration};

use heirloom_handover::{
    fault::{self, Point},
    message::{Order, Purpose, Reads, Report, Standing},
    source::{Event, State},
};
use tokio::sync::oneshot;

use super::Giver;
use crate::state::{
    copy::Copy,
    giving::{Broken, Giving, Way},
    keeper::usec,
    saving::{self, NotSaved},
    way_back::following::Ends,
};

/// Descriptors that come with the order to give the state away: stream, lifeline, link.
const WAY: usize = 3;

/// The reading end of a way back; none if the supervisor sent other descriptors than it announced.
fn ends(limit: Option<Duration>, descriptors: Vec<OwnedFd>) -> Option<Ends> {
    let [pipe, fate, link]: [OwnedFd; 3] = descriptors.try_into().ok()?;
    Some(Ends {
        pipe,
        fate,
        link,
        limit: limit?,
    })
}

impl Giver {
    fn is_current(&self, migration: u64) -> bool {
        let giving = self.giving.as_ref();
        giving.is_some_and(|giving| giving.migration == migration)
    }

    pub(super) fn ordered(&mut self, order: Order, descriptors: Vec<OwnedFd>) -> Option<Event> {
        match order {
            Order::Send {
                migration,
                purpose,
                pause,
                freeze,
                reads,
                way_back,
                bytes_max,
                to: _,
            } => {
                fault::reached(Point::OldAsked);
                if !matches!(self.state, State::Serving | State::Rehearsed) {
                    self.refuse(migration);
                    return None;
                }
                let mut descriptors = descriptors;
                let back = descriptors.split_off(descriptors.len().min(WAY));
                match self.begin(
                    migration,
                    purpose,
                    (pause, freeze),
                    (&reads, bytes_max),
                    descriptors,
                ) {
                    Ok(()) => {
                        self.ends = ends(way_back, back);
                        Some(Event::Send)
                    }
                    Err(reason) => {
                        self.keeper.tell(&Report::Failed { migration, reason });
                        None
                    }
                }
            }
            Order::Freeze { migration } if self.is_current(migration) => Some(Event::Freeze),
            // A rehearsal is called off when its copy has ended already.
            Order::Abort { migration, reason } if migration == self.migration => {
                self.reason = reason;
                Some(Event::Abort)
            }
            Order::StandDown { migration } if migration == self.migration => self.stand_down(),
            Order::Return { migration } => match self.may_return(migration) {
                Ok(()) => {
                    self.migration = migration;
                    Some(Event::GiveBack)
                }
                Err(reason) => {
                    self.refuse_to_return(migration, reason);
                    None
                }
            },
            Order::Retire => {
                fault::reached(Point::OldRetired);
                "this generation was told to end".clone_into(&mut self.reason);
                Some(Event::Retire)
            }
            Order::Who => {
                let phase = match self.state {
                    State::Freezing | State::Frozen | State::Resolving => Standing::Frozen,
                    State::Yielded => Standing::Yielded,
                    State::Reserve => Standing::Reserve,
                    State::Serving | State::Copying | State::Converged | State::Rehearsed => {
                        Standing::Owning
                    }
                };
                let migration = self.migration;
                self.keeper.tell(&Report::Phase { migration, phase });
                None
            }
            Order::Save {
                migration,
                bytes_max,
            } => {
                self.save(migration, descriptors, bytes_max, false);
                None
            }
            Order::Stop {
                migration,
                bytes_max,
            } => {
                self.save(migration, descriptors, bytes_max, true);
                None
            }
            // Of a migration that is over.
            other => {
                tracing::debug!(?other, "an order came too late to mean anything");
                None
            }
        }
    }

    fn refuse(&self, migration: u64) {
        let reason = match self.state {
            State::Yielded | State::Reserve => "this generation has handed its state over already",
            State::Serving
            | State::Copying
            | State::Converged
            | State::Freezing
            | State::Frozen
            | State::Rehearsed
            | State::Resolving => "another copy of the state is under way",
        };
        self.keeper.tell(&Report::Failed {
            migration,
            reason: reason.to_owned(),
        });
    }

    /// Prepares a copy for the next generation.
    fn begin(
        &mut self,
        migration: u64,
        purpose: Purpose,
        (pause, freeze_limit): (Duration, Duration),
        (reads, bytes_max): (&[Reads], Option<u64>),
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let [stream, lifeline, link]: [OwnedFd; WAY] = descriptors
            .try_into()
            .map_err(|_| "the supervisor sent too few descriptors; it is at fault".to_owned())?;
        self.end_copy();
        self.keeper.core.gate.open(true);
        let begun = Copy::begin(
            self.keeper.tenure.app(),
            self.keeper.core.stores(),
            (migration, self.keeper.generation),
            Some(reads),
            bytes_max,
        )
        .map_err(Broken::from)
        .and_then(|copy| {
            let way = Way {
                migration,
                purpose,
                stream,
                lifeline,
                pause,
                policy: self.keeper.tenure.policy,
                freeze_limit,
            };
            Giving::begin(copy, way)
        });
        match begun {
            Ok(giving) => {
                self.migration = migration;
                self.versions.clone_from(&giving.copy.versions);
                self.reads = reads.to_vec();
                self.giving = Some(giving);
                self.link = Some(link);
                fault::reached(Point::OldCopying);
                Ok(())
            }
            Err(broken) => {
                self.keeper.core.gate.open(false);
                Err(broken.to_string())
            }
        }
    }

    /// Writes the state to a file; at the end of the app, or while it serves.
    fn save(
        &mut self,
        migration: u64,
        descriptors: Vec<OwnedFd>,
        bytes_max: Option<u64>,
        stop: bool,
    ) {
        let keeper = &self.keeper;
        let Some(file) = descriptors.into_iter().next().map(File::from) else {
            let reason = "the supervisor sent no file; it is at fault".to_owned();
            return keeper.tell(&Report::Failed { migration, reason });
        };
        // While a copy is under way the supervisor does not ask for another; should it all the same,
        // the handover goes first.
        if !matches!(self.state, State::Serving | State::Rehearsed) {
            return self.refuse(migration);
        }
        // A stop waits for everything that was begun, and holds the process's end up until it is saved.
        let (last, drained) = mpsc::channel();
        let (saved, is_saved) = oneshot::channel::<()>();
        if stop {
            keeper.drain.at_the_end(|_outcome| async move {
                // Both ends are in this process; if the keeper is gone there is nothing to wait for.
                let _gone = last.send(());
                let _saved = is_saved.await;
            });
            keeper.drain.begin();
            // The drain has its own limit, so this wait has it too.
            let _gone = drained.recv();
        } else {
            keeper.core.gate.open(true);
        }
        let copy = Copy::begin(
            keeper.tenure.app(),
            keeper.core.stores(),
            (0, keeper.generation),
            None,
            bytes_max,
        )
        .map_err(NotSaved::from);
        let outcome = copy.and_then(|copy| {
            if stop {
                saving::at_the_end(&keeper.core, copy, &file)
            } else {
                saving::while_serving(&keeper.core, copy, &file)
            }
        });
        if !stop {
            keeper.core.gate.open(false);
        }
        keeper.tell(&match outcome {
            Ok(saved) => Report::Saved {
                migration,
                entries: saved.entries,
                bytes: saved.bytes,
                rounds: saved.rounds,
                pause_usec: usec(saved.pause),
            },
            Err(error) => Report::Failed {
                migration,
                reason: error.to_string(),
            },
        });
        drop(saved);
    }
}
