//! gunicorn with threaded workers, the kind that keeps connections open.

use std::fs;
use std::process::Command;

use anyhow::Result;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{Signalled, free_address};
use crate::process::Process;

const APPLICATION: &str = "def application(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '3')])
    return [b'ok\\n']
";

pub(super) fn start() -> Result<Signalled> {
    let directory = TempDir::with_prefix("heirloom-gunicorn-")?;
    let address = free_address()?;
    fs::write(
        directory.path().join("benchmark_application.py"),
        APPLICATION,
    )?;
    let mut command = Command::new("gunicorn");
    command
        .args([
            "--worker-class",
            "gthread",
            "--workers",
            "2",
            "--threads",
            "32",
        ])
        .args([
            "--keep-alive",
            "75",
            "--worker-connections",
            "2000",
            "--backlog",
            "4096",
        ])
        .args(["--graceful-timeout", "30", "--log-level", "warning"])
        .arg("--bind")
        .arg(address.to_string())
        .arg("--chdir")
        .arg(directory.path())
        .arg("benchmark_application:application");
    let process = Process::start("gunicorn", command, &directory.path().join("output"))?;
    Ok(Signalled {
        process,
        address,
        signal: Signal::SIGHUP,
        directory,
    })
}
