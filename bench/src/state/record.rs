//! The value that is held and moved: the size of a session, about 100 bytes.

use heirloom_state_codec::{Codec, State};
use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

/// Letters of the longer text.
const NOTE_LETTERS: usize = 64;

/// One entry's value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, SchemaRead, SchemaWrite, State)]
#[state(name = "record", version = 1, oldest)]
pub struct Record {
    /// A name.
    pub user: String,
    /// How often it was written; what is counted when all is over.
    pub visits: u64,
    /// What makes it as long as it is.
    pub note: String,
}

impl Record {
    /// The value a key begins with.
    #[must_use]
    pub fn of(key: u64) -> Self {
        Self {
            user: format!("user-{key:013}"),
            visits: 0,
            note: format!("{key:0NOTE_LETTERS$}"),
        }
    }

    /// What a write is: it counts, and says how many there were.
    pub fn visit(record: &mut Option<Self>) -> u64 {
        match record {
            Some(record) => {
                record.visits += 1;
                record.visits
            }
            None => 0,
        }
    }
}

/// What can code the entries: keys, values, and what the oldest version puts aside, which is nothing.
pub trait Coding: Codec<u64> + Codec<Record> + Codec<()> + 'static {}

impl<C> Coding for C where C: Codec<u64> + Codec<Record> + Codec<()> + 'static {}

/// The codecs that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CodecName {
    /// The default.
    Bincode,
    /// The same bytes, faster.
    Wincode,
}

impl CodecName {
    /// As on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bincode => "bincode",
            Self::Wincode => "wincode",
        }
    }
}
