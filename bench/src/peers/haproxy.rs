//! HAProxy in master-worker mode, answering by itself. Listeners pass from worker to worker.

use std::fs;
use std::process::Command;

use anyhow::Result;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{Signalled, free_address};
use crate::process::Process;

pub(super) fn start() -> Result<Signalled> {
    let directory = TempDir::with_prefix("heirloom-haproxy-")?;
    let address = free_address()?;
    let configuration = directory.path().join("haproxy.cfg");
    fs::write(
        &configuration,
        format!(
            "global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 75s
    timeout server 75s
    timeout http-request 75s
    timeout http-keep-alive 75s
frontend web
    bind {address} backlog 4096
    http-request return status 200 content-type text/plain string \"ok\\n\"
"
        ),
    )?;
    let mut command = Command::new("haproxy");
    command.arg("-W").arg("-f").arg(&configuration);
    let process = Process::start("haproxy", command, &directory.path().join("output"))?;
    Ok(Signalled {
        process,
        address,
        signal: Signal::SIGUSR2,
        directory,
    })
}
