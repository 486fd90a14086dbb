//! A native app for measurements: it holds many entries, writes to them at a given rate, and says at
//! its end how long the writes took.
//!
//! It serves nobody. Its writers are what a service's threads would be: each has a thread and a runtime
//! of its own, and writes one entry after the other, chosen uniformly.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use hdrhistogram::Histogram;
use heirloom_app::state::{Map, Origin, State, Tenure};
use heirloom_app::{Drain, Inherited};
use heirloom_bench::state::account::{Account, SLOW, now_ns};
use heirloom_bench::state::numbers::Numbers;
use heirloom_bench::state::record::{CodecName, Coding, Record};
use heirloom_state_codec::{Bincode, Wincode};
use tokio::runtime::Builder;

/// What a writer does at once and then sleeps: often enough that no write is late by more, and seldom
/// enough that sleeping is not what is measured.
const TICK: Duration = Duration::from_micros(200);
/// How long finishing may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// The most slow writes that are told one by one, so that a bad run does not fill the memory.
const SLOW_MAX: usize = 200_000;
/// A write can take this long at most, in nanoseconds; longer ones count as this.
const LONGEST_NS: u64 = 600_000_000_000;

/// Holds entries and writes to them.
#[derive(Debug, Clone, Parser)]
#[command(name = "holder")]
struct Options {
    /// How many entries the first generation begins with
    #[arg(long, default_value_t = 1_000_000)]
    entries: u64,
    /// Writes a second, of all writers together
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Threads that write
    #[arg(long, default_value_t = 2)]
    writers: u64,
    /// How entries are coded
    #[arg(long, value_enum, default_value = "bincode")]
    codec: CodecName,
    /// Directory for the account of each generation
    #[arg(long)]
    accounts: PathBuf,
    /// Count at the end what the entries know of
    #[arg(long)]
    count: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.codec {
        CodecName::Bincode => run::<Bincode>(&options),
        CodecName::Wincode => run::<Wincode>(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run<C: Coding>(options: &Options) -> Result<()> {
    let mut inherited = Inherited::from_env()?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(hold::<C>(options, &mut inherited))
}

async fn hold<C: Coding>(options: &Options, inherited: &mut Inherited) -> Result<()> {
    let drain = Drain::new(DRAIN_LIMIT);
    drain.begin_on_signals()?;
    let state = State::new();
    let map: Map<u64, Record, C> = Map::new(&state, "records");
    let tenure = Tenure::new("holder", env!("CARGO_PKG_VERSION"));
    let origin = state.take_over(inherited, &drain, tenure).await?;
    let owned_ns = now_ns();
    if origin == Origin::Fresh {
        for key in 0..options.entries {
            map.insert(key, Record::of(key)).await?;
        }
    }
    let began_ns = now_ns();
    let writers: Vec<_> = (0..options.writers)
        .map(|number| start_writer(options, &map, &drain, number))
        .collect::<Result<_>>()?;
    inherited.notifier().ready("holding").await?;

    drain.begun().await;
    let mut account = Account {
        generation: inherited.generation(),
        owned_ns,
        began_ns,
        ..Account::default()
    };
    let mut all = histogram()?;
    for writer in writers {
        // They see the drain within a tick, and no write waits longer than a pause.
        let Ok(written) = tokio::task::spawn_blocking(|| writer.join()).await? else {
            bail!("a writer panicked");
        };
        let written = written?;
        account.acknowledged += written.acknowledged;
        account.failed += written.failed;
        account.slow.extend(written.slow);
        all.add(&written.all)?;
    }
    account.ended_ns = now_ns();
    // What the generation before still writes is carried out here.
    drain.finished().await;
    account.middle_ns = all.value_at_quantile(0.5);
    if options.count {
        let entries = map.entries().await?;
        account.counted = Some(entries.iter().map(|(_, record)| record.visits).sum());
    }
    leave(options, &account)
}

/// Writes the account down, whole or not at all.
fn leave(options: &Options, account: &Account) -> Result<()> {
    let name = format!("{}.json", account.generation);
    let (path, before) = (
        options.accounts.join(&name),
        options.accounts.join(name + ".part"),
    );
    fs::write(&before, serde_json::to_vec(account)?)
        .and_then(|()| fs::rename(&before, &path))
        .with_context(|| format!("writing {}", path.display()))
}

/// What a writer has done.
struct Written {
    acknowledged: u64,
    failed: u64,
    slow: Vec<(u64, u64)>,
    all: Histogram<u64>,
}

fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LONGEST_NS, 2)?)
}

fn start_writer<C: Coding>(
    options: &Options,
    map: &Map<u64, Record, C>,
    drain: &Drain,
    number: u64,
) -> Result<thread::JoinHandle<Result<Written>>> {
    let (map, drain, entries) = (map.clone(), drain.clone(), options.entries);
    let rate = options.rate as f64 / options.writers as f64;
    let writer = thread::Builder::new().name(format!("writer-{number}"));
    let handle = writer.spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let numbers = Numbers::new(number ^ now_ns());
        runtime.block_on(write(&map, &drain, entries, rate, numbers))
    })?;
    Ok(handle)
}

async fn write<C: Coding>(
    map: &Map<u64, Record, C>,
    drain: &Drain,
    entries: u64,
    rate: f64,
    mut numbers: Numbers,
) -> Result<Written> {
    let mut written = Written {
        acknowledged: 0,
        failed: 0,
        slow: Vec::new(),
        all: histogram()?,
    };
    let (start, start_ns) = (Instant::now(), now_ns());
    let mut done = 0;
    let slow_ns = SLOW.as_nanos() as u64;
    while !drain.has_begun() {
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        // The end of one write is the beginning of the next: one look at the clock for each.
        let mut before = start.elapsed();
        while done < due && !drain.has_begun() {
            let key = numbers.below(entries);
            match map.update(key, Record::visit).await {
                Ok(_visits) => written.acknowledged += 1,
                Err(_) => written.failed += 1,
            }
            done += 1;
            let after = start.elapsed();
            let took_ns = (after - before).as_nanos() as u64;
            written.all.record(took_ns.clamp(1, LONGEST_NS))?;
            if took_ns >= slow_ns && written.slow.len() < SLOW_MAX {
                let at_ns = start_ns + before.as_nanos() as u64;
                written.slow.push((at_ns, took_ns));
            }
            before = after;
        }
        // The thread has nothing else to do, so it may sleep as a whole.
        thread::sleep(TICK);
    }
    Ok(written)
}
