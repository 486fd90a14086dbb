//! A program of this tree without any supervisor: the other side of the ratios.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::Instant;

use super::{END_PATIENCE, START_PATIENCE, ask};
use crate::process::Process;

/// Puts the listener where socket activation wants it and becomes the program.
const PLACE_LISTENER: &str =
    "LISTEN_FDS=1 LISTEN_FDNAMES=http LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&0 0</dev/null";

/// A server that was started with a listener and nothing else.
#[derive(Debug)]
pub struct Alone {
    process: Process,
    address: SocketAddr,
    directory: TempDir,
}

impl Alone {
    /// Starts `program`; gives it and how long it took until it answered.
    ///
    /// # Errors
    /// If it does not answer in time, with the last lines it wrote.
    pub async fn start(program: &Path) -> Result<(Self, Duration)> {
        let directory = TempDir::with_prefix("heirloom-alone-")?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let mut command = Command::new("sh");
        command.arg("-c").arg(PLACE_LISTENER).arg(program);
        let start = Instant::now();
        let mut process = Process::start_with_input(
            "the program alone",
            command,
            Stdio::from(OwnedFd::from(listener)),
            &directory.path().join("output"),
        )?;
        let deadline = start + START_PATIENCE;
        // The listener exists already, so this waits in its queue until the program accepts.
        if let Err(error) = ask(address, deadline).await {
            process.check_running()?;
            bail!(
                "the program alone did not answer: {error:#}; it wrote: {}",
                process.tail(15)
            );
        }
        Ok((
            Self {
                process,
                address,
                directory,
            },
            start.elapsed(),
        ))
    }

    /// Where it is reached.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it had to be killed.
    pub async fn end(self) -> Result<()> {
        let ended = self.process.end(END_PATIENCE).await;
        drop(self.directory);
        ended
    }
}
