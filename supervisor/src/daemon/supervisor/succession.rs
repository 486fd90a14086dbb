//! What a supervisor leaves to those that come after it: the record that it keeps all the time, and the
//! moment at which it makes way for its successor in place.
//!
//! Owns when that may be: when nothing is in the middle of something, no client is in the middle of an
//! answer, and no input waits.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Stage, Supervisor, check_threads};
use crate::cli::exit;
use crate::config::file::Configuration;
use crate::control::protocol::{Fault, Refusal};
use crate::daemon::adoption;
use crate::daemon::family::{self, Bond};
use crate::daemon::input::Input;
use crate::daemon::listeners::Returning;
use crate::daemon::record::handles::{Found, Purpose};
use crate::daemon::record::slots::Slots;
use crate::daemon::record::{self, Handle, Held, LARGEST_BYTES, Passage, Unreadable};
use crate::daemon::runner::{Runner, What};
use crate::daemon::server::{Conversations, OnHold};
use crate::daemon::timer::Timer;
use crate::daemon::upgrade::Successor;

/// How long handovers under way are waited for, if nobody says.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How soon it is looked again whether the clients are at rest.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// How another supervisor follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Succession {
    /// In this very process.
    InPlace,
    /// As a process that somebody starts once this one has ended.
    Anew,
}

/// A supervisor that is about to make way for another.
#[derive(Debug)]
pub(super) struct Upgrade {
    how: Succession,
    successor: Successor,
    stage: UpgradeStage,
    limit: Duration,
    _limit: Timer,
    waiters: Vec<oneshot::Sender<Refusal>>,
    /// A reload by a signal that came meanwhile.
    pub(super) reload: bool,
}

#[derive(Debug)]
enum UpgradeStage {
    /// The program is being tried.
    Trying { _trial: Timer },
    /// It can follow, once nothing is in the middle of something.
    Waiting { look: Option<Timer> },
}

/// Where the record is kept.
#[derive(Debug)]
pub(super) struct Keeping {
    handle: Handle,
    slots: Option<Slots>,
    /// What systemd keeps for us.
    pub(super) by_systemd: BTreeSet<Handle>,
    /// Whether systemd has not listened when it was last told what to keep.
    is_behind: bool,
    /// A file of which nothing can be used, which systemd still keeps under the record's name.
    useless: Option<Handle>,
    /// Whether it was said that it cannot be written.
    complained: bool,
}

impl Keeping {
    pub(super) fn new(
        slots: io::Result<Slots>,
        file: Option<Handle>,
        by_systemd: BTreeSet<Handle>,
    ) -> Self {
        let slots = slots.inspect_err(|error| {
            tracing::warn!(
                "no record can be kept ({error}): should the supervisor die, no other can take its programs over"
            );
        });
        Self::resume(slots.ok(), file, by_systemd)
    }

    pub(super) fn resume(
        slots: Option<Slots>,
        handle: Option<Handle>,
        by_systemd: BTreeSet<Handle>,
    ) -> Self {
        Self {
            handle: handle.unwrap_or_else(Handle::new),
            slots,
            by_systemd,
            is_behind: false,
            useless: None,
            complained: false,
        }
    }

    /// Systemd keeps a record that nobody needs any more.
    pub(super) fn has_useless_record(&mut self) {
        let handle = Handle::new();
        self.useless = Some(handle);
        self.by_systemd.insert(handle);
    }

    /// Under which name systemd keeps a descriptor.
    fn name_of(&self, handle: Handle) -> String {
        if handle == self.handle || self.useless == Some(handle) {
            adoption::RECORD_NAME.to_owned()
        } else {
            format!("{}{}", adoption::HANDLE_PREFIX, handle.0)
        }
    }
}

/// What marks a supervisor's processes: no two supervisors have the same.
pub(super) fn new_lineage() -> String {
    use std::hash::{BuildHasher, Hasher};
    // Seeded by the system for each process.
    let random = std::hash::RandomState::new();
    let mut hasher = random.build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u64(crate::daemon::timer::boot_ms());
    format!("{:016x}", hasher.finish())
}

/// What tells one run of the machine from another; empty where the system hides that.
pub(super) fn boot() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    read.map(|text| text.trim().to_owned()).unwrap_or_default()
}

impl Supervisor {
    // The record.

