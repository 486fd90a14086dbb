//! Version 2 of the demo: its state, and what is done with the parts in which versions differ.

#[path = "../schema/v2.rs"]
mod schema;

use serde::Serialize;

pub(crate) use schema::{Account, Add, Counter, Filling, Identity, Pending, Session, Talk};

/// What this release calls itself.
pub(crate) const VERSION: &str = "2.0.0";

impl Counter {
    pub(crate) fn value(&self) -> u64 {
        self.value
    }

    /// Adds to it and gives the new value; none if it would be more than it can hold.
    pub(crate) fn add(&mut self, n: u64) -> Option<u64> {
        self.value = self.value.checked_add(n)?;
        Some(self.value)
    }
}

/// A session as it is told.
#[derive(Debug, Serialize)]
pub(crate) struct SessionAnswer {
    user: String,
    visits: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    opened_in: Option<u64>,
}

impl Session {
    /// A new one.
    pub(crate) fn open(user: String, generation: u64) -> Self {
        Self {
            name: user,
            visits: 0,
            opened_in: Some(generation),
        }
    }

    pub(crate) fn visit(&mut self) -> SessionAnswer {
        self.visits = self.visits.saturating_add(1);
        SessionAnswer {
            user: self.name.clone(),
            visits: self.visits,
            opened_in: self.opened_in,
        }
    }
}

impl Pending {
    pub(crate) fn add(&mut self, add: Add) {
        self.adds.push(add);
    }

    pub(crate) fn adds(&self) -> &[Add] {
        &self.adds
    }

    pub(crate) fn total(&self) -> u64 {
        self.adds.iter().map(|add| u64::from(add.n)).sum()
    }
}

impl Talk {
    /// A new one.
    pub(crate) fn begin(generation: u64) -> Self {
        Self {
            begun_in: Some(generation),
            ..Self::default()
        }
    }

    /// Counts what is said and gives its number.
    pub(crate) fn say(&mut self) -> u64 {
        self.said = self.said.saturating_add(1);
        self.said
    }
}
