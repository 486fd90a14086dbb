//! How many connections of each protocol this generation serves.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use heirloom_handover::message::Counts;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Nothing yet.
    Unknown,
    Http1,
    Http2,
    Session,
}

impl Speaks {
    const ALL: [Self; 4] = [Self::Unknown, Self::Http1, Self::Http2, Self::Session];

    /// What generations and people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unknown => "http",
            Self::Http1 => "http/1",
            Self::Http2 => "http/2",
            Self::Session => "session",
        }
    }
}

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Census {
    served: [AtomicU64; Speaks::ALL.len()],
}

/// One connection, counted as long as this lives.
#[derive(Debug)]
pub(crate) struct Counted {
    census: Arc<Census>,
    speaks: Speaks,
}

impl Census {
    /// Counts a connection in.
    pub(crate) fn count(self: &Arc<Self>, speaks: Speaks) -> Counted {
        self.served[speaks as usize].fetch_add(1, Ordering::Relaxed);
        Counted {
            census: Arc::clone(self),
            speaks,
        }
    }

    /// Those that are served now, without those there are none of.
    pub(crate) fn counts(&self) -> Counts {
        let each = Speaks::ALL.into_iter().filter_map(|speaks| {
            let count = self.served[speaks as usize].load(Ordering::Relaxed);
            (count > 0).then(|| (speaks.name().to_owned(), count))
        });
        Counts(BTreeMap::from_iter(each))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.census.served[self.speaks as usize].fetch_sub(1, Ordering::Relaxed);
    }
}
