//! The grammar of every message: lines of `KEY=VALUE`, as `sd_notify(3)` defines it.
//!
//! Owns splitting and checking a datagram, and building one. What the keys mean is left to the
//! modules that use them.

use std::fmt;

/// The largest datagram that is read, in bytes. systemd's own limit for `sd_notify` is one page.
pub const LARGEST_BYTES: usize = 16 * 1024;

/// The most lines one datagram may have.
pub const MOST_LINES: usize = 64;

/// One `KEY=VALUE` line of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// What stands before the first `=`: ASCII letters, digits and `_`.
    pub key: &'a str,
    /// What stands behind it, to the end of the line.
    pub value: &'a str,
}

/// Why a datagram cannot be read. It is always the sender's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// It is longer than a message of its kind may be.
    #[error("the message has {found} bytes, more than {limit}")]
    TooLong {
        /// Its length in bytes.
        found: usize,
        /// The most there may be.
        limit: usize,
    },
    /// It has more lines than a message of its kind may have.
    #[error("the message has more than {limit} lines")]
    TooManyLines {
        /// The most there may be.
        limit: usize,
    },
    /// It is not text.
    #[error("the message is not UTF-8")]
    NotText,
    /// A line has no `=`, or a key with other than letters, digits and `_`.
    #[error("line {0} of the message is not KEY=VALUE")]
    NotAssignment(usize),
}

/// Splits a datagram of at most [`LARGEST_BYTES`] and [`MOST_LINES`] into its lines, all of them or
/// none. Empty lines are passed over.
///
/// # Errors
///
/// [`Malformed`] says what is wrong with the message.
pub fn parse(datagram: &[u8]) -> Result<Vec<Line<'_>>, Malformed> {
    parse_within(datagram, LARGEST_BYTES, MOST_LINES)
}

/// Like [`parse`], with limits of the message's kind.
///
/// # Errors
///
/// [`Malformed`] says what is wrong with the message.
pub fn parse_within(
    datagram: &[u8],
    largest_bytes: usize,
    most_lines: usize,
) -> Result<Vec<Line<'_>>, Malformed> {
    if datagram.len() > largest_bytes {
        return Err(Malformed::TooLong {
            found: datagram.len(),
            limit: largest_bytes,
        });
    }
    let text = std::str::from_utf8(datagram).map_err(|_| Malformed::NotText)?;
    let mut lines = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        if lines.len() == most_lines {
            return Err(Malformed::TooManyLines { limit: most_lines });
        }
        let (key, value) = line
            .split_once('=')
            .ok_or(Malformed::NotAssignment(index + 1))?;
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(Malformed::NotAssignment(index + 1));
        }
        lines.push(Line { key, value });
    }
    Ok(lines)
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_split_at_the_first_equals_sign() {
        let lines = parse(b"READY=1\nSTATUS=a=b c\n\n").unwrap();
        assert_eq!(
            lines,
            [
                Line {
                    key: "READY",
                    value: "1"
                },
                Line {
                    key: "STATUS",
                    value: "a=b c"
                }
            ]
        );
    }

    #[test]
    fn a_damaged_message_is_refused_whole() {
        assert_eq!(
            parse(b"READY=1\nnonsense"),
            Err(Malformed::NotAssignment(2))
        );
        assert_eq!(parse(b"=1"), Err(Malformed::NotAssignment(1)));
        assert_eq!(parse(b"A B=1"), Err(Malformed::NotAssignment(1)));
        assert_eq!(parse(b"READY=\xff"), Err(Malformed::NotText));
        assert_eq!(
            parse(&vec![b'A'; LARGEST_BYTES + 1]),
            Err(Malformed::TooLong {
                found: 16385,
                limit: LARGEST_BYTES
            })
        );
        assert_eq!(
            parse("A=1\n".repeat(65).as_bytes()),
            Err(Malformed::TooManyLines { limit: MOST_LINES })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(lines) = parse(&bytes) {
                prop_assert!(lines.iter().all(|line| !line.key.is_empty()));
            }
        }

        #[test]
        fn what_is_written_is_read(keys in proptest::collection::vec("[A-Z_]{1,12}", 0..20), value in "[^\n]{0,40}") {
            let text: String = keys.iter().map(|key| format!("{key}={value}\n")).collect();
            let lines = parse(text.as_bytes()).unwrap();
            prop_assert_eq!(lines.len(), keys.len());
            prop_assert!(lines.iter().zip(&keys).all(|(line, key)| line.key == key && line.value == value));
        }
    }
}
