//! A message's text: split into its lines, or growing line by line.

use std::fmt::{self, Write as _};

use super::{BadMessage, Counts, LARGEST_BYTES, LONGEST_REASON_BYTES, MOST_LINES, Reads};
use crate::datagram::{self, Line};

/// A message split into its lines.
pub(super) struct Message<'a> {
    pub(super) name: &'a str,
    lines: Vec<Line<'a>>,
}

impl<'a> Message<'a> {
    pub(super) fn split(datagram: &'a [u8]) -> Result<Self, BadMessage> {
        let lines = datagram::parse_within(datagram, LARGEST_BYTES, MOST_LINES)?;
        match lines.first() {
            Some(first) if first.key == "MESSAGE" => Ok(Self {
                name: first.value,
                lines,
            }),
            Some(_) | None => Err(BadMessage::NoName),
        }
    }

    pub(super) fn find(&self, key: &str) -> Option<&'a str> {
        let line = self.lines.iter().find(|line| line.key == key);
        line.map(|line| line.value)
    }

    pub(super) fn text(&self, key: &'static str) -> Result<&'a str, BadMessage> {
        self.find(key).ok_or_else(|| BadMessage::Missing {
            message: cut(self.name).to_owned(),
            key,
        })
    }

    pub(super) fn number<T: std::str::FromStr>(&self, key: &'static str) -> Result<T, BadMessage> {
        let text = self.text(key)?;
        text.parse().map_err(|_| BadMessage::Value {
            key,
            value: cut(text).to_owned(),
        })
    }

    pub(super) fn number_if_given<T: std::str::FromStr>(
        &self,
        key: &'static str,
    ) -> Result<Option<T>, BadMessage> {
        match self.find(key) {
            Some(_) => self.number(key).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn reason(&self) -> String {
        one_line(cut(self.find("REASON").unwrap_or("no reason was given")))
    }

    pub(super) fn counts(&self, key: &'static str) -> Result<Counts, BadMessage> {
        let text = self.text(key)?;
        Counts::parse(text).ok_or_else(|| BadMessage::Value {
            key,
            value: cut(text).to_owned(),
        })
    }

    pub(super) fn reads(&self) -> Result<Vec<Reads>, BadMessage> {
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

/// A message as it grows.
pub(super) struct Text(String);

impl Text {
    pub(super) fn new(name: &str) -> Self {
        Self(format!("MESSAGE={name}\n"))
    }

    pub(super) fn line(mut self, key: &str, value: impl fmt::Display) -> Self {
        // Writing to a string cannot fail.
        let _infallible = writeln!(self.0, "{key}={value}");
        self
    }

    pub(super) fn line_if_given(self, key: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.line(key, value),
            None => self,
        }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }

    pub(super) fn reason(self, reason: &str) -> Self {
        let reason = one_line(reason);
        self.line("REASON", cut(&reason))
    }

    pub(super) fn reads(self, reads: &[Reads]) -> Self {
        reads.iter().fold(self, |text, one| text.line("READS", one))
    }
}

/// A line break would end the value, and people read it on a terminal.
pub(super) fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// At most as long as a reason may be.
pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_REASON_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
