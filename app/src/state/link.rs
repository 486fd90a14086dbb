//! The link: operations on the state that a generation which has given it away carries out in the one
//! that owns it.

use heirloom_state_codec::Change;

use super::{error::StateError, store::Seen};

/// The asking end, in the generation that has given its state away.
#[derive(Debug)]
pub(crate) struct Link {}

/// The changes of one transaction to one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The store's name.
    pub(crate) section: String,
    /// The changes.
    pub(crate) changes: Vec<WantedChange>,
}

/// As [`super::store::Wanted`], owning its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedChange {
    /// The key.
    pub(crate) key: Vec<u8>,
    /// The version the entry must have; 0 for that it is not there.
    pub(crate) expected: u64,
    /// What is to become of it.
    pub(crate) change: Fate,
}

/// What is to become of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was only read, and must still be as it was.
    Stay,
    /// It gets this value.
    Put(Vec<u8>),
    /// It goes.
    Remove,
}

impl Link {
    /// The version of a store's schema in which both sides speak of its entries.
    pub(crate) fn version_of(&self, _section: &str) -> u32 {
        0
    }

    /// An entry as the owner has it.
    pub(crate) async fn see(
        &self,
        _section: &str,
        _key: &[u8],
    ) -> Result<Option<Seen>, StateError> {
        Err(StateError::OwnerGone)
    }

    /// All entries at one instant.
    pub(crate) async fn see_all(
        &self,
        _section: &str,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError> {
        Err(StateError::OwnerGone)
    }

    /// Carries a transaction out: all of it or, if an entry has changed since it was read, nothing.
    pub(crate) async fn commit(&self, _parts: Vec<Part>) -> Result<bool, StateError> {
        Err(StateError::OwnerGone)
    }
}

impl Fate {
    /// The change as a store reads it.
    pub(crate) fn as_change(&self) -> Option<Change<'_>> {
        match self {
            Self::Stay => None,
            Self::Put(value) => Some(Change::Put(value)),
            Self::Remove => Some(Change::Remove),
        }
    }
}
