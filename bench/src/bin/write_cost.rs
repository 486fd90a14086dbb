//! What a write costs: the same writes on a tracked map and on maps without tracking, one batch at a
//! time, as it is told on standard input.
//!
//! Whether a copy is being made is the affair of whoever plays its supervisor.

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use heirloom_app::state::{Map, State, Tenure};
use heirloom_app::{Drain, Inherited};
use heirloom_bench::state::numbers::Numbers;
use heirloom_bench::state::record::Record;
use heirloom_bench::state::untracked::{Plain, Untracked};
use tokio::runtime::Builder;

/// There is nothing to finish.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Carries out batches of writes. A line `tracked N`, `untracked N` or `plain N` on standard input is
/// answered with the nanoseconds that N writes took.
#[derive(Debug, Parser)]
#[command(name = "write_cost")]
struct Options {
    /// How many entries each map has
    #[arg(long)]
    entries: u64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("write_cost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let mut inherited = Inherited::from_env()?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(serve(options, &mut inherited))
}

async fn serve(options: &Options, inherited: &mut Inherited) -> Result<()> {
    let state = State::new();
    let tracked: Map<u64, Record> = Map::new(&state, "records");
    let drain = Drain::new(DRAIN_LIMIT);
    let tenure = Tenure::new("write_cost", env!("CARGO_PKG_VERSION"));
    state.take_over(inherited, &drain, tenure).await?;
    let (untracked, plain) = (Untracked::default(), Plain::default());
    // By turns, so that no map has better memory than another.
    for key in 0..options.entries {
        tracked.insert(key, Record::of(key)).await?;
        untracked.update(key, |value| *value = Some(Record::of(key)));
        plain.update(key, |value| *value = Some(Record::of(key)));
    }
    say("filled")?;
    let mut numbers = Numbers::new(options.entries);
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (which, count) = line.split_once(' ').context("a batch has a length")?;
        let count: u64 = count.parse()?;
        // The next key waits for the result of the write before: a processor that works ahead would
        // otherwise overlap the writes of a loop, which those of a service never do.
        let mut visits = 0_u64;
        let mut key = |visits: u64| numbers.below(options.entries) ^ (visits >> 63);
        let start = Instant::now();
        match which {
            "tracked" => {
                for _ in 0..count {
                    visits = tracked.update(key(visits), Record::visit).await?;
                }
            }
            "untracked" => {
                for _ in 0..count {
                    visits = untracked.update(key(visits), Record::visit);
                }
            }
            "plain" => {
                for _ in 0..count {
                    visits = plain.update(key(visits), Record::visit);
                }
            }
            other => bail!("there is no map {other}"),
        }
        say(&start.elapsed().as_nanos().to_string())?;
    }
    Ok(())
}

fn say(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}")?;
    Ok(output.flush()?)
}
