//! The state of version 2, and the steps between it and version 1, both ways. What stands here is
//! never changed: files and running programs hold it.
//!
//! Changed since version 1: a counter is wider; a session's user has another name, and it knows the
//! generation that opened it; a transaction does not keep a sum that follows from the rest.

#[path = "v1.rs"]
pub(crate) mod v1;

use heirloom_state_codec::{Context, State, Step, StepError};
use serde::{Deserialize, Serialize};

pub(crate) use v1::{Account, Add, Filling, Identity};

/// A counter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "counter", version = 2)]
pub(crate) struct Counter {
    /// How often it was added to.
    pub(crate) value: u64,
}

impl Step for Counter {
    type Older = v1::Counter;
    type Attic = ();

    fn up(older: v1::Counter, _: Option<()>, _: &mut Context) -> Result<Self, StepError> {
        Ok(Self {
            value: older.value.into(),
        })
    }

    fn down(self, _: &mut Context) -> Result<(v1::Counter, Option<()>), StepError> {
        let value = u32::try_from(self.value).map_err(|_| {
            StepError::new(format!(
                "a counter stands at {}, and version 1 counts to {} only",
                self.value,
                u32::MAX
            ))
        })?;
        Ok((v1::Counter { value }, None))
    }
}

/// Somebody's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "session", version = 2)]
pub(crate) struct Session {
    /// Whose it is; `user` in version 1.
    pub(crate) name: String,
    /// How often it was asked for.
    pub(crate) visits: u64,
    /// The generation that opened it; none if version 1 did, which does not remember.
    pub(crate) opened_in: Option<u64>,
}

impl Step for Session {
    type Older = v1::Session;
    /// `opened_in`.
    type Attic = u64;

    fn up(older: v1::Session, opened_in: Option<u64>, _: &mut Context) -> Result<Self, StepError> {
        Ok(Self {
            name: older.user,
            visits: older.visits,
            opened_in,
        })
    }

    fn down(self, _: &mut Context) -> Result<(v1::Session, Option<u64>), StepError> {
        let older = v1::Session {
            user: self.name,
            visits: self.visits,
        };
        Ok((older, self.opened_in))
    }
}

/// A transaction that has been begun and not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "transaction", version = 2)]
pub(crate) struct Pending {
    /// What it will add, in the order in which it was asked for.
    pub(crate) adds: Vec<Add>,
}

impl Step for Pending {
    type Older = v1::Pending;
    type Attic = ();

    fn up(older: v1::Pending, _: Option<()>, _: &mut Context) -> Result<Self, StepError> {
        Ok(Self { adds: older.adds })
    }

    fn down(self, _: &mut Context) -> Result<(v1::Pending, Option<()>), StepError> {
        let total = self.adds.iter().map(|add| u64::from(add.n)).sum();
        let older = v1::Pending {
            adds: self.adds,
            total,
        };
        Ok((older, None))
    }
}

/// What a connection that talks is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, State)]
#[state(name = "talk", version = 2)]
pub(crate) struct Talk {
    /// Who talks; empty if nobody has said so.
    pub(crate) name: String,
    /// How much has been said.
    pub(crate) said: u64,
    /// The generation in which it began; none if version 1 did, which does not remember.
    pub(crate) begun_in: Option<u64>,
}

impl Step for Talk {
    type Older = v1::Talk;
    /// `begun_in`.
    type Attic = u64;

    fn up(older: v1::Talk, begun_in: Option<u64>, _: &mut Context) -> Result<Self, StepError> {
        Ok(Self {
            name: older.name,
            said: older.said.into(),
            begun_in,
        })
    }

    fn down(self, _: &mut Context) -> Result<(v1::Talk, Option<u64>), StepError> {
        let said = u32::try_from(self.said)
            .map_err(|_| StepError::new("more was said on a connection than version 1 counts"))?;
        let older = v1::Talk {
            name: self.name,
            said,
        };
        Ok((older, self.begun_in))
    }
}
