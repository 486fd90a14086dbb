//! What the demo remembers: its stores, and how much may be in them.
//!
//! What a value is, is [`crate::release`]'s; what is done with it, that of the file of its subject.

use heirloom_app::state::{Cell, Map, State};

use crate::release::{Account, Counter, Filling, Identity, Pending, Session};

/// The most of each. Several requests at once may pass a limit by as many entries, which is no harm.
pub(super) const COUNTERS_MAX: u64 = 1_000_000;
pub(super) const SESSIONS_MAX: u64 = 1_000_000;
pub(super) const TRANSACTIONS_MAX: u64 = 100_000;
/// So few that all can be read at one instant without holding anybody up.
pub(super) const ACCOUNTS_MAX: u64 = 10_000;

/// All state of a generation. Clones are handles to the same.
#[derive(Debug, Clone)]
pub(super) struct Stores {
    pub(super) state: State,
    /// The generation that owned the state last.
    pub(super) identity: Cell<Identity>,
    pub(super) counters: Map<String, Counter>,
    pub(super) sessions: Map<String, Session>,
    pub(super) accounts: Map<String, Account>,
    pub(super) transactions: Map<String, Pending>,
    pub(super) filling: Map<u64, Filling>,
}

impl Stores {
    /// All of them empty.
    pub(super) fn new() -> Self {
        let state = State::new();
        Self {
            identity: Cell::new(&state, "identity", Identity::default()),
            counters: Map::new(&state, "counters"),
            sessions: Map::new(&state, "sessions"),
            accounts: Map::new(&state, "accounts"),
            transactions: Map::new(&state, "transactions"),
            filling: Map::new(&state, "filling"),
            state,
        }
    }
}
