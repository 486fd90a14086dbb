//! The state written to a file: while the app serves on, or as the last thing it does.
//!
//! Owns the copy and the file's bytes. Where the file is, and that it is complete and durable before
//! anybody relies on it, is the supervisor's affair.

use std::{
    fs::File,
    io,
    time::{Duration, Instant},
};

use super::{
    Core,
    convergence::{Convergence, IfItDoesNotConverge, Round, Verdict},
    copy::Copy,
    error::StoreError,
    store::{Budget, Progress},
};

/// What a slice may take while the app serves.
const SLICE: Duration = Duration::from_micros(200);
/// More than a frame, so that there is always room to go on.
const SLICE_BYTES: usize = 512 * 1024;

/// The pause that is aimed at.
const PAUSE: Duration = Duration::from_millis(5);

/// What was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saved {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) rounds: u64,
    pub(super) pause: Duration,
}

/// Why nothing useful was written.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSaved {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the file cannot be written: {0}")]
    File(#[from] io::Error),
    #[error("the state changes faster than it can be written; try again at a quieter time")]
    NotConverging,
}

/// Writes a snapshot while the app serves; the state stands still for the last of it.
pub(super) fn while_serving(core: &Core, mut copy: Copy, file: &File) -> Result<Saved, NotSaved> {
    let mut convergence = Convergence::new(PAUSE, IfItDoesNotConverge::Abort);
    let mut began = Instant::now();
    let mut before = 0;
    while copy.base(&Budget::new(SLICE, SLICE_BYTES))? == Progress::More {
        write_out(&mut copy, file)?;
        std::thread::yield_now();
    }
    loop {
        write_out(&mut copy, file)?;
        copy.end_round()?;
        let (_, pending_bytes) = copy.pending();
        let round = Round {
            sent_bytes: copy.writer.stream_bytes() - before,
            took: began.elapsed(),
            pending_bytes,
        };
        match convergence.after(&round) {
            Verdict::Converged => break,
            Verdict::Again => {}
            Verdict::GiveUp => return Err(NotSaved::NotConverging),
        }
        (began, before) = (Instant::now(), copy.writer.stream_bytes());
        while copy.changes(&Budget::new(SLICE, SLICE_BYTES))? == Progress::More {
            write_out(&mut copy, file)?;
            std::thread::yield_now();
        }
    }
    let frozen = Instant::now();
    core.gate.close();
    // It waits in memory; only what has no room there is written while the state stands still.
    let rest = copy
        .freeze()
        .map_err(NotSaved::from)
        .and_then(|()| rest(&mut copy, file));
    let entries = copy.entries();
    // Nobody else can own the state: a file commits nothing.
    core.gate.open(false);
    let pause = frozen.elapsed();
    rest?;
    write_out(&mut copy, file)?;
    Ok(Saved {
        entries,
        bytes: copy.writer.stream_bytes(),
        rounds: u64::from(copy.rounds),
        pause,
    })
}

/// Writes a snapshot of a state that nobody changes any more.
pub(super) fn at_the_end(core: &Core, mut copy: Copy, file: &File) -> Result<Saved, NotSaved> {
    core.gate.close();
    copy.freeze()?;
    while copy.base(&Budget::new(Duration::from_secs(1), SLICE_BYTES))? == Progress::More {
        write_out(&mut copy, file)?;
    }
    rest(&mut copy, file)?;
    write_out(&mut copy, file)?;
    Ok(Saved {
        entries: copy.entries(),
        bytes: copy.writer.stream_bytes(),
        rounds: 0,
        pause: Duration::ZERO,
    })
}

/// Completes a copy of a state that stands still.
fn rest(copy: &mut Copy, file: &File) -> Result<(), NotSaved> {
    while copy.changes(&Budget::new(Duration::from_secs(1), 16 * SLICE_BYTES))? == Progress::More {
        write_out(copy, file)?;
    }
    copy.end()?;
    Ok(())
}

fn write_out(copy: &mut Copy, mut file: &File) -> Result<(), NotSaved> {
    Ok(copy.writer.write_to(&mut file)?)
}
