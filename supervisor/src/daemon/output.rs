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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::memory::size;
use super::record::{self, Handle, Held, Text, handles::Purpose};
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
    streams: [Stream; 2],
    readers: Option<[JoinHandle<()>; 2]>,
}

/// One of the two.
#[derive(Debug)]
struct Stream {
    handle: Handle,
    pipe: Arc<pipe::Receiver>,
    read: Arc<Mutex<Read>>,
}

/// What was read of a stream.
#[derive(Debug, Default)]
struct Read {
    /// Of a line that has not ended.
    unfinished: Vec<u8>,
    /// The last lines, if they are kept.
    kept: Option<VecDeque<String>>,
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
    let input = File::open("/dev/null")?.into();
    let (output, output_fd) = pipe()?;
    let (error, error_fd) = pipe()?;
    let output = Output::start(
        service,
        generation,
        rate,
        [(Handle::new(), output), (Handle::new(), error)],
        (VecDeque::new(), [Vec::new(), Vec::new()]),
    )?;
    Ok((output, [input, output_fd, error_fd]))
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

/// The inode of a pipe; 0, which no pipe has, if the system does not say.
pub(super) fn inode_of(pipe: BorrowedFd<'_>) -> u64 {
    nix::sys::stat::fstat(pipe).map_or(0, |stat| stat.st_ino)
}

impl Output {
    fn start(
        service: &str,
        generation: u64,
        rate: Size,
        pipes: [(Handle, OwnedFd); 2],
        (kept, unfinished): (VecDeque<String>, [Vec<u8>; 2]),
    ) -> io::Result<Self> {
        let allowance = Arc::new(Mutex::new(Allowance::new(rate.bytes(), Instant::now())));
        let [output, error] = pipes;
        let [output_left, error_left] = unfinished;
        let reader = |stream: &'static str, (handle, fd), read: Read| {
            let pipe = Arc::new(pipe::Receiver::from_owned_fd(fd)?);
            let read = Arc::new(Mutex::new(read));
            let lines = Lines {
                service: service.to_owned(),
                generation,
                stream,
                read: Arc::clone(&read),
                rate,
                allowance: Arc::clone(&allowance),
                dropped: None,
            };
            let reading = tokio::spawn(lines.read(Arc::clone(&pipe)));
            io::Result::Ok((Stream { handle, pipe, read }, reading))
        };
        let (output, reading_output) = reader(
            "stdout",
            output,
            Read {
                unfinished: output_left,
                kept: None,
            },
        )?;
        let (error, reading_error) = reader(
            "stderr",
            error,
            Read {
                unfinished: error_left,
                kept: Some(kept),
            },
        )?;
        Ok(Self {
            streams: [output, error],
            readers: Some([reading_output, reading_error]),
        })
    }

    /// Goes on with what a former supervisor read.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(crate) fn resume(
        service: &str,
        generation: u64,
        rate: Size,
        listed: record::Output,
        [stdout, stderr]: [OwnedFd; 2],
    ) -> io::Result<Self> {
        let [output_left, error_left] = listed.unfinished;
        Self::start(
            service,
            generation,
            rate,
            [(listed.stdout, stdout), (listed.stderr, stderr)],
            (listed.kept.into(), [output_left.0, error_left.0]),
        )
    }

    /// What the record says of it.
    pub(crate) fn record<'a>(&'a self, held: &mut Held<'a>) -> record::Output {
        let [stdout, stderr] = &self.streams;
        let unfinished = |stream: &Stream| match held.purpose {
            Purpose::Pass => Text(lock(&stream.read).unfinished.clone()),
            Purpose::Keep => Text::default(),
        };
        let unfinished = [unfinished(stdout), unfinished(stderr)];
        record::Output {
            stdout: held.hold(stdout.handle, stdout.pipe.as_fd()),
            stderr: held.hold(stderr.handle, stderr.pipe.as_fd()),
            pipes: [inode_of(stdout.pipe.as_fd()), inode_of(stderr.pipe.as_fd())],
            kept: self.last_lines(),
            unfinished,
        }
    }

    /// The last lines of the error output.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        let [_, error] = &self.streams;
        let read = lock(&error.read);
        read.kept.iter().flatten().cloned().collect()
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

fn lock(read: &Mutex<Read>) -> MutexGuard<'_, Read> {
    read.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Lines {
    service: String,
    generation: u64,
    stream: &'static str,
    read: Arc<Mutex<Read>>,
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
    async fn read(mut self, pipe: Arc<pipe::Receiver>) {
        loop {
            let ready = match self.dropped {
                Some(dropped) => tokio::time::timeout_at(dropped.tell_at, pipe.readable()).await,
                None => Ok(pipe.readable().await),
            };
            match ready {
                Ok(Ok(())) => match self.take(&pipe) {
                    Ok(None) => break,
                    Ok(Some(false)) => {}
                    Ok(Some(true)) => tokio::time::sleep(REST).await,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                },
                Ok(Err(_)) => break,
                Err(_elapsed) => {}
            }
            if self
                .dropped
                .is_some_and(|dropped| dropped.tell_at <= Instant::now())
            {
                self.tell_dropped();
            }
        }
        let rest = std::mem::take(&mut lock(&self.read).unfinished);
        if !rest.is_empty() {
            self.line(&rest);
        }
        self.tell_dropped();
    }

    /// Reads once, without waiting; whether anything was dropped, or none at the end. What is read of a line
    /// that has not ended is never anywhere else than where a successor finds it.
    fn take(&mut self, pipe: &pipe::Receiver) -> io::Result<Option<bool>> {
        let mut buffer = std::mem::take(&mut lock(&self.read).unfinished);
        buffer.reserve(READ_BYTES);
        let read = pipe.try_read_buf(&mut buffer);
        let dropped = self.take_lines(&mut buffer);
        lock(&self.read).unfinished = buffer;
        Ok(Some(dropped).filter(|_| !matches!(read, Ok(0)))).and_then(|went| read.map(|_| went))
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
        if let Some(kept) = &mut lock(&self.read).kept {
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
