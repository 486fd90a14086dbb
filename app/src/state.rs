//! The state of an app: what it holds in memory and hands to the next generation.
//!
//! A [`State`] is a handful of named stores. The app reads and changes them as it would any map; when
//! the next generation starts, they are copied to it while the app serves, translated into the new
//! program's types, checked, and handed over in a pause of milliseconds. If anything goes wrong before,
//! it never happened.
//!
//! * Stores: [`Map`], [`Set`], [`Cell`], [`Log`], [`Arena`], and [`Tracked`] for an app's own.
//! * [`Transaction`]: several changes, all or none.
//! * [`State::take_over`]: the moment at which a new generation becomes the owner.
//!
//! Which file does what: `gate` says where an operation is to be carried out, and `turn` waits for it;
//! `keyed` is what maps, sets and cells are made of; `keeper` speaks the protocol, `copy` is what a copy
//! consists of, `giving` and `saving` write one, `taking` reads one, `convergence` judges when to freeze,
//! `link` carries late operations over and `remote` is how a store uses it; `way_back` keeps the generation
//! before able to take the state back; `declared`, `incoming` and
//! `outgoing` are what the stores' parts of a stream have in common.

mod arena;
mod build_id;
mod cell;
mod convergence;
mod copy;
mod declared;
mod error;
mod gate;
mod giving;
mod incoming;
mod keeper;
mod keyed;
mod link;
mod log;
mod map;
mod outgoing;
mod own;
mod remote;
mod saving;
mod set;
mod store;
mod taking;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transaction;
mod turn;
mod way_back;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError, RwLock},
};

use heirloom_handover::message::{self, Reads};
use heirloom_state_codec::SchemaRef;
use tokio::{runtime::Handle, sync::oneshot};

pub use arena::{Arena, Blob};
pub use cell::Cell;
pub use convergence::IfItDoesNotConverge;
pub use error::{StateError, StoreError, TakeError};
use gate::Gate;
use keeper::Keeper;
pub use keyed::{Key, Value};
pub use log::Log;
pub use map::Map;
pub use own::{Own, Tracked};
pub use set::Set;
use store::Store;
pub use transaction::Transaction;

use crate::{Drain, Inherited};

/// The state of an app. Clones are handles to the same state.
///
/// Stores are made before [`Self::take_over`] and used from then on.
#[derive(Clone, Debug)]
pub struct State {
    core: Arc<Core>,
}

/// What all stores of a state share.
#[derive(Debug)]
pub(crate) struct Core {
    /// Shared with the stores, which must not hold what holds them.
    pub(crate) gate: Arc<Gate>,
    stores: RwLock<Vec<Arc<dyn Store>>>,
    /// The names of connections with a state of their own, with every version of it that can be read.
    sessions: RwLock<Vec<(String, Vec<SchemaRef>)>>,
}

/// Where the state of a generation came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// From nowhere: this generation begins with what its stores were made with.
    Fresh,
    /// From the generation with this number.
    Generation(u64),
    /// From the file to which it was saved when the service was stopped.
    Saved,
}

/// How an app takes its state over and gives it away. Made with [`Tenure::new`].
#[derive(Clone, Debug)]
pub struct Tenure {
    app: String,
    version: String,
    policy: IfItDoesNotConverge,
}

/// Why a generation did not come to own the state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeOverError {
    /// The state was not handed over; the generation before keeps it.
    #[error("the state was not taken over: {0}")]
    NotTaken(#[from] TakeError),
    /// More stores and versions than one message holds.
    #[error(
        "the stores and the versions of their schemas are too many for one message ({bytes} bytes, \
         at most {most} fit); give up the oldest versions"
    )]
    TooManyVersions {
        /// The message's length in bytes.
        bytes: usize,
        /// The most there may be.
        most: usize,
    },
    /// The system refused the thread that keeps the state.
    #[error("the keeper of the state cannot be started: {0}")]
    Start(#[from] io::Error),
    /// The keeper ended without a word, which is a fault of this library.
    #[error("the keeper of the state ended without a word; this is a fault of heirloom-app")]
    Silent,
}

impl Tenure {
    /// For an app of this name and version, as they are told to people.
    #[must_use]
    pub fn new(app: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            app: app.into(),
            version: version.into(),
            policy: IfItDoesNotConverge::default(),
        }
    }

    /// What to do when the state changes faster than it can be copied. The default is to give the
    /// handover up.
    #[must_use]
    pub fn if_it_does_not_converge(self, policy: IfItDoesNotConverge) -> Self {
        Self { policy, ..self }
    }

    fn app(&self) -> &str {
        &self.app
    }
}

