//! What a supervisor tells an app, and its text.

use std::time::Duration;

use super::lines::{Message, Text, cut};
use super::{BadMessage, Purpose, Reads};

/// What a supervisor tells an app.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// To a new generation: there is no state to take over, begin with none.
    Begin,
    /// To a new generation: take over the state. Three descriptors come along: the stream's reading
    /// end, the lifeline, the link; and with a way back three more: its writing end, its fate, the link
    /// back.
    Receive {
        /// The migration's number.
        migration: u64,
        /// The generation it comes from.
        from: u64,
        /// The longest stream, in bytes; a longer state is refused. The format's own limit if none.
        bytes_max: Option<u64>,
        /// What that one can read, if there is a way back.
        way_back: Option<Vec<Reads>>,
    },
    /// To a new generation: take up the state that was saved. One descriptor comes along: the file.
    Restore {
        /// The migration's number.
        migration: u64,
        /// The longest stream, in bytes; a longer state is refused. The format's own limit if none.
        bytes_max: Option<u64>,
    },
    /// To the old generation: copy your state. Three descriptors come along: the stream's writing
    /// end, the lifeline, the link; and with a way back three more: its reading end, its fate, the link
    /// back.
    Send {
        /// The migration's number.
        migration: u64,
        /// The generation it goes to.
        to: u64,
        /// What for.
        purpose: Purpose,
        /// The pause that is aimed at.
        pause: Duration,
        /// The longest the state may be frozen.
        freeze: Duration,
        /// What the receiver can read.
        reads: Vec<Reads>,
        /// The longest stream, in bytes; a longer state is refused. The format's own limit if none.
        bytes_max: Option<u64>,
        /// How long to stay in reserve once the supervisor is gone, if there is a way back.
        way_back: Option<Duration>,
    },
    /// To the old generation: let the state stand still and complete the copy.
    Freeze {
        /// The migration's number.
        migration: u64,
    },
    /// To a new generation: own the state.
    Commit {
        /// The migration's number.
        migration: u64,
        /// The old generation is dead: nobody is left to agree with.
        alone: bool,
    },
    /// To either: call the migration off.
    Abort {
        /// The migration's number.
        migration: u64,
        /// Why.
        reason: String,
    },
    /// To the old generation in reserve: the new one needs no way back any more.
    StandDown {
        /// The number of the migration in which it gave its state away.
        migration: u64,
    },
    /// To the new generation: give the state back to the one that is in reserve.
    Return {
        /// The number of the migration in which it took the state over.
        migration: u64,
    },
    /// To the old generation: finish and end.
    Retire,
    /// To a serving generation: write your state to the descriptor that comes along, and serve on.
    Save {
        /// The migration's number.
        migration: u64,
        /// The longest stream, in bytes; a longer state is refused. The format's own limit if none.
        bytes_max: Option<u64>,
    },
    /// To any generation, from a supervisor that has taken it over: say what you have to do with the state.
    Who,
    /// To a serving generation: finish, write your state to the descriptor that comes along, end.
    Stop {
        /// The migration's number.
        migration: u64,
        /// The longest stream, in bytes; a longer state is refused. The format's own limit if none.
        bytes_max: Option<u64>,
    },
}

