//! What a program writes to its standard output and error.
//!
//! Owns reading it by lines, handing each to the log with service and generation, as far as its rate
//! allows, and keeping the last lines of the error output for the report of a failure. A program that
//! floods its output is neither blocked in it nor does it fill the disk: what is too much is read,
//! dropped and counted.

mod allowance;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::memory::size;
use crate::config::size::Size;
use allowance::Allowance;

/// How much is read at once: all that a pipe of default size holds.
const READ_BYTES: usize = 64 * 1024;

/// How long a reader rests after a read of which something was dropped: so much a program may write
/// without being held up (64 MB a second), and so little of a processor it costs.
const REST: Duration = Duration::from_millis(1);

/// How often it is told how much was dropped.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// A longer line is cut in pieces.
const LONGEST_LINE_BYTES: usize = 8 * 1024;

/// How many lines are kept for a report.
const KEPT_LINES: usize = 20;

/// How long the output of a program that has ended is waited for; processes it left may hold it.
const LONGEST_TAIL: Duration = Duration::from_millis(200);

/// The reading side of one process's output.
#[derive(Debug)]
pub(crate) struct Output {
    kept: Arc<Mutex<VecDeque<String>>>,
    readers: Option<[JoinHandle<()>; 2]>,
}

/// The child's side: standard input, output and error.
pub(crate) type Standard = [OwnedFd; 3];

/// Makes the pipes and starts reading.
///
/// # Errors
///
/// No descriptor or no memory was left.
pub(crate) fn capture(
    service: &str,
    generation: u64,
    rate: Size,
) -> io::Result<(Output, Standard)> {
    let allowance = Arc::new(Mutex::new(Allowance::new(rate.bytes(), Instant::now())));
    let kept = Arc::<Mutex<VecDeque<String>>>::default();
    let input = File::open("/dev/null")?.into();
    let reader = |stream: &'static str, kept: Option<Arc<Mutex<VecDeque<String>>>>| {
        let (ours, theirs) = pipe()?;
        let receiver = pipe::Receiver::from_owned_fd(ours)?;
        let line = Lines {
            service: service.to_owned(),
            generation,
            stream,
            kept,
            rate,
            allowance: Arc::clone(&allowance),
            dropped: None,
        };
        io::Result::Ok((tokio::spawn(line.read(receiver)), theirs))
    };
    let (output, output_fd) = reader("stdout", None)?;
    let (error, error_fd) = reader("stderr", Some(Arc::clone(&kept)))?;
    Ok((
        Output {
            kept,
            readers: Some([output, error]),
        },
        [input, output_fd, error_fd],
    ))
}

/// A pipe: our end, and the program's. The program's can be read as well, so that a program that writes
/// while there is no supervisor waits, at the worst, and is not killed by `SIGPIPE`.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, writing) = pipe2(OFlag::O_CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", writing.as_raw_fd());
    let both = File::options().read(true).write(true).open(path);
    // Without /proc the end that only writes does.
    Ok((ours, both.map_or(writing, OwnedFd::from)))
}

impl Output {
    /// The last lines of the error output.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    /// Waits until all of it was read, for a while. The readers go on if it takes longer.
    pub(crate) fn tail(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let readers = self.readers.take();
        async move {
            let ended = async {
                for reader in readers.into_iter().flatten() {
                    // A reader cannot panic; if it did, its output has ended too.
                    let _ended = reader.await;
                }
            };
            let _late = tokio::time::timeout(LONGEST_TAIL, ended).await;
        }
    }
}

struct Lines {
    service: String,
    generation: u64,
    stream: &'static str,
    kept: Option<Arc<Mutex<VecDeque<String>>>>,
    rate: Size,
    /// What both streams of a process may still write.
    allowance: Arc<Mutex<Allowance>>,
    dropped: Option<Dropped>,
}

/// What was dropped and not told yet.
#[derive(Clone, Copy, Debug)]
struct Dropped {
    lines: u64,
    bytes: u64,
    tell_at: Instant,
}

