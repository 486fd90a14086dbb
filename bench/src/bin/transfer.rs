//! Two processes between which the whole state is moved at once: the side that hands over, which
//! starts the other and measures, and that other.
//!
//! What is moved and how is [`heirloom_bench::state::transfer`]'s.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use heirloom_bench::state::record::{CodecName, Coding};
use heirloom_bench::state::transfer::{self, Way};
use heirloom_state_codec::{Bincode, Wincode};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// The pipe's size, as the supervisor makes it.
const PIPE_BYTES: i32 = 1 << 20;

/// Moves the whole state from one process to another and says what that took, as a line of JSON.
#[derive(Debug, Parser)]
#[command(name = "transfer")]
struct Options {
    /// Which side this is
    #[command(subcommand)]
    side: Side,
}

#[derive(Debug, Subcommand)]
enum Side {
    /// Hands over, to a process it starts
    Send {
        /// How many entries
        #[arg(long)]
        entries: u64,
        /// How
        #[arg(long, value_enum)]
        way: Way,
        /// How entries are coded
        #[arg(long, value_enum, default_value = "bincode")]
        codec: CodecName,
    },
    /// Takes over what comes on standard input
    Receive {
        /// How
        #[arg(long, value_enum)]
        way: Way,
        /// How entries are coded
        #[arg(long, value_enum)]
        codec: CodecName,
    },
}

fn main() -> ExitCode {
    let result = match Options::parse().side {
        Side::Send {
            entries,
            way,
            codec,
        } => match codec {
            CodecName::Bincode => send::<Bincode>(entries, way, codec),
            CodecName::Wincode => send::<Wincode>(entries, way, codec),
        },
        Side::Receive { way, codec } => match codec {
            CodecName::Bincode => receive::<Bincode>(way),
            CodecName::Wincode => receive::<Wincode>(way),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("transfer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Kills the other side if this one fails.
struct Receiver(Child);

impl Drop for Receiver {
    fn drop(&mut self) {
        // It has ended if all went well; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn send<C: Coding>(count: u64, way: Way, codec: CodecName) -> Result<()> {
    let entries = transfer::entries(count);
    let encoding = transfer::time_encoding::<C>(&entries)?;
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES))?;
    let (mut receiver, mut said) = start(theirs, way, codec)?;
    hear(&mut said, "ready")?;

    // The freeze: from here on nothing may change until the other side says that it owns all.
    let frozen = Instant::now();
    let mut output = std::fs::File::from(ours);
    transfer::send::<C>(&entries, way, &mut output)?;
    drop(output);
    hear(&mut said, "own")?;
    let pause = frozen.elapsed();
    let mut decoding = String::new();
    said.read_line(&mut decoding)?;
    let status = receiver.0.wait()?;
    if !status.success() {
        bail!("the receiver ended with {status}");
    }
    let figures = serde_json::json!({
        "pause_ms": pause.as_secs_f64() * 1e3,
        "encoding_ms": encoding.as_secs_f64() * 1e3,
        "decoding_ms": decoding.trim().parse::<f64>()?,
    });
    println!("{figures}");
    Ok(())
}

fn start(
    input: OwnedFd,
    way: Way,
    codec: CodecName,
) -> Result<(Receiver, BufReader<std::process::ChildStdout>)> {
    let way = match way {
        Way::Stream => "stream",
        Way::Whole => "whole",
    };
    let mut child = Command::new(std::env::current_exe()?)
        .args(["receive", "--way", way, "--codec", codec.word()])
        .stdin(Stdio::from(input))
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the receiver")?;
    let output = child.stdout.take().context("its output is piped")?;
    Ok((Receiver(child), BufReader::new(output)))
}

fn hear(said: &mut impl io::BufRead, expected: &str) -> Result<()> {
    let mut line = String::new();
    said.read_line(&mut line)?;
    if line.trim() != expected {
        bail!("the receiver said {line:?} instead of {expected}; its reason is above");
    }
    Ok(())
}

fn receive<C: Coding>(way: Way) -> Result<()> {
    say("ready")?;
    let received = transfer::receive::<C>(way, &mut io::stdin().lock())?;
    say("own")?;
    let decoding = received.decoding.unwrap_or_default();
    say(&format!("{}", decoding.as_secs_f64() * 1e3))
}

fn say(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}")?;
    Ok(output.flush()?)
}
