//! The copy of the state as it arrives: read, checked, understood, and put into the stores.
//!
//! Owns the stream's reading end and how far it is. Nothing of it is used before [`Taking::go_on`] has
//! said that all of it is right; what is done then is decided by [`heirloom_handover::target`].

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use heirloom_handover::{
    fault::{self, Point},
    fds,
    lifeline::Lifeline,
};
use heirloom_state_codec::{
    End, EntryLedger, Event, Limits, Manifest, SectionDescriptor, SectionId, SnapshotReader,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    copy::limits,
    error::{StoreError, TakeError},
    store::Store,
};

/// Descriptors are sent before the bytes that speak of them, so they are there, or never come.
const DESCRIPTORS_LIMIT_MS: u16 = 5000;

/// A message with descriptors holds few bytes besides.
const DESCRIPTORS_BYTES: usize = 512;

/// What came of reading on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// There is more to come.
    More,
    /// All of it is there and right.
    All { entries: u64, bytes: u64 },
}

/// Where a section's entries go.
#[derive(Debug)]
enum Serving {
    /// To this store.
    Store(usize),
    /// Nowhere: nobody needs it, and it is only counted.
    Nobody,
}

/// A copy on its way in.
#[derive(Debug)]
pub(super) struct Taking {
    stream: File,
    /// The migration this is the copy of; none if it comes from a file, which may be of any.
    migration: Option<u64>,
    /// None if it comes from a file.
    pub(super) lifeline: Option<Lifeline>,
    reader: SnapshotReader,
    stores: Vec<Arc<dyn Store>>,
    sections: HashMap<SectionId, Serving>,
    /// Counts what nobody needs.
    ledger: Option<EntryLedger>,
    descriptors: Vec<Option<OwnedFd>>,
    end: Option<End>,
}

impl Taking {
    pub(super) fn new(
        stream: OwnedFd,
        migration: Option<u64>,
        lifeline: Option<OwnedFd>,
        stores: Vec<Arc<dyn Store>>,
        bytes_max: Option<u64>,
    ) -> Result<Self, TakeError> {
        // The keeper waits for its orders as well.
        fcntl(&stream, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
        Ok(Self {
            stream: File::from(stream),
            migration,
            lifeline: lifeline.map(Lifeline::new),
            reader: SnapshotReader::new(limits(bytes_max)),
            stores,
            sections: HashMap::new(),
            ledger: None,
            descriptors: Vec::new(),
            end: None,
        })
    }

    /// What to wait for before reading on.
    pub(super) fn stream(&self) -> &File {
        &self.stream
    }

    /// Reads once, and takes what is complete.
    pub(super) fn go_on(&mut self) -> Result<Took, TakeError> {
        let Some(count) = self.fill()? else {
            // Somebody else woke the keeper.
            return Ok(Took::More);
        };
        fault::reached(Point::NewReading);
        if count == 0 {
            // Too soon: the end mark would have been the end.
            self.reader.finish()?;
        }
        while let Some(event) = self.reader.poll()? {
            let mut room = Room {
                migration: self.migration,
                stores: &self.stores,
                sections: &mut self.sections,
                ledger: &mut self.ledger,
                lifeline: self.lifeline.as_ref(),
                descriptors: &mut self.descriptors,
            };
            if let Some(end) = room.take(event)? {
                self.end = Some(end);
            }
        }
        let Some(end) = self.end.take() else {
            return Ok(Took::More);
        };
        fault::reached(Point::NewEnding);
        // The end mark is the end, also where the other side keeps the stream open; but what it has
        // written behind it is wrong.
        self.fill()?;
        self.reader.finish()?;
        self.verified(&end)
    }

    /// Reads once: how much, 0 at the end of the stream; none if nothing is there now.
    fn fill(&mut self) -> Result<Option<usize>, TakeError> {
        match self.stream.read(self.reader.space()) {
            Ok(count) => {
                self.reader.filled(count);
                Ok(Some(count))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(None),
                _other => Err(error.into()),
            },
        }
    }

    /// Compares what is held with what the writer held.
    fn verified(&self, end: &End) -> Result<Took, TakeError> {
        let mut held: Vec<_> = self
            .stores
            .iter()
            .flat_map(|store| store.end_taking())
            .collect();
        held.extend(self.ledger.iter().flat_map(EntryLedger::totals));
        end.verify(&held)?;
        Ok(Took::All {
            entries: self.stores.iter().map(|store| store.entries()).sum(),
            bytes: self.reader.tally().bytes,
        })
    }
}

/// Everything an event may need, apart from the reader it borrows from.
struct Room<'a> {
    migration: Option<u64>,
    stores: &'a [Arc<dyn Store>],
    sections: &'a mut HashMap<SectionId, Serving>,
    ledger: &'a mut Option<EntryLedger>,
    lifeline: Option<&'a Lifeline>,
    descriptors: &'a mut Vec<Option<OwnedFd>>,
}