impl Lines {
    async fn read(mut self, mut receiver: pipe::Receiver) {
        let mut buffer = Vec::with_capacity(READ_BYTES);
        loop {
            let read = receiver.read_buf(&mut buffer);
            let read = match self.dropped {
                Some(dropped) => tokio::time::timeout_at(dropped.tell_at, read).await,
                None => Ok(read.await),
            };
            match read {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(_)) => {
                    if self.take_lines(&mut buffer) {
                        tokio::time::sleep(REST).await;
                    }
                }
                Err(_elapsed) => {}
            }
            if self
                .dropped
                .is_some_and(|dropped| dropped.tell_at <= Instant::now())
            {
                self.tell_dropped();
            }
        }
        if !buffer.is_empty() {
            self.line(&buffer);
        }
        self.tell_dropped();
    }

    fn tell_dropped(&mut self) {
        if let Some(Dropped { lines, bytes, .. }) = self.dropped.take() {
            tracing::warn!(
                service = self.service,
                generation = self.generation,
                stream = self.stream,
                "{lines} lines of its output ({}) were dropped: log_rate allows {} a second",
                size(bytes),
                self.rate
            );
        }
    }

    /// Hands out every whole line, and the parts of one that has become too long. Says whether anything
    /// was dropped.
    fn take_lines(&mut self, buffer: &mut Vec<u8>) -> bool {
        let mut taken = 0;
        let mut dropped = false;
        loop {
            let rest = &buffer[taken..];
            let piece = &rest[..rest.len().min(LONGEST_LINE_BYTES)];
            let (length, end) = match piece.iter().position(|byte| *byte == b'\n') {
                Some(length) => (length, 1),
                None if piece.len() == LONGEST_LINE_BYTES => (piece.len(), 0),
                None => break,
            };
            dropped |= !self.line(&piece[..length]);
            taken += length + end;
        }
        buffer.drain(..taken);
        dropped
    }

    /// Says whether it went into the log.
    fn line(&mut self, bytes: &[u8]) -> bool {
        let line = String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned();
        let length = bytes.len() as u64;
        let now = Instant::now();
        let allowance = self.allowance.lock();
        let allowed = allowance
            .unwrap_or_else(PoisonError::into_inner)
            .take(length, now);
        if allowed {
            tracing::info!(
                target: "heirloom::output",
                service = self.service,
                generation = self.generation,
                stream = self.stream,
                "{line}"
            );
        } else {
            let dropped = self.dropped.get_or_insert(Dropped {
                lines: 0,
                bytes: 0,
                tell_at: now + TELL_EVERY,
            });
            dropped.lines += 1;
            dropped.bytes += length;
        }
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(line);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn the_last_lines_are_kept_and_long_ones_cut() {
        let (mut output, [_, standard_output, error]) = capture("shop", 1, Size::mib(1)).unwrap();
        drop(standard_output);
        let mut error = File::from(error);
        let writer = std::thread::spawn(move || {
            for number in 0..40 {
                writeln!(error, "line {number}").unwrap();
            }
            write!(error, "{}\nunfinished", "x".repeat(3 * LONGEST_LINE_BYTES)).unwrap();
        });
        tokio::task::spawn_blocking(move || writer.join().unwrap())
            .await
            .unwrap();
        output.tail().await;
        let lines = output.last_lines();
        assert_eq!(lines.len(), KEPT_LINES);
        assert_eq!(lines.last().unwrap(), "unfinished");
        assert!(lines.iter().all(|line| line.len() <= LONGEST_LINE_BYTES));
        assert!(lines.contains(&"line 39".to_owned()));
    }

    #[tokio::test]
    async fn a_pipe_that_stays_open_is_not_waited_for_without_end() {
        let (mut output, standard) = capture("shop", 1, Size::mib(1)).unwrap();
        output.tail().await;
        drop(standard);
    }
}
