//! The keeper: the one thread that speaks the handover protocol for this process.
//!
//! It says hello, takes the state over, and from then on waits for orders: to give the state to the
//! next generation, to save it, to finish. What follows what is decided by the two machines of
//! [`heirloom_handover`]; here the world becomes their events, and their actions become calls. Between
//! two calls it waits for whichever descriptor speaks first, so nothing of it is polled.
//!
//! [`super::taking`] reads a copy, [`super::giving`] and [`super::saving`] write one.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use heirloom_handover::{
    fds,
    lifeline::{Lifeline, Said, Sent},
    message::{self, Order, Purpose, Reads, Report},
    source::{self, Action as Give, Event as GiveEvent},
    target::{self, Action as Take, Event as TakeEvent},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    Core, Origin, Tenure,
    copy::Copy,
    error::TakeError,
    gate::Mode,
    giving::{Broken, Giving, Way, Went},
    link::{self, Link},
    saving,
    taking::{Taking, Took},
};
use crate::{
    Drain, Outcome,
    moving::{
        self, Phase,
        giving::{Mover, Tell},
    },
};

/// Descriptors that come with an order to give or take: stream, lifeline, link.
const WAY: usize = 3;

/// Everything the keeper needs of its process.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) socket: OwnedFd,
    pub(super) core: Arc<Core>,
    pub(super) tenure: Tenure,
    pub(super) generation: u64,
    pub(super) drain: Drain,
    pub(super) runtime: Handle,
    /// Told once: that the state is this generation's, or why it never will be.
    pub(super) owned: Option<oneshot::Sender<Result<Origin, TakeError>>>,
}

/// What a wait came to.
enum Heard {
    Order(Order, Vec<OwnedFd>),
    /// The supervisor closed its end.
    SupervisorGone,
    /// Something else than the supervisor is ready, or time has passed.
    Other,
}

impl Keeper {
    /// Runs to the end of the process, or until the state cannot be taken.
    pub(super) fn run(mut self) {
        if !self.take_over() {
            return;
        }
        Giver {
            keeper: self,
            state: source::State::Serving,
            migration: 0,
            giving: None,
            lifeline: None,
            link: None,
            versions: HashMap::new(),
            reads: Vec::new(),
            frozen_at: None,
            frozen_usec: 0,
            reason: String::new(),
            retire: false,
        }
        .serve();
    }

    fn tell(&self, report: &Report) {
        tell(&self.socket, report);
    }

    /// Waits for an order, and for `others` as well, until `end`.
    fn wait(&self, others: &[PollFd<'_>], end: Option<Instant>) -> io::Result<Heard> {
        let mut all = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        all.extend_from_slice(others);
        wait_for(&mut all, end)?;
        if all[0].any() != Some(true) {
            return Ok(Heard::Other);
        }
        loop {
            let received = match fds::receive(&self.socket, message::LARGEST_BYTES) {
                Ok(received) => received,
                Err(error) => match error.kind() {
                    io::ErrorKind::ConnectionReset => return Ok(Heard::SupervisorGone),
                    io::ErrorKind::Interrupted => continue,
                    _other => return Err(error),
                },
            };
            if received.bytes.is_empty() {
                return Ok(Heard::SupervisorGone);
            }
            match Order::parse(&received.bytes) {
                Ok(order) => return Ok(Heard::Order(order, received.fds)),
                Err(error) => {
                    tracing::warn!(%error, "an order of the supervisor was passed over");
                    return Ok(Heard::Other);
                }
            }
        }
    }

    // Taking over.

    /// Says hello and takes the state over; whether this generation owns it then.
    fn take_over(&mut self) -> bool {
        let reads = self.core.reads();
        self.tell(&Report::Hello {
            protocol: message::PROTOCOL,
            version: self.tenure.version.clone(),
            reads,
        });
        let mut taker = Taker {
            keeper: self,
            state: target::State::Greeting,
            taking: None,
            link: None,
            migration: 0,
            origin: Origin::Fresh,
            counts: (0, 0),
            error: None,
        };
        taker.run();
        taker.state == target::State::Owning
    }
}

/// The side that takes the state over.
struct Taker<'a> {
    keeper: &'a mut Keeper,
    state: target::State,
    taking: Option<Taking>,
    link: Option<OwnedFd>,
    migration: u64,
    origin: Origin,
    /// Entries and bytes taken.
    counts: (u64, u64),
    /// Why the state was not taken.
    error: Option<TakeError>,
}

