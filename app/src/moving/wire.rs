//! The messages about connections on a lifeline, after the commit. `docs/protocol.md` is the normative
//! text.
//!
//! Lines of `KEY=VALUE` as everywhere; behind an empty line, bytes. What one datagram cannot hold
//! travels in a memory file beside the socket.

use heirloom_handover::datagram;

use super::Kind;

/// The largest datagram, in bytes: a socket of default size takes a good deal more.
pub(crate) const LARGEST_BYTES: usize = 128 * 1024;

/// The most bytes that travel in the datagram itself; more go into a memory file.
pub(crate) const INLINE_BYTES_MAX: usize = LARGEST_BYTES - 8 * 1024;

/// The most bytes of one connection, unread ones and state together.
pub(crate) const BYTES_MAX: usize = 64 * 1024 * 1024;

/// One connection, as the generation that gives it away announces it. Its socket comes along; behind
/// it, if `in_file`, a memory file with the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    pub(crate) kind: Kind,
    pub(crate) version: u32,
    /// How many bytes were read and not used; the state follows them.
    pub(crate) unread_bytes: usize,
    pub(crate) state_bytes: usize,
    /// What the state's version has no room for, behind the state.
    pub(crate) attic_bytes: usize,
    pub(crate) in_file: bool,
}

/// What the receiver answers, in the order of the announcements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// The connection is the receiver's.
    Taken,
    /// The connection stays the sender's; others may fare better.
    Declined,
    /// The connection stays the sender's, and so would all others: there is no room.
    Full,
}

impl Announced {
    /// The datagram, with the bytes it holds.
    pub(crate) fn to_bytes(&self, inline: &[u8]) -> Vec<u8> {
        let Self {
            kind: Kind { protocol, name },
            version,
            unread_bytes,
            state_bytes,
            attic_bytes,
            in_file,
        } = self;
        let in_file = u8::from(*in_file);
        let mut text = format!(
            "MESSAGE=CONNECTION\nPROTOCOL={protocol}\nNAME={name}\nVERSION={version}\n\
             UNREAD={unread_bytes}\nSTATE={state_bytes}\nATTIC={attic_bytes}\nIN_FILE={in_file}\n\n"
        )
        .into_bytes();
        text.extend_from_slice(inline);
        text
    }

    /// Reads a datagram and the bytes it holds; none for what is no announcement.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let end = bytes.windows(2).position(|two| two == b"\n\n")?;
        let (text, inline) = bytes.split_at(end);
        let inline = &inline[2..];
        let lines = datagram::parse(text).ok()?;
        let find = |key: &str| {
            let line = lines.iter().find(|line| line.key == key);
            line.map(|line| line.value)
        };
        if find("MESSAGE")? != "CONNECTION" {
            return None;
        }
        let announced = Self {
            kind: Kind {
                protocol: find("PROTOCOL")?.to_owned(),
                name: find("NAME")?.to_owned(),
            },
            version: find("VERSION")?.parse().ok()?,
            unread_bytes: find("UNREAD")?.parse().ok()?,
            state_bytes: find("STATE")?.parse().ok()?,
            attic_bytes: find("ATTIC")?.parse().ok()?,
            in_file: find("IN_FILE")? == "1",
        };
        let total = announced
            .unread_bytes
            .checked_add(announced.state_bytes)
            .and_then(|total| total.checked_add(announced.attic_bytes))
            .filter(|total| *total <= BYTES_MAX)?;
        let held = if announced.in_file { 0 } else { total };
        (inline.len() == held).then_some((announced, inline))
    }
}

impl Answered {
    pub(crate) fn text(self) -> &'static [u8] {
        match self {
            Self::Taken => b"MESSAGE=TAKEN\n",
            Self::Declined => b"MESSAGE=DECLINED\n",
            Self::Full => b"MESSAGE=FULL\n",
        }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        [Self::Taken, Self::Declined, Self::Full]
            .into_iter()
            .find(|answered| answered.text() == bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced() -> Announced {
        Announced {
            kind: Kind {
                protocol: "http/1".to_owned(),
                name: "http".to_owned(),
            },
            version: 2,
            unread_bytes: 5,
            state_bytes: 2,
            attic_bytes: 1,
            in_file: false,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = announced().to_bytes(b"GET\n\nabc");
        assert_eq!(
            Announced::parse(&bytes),
            Some((announced(), &b"GET\n\nabc"[..]))
        );
        let in_file = Announced {
            in_file: true,
            ..announced()
        };
        let bytes = in_file.to_bytes(b"");
        assert_eq!(Announced::parse(&bytes), Some((in_file, &b""[..])));
        for answered in [Answered::Taken, Answered::Declined, Answered::Full] {
            assert_eq!(Answered::parse(answered.text()), Some(answered));
        }
    }

    /// A fuzz target: what is understood is read again as it was written.
    #[test]
    fn any_announcement() {
        bolero::check!()
            .with_iterations(10_000)
            .with_type::<(Vec<(u8, String, u16)>, Vec<u8>)>()
            .for_each(|(lines, inline)| {
                const KEYS: [&str; 8] = [
                    "PROTOCOL", "NAME", "VERSION", "UNREAD", "STATE", "ATTIC", "IN_FILE", "OTHER",
                ];
                let mut text = "MESSAGE=CONNECTION\n".to_owned();
                for (index, (form, word, number)) in lines.iter().enumerate() {
                    let value = match form % 3 {
                        0 => word.replace('\n', ""),
                        1 => number.to_string(),
                        _ => inline.len().to_string(),
                    };
                    text.push_str(&format!("{}={value}\n", KEYS[index % KEYS.len()]));
                }
                let bytes = [text.as_bytes(), b"\n", inline].concat();
                for bytes in [&bytes[..], inline] {
                    if let Some((read, held)) = Announced::parse(bytes) {
                        let again = read.to_bytes(held);
                        assert_eq!(Announced::parse(&again), Some((read, held)));
                    }
                }
            });
    }

    #[test]
    fn bytes_that_do_not_add_up_are_refused() {
        let bytes = announced().to_bytes(b"GET\n\nabc");
        for length in 0..bytes.len() {
            assert_eq!(Announced::parse(&bytes[..length]), None, "{length}");
        }
        let huge = Announced {
            unread_bytes: usize::MAX,
            ..announced()
        };
        assert_eq!(Announced::parse(&huge.to_bytes(b"")), None);
        assert_eq!(Answered::parse(b"MESSAGE=TAKEN"), None);
    }
}