impl State {
    /// A state without stores.
    #[must_use]
    pub fn new() -> Self {
        Self {
            core: Arc::new(Core {
                gate: Arc::new(Gate::new()),
                stores: RwLock::default(),
                sessions: RwLock::default(),
            }),
        }
    }

    /// Takes the state over from the generation before, or from the file it was saved to, or begins
    /// with what the stores hold now. To be called when everything else is ready: configuration, caches,
    /// pools. When it returns, this generation owns the state, and it is time to accept connections.
    ///
    /// From then on a thread of this library keeps the state: it hands it to the next generation, and
    /// then begins `drain`. Without a supervisor that speaks the handover protocol, this returns at
    /// once.
    ///
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// [`TakeOverError`]: the generation before keeps the state, and this process is to end.
    pub async fn take_over(
        &self,
        inherited: &mut Inherited,
        drain: &Drain,
        tenure: Tenure,
    ) -> Result<Origin, TakeOverError> {
        match inherited.take_supervisor() {
            Some(socket) => {
                let generation = inherited.generation();
                self.take_over_on(socket, generation, drain, tenure).await
            }
            None => Ok(Origin::Fresh),
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    async fn take_over_on(
        &self,
        socket: OwnedFd,
        generation: u64,
        drain: &Drain,
        tenure: Tenure,
    ) -> Result<Origin, TakeOverError> {
        let hello = message::Report::Hello {
            protocol: message::PROTOCOL,
            version: tenure.version.clone(),
            reads: self.core.reads(),
            way_back: true,
        };
        let bytes = hello.to_bytes().len();
        let most = message::LARGEST_BYTES;
        if bytes > most || self.core.reads().len() + 4 > message::MOST_LINES {
            return Err(TakeOverError::TooManyVersions { bytes, most });
        }
        let supervisor = keeper::Supervisor::new(socket)?;
        // Nothing may be done to the state until it is known whose it is.
        self.core.gate.close();
        let (owned, is_owned) = oneshot::channel();
        let keeper = Keeper {
            supervisor,
            core: Arc::clone(&self.core),
            tenure,
            generation,
            drain: drain.clone(),
            runtime: Handle::current(),
            owned: Some(owned),
            way_back: None,
        };
        std::thread::Builder::new()
            .name("heirloom-keeper".to_owned())
            .spawn(move || keeper.run())?;
        match is_owned.await {
            Ok(Ok(origin)) => Ok(origin),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(TakeOverError::Silent),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl Core {
    /// Adds a store.
    ///
    /// # Panics
    ///
    /// If another one has its name, or the name cannot stand in a message.
    pub(crate) fn add(&self, store: Arc<dyn Store>) {
        self.check_name(store.name());
        let mut stores = self.stores.write().unwrap_or_else(PoisonError::into_inner);
        stores.push(store);
    }

    /// Adds connections with a state of their own.
    ///
    /// # Panics
    ///
    /// As [`Self::add`].
    pub(crate) fn add_sessions(&self, name: &str, reads: Vec<SchemaRef>) {
        self.check_name(name);
        let mut sessions = self
            .sessions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        sessions.push((name.to_owned(), reads));
    }

    fn check_name(&self, name: &str) {
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        assert!(
            !name.is_empty() && name.bytes().all(fine),
            "a name is letters, digits, - and _, which {name:?} is not"
        );
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let taken = self.store(name).is_some() || sessions.iter().any(|(other, _)| other == name);
        assert!(!taken, "the name {name} is taken already");
    }

    pub(crate) fn stores(&self) -> Vec<Arc<dyn Store>> {
        self.stores
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn store(&self, name: &str) -> Option<Arc<dyn Store>> {
        self.stores().into_iter().find(|store| store.name() == name)
    }

    /// What this program can read, for the message in which it says so.
    fn reads(&self) -> Vec<Reads> {
        let stores = self.stores();
        let stores = stores
            .iter()
            .map(|store| (store.name().to_owned(), store.reads()));
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let each = stores.chain(sessions.iter().cloned());
        let lines = each.flat_map(|(section, schemas)| {
            schemas.into_iter().map(move |schema| Reads {
                section: section.clone(),
                schema: schema.name,
                version: schema.version,
                fingerprint: schema.fingerprint.0,
            })
        });
        lines.collect()
    }
}