impl Taker<'_> {
    fn run(&mut self) {
        while !matches!(self.state, target::State::Owning | target::State::Dismissed) {
            let event = match self.next() {
                Ok(event) => event,
                Err(error) => {
                    self.error = Some(error);
                    Some(TakeEvent::Unusable)
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
    fn next(&mut self) -> Result<Option<TakeEvent>, TakeError> {
        let receiving = self.state == target::State::Receiving;
        let stream = self
            .taking
            .as_ref()
            .filter(|_| receiving)
            .map(Taking::stream);
        let others: Vec<PollFd<'_>> = stream
            .map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN))
            .into_iter()
            .collect();
        match self.keeper.wait(&others, None)? {
            Heard::Order(order, descriptors) => Ok(self.ordered(order, descriptors)),
            Heard::SupervisorGone => {
                let reason = "the supervisor is gone".to_owned();
                self.error.get_or_insert(TakeError::CalledOff(reason));
                Ok(Some(TakeEvent::SupervisorGone))
            }
            Heard::Other => match self.taking.as_mut().filter(|_| receiving) {
                None => Ok(None),
                Some(taking) => match taking.go_on()? {
                    Took::More => Ok(None),
                    Took::All { entries, bytes } => {
                        self.counts = (entries, bytes);
                        Ok(Some(TakeEvent::Verified))
                    }
                },
            },
        }
    }

    fn ordered(&mut self, order: Order, descriptors: Vec<OwnedFd>) -> Option<TakeEvent> {
        match order {
            Order::Begin => Some(TakeEvent::Begin),
            Order::Receive { migration, from } => {
                let mut descriptors = descriptors.into_iter();
                self.migration = migration;
                self.origin = Origin::Generation(from);
                let (Some(stream), Some(lifeline), Some(link)) =
                    (descriptors.next(), descriptors.next(), descriptors.next())
                else {
                    self.error = Some(TakeError::CalledOff(
                        "the supervisor sent too few descriptors; it is at fault".to_owned(),
                    ));
                    return Some(TakeEvent::Abort);
                };
                self.link = Some(link);
                self.taking = Some(Taking::new(
                    stream,
                    Some(migration),
                    Some(lifeline),
                    self.keeper.core.stores(),
                ));
                Some(TakeEvent::Receive)
            }
            Order::Restore { migration } => {
                self.migration = migration;
                self.origin = Origin::Saved;
                let Some(file) = descriptors.into_iter().next() else {
                    self.error = Some(TakeError::CalledOff(
                        "the supervisor sent no file; it is at fault".to_owned(),
                    ));
                    return Some(TakeEvent::Abort);
                };
                self.taking = Some(Taking::new(file, None, None, self.keeper.core.stores()));
                Some(TakeEvent::Receive)
            }
            Order::Commit { migration, alone } if migration == self.migration => Some(if alone {
                TakeEvent::CommitAlone
            } else {
                TakeEvent::Commit
            }),
            Order::Abort { reason, .. } => {
                self.error.get_or_insert(TakeError::CalledOff(reason));
                Some(TakeEvent::Abort)
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

    fn act(&mut self, action: Take) -> Option<TakeEvent> {
        match action {
            // From here on the stream is waited for as well.
            Take::Read => None,
            Take::TellReady => {
                let (entries, bytes) = self.counts;
                self.keeper.tell(&Report::Ready {
                    migration: self.migration,
                    entries,
                    bytes,
                });
                None
            }
            Take::TellReject => {
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
            Take::SayCommitted => {
                let taking = self.taking.as_ref();
                let lifeline = taking.and_then(|taking| taking.lifeline.as_ref())?;
                match lifeline.commit() {
                    Ok(Sent::Queued) => Some(TakeEvent::Queued),
                    // Nothing was queued, so nobody will take it for a commit.
                    Ok(_) | Err(_) => {
                        let reason = "the former generation has taken the state back".to_owned();
                        self.error.get_or_insert(TakeError::CalledOff(reason));
                        Some(TakeEvent::Refused)
                    }
                }
            }
            Take::Own => {
                self.own();
                None
            }
            Take::TellCommitted => {
                self.keeper.tell(&Report::Committed {
                    migration: self.migration,
                    at_usec: monotonic_usec(),
                });
                None
            }
            Take::GiveUp => {
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
        keeper.core.gate.open(false);
        if let Some(link) = self.link.take()
            && let Err(error) = link::server::start(link, Arc::clone(&keeper.core), &keeper.runtime)
        {
            tracing::warn!(%error, "operations of the former generation cannot be served");
        }
        let lifeline = self.taking.take().and_then(|taking| taking.lifeline);
        if let Some(lifeline) = lifeline
            && let Err(error) =
                moving::taking::start(lifeline, keeper.drain.arrivals(), &keeper.runtime)
        {
            tracing::warn!(%error, "connections of the former generation cannot be taken");
        }
        if let Some(owned) = keeper.owned.take() {
            // The app may have stopped waiting.
            let _gone = owned.send(Ok(self.origin));
        }
    }
}

/// The side that gives the state away, and serves until then.
struct Giver {
    keeper: Keeper,
    state: source::State,
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
    /// The order to finish came while the state was nobody's to give up.
    retire: bool,
}

impl Giver {
    fn serve(mut self) {
        let mut supervised = true;
        loop {
            let event = match self.next(supervised) {
                Ok(event) => event,
                Err(error) => {
                    tracing::error!(%error, "the handover protocol ends here; the app serves on");
                    supervised = false;
                    Some(GiveEvent::SupervisorGone)
                }
            };
            if event == Some(GiveEvent::SupervisorGone) {
                supervised = false;
            }
            if let Some(event) = event {
                self.feed(event);
            }
            let busy = self.giving.is_some() || self.state == source::State::Resolving;
            if !supervised && !busy {
                return;
            }
        }
    }

    fn feed(&mut self, event: GiveEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let before = self.state;
            let (state, actions) = source::step(before, event);
            self.state = state;
            let nobodys = matches!(
                before,
                source::State::Freezing | source::State::Frozen | source::State::Resolving
            );
            let asked = matches!(event, GiveEvent::Retire | GiveEvent::SupervisorGone);
            self.retire |= nobodys && asked && event == GiveEvent::Retire;
            for action in actions {
                events.extend(self.act(*action));
            }
            let settled = matches!(state, source::State::Serving | source::State::Yielded);
            if self.retire && settled {
                self.retire = false;
                events.push_back(GiveEvent::Retire);
            }
        }
    }

    /// Goes on with the copy as far as nobody has to be waited for, else waits.
    fn next(&mut self, supervised: bool) -> io::Result<Option<GiveEvent>> {
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
                let limit = self.giving.as_ref().map(|giving| giving.freeze_limit);
                self.frozen_at.zip(limit).map(|(at, limit)| at + limit)
            }
        };
        let mut others = Vec::new();
        if let Some(giving) = &self.giving {
            others.push(PollFd::new(giving.lifeline.as_fd(), PollFlags::POLLIN));
            if let Some(stream) = giving.blocked_on() {
                others.push(PollFd::new(stream.as_fd(), PollFlags::POLLOUT));
            }
        }
        let heard = if supervised {
            self.keeper.wait(&others, end)?
        } else {
            wait_for(&mut others, end)?;
            Heard::Other
        };
        match heard {
            Heard::Order(order, descriptors) => return Ok(self.ordered(order, descriptors)),
            Heard::SupervisorGone => {
                "the supervisor is gone".clone_into(&mut self.reason);
                return Ok(Some(GiveEvent::SupervisorGone));
            }
            Heard::Other => {}
        }
        if let Some(event) = self.hear() {
            return Ok(Some(event));
        }
        let limit = self.giving.as_ref().map(|giving| giving.freeze_limit);
        if let Some((at, limit)) = self.frozen_at.zip(limit)
            && at.elapsed() >= limit
        {
            self.reason = format!("the state stood still for {limit:?}, as long as it may");
            return Ok(Some(GiveEvent::Deadline));
        }
        Ok(None)
    }

    fn event_of(&self, went: &Went) -> Option<GiveEvent> {
        match went {
            Went::Converged => Some(GiveEvent::Converged),
            Went::Complete => match self.giving.as_ref().map(|giving| giving.purpose) {
                Some(Purpose::Rehearsal) => Some(GiveEvent::CompleteRehearsal),
                Some(Purpose::Handover) | None => Some(GiveEvent::Complete),
            },
            Went::On | Went::Blocked | Went::Waiting => None,
        }
    }

    /// What the new generation says on the lifeline.
    fn hear(&mut self) -> Option<GiveEvent> {
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
            Ok(Said::Committed) => Some(GiveEvent::Committed),
            Ok(Said::Closed) => {
                "the new generation is gone".clone_into(&mut self.reason);
                Some(GiveEvent::PeerGone)
            }
            Ok(_) => None,
            Err(broken) => Some(self.broken(broken)),
        }
    }

    fn broken(&mut self, broken: Broken) -> GiveEvent {
        self.reason = broken.to_string();
        GiveEvent::Broken
    }

    fn is_current(&self, migration: u64) -> bool {
        let giving = self.giving.as_ref();
        giving.is_some_and(|giving| giving.migration == migration)
    }

    fn ordered(&mut self, order: Order, descriptors: Vec<OwnedFd>) -> Option<GiveEvent> {
        match order {
            Order::Send {
                migration,
                purpose,
                pause,
                freeze,
                reads,
                ..
            } => {
                if !matches!(
                    self.state,
                    source::State::Serving | source::State::Rehearsed
                ) {
                    self.refuse(migration);
                    return None;
                }
                match self.begin(migration, purpose, (pause, freeze), &reads, descriptors) {
                    Ok(()) => Some(GiveEvent::Send),
                    Err(reason) => {
                        self.keeper.tell(&Report::Failed { migration, reason });
                        None
                    }
                }
            }
            Order::Freeze { migration } if self.is_current(migration) => Some(GiveEvent::Freeze),
            Order::Abort { migration, reason } if self.is_current(migration) => {
                self.reason = reason;
                Some(GiveEvent::Abort)
            }
            Order::Retire => {
                "this generation was told to end".clone_into(&mut self.reason);
                Some(GiveEvent::Retire)
            }
            Order::Save { migration } => {
                self.save(migration, descriptors, false);
                None
            }
            Order::Stop { migration } => {
                self.save(migration, descriptors, true);
                None
            }
            // Of a migration that is over.
            Order::Abort { .. } => Some(GiveEvent::Abort),
            other => {
                tracing::debug!(?other, "an order came too late to mean anything");
                None
            }
        }
    }

    fn refuse(&self, migration: u64) {
        let reason = match self.state {
            source::State::Yielded => "this generation has handed its state over already",
            source::State::Serving
            | source::State::Copying
            | source::State::Converged
            | source::State::Freezing
            | source::State::Frozen
            | source::State::Rehearsed
            | source::State::Resolving => "another copy of the state is under way",
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
        reads: &[Reads],
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
                Ok(())
            }
            Err(broken) => {
                self.keeper.core.gate.open(false);
                Err(broken.to_string())
            }
        }
    }

    /// Writes the state to a file; at the end of the app, or while it serves.
    fn save(&mut self, migration: u64, descriptors: Vec<OwnedFd>, stop: bool) {
        let keeper = &self.keeper;
        let Some(file) = descriptors.into_iter().next().map(File::from) else {
            let reason = "the supervisor sent no file; it is at fault".to_owned();
            return keeper.tell(&Report::Failed { migration, reason });
        };
        // While a copy is under way the supervisor does not ask for another; should it all the same,
        // the handover goes first.
        if !matches!(
            self.state,
            source::State::Serving | source::State::Rehearsed
        ) {
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
        )
        .map_err(saving::NotSaved::from);
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

    fn act(&mut self, action: Give) -> Option<GiveEvent> {
        match action {
            // The copy was prepared when the order came, and one that cannot be was refused then.
            Give::Copy | Give::Refuse => None,
            Give::TellConverged => {
                let giving = self.giving.as_ref()?;
                self.keeper.tell(&Report::Converged {
                    migration: giving.migration,
                    rounds: u64::from(giving.copy.rounds),
                    bytes: giving.copy.writer.stream_bytes(),
                });
                None
            }
            Give::Freeze => {
                self.frozen_at = Some(Instant::now());
                self.frozen_usec = monotonic_usec();
                self.keeper.core.gate.close();
                self.keeper.drain.phases().begin(Phase::Paused);
                match self.giving.as_mut()?.freeze() {
                    Ok(()) => None,
                    Err(broken) => Some(self.broken(broken)),
                }
            }
            Give::TellFrozen => {
                let giving = self.giving.as_ref()?;
                self.keeper.tell(&Report::Frozen {
                    migration: giving.migration,
                    at_usec: self.frozen_usec,
                    rounds: u64::from(giving.copy.rounds),
                    bytes: giving.copy.writer.stream_bytes(),
                    stall_usec: usec(giving.copy.longest_slice),
                });
                None
            }
            Give::EndCopy => {
                self.end_copy();
                None
            }
            Give::TellFailed => {
                self.keeper.tell(&Report::Failed {
                    migration: self.migration,
                    reason: self.reason.clone(),
                });
                None
            }
            Give::Resolve => {
                let giving = self.giving.as_ref()?;
                Some(match giving.lifeline.resolve() {
                    Ok(true) => GiveEvent::ResolvedTheirs,
                    Ok(false) => GiveEvent::ResolvedOurs,
                    Err(error) => {
                        // Without an answer the state must not have two owners: it has none here.
                        tracing::error!(%error, "the lifeline cannot be looked at");
                        GiveEvent::ResolvedTheirs
                    }
                })
            }
            Give::Thaw => {
                self.frozen_at = None;
                self.keeper.core.gate.open(false);
                self.keeper.drain.phases().begin(Phase::Serving);
                None
            }
            Give::TellThawed => {
                self.keeper.tell(&Report::Thawed {
                    migration: self.migration,
                    at_usec: monotonic_usec(),
                    reason: self.reason.clone(),
                });
                None
            }
            Give::Yield => {
                self.yield_state();
                None
            }
            Give::TellYielded => {
                self.keeper.tell(&Report::Yielded {
                    migration: self.migration,
                    at_usec: monotonic_usec(),
                });
                None
            }
            Give::Drain => {
                self.keeper.drain.begin();
                None
            }
        }
    }
}

impl Giver {
    /// Gives the copy up: changes are no longer noted, and the stream ends. The lifeline stays with
    /// [`Self::lifeline`], for connections.
    fn end_copy(&mut self) {
        self.lifeline = self.giving.take().map(|giving| giving.lifeline);
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
                let tell = self.tell_moved()?;
                Mover::start(lifeline.into(), reads, tell, &keeper.runtime)
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
    fn tell_moved(&self) -> io::Result<Tell> {
        let socket = self.keeper.socket.try_clone()?;
        let census = Arc::clone(self.keeper.drain.census());
        let migration = self.migration;
        Ok(Box::new(move |moved| {
            let left = census.counts();
            tell(
                &socket,
                &Report::Moved {
                    migration,
                    moved,
                    left,
                },
            );
        }))
    }

    /// Has the supervisor told, at the end of the drain, what became of all connections.
    fn tell_end(&self, mover: &Arc<Mover>) {
        let Ok(socket) = self.keeper.socket.try_clone() else {
            return;
        };
        let (mover, migration) = (Arc::clone(mover), self.migration);
        self.keeper.drain.at_the_end(move |outcome| async move {
            let cut = match outcome {
                Outcome::Drained => 0,
                Outcome::LimitPassed { cut } | Outcome::Forced { cut } => cut as u64,
            };
            let moved = mover.moved();
            tell(
                &socket,
                &Report::Gone {
                    migration,
                    moved,
                    cut,
                },
            );
        });
    }
}

/// Tells the supervisor something; that it does not take it is seen where it is waited for.
fn tell(socket: &OwnedFd, report: &Report) {
    if let Err(error) = fds::send(socket, &report.to_bytes(), &[] as &[OwnedFd]) {
        tracing::debug!(%error, "the supervisor did not take a report");
    }
}

/// Waits for one of these, until `end`.
fn wait_for(others: &mut [PollFd<'_>], end: Option<Instant>) -> io::Result<()> {
    match poll(others, limit(end)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The time until `end`, rounded up, so that a wait does not end just before it.
fn limit(end: Option<Instant>) -> PollTimeout {
    end.map_or(PollTimeout::NONE, |end| {
        let left = end.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
    })
}

fn usec(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Now, on the clock that all processes of this machine share.
fn monotonic_usec() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| usec(now.into()))
}
