//! The demo service without any supervisor: the other side of the ratios.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, timeout_at};

use super::{END_PATIENCE, START_PATIENCE, ask, free_address};
use crate::process::Process;

/// Longest notification read, in bytes.
const NOTIFICATION_LIMIT: usize = 4096;

/// A demo service that nobody supervises.
#[derive(Debug)]
pub struct Alone {
    process: Process,
    address: SocketAddr,
    directory: TempDir,
}

impl Alone {
    /// Starts `program` with `arguments`; gives it and how long it took until it said READY=1, by which a
    /// supervisor goes too.
    ///
    /// # Errors
    /// If it does not get ready in time, with the last lines it wrote.
    pub async fn start(program: &Path, arguments: &[&str]) -> Result<(Self, Duration)> {
        let directory = TempDir::with_prefix("heirloom-alone-")?;
        let notify_path = directory.path().join("notify");
        let notify = UnixDatagram::bind(&notify_path)?;
        let address = free_address()?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("--listen")
            .arg(address.to_string());
        command.env("NOTIFY_SOCKET", &notify_path);
        let start = Instant::now();
        let deadline = start + START_PATIENCE;
        let name = "the demo alone";
        let mut process = Process::start(name, command, &directory.path().join("output"))?;
        let ready = async {
            let mut notification = [0; NOTIFICATION_LIMIT];
            loop {
                let length = notify.recv(&mut notification).await?;
                if notification[..length]
                    .split(|byte| *byte == b'\n')
                    .any(|line| line == b"READY=1")
                {
                    return std::io::Result::Ok(start.elapsed());
                }
            }
        };
        let took = tokio::select! {
            ready = timeout_at(deadline, ready) => match ready {
                Ok(took) => took?,
                Err(_) => bail!("{name} was not ready within {START_PATIENCE:?}"),
            },
            status = process.ended() => {
                let status = status?;
                bail!("{}", process.obituary(status));
            }
        };
        ask(address, deadline).await?;
        Ok((
            Self {
                process,
                address,
                directory,
            },
            took,
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
