//! The messages of the handover protocol, between a supervisor and one native app.
//!
//! Owns turning a datagram into an [`Order`] or a [`Report`] and back. Who sends what when is decided
//! by [`crate::source`], [`crate::target`] and the supervisor. `docs/protocol.md` is the normative
//! text.
//!
//! A message is lines of `KEY=VALUE`, the first of which is `MESSAGE=` and its name. Unknown keys are
//! passed over, so that keys can be added; unknown messages are refused by name.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::datagram::{self, Line, Malformed};

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
    /// To a serving generation: finish, write your state to the descriptor that comes along, end.
    Stop {
        /// The migration's number.
        migration: u64,
    },
}

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
    /// The state was written to the descriptor that came with [`Order::Save`] or [`Order::Stop`].
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
}

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
            Self::Save { migration } => Text::new("SAVE").line("MIGRATION", migration),
            Self::Stop { migration } => Text::new("STOP").line("MIGRATION", migration),
        };
        text.0.into_bytes()
    }
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
                version: cut(message.find("VERSION").unwrap_or_default()).to_owned(),
                reads: message.reads()?,
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
            unknown => return Err(BadMessage::Unknown(unknown.to_owned())),
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
            } => Text::new("HELLO")
                .line("PROTOCOL", protocol)
                .line("VERSION", one_line(version))
                .reads(reads),
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
        };
        text.0.into_bytes()
    }
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

/// A message split into its lines.
struct Message<'a> {
    name: &'a str,
    lines: Vec<Line<'a>>,
}

impl<'a> Message<'a> {
    fn split(datagram: &'a [u8]) -> Result<Self, BadMessage> {
        let lines = datagram::parse_within(datagram, LARGEST_BYTES, MOST_LINES)?;
        match lines.first() {
            Some(first) if first.key == "MESSAGE" => Ok(Self {
                name: first.value,
                lines,
            }),
            Some(_) | None => Err(BadMessage::NoName),
        }
    }

