//! The messages of the handover protocol, between a supervisor and one native app.
//!
//! Owns turning a datagram into an [`Order`] or a [`Report`] and back. Who sends what when is decided
//! by [`crate::source`], [`crate::target`] and the supervisor. `docs/protocol.md` is the normative
//! text.
//!
//! The messages of either side, and what their text is made of, are in files of their own; here are the
//! values both speak of.
//!
//! A message is lines of `KEY=VALUE`, the first of which is `MESSAGE=` and its name. Unknown keys are
//! passed over, so that keys can be added; unknown messages are refused by name.

mod lines;
mod order;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use crate::datagram::Malformed;
use lines::cut;
pub use order::Order;
pub use report::Report;

/// The protocol this crate speaks.
pub const PROTOCOL: u32 = 1;

/// The largest message, in bytes.
pub const LARGEST_BYTES: usize = 64 * 1024;

/// The most lines of one message: more sections and versions than an app has.
pub const MOST_LINES: usize = 1024;

/// The longest reason, in bytes; the rest is cut.
pub const LONGEST_REASON_BYTES: usize = 1024;

/// One version of one section's schema that a program can read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reads {
    /// The section's name.
    pub section: String,
    /// The schema's name; empty for bytes without a schema.
    pub schema: String,
    /// The version; 0 for bytes without a schema.
    pub version: u32,
    /// The fingerprint of its shape.
    pub fingerprint: u128,
}

/// What a copy of the state is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The receiver is to own it.
    Handover,
    /// The receiver only shows that it could: the sender thaws as soon as the copy is complete.
    Rehearsal,
}

/// Connections by protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub BTreeMap<String, u64>);

/// Why a message cannot be read. It is always the sender's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadMessage {
    /// It is not lines of `KEY=VALUE`.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Its first line is not `MESSAGE=`.
    #[error("the first line is not MESSAGE=")]
    NoName,
    /// A message this side does not know.
    #[error("there is no message {0}; the other side is newer, or at fault")]
    Unknown(String),
    /// A key is missing.
    #[error("{message} needs {key}=")]
    Missing {
        /// The message.
        message: String,
        /// The key.
        key: &'static str,
    },
    /// A value is not what its key takes.
    #[error("{key}={value} is not a valid value")]
    Value {
        /// The key.
        key: &'static str,
        /// The value as sent.
        value: String,
    },
}

impl Purpose {
    fn parse(text: &str) -> Result<Self, BadMessage> {
        match text {
            "handover" => Ok(Self::Handover),
            "rehearsal" => Ok(Self::Rehearsal),
            other => Err(BadMessage::Value {
                key: "PURPOSE",
                value: cut(other).to_owned(),
            }),
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handover => "handover",
            Self::Rehearsal => "rehearsal",
        })
    }
}

impl Counts {
    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().fold(0, |sum, one| sum.saturating_add(*one))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut counts = BTreeMap::new();
        for one in text.split(',').filter(|one| !one.is_empty()) {
            let (protocol, count) = one.split_once(':')?;
            counts.insert(protocol.to_owned(), count.parse().ok()?);
        }
        Some(Self(counts))
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (protocol, count)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{protocol}:{count}")?;
        }
        Ok(())
    }
}

/// What an app has to do with the state, for a supervisor that does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Standing {
    /// It has said `HELLO` and waits to be told what to do.
    Greeting,
    /// It takes the state over, and does not own it.
    Receiving,
    /// It owns the state.
    Owning,
    /// Its state stands still, and it is open whose it will be.
    Frozen,
    /// It has given the state away.
    Yielded,
    /// The same, and it follows what becomes of it.
    Reserve,
}

impl Standing {
    fn parse(text: &str) -> Result<Self, BadMessage> {
        match text {
            "greeting" => Ok(Self::Greeting),
            "receiving" => Ok(Self::Receiving),
            "owning" => Ok(Self::Owning),
            "frozen" => Ok(Self::Frozen),
            "yielded" => Ok(Self::Yielded),
            "reserve" => Ok(Self::Reserve),
            other => Err(BadMessage::Value {
                key: "PHASE",
                value: cut(other).to_owned(),
            }),
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Greeting => "greeting",
            Self::Receiving => "receiving",
            Self::Owning => "owning",
            Self::Frozen => "frozen",
            Self::Yielded => "yielded",
            Self::Reserve => "reserve",
        })
    }
}

impl Reads {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('\t');
        let reads = Self {
            section: fields.next().filter(|name| !name.is_empty())?.to_owned(),
            schema: fields.next()?.to_owned(),
            version: fields.next()?.parse().ok()?,
            fingerprint: fields
                .next()
                .filter(|hex| hex.len() == 32)
                .and_then(|hex| u128::from_str_radix(hex, 16).ok())?,
        };
        fields.next().is_none().then_some(reads)
    }
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            section,
            schema,
            version,
            fingerprint,
        } = self;
        write!(f, "{section}\t{schema}\t{version}\t{fingerprint:032x}")
    }
}