    fn record<'a>(&'a self, held: &mut Held<'a>) -> record::Supervisor {
        let stopping = matches!(self.stage, Stage::Stopping | Stage::GivingUp);
        record::Supervisor {
            version: record::VERSION,
            written_by: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.name.clone(),
            generation: self.generation,
            process: family::own(),
            lineage: self.context.lineage.to_string(),
            boot: boot(),
            program: self.program.clone(),
            file: self.file.clone(),
            last_handle: Handle::last(),
            stopping,
            refused: self.refused.clone(),
            unsaved: self.unsaved.clone(),
            services: self.services.values().map(|one| one.record(held)).collect(),
            removed: self.removed.iter().map(|one| one.record(held)).collect(),
        }
    }

    /// Takes the services of a record over.
    pub(super) fn restore(
        &mut self,
        record: record::Supervisor,
        bond: Bond,
        found: &mut Found,
        sockets: &mut Returning,
    ) -> Result<(), String> {
        let mut restore = |listed: record::Runner| {
            let name = listed.settings.name().to_owned();
            Runner::take_over(self.context.clone(), listed, bond, found, sockets)
                .map_err(|error| format!("service {name} cannot be taken over: {error}"))
        };
        let mut services = Vec::new();
        for listed in record.services {
            services.push(restore(listed)?);
        }
        for listed in record.removed {
            self.removed.push(restore(listed)?);
        }
        let named = services
            .into_iter()
            .map(|runner| (runner.name().to_owned(), runner));
        self.services = named.collect();
        Ok(())
    }

    /// Takes over what a supervisor that is gone has left. What is wanted now and was not then follows as a
    /// handover.
    pub(super) fn adopt(
        &mut self,
        record: record::Supervisor,
        mut wanted: Configuration,
        found: &mut Found,
    ) -> Result<(), String> {
        let known = adoption::processes(&record).map(|running| running.rendezvous.clone());
        let known: BTreeSet<String> = known.collect();
        self.systemd.set_busy(true);
        let mut sockets = Returning::default();
        self.restore(record, Bond::Adopted, found, &mut sockets)?;
        sockets.were_taken_over();
        adoption::end_strays(&self.context.lineage, &known);
        for runner in self.runners() {
            runner.inquire_all();
            runner.resume();
        }
        tracing::info!(
            "the programs of a supervisor that is gone were taken over; this is generation {} of the supervisor",
            self.generation
        );
        self.give_unclaimed(&mut wanted);
        let same = self.services.len() == wanted.services.len()
            && wanted.services.iter().all(|(name, service)| {
                let runner = self.services.get(name);
                runner.is_some_and(|runner| !runner.differs_from(service))
            });
        if !same {
            tracing::info!("the configuration has changed since; a handover follows");
            let spread = self.spread(What::Reload, Some(wanted), None, None, false);
            if let Err(reason) = spread {
                tracing::error!("what was taken over goes on as it is: {reason}");
                self.refused = Some(reason);
            }
        }
        Ok(())
    }

    /// Lets what was taken over go on.
    pub(super) fn resume(&mut self) {
        for runner in self.runners() {
            runner.resume();
        }
    }

    /// Brings the record up to date, and with it what systemd keeps.
    pub(super) fn keep_record(&mut self) {
        if self.keeping.slots.is_none() {
            return;
        }
        let mut held = Held::for_(Purpose::Keep);
        let record = serde_json::to_vec(&self.record(&mut held)).map_err(io::Error::from);
        let news = self.news_for_systemd(&held);
        drop(held);
        // First what the record speaks of.
        self.keeping.is_behind = false;
        for (handle, fd) in news {
            let name = self.keeping.name_of(handle);
            let told = match &fd {
                Some(fd) => self.systemd.keep(&name, fd),
                None => self.systemd.forget(&name),
            };
            match (told, fd) {
                (Ok(()), Some(_)) => drop(self.keeping.by_systemd.insert(handle)),
                (Ok(()), None) => drop(self.keeping.by_systemd.remove(&handle)),
                // Told again with the next record, for which a heartbeat sees.
                (Err(error), _) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.keeping.is_behind = true;
                    break;
                }
                // Told again with the next record, whenever that is.
                (Err(_), _) => {}
            }
        }
        let Some(slots) = &mut self.keeping.slots else {
            return;
        };
        match record.and_then(|record| slots.write(record)) {
            Ok(()) => self.keeping.complained = false,
            Err(error) if !self.keeping.complained => {
                self.keeping.complained = true;
                tracing::warn!("the record cannot be brought up to date: {error}");
            }
            Err(_) => {}
        }
    }

    /// The descriptors that systemd does not keep yet, and the names of those it need not keep any more.
    fn news_for_systemd(&self, held: &Held<'_>) -> Vec<(Handle, Option<OwnedFd>)> {
        if !self.systemd.is_there() {
            return Vec::new();
        }
        let keeping = &self.keeping;
        let file = keeping.slots.iter();
        let file = file.map(|slots| (keeping.handle, slots.as_fd()));
        let others = held.descriptors().iter();
        let wanted: BTreeMap<Handle, BorrowedFd<'_>> = others
            .map(|(handle, fd)| (*handle, *fd))
            .chain(file)
            .collect();
        let unknown = wanted
            .iter()
            .filter(|(handle, _)| !keeping.by_systemd.contains(handle));
        // One that cannot be duplicated now is tried again with the next record.
        let new = unknown.filter_map(|(handle, fd)| {
            let duplicate = fd.try_clone_to_owned().ok()?;
            Some((*handle, Some(duplicate)))
        });
        let gone = keeping.by_systemd.iter();
        let gone = gone.filter(|handle| !wanted.contains_key(handle));
        gone.map(|handle| (*handle, None)).chain(new).collect()
    }

    /// Nothing is left to be taken over.
    pub(super) fn forget_record(&mut self) {
        if let Some(slots) = &self.keeping.slots {
            slots.remove();
        }
        for handle in std::mem::take(&mut self.keeping.by_systemd) {
            // A service that has stopped keeps nothing with systemd anyway.
            let _told = self.systemd.forget(&self.keeping.name_of(handle));
        }
    }

    // The upgrade.

    /// The supervisor is to make way for its program as it stands now.
    pub(super) fn make_way(
        &mut self,
        how: Succession,
        limit: Option<Duration>,
        waiter: Option<oneshot::Sender<Refusal>>,
    ) {
        if let Some(upgrade) = &mut self.upgrade {
            if upgrade.how == how {
                upgrade.waiters.extend(waiter);
            } else {
                refuse(waiter, "it is about to make way for another one already");
            }
            return;
        }
        match self.begin_upgrade(how, limit.unwrap_or(LONGEST_WAIT)) {
            Ok(mut upgrade) => {
                tracing::info!(
                    "about to be followed by {}, which is tried first",
                    upgrade.successor.path().display()
                );
                upgrade.waiters.extend(waiter);
                self.upgrade = Some(upgrade);
                self.desk.hold(on_hold(how));
            }
            Err(reason) => refuse(waiter, &reason),
        }
    }

    fn begin_upgrade(&self, how: Succession, limit: Duration) -> Result<Upgrade, String> {
        match self.stage {
            Stage::Running => {}
            Stage::Starting => return Err("the supervisor is still starting".to_owned()),
            Stage::Stopping | Stage::GivingUp => {
                return Err("the supervisor is being stopped".to_owned());
            }
        }
        if how == Succession::Anew {
            self.check_that_another_would_find_all()?;
        }
        let path = self
            .program
            .as_deref()
            .ok_or("it is not known where this supervisor was started from")?;
        let successor = Successor::open(path)?;
        let nobody = Conversations::default();
        let (passage, _) = self.passage(&nobody);
        let passage = serde_json::to_vec(&passage).map_err(|error| error.to_string())?;
        let inputs = &self.context.inputs;
        Ok(Upgrade {
            how,
            stage: UpgradeStage::Trying {
                _trial: successor.try_out(&passage, inputs)?,
            },
            successor,
            limit,
            _limit: Timer::start(inputs, limit, Input::UpgradeOver),
            waiters: Vec::new(),
            reload: false,
        })
    }

    /// What a supervisor that is started once this one has ended needs, and the one in place does not.
    fn check_that_another_would_find_all(&self) -> Result<(), String> {
        if std::process::id() == 1 {
            return Err("with this process everything would end that it runs".to_owned());
        }
        if self.keeping.slots.is_none() || self.keeping.complained {
            let reason = "the record cannot be kept (see the log)";
            return Err(format!(
                "{reason}, and no other would find what this one runs"
            ));
        }
        match self.read_configuration(None) {
            Ok(_readable) => Ok(()),
            Err(refusal) => Err(format!("no other could start: {}", refusal.reason)),
        }
    }

    /// Ends this process and leaves everything to the next one.
    fn leave(&mut self) -> String {
        self.keep_record();
        if let Err(reason) = self.check_that_another_would_find_all() {
            return reason;
        }
        let mut held = Held::for_(Purpose::Keep);
        let _kept = self.record(&mut held);
        if !self.news_for_systemd(&held).is_empty() {
            return "systemd does not take what it is to keep".to_owned();
        }
        tracing::info!("ending, and leaving what runs to the next supervisor of this name");
        self.log.flush();
        // Nothing is taken down first: whatever is dropped may remove what the next one needs.
        std::process::exit(exit::LEFT_RUNNING.into());
    }

    /// The program was tried.
    pub(super) fn tried(&mut self, result: Result<(), String>) {
        match (&mut self.upgrade, result) {
            (Some(upgrade), Ok(())) => upgrade.stage = UpgradeStage::Waiting { look: None },
            (Some(_), Err(reason)) => self.give_upgrade_up(&reason),
            (None, _) => {}
        }
    }

    pub(super) fn upgrade_took_too_long(&mut self) {
        if let Some(upgrade) = &self.upgrade {
            let limit = humantime::format_duration(upgrade.limit);
            self.give_upgrade_up(&format!(
                "what is under way did not end within {limit}; nothing has changed"
            ));
        }
    }

    /// Nobody follows; what was put on hold is begun here.
    pub(super) fn give_upgrade_up(&mut self, reason: &str) {
        let Some(upgrade) = self.upgrade.take() else {
            return;
        };
        self.desk.hold(OnHold::Nothing);
        if upgrade.waiters.is_empty() {
            refuse(None, reason);
        }
        for waiter in upgrade.waiters {
            refuse(Some(waiter), reason);
        }
        if upgrade.reload {
            self.reload_by_signal();
        }
    }

    /// Makes way for a successor that was tried, if nothing is in the middle of something. Does not return
    /// then.
    pub(super) fn follow_if_at_rest(&mut self) {
        // What waits to be told is lost with this process's memory. While it waits there are heartbeats,
        // after which this is looked at again.
        let systemd_is_told = self.systemd.is_told() && !self.keeping.is_behind;
        let at_rest = systemd_is_told && self.runners().all(|runner| runner.is_at_rest());
        let Some(Upgrade {
            stage: UpgradeStage::Waiting { look },
            how,
            ..
        }) = &mut self.upgrade
        else {
            return;
        };
        if !at_rest {
            self.desk.hold(on_hold(*how));
            return;
        }
        self.desk.hold(OnHold::Requests);
        if !self.desk.is_at_rest() {
            let inputs = &self.context.inputs;
            *look = Some(Timer::start(inputs, LOOK_AGAIN_AFTER, Input::MayUpgrade));
            return;
        }
        if let Err(reason) = self.follow() {
            self.give_upgrade_up(&reason);
        }
    }

    /// All that a successor in place is given, and the descriptors that go with it.
    fn passage<'a>(&'a self, conversations: &'a Conversations) -> (Passage, Held<'a>) {
        let mut held = Held::for_(Purpose::Pass);
        let (handle, control) = &self.control;
        let (path, inode) = control.place();
        let slots = self.keeping.slots.as_ref();
        let mut passage = Passage {
            record: self.record(&mut held),
            descriptors: BTreeMap::new(),
            control: held.hold(*handle, control.listener.as_fd()),
            control_path: path.to_owned(),
            control_inode: inode,
            slots: slots.map(|slots| held.hold(self.keeping.handle, slots.as_fd())),
            kept_by_systemd: self.keeping.by_systemd.clone(),
            inherited: self.context.inherited.record(&mut held),
            open_files: self.context.open_files,
            spared: self.strays.spared().clone(),
            reload: self.upgrade.as_ref().is_some_and(|upgrade| upgrade.reload),
            history: self.context.history.kept(),
            clients: conversations.record(&mut held),
        };
        let numbers = held.descriptors().iter();
        passage.descriptors = numbers
            .map(|(handle, fd)| (*handle, fd.as_raw_fd()))
            .collect();
        (passage, held)
    }

    fn follow(&mut self) -> Result<(), String> {
        let Some(upgrade) = &self.upgrade else {
            return Ok(());
        };
        if upgrade.how == Succession::Anew {
            if upgrade.reload {
                return Err("a reload was asked for by a signal meanwhile".to_owned());
            }
            return Err(self.leave());
        }
        let conversations = self.desk.conversations();
        let (passage, held) = self.passage(&conversations);
        let document = serde_json::to_vec(&passage).map_err(|error| error.to_string())?;
        // The trial has seen neither the clients nor the limit on processes of this moment.
        if document.len() > LARGEST_BYTES {
            return Err(Unreadable::TooLarge(document.len()).to_string());
        }
        check_threads().map_err(|error| {
            format!("no threads can be started ({error}), and the successor needs some")
        })?;
        let passed: Vec<BorrowedFd<'_>> = held.descriptors().values().copied().collect();
        self.log.flush();
        Err(upgrade.successor.follow(&document, &passed))
    }
}

/// What is not begun any more once another is to follow: what a successor in place begins instead.
fn on_hold(how: Succession) -> OnHold {
    match how {
        Succession::InPlace => OnHold::Changes,
        Succession::Anew => OnHold::Nothing,
    }
}

/// Says why there is no upgrade.
fn refuse(waiter: Option<oneshot::Sender<Refusal>>, reason: &str) {
    tracing::error!("the supervisor goes on as it is: {reason}");
    if let Some(waiter) = waiter {
        // The client may have gone.
        let _gone = waiter.send(Refusal {
            fault: Fault::State,
            reason: reason.to_owned(),
        });
    }
}