impl Room<'_> {
    fn take(&mut self, event: Event<'_>) -> Result<Option<End>, TakeError> {
        match &event {
            Event::Opened { header, manifest } => {
                if let Some(expected) = self.migration.filter(|one| *one != header.migration_id) {
                    return Err(TakeError::OtherMigration {
                        expected,
                        found: header.migration_id,
                    });
                }
                self.open(manifest)?;
            }
            Event::Bulk {
                section, records, ..
            } => self.apply(
                section,
                |store| store.apply(section, true, records.clone()),
                &event,
            )?,
            Event::Delta {
                section, records, ..
            } => self.apply(
                section,
                |store| store.apply(section, false, records.clone()),
                &event,
            )?,
            Event::Memfd { section, reference } => {
                let number = reference.descriptor;
                let descriptor = self.descriptor(number)?;
                self.apply(
                    section,
                    |store| store.apply_memfd(section, reference, descriptor),
                    &event,
                )?;
            }
            Event::RoundEnd(round) => {
                if let Some(lifeline) = self.lifeline {
                    fault::reached(Point::NewApplied);
                    lifeline.applied(round.round)?;
                    fault::reached(Point::NewToldApplied);
                }
            }
            Event::End(end) => return Ok(Some(end.clone())),
            // Connections come after the commit, and a freeze is the writer's affair.
            Event::Connection { .. } | Event::Freeze(_) => {}
            // Kinds of a later version of the format that are not optional are refused by the reader.
            _later => {}
        }
        Ok(None)
    }

    fn open(&mut self, manifest: &Manifest) -> Result<(), TakeError> {
        let owner_of = |section: &SectionDescriptor| {
            let base = section.attic_of.and_then(|of| manifest.section(of));
            let name = base.map_or(section.name.as_str(), |base| base.name.as_str());
            // A part of a store bears the store's name and one of its own behind a dot.
            let whole = name.rsplit_once('.').map(|(whole, _)| whole);
            let named = |wanted: &str| self.stores.iter().position(|store| store.name() == wanted);
            named(name).or_else(|| whole.and_then(named))
        };
        let mut of_stores: Vec<Vec<&SectionDescriptor>> = vec![Vec::new(); self.stores.len()];
        let mut unserved = Vec::new();
        for section in &manifest.sections {
            let serving = match owner_of(section) {
                Some(store) => {
                    of_stores[store].push(section);
                    Serving::Store(store)
                }
                None if section.required => {
                    return Err(TakeError::Unserved {
                        section: section.name.clone(),
                    });
                }
                None => {
                    unserved.push(section.clone());
                    Serving::Nobody
                }
            };
            self.sections.insert(section.id, serving);
        }
        for (store, sections) in self.stores.iter().zip(&of_stores) {
            store
                .begin_taking(sections)
                .map_err(|reason| failed(store.name(), reason))?;
        }
        if !unserved.is_empty() {
            let counted = Manifest {
                app: manifest.app.clone(),
                sections: unserved,
            };
            *self.ledger = Some(EntryLedger::new(&counted, &Limits::default()));
        }
        Ok(())
    }

    fn apply(
        &mut self,
        section: &SectionDescriptor,
        take: impl FnOnce(&dyn Store) -> Result<(), StoreError>,
        event: &Event<'_>,
    ) -> Result<(), TakeError> {
        match self.sections.get(&section.id) {
            Some(Serving::Store(store)) => {
                take(self.stores[*store].as_ref()).map_err(|reason| failed(&section.name, reason))
            }
            Some(Serving::Nobody) | None => match self.ledger {
                Some(ledger) => ledger
                    .apply(event)
                    .map_err(|reason| failed(&section.name, reason.into())),
                None => Ok(()),
            },
        }
    }

    /// The descriptor with this number, which may have to be received first.
    fn descriptor(&mut self, number: u32) -> Result<OwnedFd, TakeError> {
        let missing = |why: &str| {
            let text = format!("descriptor {number} of the copy is missing: {why}");
            TakeError::System(io::Error::new(io::ErrorKind::InvalidData, text))
        };
        let number = usize::try_from(number).map_err(|_| missing("there are not so many"))?;
        while self.descriptors.len() <= number {
            let lifeline = self.lifeline.ok_or_else(|| missing("a file has none"))?;
            let mut wait = [PollFd::new(lifeline.as_fd(), PollFlags::POLLIN)];
            let limit = PollTimeout::from(DESCRIPTORS_LIMIT_MS);
            if poll(&mut wait, limit).map_err(io::Error::from)? == 0 {
                return Err(missing("the former generation did not send it"));
            }
            let received = fds::receive(lifeline, DESCRIPTORS_BYTES)?;
            if received.fds.is_empty() {
                return Err(missing("the former generation sent something else"));
            }
            self.descriptors.extend(received.fds.into_iter().map(Some));
        }
        self.descriptors[number]
            .take()
            .ok_or_else(|| missing("it was used before"))
    }
}

fn failed(section: &str, reason: StoreError) -> TakeError {
    TakeError::Store {
        section: section.to_owned(),
        reason,
    }
}
