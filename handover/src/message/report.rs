//! What an app tells its supervisor, and its text.

use super::lines::{Message, Text, cut, one_line};
use super::{BadMessage, Counts, Reads, Standing};

/// What an app tells its supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report {
    /// A new generation is initialised and speaks this protocol.
    Hello {
        /// The protocol it speaks.
        protocol: u32,
        /// Its version, for people.
        version: String,
        /// What it can read.
        reads: Vec<Reads>,
        /// Whether it can stay in reserve, and write its changes back to one that does.
        way_back: bool,
    },
    /// The copy is so far that a freeze would be short.
    Converged {
        /// The migration's number.
        migration: u64,
        /// Rounds of changes sent.
        rounds: u64,
        /// Bytes sent.
        bytes: u64,
    },
    /// The state stands still and the copy is complete.
    Frozen {
        /// The migration's number.
        migration: u64,
        /// When it began to stand still, in microseconds of `CLOCK_MONOTONIC`.
        at_usec: u64,
        /// Rounds of changes sent.
        rounds: u64,
        /// Bytes sent.
        bytes: u64,
        /// The longest that a request may have been held up by the copy before that, in
        /// microseconds.
        stall_usec: u64,
    },
    /// The copy was read, checked and understood, all of it.
    Ready {
        /// The migration's number.
        migration: u64,
        /// Entries held.
        entries: u64,
        /// Bytes read.
        bytes: u64,
    },
    /// The copy cannot be taken.
    Reject {
        /// The migration's number.
        migration: u64,
        /// Why.
        reason: String,
    },
    /// The new generation owns the state.
    Committed {
        /// The migration's number.
        migration: u64,
        /// Since when, in microseconds of `CLOCK_MONOTONIC`.
        at_usec: u64,
    },
    /// The copy cannot be made; the state is as it was.
    Failed {
        /// The migration's number.
        migration: u64,
        /// Why.
        reason: String,
    },
    /// The freeze ended without a commit; the old generation serves on.
    Thawed {
        /// The migration's number.
        migration: u64,
        /// Since when, in microseconds of `CLOCK_MONOTONIC`.
        at_usec: u64,
        /// Why.
        reason: String,
    },
    /// The old generation has seen that the new one owns the state.
    Yielded {
        /// The migration's number.
        migration: u64,
        /// Since when, in microseconds of `CLOCK_MONOTONIC`.
        at_usec: u64,
    },
    /// The old generation in reserve has taken the state back, with every change that was acknowledged:
    /// the new one is dead, or has given it back.
    Returned {
        /// The migration's number.
        migration: u64,
        /// Since when, in microseconds of `CLOCK_MONOTONIC`.
        at_usec: u64,
        /// Why.
        reason: String,
    },
    /// The old generation is in reserve no more, and never takes the state back.
    StoodDown {
        /// The migration's number.
        migration: u64,
        /// Why.
        reason: String,
    },
    /// The new generation has given the way back up: what it changes from now on is only its own.
    WayLost {
        /// The migration's number.
        migration: u64,
        /// Why.
        reason: String,
    },
    /// How many connections have gone to the new generation so far. Comes whenever none is under way,
    /// at least once soon after [`Report::Yielded`].
    Moved {
        /// The migration's number.
        migration: u64,
        /// Those that have moved, by protocol.
        moved: Counts,
        /// Those that are served here still, by protocol.
        left: Counts,
    },
    /// The old generation has finished and is about to end.
    Gone {
        /// The migration's number.
        migration: u64,
        /// The connections that have moved, by protocol.
        moved: Counts,
        /// The connections that were cut off at the end of the drain.
        cut: u64,
    },
    /// The state was written to the descriptor that came with [`Order::Save`](super::Order::Save) or
    /// [`Order::Stop`](super::Order::Stop).
    Saved {
        /// The migration's number.
        migration: u64,
        /// Entries written.
        entries: u64,
        /// Bytes written.
        bytes: u64,
        /// Rounds of changes written.
        rounds: u64,
        /// How long the state stood still, in microseconds.
        pause_usec: u64,
    },
    /// The answer to [`Order::Who`](super::Order::Who).
    Phase {
        /// The migration it has, or last had, a part in; 0 if none.
        migration: u64,
        /// What it has to do with the state.
        phase: Standing,
    },
}

