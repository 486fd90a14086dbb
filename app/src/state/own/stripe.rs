//! What is remembered of the entries under one lock of an app's own store.
//!
//! Pure: who locks it is [`super::Tracked`], who writes it out is [`super::moving`].

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

use heirloom_state_codec::{AtticRecord, EntryHash};

/// What was sent of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) hash: EntryHash,
    pub(super) attic: Option<EntryHash>,
}

/// What is remembered.
#[derive(Debug)]
pub(super) struct Stripe<K> {
    /// A copy is being made.
    armed: bool,
    /// What it has sent.
    pub(super) sent: HashMap<K, Sent>,
    /// What has changed since.
    dirty: HashSet<K>,
    /// What the round under way has yet to send.
    pub(super) sending: Vec<K>,
    /// What newer versions than this program's put aside.
    pub(super) stored: HashMap<K, AtticRecord>,
}

impl<K> Default for Stripe<K> {
    fn default() -> Self {
        Self {
            armed: false,
            sent: HashMap::new(),
            dirty: HashSet::new(),
            sending: Vec::new(),
            stored: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash> Stripe<K> {
    /// A copy begins.
    pub(super) fn arm(&mut self) {
        self.disarm();
        self.armed = true;
    }

    /// There is no copy any more.
    pub(super) fn disarm(&mut self) {
        self.armed = false;
        self.sent = HashMap::new();
        self.dirty = HashSet::new();
        self.sending = Vec::new();
    }

    /// An entry has changed.
    pub(super) fn note(&mut self, key: K) {
        if self.armed {
            self.dirty.insert(key);
        }
    }

    /// An entry is sent as it is now.
    pub(super) fn clean(&mut self, key: &K) {
        self.dirty.remove(key);
    }

    /// A round begins here: what has changed so far belongs to it.
    pub(super) fn begin_round(&mut self) {
        self.sending.extend(self.dirty.drain());
    }

    /// What has changed since it was sent.
    pub(super) fn pending(&self) -> usize {
        self.dirty.len() + self.sending.len()
    }
}
