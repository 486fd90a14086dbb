//! Server::Starter with a worker of this crate.

use std::process::Command;

use anyhow::Result;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{Signalled, free_address};
use crate::process::Process;

pub(super) fn start(worker: &[&str]) -> Result<Signalled> {
    let directory = TempDir::with_prefix("heirloom-start-server-")?;
    let address = free_address()?;
    let mut command = Command::new("start_server");
    command
        // The worker finds its listener as descriptor 3, where "=3" puts it.
        .env("LISTEN_FDS", "1")
        .arg(format!("--port={address}=3"))
        .arg("--backlog=4096")
        .arg("--")
        .args(worker);
    let process = Process::start("start_server", command, &directory.path().join("output"))?;
    Ok(Signalled {
        process,
        address,
        signal: Signal::SIGHUP,
        directory,
    })
}
