//! Runs of `bin/transfer.rs`: all of the state moved at once, in the ways that are compared with.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

use crate::peers::Programs;
use crate::state::record::CodecName;
use crate::state::transfer::Way;

/// Filling and moving four million entries takes ten seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// What one run took.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Figures {
    /// From the freeze until the other process owned all of it.
    pub pause_ms: f64,
    /// The codec alone, putting all entries into bytes.
    pub encoding_ms: f64,
    /// The codec alone, making a map of those bytes in a process that has just started. Zero for a
    /// stream, which is decoded as it comes.
    pub decoding_ms: f64,
}

/// Moves `entries` entries from one process to another.
///
/// # Errors
/// If one of the two fails.
pub async fn run(programs: &Programs, entries: u64, way: Way, codec: CodecName) -> Result<Figures> {
    let way = match way {
        Way::Stream => "stream",
        Way::Whole => "whole",
    };
    let output = Command::new(&programs.transfer)
        .args(["send", "--entries", &entries.to_string()])
        .args(["--way", way, "--codec", codec.word()])
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, output)
        .await
        .with_context(|| format!("moving {entries} entries took longer than {PATIENCE:?}"))??;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("transfer wrote something else than its figures")
}
