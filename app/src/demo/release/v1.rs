//! Version 1 of the demo: its state, and what is done with the parts in which versions differ.

#[path = "../schema/v1.rs"]
mod schema;

use serde::Serialize;

pub(crate) use schema::{Account, Add, Counter, Filling, Identity, Pending, Session, Talk};

/// What this release calls itself.
pub(crate) const VERSION: &str = "1.0.0";

impl Counter {
    pub(crate) fn value(&self) -> u64 {
        self.value.into()
    }

    /// Adds to it and gives the new value; none if it would be more than it can hold.
    pub(crate) fn add(&mut self, n: u64) -> Option<u64> {
        let value = u32::try_from(self.value().checked_add(n)?).ok()?;
        self.value = value;
        Some(value.into())
    }
}

/// A session as it is told.
#[derive(Debug, Serialize)]
pub(crate) struct SessionAnswer {
    user: String,
    visits: u64,
}

impl Session {
    /// A new one. This version does not remember which generation opened it.
    pub(crate) fn open(user: String, _generation: u64) -> Self {
        Self { user, visits: 0 }
    }

    pub(crate) fn visit(&mut self) -> SessionAnswer {
        self.visits = self.visits.saturating_add(1);
        SessionAnswer {
            user: self.user.clone(),
            visits: self.visits,
        }
    }
}

impl Pending {
    pub(crate) fn add(&mut self, add: Add) {
        self.total += u64::from(add.n);
        self.adds.push(add);
    }

    pub(crate) fn adds(&self) -> &[Add] {
        &self.adds
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

impl Talk {
    /// A new one. This version does not remember in which generation it began.
    pub(crate) fn begin(_generation: u64) -> Self {
        Self::default()
    }

    /// Counts what is said and gives its number.
    pub(crate) fn say(&mut self) -> u64 {
        self.said = self.said.saturating_add(1);
        self.said.into()
    }
}