impl Report {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`BadMessage`] says which line is wrong; nothing of it counts then.
    pub fn parse(datagram: &[u8]) -> Result<Self, BadMessage> {
        let message = Message::split(datagram)?;
        let migration = || message.number("MIGRATION");
        Ok(match message.name {
            "HELLO" => Self::Hello {
                protocol: message.number("PROTOCOL")?,
                version: one_line(cut(message.find("VERSION").unwrap_or_default())),
                reads: message.reads()?,
                way_back: message.find("WAY_BACK") == Some("1"),
            },
            "CONVERGED" => Self::Converged {
                migration: migration()?,
                rounds: message.number("ROUNDS")?,
                bytes: message.number("BYTES")?,
            },
            "FROZEN" => Self::Frozen {
                migration: migration()?,
                at_usec: message.number("AT_USEC")?,
                rounds: message.number("ROUNDS")?,
                bytes: message.number("BYTES")?,
                stall_usec: message.number("STALL_USEC")?,
            },
            "READY" => Self::Ready {
                migration: migration()?,
                entries: message.number("ENTRIES")?,
                bytes: message.number("BYTES")?,
            },
            "REJECT" => Self::Reject {
                migration: migration()?,
                reason: message.reason(),
            },
            "COMMITTED" => Self::Committed {
                migration: migration()?,
                at_usec: message.number("AT_USEC")?,
            },
            "FAILED" => Self::Failed {
                migration: migration()?,
                reason: message.reason(),
            },
            "THAWED" => Self::Thawed {
                migration: migration()?,
                at_usec: message.number("AT_USEC")?,
                reason: message.reason(),
            },
            "YIELDED" => Self::Yielded {
                migration: migration()?,
                at_usec: message.number("AT_USEC")?,
            },
            "RETURNED" => Self::Returned {
                migration: migration()?,
                at_usec: message.number("AT_USEC")?,
                reason: message.reason(),
            },
            "STOOD_DOWN" => Self::StoodDown {
                migration: migration()?,
                reason: message.reason(),
            },
            "WAY_LOST" => Self::WayLost {
                migration: migration()?,
                reason: message.reason(),
            },
            "MOVED" => Self::Moved {
                migration: migration()?,
                moved: message.counts("MOVED")?,
                left: message.counts("LEFT")?,
            },
            "GONE" => Self::Gone {
                migration: migration()?,
                moved: message.counts("MOVED")?,
                cut: message.number("CUT")?,
            },
            "SAVED" => Self::Saved {
                migration: migration()?,
                entries: message.number("ENTRIES")?,
                bytes: message.number("BYTES")?,
                rounds: message.number("ROUNDS")?,
                pause_usec: message.number("PAUSE_USEC")?,
            },
            "PHASE" => Self::Phase {
                migration: migration()?,
                phase: Standing::parse(message.text("PHASE")?)?,
            },
            unknown => return Err(BadMessage::Unknown(cut(unknown).to_owned())),
        })
    }

    /// The message's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = match self {
            Self::Hello {
                protocol,
                version,
                reads,
                way_back,
            } => {
                let text = Text::new("HELLO")
                    .line("PROTOCOL", protocol)
                    .line("VERSION", one_line(version));
                let text = if *way_back {
                    text.line("WAY_BACK", 1)
                } else {
                    text
                };
                text.reads(reads)
            }
            Self::Converged {
                migration,
                rounds,
                bytes,
            } => Text::new("CONVERGED")
                .line("MIGRATION", migration)
                .line("ROUNDS", rounds)
                .line("BYTES", bytes),
            Self::Frozen {
                migration,
                at_usec,
                rounds,
                bytes,
                stall_usec,
            } => Text::new("FROZEN")
                .line("MIGRATION", migration)
                .line("AT_USEC", at_usec)
                .line("ROUNDS", rounds)
                .line("BYTES", bytes)
                .line("STALL_USEC", stall_usec),
            Self::Ready {
                migration,
                entries,
                bytes,
            } => Text::new("READY")
                .line("MIGRATION", migration)
                .line("ENTRIES", entries)
                .line("BYTES", bytes),
            Self::Reject { migration, reason } => Text::new("REJECT")
                .line("MIGRATION", migration)
                .reason(reason),
            Self::Committed { migration, at_usec } => Text::new("COMMITTED")
                .line("MIGRATION", migration)
                .line("AT_USEC", at_usec),
            Self::Failed { migration, reason } => Text::new("FAILED")
                .line("MIGRATION", migration)
                .reason(reason),
            Self::Thawed {
                migration,
                at_usec,
                reason,
            } => Text::new("THAWED")
                .line("MIGRATION", migration)
                .line("AT_USEC", at_usec)
                .reason(reason),
            Self::Yielded { migration, at_usec } => Text::new("YIELDED")
                .line("MIGRATION", migration)
                .line("AT_USEC", at_usec),
            Self::Returned {
                migration,
                at_usec,
                reason,
            } => Text::new("RETURNED")
                .line("MIGRATION", migration)
                .line("AT_USEC", at_usec)
                .reason(reason),
            Self::StoodDown { migration, reason } => Text::new("STOOD_DOWN")
                .line("MIGRATION", migration)
                .reason(reason),
            Self::WayLost { migration, reason } => Text::new("WAY_LOST")
                .line("MIGRATION", migration)
                .reason(reason),
            Self::Moved {
                migration,
                moved,
                left,
            } => Text::new("MOVED")
                .line("MIGRATION", migration)
                .line("MOVED", moved)
                .line("LEFT", left),
            Self::Gone {
                migration,
                moved,
                cut,
            } => Text::new("GONE")
                .line("MIGRATION", migration)
                .line("MOVED", moved)
                .line("CUT", cut),
            Self::Saved {
                migration,
                entries,
                bytes,
                rounds,
                pause_usec,
            } => Text::new("SAVED")
                .line("MIGRATION", migration)
                .line("ENTRIES", entries)
                .line("BYTES", bytes)
                .line("ROUNDS", rounds)
                .line("PAUSE_USEC", pause_usec),
            Self::Phase { migration, phase } => Text::new("PHASE")
                .line("MIGRATION", migration)
                .line("PHASE", phase),
        };
        text.into_bytes()
    }
}
