//! The asking side of the control socket, for the command line.
//!
//! Owns one connection with one request: sending it, reading replies by a deadline. What a reply
//! means for the exit status is the commands' matter.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::place::{self, Unreachable, Wanted};
use super::protocol::{LONGEST_REPLY_BYTES, Reply, Request};

/// How long the supervisor may take to read a request.
const LONGEST_SEND: Duration = Duration::from_secs(10);

/// Why there is no (further) reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoReply {
    /// No supervisor was reached.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The deadline passed.
    #[error("no answer in time")]
    TimedOut,
    /// The supervisor ended, or speaks another language.
    #[error("the supervisor broke the conversation off: {0}")]
    BrokenOff(String),
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Conversation {
    stream: BufReader<UnixStream>,
    deadline: Option<Instant>,
}

/// Sends a request; replies are awaited until the deadline, if there is one.
///
/// # Errors
///
/// [`NoReply`].
pub(crate) fn ask(
    wanted: &Wanted,
    request: &Request,
    deadline: Option<Instant>,
) -> Result<Conversation, NoReply> {
    let mut stream = place::connect(wanted)?;
    let mut line = serde_json::to_vec(request).map_err(|e| NoReply::BrokenOff(e.to_string()))?;
    line.push(b'\n');
    let sent = stream
        .set_write_timeout(Some(LONGEST_SEND))
        .and_then(|()| stream.write_all(&line));
    match sent {
        Ok(()) => {}
        // It was not read to its end; why stands in the reply.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => return Err(NoReply::BrokenOff(error.to_string())),
    }
    Ok(Conversation {
        stream: BufReader::new(stream),
        deadline,
    })
}

impl Conversation {
    /// The next reply, or `None` after the last.
    ///
    /// # Errors
    ///
    /// [`NoReply`].
    pub(crate) fn next(&mut self) -> Result<Option<Reply>, NoReply> {
        let broken = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => NoReply::TimedOut,
            _other => NoReply::BrokenOff(error.to_string()),
        };
        let mut line = Vec::new();
        loop {
            let left = match self.deadline {
                None => None,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(NoReply::TimedOut);
                    }
                    Some(left)
                }
            };
            self.stream
                .get_ref()
                .set_read_timeout(left)
                .map_err(broken)?;
            let room = (LONGEST_REPLY_BYTES - line.len()) as u64;
            match self.stream.by_ref().take(room).read_until(b'\n', &mut line) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
        if line.last() != Some(&b'\n') {
            return Err(NoReply::BrokenOff("it ended".to_owned()));
        }
        match serde_json::from_slice(&line) {
            Ok(Reply::Done) => Ok(None),
            Ok(reply) => Ok(Some(reply)),
            Err(error) => Err(NoReply::BrokenOff(error.to_string())),
        }
    }
}
