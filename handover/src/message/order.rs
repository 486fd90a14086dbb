//! What a supervisor tells an app, and its text.

use std::time::Duration;

use super::lines::{Message, Text};
use super::{BadMessage, Purpose, Reads};

/// What a supervisor tells an app.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// To a new generation: there is no state to take over, begin with none.
    Begin,
    /// To a new generation: take over the state. Three descriptors come along: the stream's reading
    /// end, the lifeline, the link.
    Receive {
        /// The migration's number.
        migration: u64,
        /// The generation it comes from.
        from: u64,
    },
    /// To a new generation: take up the state that was saved. One descriptor comes along: the file.
    Restore {
        /// The migration's number.
        migration: u64,
    },
    /// To the old generation: copy your state. Three descriptors come along: the stream's writing
    /// end, the lifeline, the link.
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
    /// To the old generation: finish and end.
    Retire,
    /// To a serving generation: write your state to the descriptor that comes along, and serve on.
    Save {
        /// The migration's number.
        migration: u64,
    },
    /// To any generation, from a supervisor that has taken it over: say what you have to do with the state.
    Who,
    /// To a serving generation: finish, write your state to the descriptor that comes along, end.
    Stop {
        /// The migration's number.
        migration: u64,
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
        Ok(match message.name {
            "BEGIN" => Self::Begin,
            "RECEIVE" => Self::Receive {
                migration: migration()?,
                from: message.number("FROM")?,
            },
            "RESTORE" => Self::Restore {
                migration: migration()?,
            },
            "SEND" => Self::Send {
                migration: migration()?,
                to: message.number("TO")?,
                purpose: Purpose::parse(message.text("PURPOSE")?)?,
                pause: Duration::from_micros(message.number("PAUSE_USEC")?),
                freeze: Duration::from_micros(message.number("FREEZE_USEC")?),
                reads: message.reads()?,
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
            "RETIRE" => Self::Retire,
            "WHO" => Self::Who,
            "SAVE" => Self::Save {
                migration: migration()?,
            },
            "STOP" => Self::Stop {
                migration: migration()?,
            },
            unknown => return Err(BadMessage::Unknown(unknown.to_owned())),
        })
    }

    /// The message's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = match self {
            Self::Begin => Text::new("BEGIN"),
            Self::Receive { migration, from } => Text::new("RECEIVE")
                .line("MIGRATION", migration)
                .line("FROM", from),
            Self::Restore { migration } => Text::new("RESTORE").line("MIGRATION", migration),
            Self::Send {
                migration,
                to,
                purpose,
                pause,
                freeze,
                reads,
            } => Text::new("SEND")
                .line("MIGRATION", migration)
                .line("TO", to)
                .line("PURPOSE", purpose)
                .line("PAUSE_USEC", pause.as_micros())
                .line("FREEZE_USEC", freeze.as_micros())
                .reads(reads),
            Self::Freeze { migration } => Text::new("FREEZE").line("MIGRATION", migration),
            Self::Commit { migration, alone } => {
                let text = Text::new("COMMIT").line("MIGRATION", migration);
                if *alone { text.line("ALONE", 1) } else { text }
            }
            Self::Abort { migration, reason } => Text::new("ABORT")
                .line("MIGRATION", migration)
                .reason(reason),
            Self::Retire => Text::new("RETIRE"),
            Self::Who => Text::new("WHO"),
            Self::Save { migration } => Text::new("SAVE").line("MIGRATION", migration),
            Self::Stop { migration } => Text::new("STOP").line("MIGRATION", migration),
        };
        text.into_bytes()
    }
}
