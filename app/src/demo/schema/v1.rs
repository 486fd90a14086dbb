//! The state of version 1. What stands here is never changed: files and running programs hold it.
//!
//! What is done with it is [`super`]'s, which is the release that uses it.

use heirloom_state_codec::{Bytes, State};
use serde::{Deserialize, Serialize};

/// Which generation owned the state last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "identity", version = 1, oldest)]
pub(crate) struct Identity {
    /// Its version; empty if there was none.
    pub(crate) version: String,
    /// Its number; 0 if there was none.
    pub(crate) generation: u64,
}

/// A counter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "counter", version = 1, oldest)]
pub(crate) struct Counter {
    /// How often it was added to.
    pub(crate) value: u32,
}

/// Somebody's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "session", version = 1, oldest)]
pub(crate) struct Session {
    /// Whose it is.
    pub(crate) user: String,
    /// How often it was asked for.
    pub(crate) visits: u64,
}

/// An account of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "account", version = 1, oldest)]
pub(crate) struct Account {
    /// What is in it.
    pub(crate) balance: u64,
    /// Transfers from it. They are counted here, so that one reading of the accounts has them too.
    pub(crate) transfers: u64,
}

/// A transaction that has been begun and not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "transaction", version = 1, oldest)]
pub(crate) struct Pending {
    /// What it will add, in the order in which it was asked for.
    pub(crate) adds: Vec<Add>,
    /// The sum of all it will add.
    pub(crate) total: u64,
}

/// One addition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, State)]
pub(crate) struct Add {
    /// The counter.
    pub(crate) key: String,
    /// How much.
    pub(crate) n: u32,
}

/// State for measurements, which means nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "filling", version = 1, oldest)]
pub(crate) struct Filling {
    /// Any bytes.
    pub(crate) bytes: Bytes,
}

/// What a connection that talks is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "talk", version = 1, oldest)]
pub(crate) struct Talk {
    /// Who talks; empty if nobody has said so.
    pub(crate) name: String,
    /// How much has been said.
    pub(crate) said: u32,
}