    fn find(&self, key: &str) -> Option<&'a str> {
        let line = self.lines.iter().find(|line| line.key == key);
        line.map(|line| line.value)
    }

    fn text(&self, key: &'static str) -> Result<&'a str, BadMessage> {
        self.find(key).ok_or_else(|| BadMessage::Missing {
            message: cut(self.name).to_owned(),
            key,
        })
    }

    fn number<T: std::str::FromStr>(&self, key: &'static str) -> Result<T, BadMessage> {
        let text = self.text(key)?;
        text.parse().map_err(|_| BadMessage::Value {
            key,
            value: cut(text).to_owned(),
        })
    }

    fn reason(&self) -> String {
        cut(self.find("REASON").unwrap_or("no reason was given")).to_owned()
    }

    fn counts(&self, key: &'static str) -> Result<Counts, BadMessage> {
        let text = self.text(key)?;
        Counts::parse(text).ok_or_else(|| BadMessage::Value {
            key,
            value: cut(text).to_owned(),
        })
    }

    fn reads(&self) -> Result<Vec<Reads>, BadMessage> {
        let lines = self.lines.iter().filter(|line| line.key == "READS");
        lines
            .map(|line| {
                Reads::parse(line.value).ok_or_else(|| BadMessage::Value {
                    key: "READS",
                    value: cut(line.value).to_owned(),
                })
            })
            .collect()
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

/// A message as it grows.
struct Text(String);

impl Text {
    fn new(name: &str) -> Self {
        Self(format!("MESSAGE={name}\n"))
    }

    fn line(mut self, key: &str, value: impl fmt::Display) -> Self {
        // Writing to a string cannot fail.
        let _infallible = writeln!(self.0, "{key}={value}");
        self
    }

    fn reason(self, reason: &str) -> Self {
        let reason = one_line(reason);
        self.line("REASON", cut(&reason))
    }

    fn reads(self, reads: &[Reads]) -> Self {
        reads.iter().fold(self, |text, one| text.line("READS", one))
    }
}

/// A line break would end the value.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_REASON_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reads() -> Vec<Reads> {
        let one = Reads {
            section: "sessions".to_owned(),
            schema: "session".to_owned(),
            version: 2,
            fingerprint: 7,
        };
        let raw = Reads {
            section: "notes".to_owned(),
            schema: String::new(),
            version: 0,
            fingerprint: u128::MAX,
        };
        vec![one, raw]
    }

    fn counts(counts: &[(&str, u64)]) -> Counts {
        let owned = counts
            .iter()
            .map(|(protocol, count)| ((*protocol).to_owned(), *count));
        Counts(owned.collect())
    }

    fn orders() -> Vec<Order> {
        let (migration, reason) = (4, "no room".to_owned());
        vec![
            Order::Begin,
            Order::Receive { migration, from: 6 },
            Order::Restore { migration },
            Order::Send {
                migration,
                to: 7,
                purpose: Purpose::Rehearsal,
                pause: Duration::from_millis(5),
                freeze: Duration::from_secs(1),
                reads: reads(),
            },
            Order::Freeze { migration },
            Order::Commit {
                migration,
                alone: false,
            },
            Order::Commit {
                migration,
                alone: true,
            },
            Order::Abort { migration, reason },
            Order::Retire,
            Order::Save { migration },
            Order::Stop { migration },
        ]
    }

    fn reports() -> Vec<Report> {
        let (migration, at_usec, rounds, bytes) = (4, 5, 2, 1 << 40);
        let reason = "no room".to_owned();
        vec![
            Report::Hello {
                protocol: 1,
                version: "1.0.0".to_owned(),
                reads: reads(),
            },
            Report::Converged {
                migration,
                rounds,
                bytes,
            },
            Report::Frozen {
                migration,
                at_usec,
                rounds,
                bytes,
                stall_usec: 90,
            },
            Report::Ready {
                migration,
                entries: 9,
                bytes,
            },
            Report::Reject {
                migration,
                reason: reason.clone(),
            },
            Report::Committed { migration, at_usec },
            Report::Failed {
                migration,
                reason: reason.clone(),
            },
            Report::Thawed {
                migration,
                at_usec,
                reason,
            },
            Report::Yielded { migration, at_usec },
            Report::Moved {
                migration,
                moved: counts(&[("http/1", 800), ("session", 12)]),
                left: counts(&[]),
            },
            Report::Gone {
                migration,
                moved: counts(&[("http/1", 801)]),
                cut: 1,
            },
            Report::Saved {
                migration,
                entries: 9,
                bytes,
                rounds,
                pause_usec: 12,
            },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        for order in orders() {
            assert_eq!(Order::parse(&order.to_bytes()), Ok(order));
        }
        for report in reports() {
            assert_eq!(Report::parse(&report.to_bytes()), Ok(report));
        }
    }

    #[test]
    fn the_text_is_that_of_the_protocol() {
        assert_eq!(
            Report::Hello {
                protocol: 1,
                version: "1.0.0".to_owned(),
                reads: reads()
            }
            .to_bytes(),
            b"MESSAGE=HELLO\nPROTOCOL=1\nVERSION=1.0.0\n\
              READS=sessions\tsession\t2\t00000000000000000000000000000007\n\
              READS=notes\t\t0\tffffffffffffffffffffffffffffffff\n"
        );
    }

    #[test]
    fn a_message_without_what_it_needs_is_refused() {
        for order in orders() {
            let text = String::from_utf8(order.to_bytes()).unwrap();
            let name = text.lines().next().unwrap();
            // Only those without any key are whole by their name alone.
            let whole = matches!(order, Order::Begin | Order::Retire);
            assert_eq!(Order::parse(name.as_bytes()).is_ok(), whole, "{name}");
        }
        assert_eq!(Order::parse(b""), Err(BadMessage::NoName));
        assert_eq!(
            Order::parse(b"MIGRATION=1\nMESSAGE=FREEZE"),
            Err(BadMessage::NoName)
        );
        assert_eq!(
            Order::parse(b"MESSAGE=DANCE"),
            Err(BadMessage::Unknown("DANCE".to_owned()))
        );
        assert_eq!(
            Order::parse(b"MESSAGE=FREEZE\nMIGRATION=-1"),
            Err(BadMessage::Value {
                key: "MIGRATION",
                value: "-1".to_owned()
            })
        );
        assert!(Report::parse(b"MESSAGE=HELLO\nPROTOCOL=1\nREADS=a\tb\t1\tff").is_err());
    }

    #[test]
    fn a_reason_is_one_line_of_bounded_length() {
        let reason = format!("first\nMESSAGE=COMMITTED {}", "ä".repeat(2000));
        let order = Order::Abort {
            migration: 1,
            reason,
        };
        let bytes = order.to_bytes();
        let Ok(Order::Abort { reason, .. }) = Order::parse(&bytes) else {
            panic!("it was an abort");
        };
        assert!(reason.starts_with("first MESSAGE=COMMITTED"));
        assert!(reason.len() <= LONGEST_REASON_BYTES);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Order::parse(&bytes);
            let _ = Report::parse(&bytes);
        }

        #[test]
        fn any_change_of_a_message_is_answered(index in 0_usize..11, at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = orders().swap_remove(index).to_bytes();
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = Order::parse(&bytes);
        }
    }
}