impl Order {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`BadMessage`] says which line is wrong; nothing of it counts then.
    pub fn parse(datagram: &[u8]) -> Result<Self, BadMessage> {
        let message = Message::split(datagram)?;
        let migration = || message.number("MIGRATION");
        let bytes_max = || message.number_if_given("BYTES_MAX");
        Ok(match message.name {
            "BEGIN" => Self::Begin,
            "RECEIVE" => Self::Receive {
                migration: migration()?,
                from: message.number("FROM")?,
                bytes_max: bytes_max()?,
                way_back: match message.find("WAY_BACK") {
                    Some("1") => Some(message.reads()?),
                    Some(_) | None => None,
                },
            },
            "RESTORE" => Self::Restore {
                migration: migration()?,
                bytes_max: bytes_max()?,
            },
            "SEND" => Self::Send {
                migration: migration()?,
                to: message.number("TO")?,
                purpose: Purpose::parse(message.text("PURPOSE")?)?,
                pause: Duration::from_micros(message.number("PAUSE_USEC")?),
                freeze: Duration::from_micros(message.number("FREEZE_USEC")?),
                reads: message.reads()?,
                bytes_max: bytes_max()?,
                way_back: match message.find("WAY_BACK_USEC") {
                    Some(_) => Some(Duration::from_micros(message.number("WAY_BACK_USEC")?)),
                    None => None,
                },
            },
            "FREEZE" => Self::Freeze {
                migration: migration()?,
            },
            "COMMIT" => Self::Commit {
                migration: migration()?,
                alone: message.find("ALONE") == Some("1"),
            },
            "ABORT" => Self::Abort {
                migration: migration()?,
                reason: message.reason(),
            },
            "STAND_DOWN" => Self::StandDown {
                migration: migration()?,
            },
            "RETURN" => Self::Return {
                migration: migration()?,
            },
            "RETIRE" => Self::Retire,
            "WHO" => Self::Who,
            "SAVE" => Self::Save {
                migration: migration()?,
                bytes_max: bytes_max()?,
            },
            "STOP" => Self::Stop {
                migration: migration()?,
                bytes_max: bytes_max()?,
            },
            unknown => return Err(BadMessage::Unknown(cut(unknown).to_owned())),
        })
    }

    /// The message's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = match self {
            Self::Begin => Text::new("BEGIN"),
            Self::Receive {
                migration,
                from,
                bytes_max,
                way_back,
            } => {
                let text = Text::new("RECEIVE")
                    .line("MIGRATION", migration)
                    .line("FROM", from)
                    .line_if_given("BYTES_MAX", *bytes_max);
                match way_back {
                    Some(reads) => text.line("WAY_BACK", 1).reads(reads),
                    None => text,
                }
            }
            Self::Restore {
                migration,
                bytes_max,
            } => Text::new("RESTORE")
                .line("MIGRATION", migration)
                .line_if_given("BYTES_MAX", *bytes_max),
            Self::Send {
                migration,
                to,
                purpose,
                pause,
                freeze,
                reads,
                bytes_max,
                way_back,
            } => {
                let text = Text::new("SEND")
                    .line("MIGRATION", migration)
                    .line("TO", to)
                    .line("PURPOSE", purpose)
                    .line("PAUSE_USEC", pause.as_micros())
                    .line("FREEZE_USEC", freeze.as_micros())
                    .line_if_given("BYTES_MAX", *bytes_max)
                    .reads(reads);
                match way_back {
                    Some(limit) => text.line("WAY_BACK_USEC", limit.as_micros()),
                    None => text,
                }
            }
            Self::Freeze { migration } => Text::new("FREEZE").line("MIGRATION", migration),
            Self::Commit { migration, alone } => {
                let text = Text::new("COMMIT").line("MIGRATION", migration);
                if *alone { text.line("ALONE", 1) } else { text }
            }
            Self::Abort { migration, reason } => Text::new("ABORT")
                .line("MIGRATION", migration)
                .reason(reason),
            Self::StandDown { migration } => Text::new("STAND_DOWN").line("MIGRATION", migration),
            Self::Return { migration } => Text::new("RETURN").line("MIGRATION", migration),
            Self::Retire => Text::new("RETIRE"),
            Self::Who => Text::new("WHO"),
            Self::Save {
                migration,
                bytes_max,
            } => Text::new("SAVE")
                .line("MIGRATION", migration)
                .line_if_given("BYTES_MAX", *bytes_max),
            Self::Stop {
                migration,
                bytes_max,
            } => Text::new("STOP")
                .line("MIGRATION", migration)
                .line_if_given("BYTES_MAX", *bytes_max),
        };
        text.into_bytes()
    }
}
