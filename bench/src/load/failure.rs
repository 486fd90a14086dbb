//! What can go wrong with one request, and how it is told apart.

use std::fmt;
use std::io;
use std::time::Duration;

/// Why a request got no good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// The server refused the connection: nobody listens.
    Refused,
    /// The connection was reset, or had been when the request was written.
    Reset,
    /// The server closed the connection after the request and before the first byte of an answer.
    ClosedBeforeResponse,
    /// The server closed the connection in the middle of an answer.
    Truncated,
    /// The deadline of the request passed, connecting included.
    Timeout,
    /// The answer had a status outside 200 to 299.
    BadStatus,
    /// The answer was not HTTP/1.1, exceeded a limit, or was followed by bytes nobody asked for.
    Malformed,
    /// The answer was well formed, but the caller's check refused it.
    Unexpected,
    /// The client's own machine failed: no port, no file descriptor. Says nothing about the server.
    Local,
}

impl FailureKind {
    /// The kind of an error from connecting.
    pub(crate) fn of_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Self::Reset,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Local,
        }
    }

    /// The kind of an error from reading or writing an open connection.
    pub(crate) fn of_transfer(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => Self::Reset,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Local,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::ClosedBeforeResponse => "closed before the answer",
            Self::Truncated => "closed within the answer",
            Self::Timeout => "timed out",
            Self::BadStatus => "bad status",
            Self::Malformed => "malformed answer",
            Self::Unexpected => "unexpected answer",
            Self::Local => "failure of the client itself",
        })
    }
}

/// One request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What happened.
    pub kind: FailureKind,
    /// What exactly: the system's error, the status line, the reason of the caller's check.
    pub text: String,
    /// When it was seen, since the load started. Zero outside a load.
    pub at: Duration,
    /// Which client saw it, counted from 0 over all groups. Zero outside a load.
    pub client: usize,
}

impl Failure {
    /// A failure of `kind`, explained by `text`.
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            at: Duration::ZERO,
            client: 0,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "at {:.3} s, client {}: {}: {}",
            self.at.as_secs_f64(),
            self.client,
            self.kind,
            self.text
        )
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_port_range_is_not_blamed_on_the_server() {
        let error = io::Error::from_raw_os_error(nix::libc::EADDRNOTAVAIL);
        assert_eq!(FailureKind::of_connect(&error), FailureKind::Local);
    }

    #[test]
    fn writing_to_a_connection_that_was_reset_is_a_reset() {
        let error = io::Error::from_raw_os_error(nix::libc::EPIPE);
        assert_eq!(FailureKind::of_transfer(&error), FailureKind::Reset);
    }
}
