//! What a program writes to its standard output and error.
//!
//! Owns reading it by lines, handing each to the log with service and generation, and keeping the
//! last lines of the error output for the report of a failure. A program that writes more than the
//! log takes is slowed down by its pipe and harms nobody else.

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
pub(crate) fn capture(service: &str, generation: u64) -> io::Result<(Output, Standard)> {
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
}

impl Lines {
    async fn read(self, mut receiver: pipe::Receiver) {
        let mut buffer = Vec::with_capacity(1024);
        loop {
            match receiver.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => self.take_lines(&mut buffer),
            }
        }
        if !buffer.is_empty() {
            self.line(&buffer);
        }
    }

    /// Hands out every whole line, and a part that has become too long.
    fn take_lines(&self, buffer: &mut Vec<u8>) {
        let mut taken = 0;
        while let Some(length) = buffer[taken..].iter().position(|byte| *byte == b'\n') {
            self.line(&buffer[taken..taken + length]);
            taken += length + 1;
        }
        buffer.drain(..taken);
        if buffer.len() >= LONGEST_LINE_BYTES {
            self.line(buffer);
            buffer.clear();
        }
    }

    fn line(&self, bytes: &[u8]) {
        let line = String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned();
        tracing::info!(
            target: "heirloom::output",
            service = self.service,
            generation = self.generation,
            stream = self.stream,
            "{line}"
        );
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn the_last_lines_are_kept_and_long_ones_cut() {
        let (mut output, [_, standard_output, error]) = capture("shop", 1).unwrap();
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
        assert!(lines.iter().all(|line| line.len() < 2 * LONGEST_LINE_BYTES));
        assert!(lines.contains(&"line 39".to_owned()));
    }

    #[tokio::test]
    async fn a_pipe_that_stays_open_is_not_waited_for_without_end() {
        let (mut output, standard) = capture("shop", 1).unwrap();
        output.tail().await;
        drop(standard);
    }
}
