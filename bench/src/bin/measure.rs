//! Carries out the measurements and rewrites their tables and the plots.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use heirloom_bench::measure::state::{Extent, pause, snapshot, write_cost};
use heirloom_bench::measure::{
    Outcome, adoption, comparison, connections, idle, latency, probation, reload_time, throughput,
};
use heirloom_bench::peers::{Peer, Programs};
use heirloom_bench::publish::markdown::replace_section;
use heirloom_bench::publish::svg::{Panel, draw};
use tokio::signal::unix::{SignalKind, signal};

/// A number was not held.
const MISSED: u8 = 1;
/// A measurement could not be carried out.
const COULD_NOT_RUN: u8 = 2;

/// Measures Heirloom against doing without it, and against others.
///
/// Exit status: 0 every number is held, 1 one is not, 2 a measurement could not be carried out.
#[derive(Debug, Parser)]
#[command(name = "measure")]
struct Options {
    /// What to measure [default: all]
    measurements: Vec<Measurement>,
    /// Leave out a server of the comparison; may be given several times
    #[arg(long, value_name = "PEER")]
    without: Vec<Peer>,
    /// Rewrite the tables in this document
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// Write the plots into this directory
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Of state and connections, measure only whether it works: little of each, judged by no time
    #[arg(long)]
    small: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// The pause over the size of the state, and what writes notice
    StatePause,
    /// What a tracked write costs
    StateWrite,
    /// A snapshot against its encoding and decoding
    StateSnapshot,
    /// Connections that move, over their number
    Connections,
    /// From the supervisor's death until the next one has taken over, against a start from nothing
    Adoption,
    /// From a death in the probation to the next answer, against a new start
    Probation,
    /// Duration of a reload against a mere start
    ReloadTime,
    /// Requests a second, supervised against alone
    Throughput,
    /// Latency with a reload each second against none
    Latency,
    /// Memory and wake-ups of an idle supervisor
    Idle,
    /// The same load on several servers while they reload
    Comparison,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    // Dropping the measurement ends its children.
    let result = tokio::select! {
        result = run(&options) => result,
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    match result {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            for sentence in missed {
                eprintln!("measure: not held: {sentence}");
            }
            ExitCode::from(MISSED)
        }
        Err(error) => {
            eprintln!("measure: {error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

/// What was not held.
async fn run(options: &Options) -> Result<Vec<String>> {
    let programs = Programs::beside_this_one()?;
    let chosen: &[Measurement] = match options.measurements.as_slice() {
        [] => Measurement::value_variants(),
        some => some,
    };
    let peers: Vec<Peer> = Peer::ALL
        .into_iter()
        .filter(|peer| !options.without.contains(peer))
        .collect();
    if chosen.contains(&Measurement::Comparison) {
        // Before anything is measured, so that a missing program costs no time.
        for peer in &peers {
            peer.version(&programs)?;
        }
    }
    let mut missed = Vec::new();
    for measurement in chosen {
        eprintln!("measuring: {measurement:?}");
        for outcome in carry_out(*measurement, options, &peers, &programs).await? {
            publish(options, &outcome)?;
            missed.extend(outcome.missed);
        }
    }
    Ok(missed)
}

/// What came out; several tables for some.
async fn carry_out(
    measurement: Measurement,
    options: &Options,
    peers: &[Peer],
    programs: &Programs,
) -> Result<Vec<Outcome>> {
    let extent = match options.small {
        true => Extent::Small,
        false => Extent::Full,
    };
    let outcome = match measurement {
        Measurement::StatePause => {
            let pause::Measured { outcomes, plot } = pause::measure(programs, extent).await?;
            draw_into(options, "state.svg", &plot)?;
            return Ok(outcomes.into());
        }
        Measurement::StateWrite => write_cost::measure(programs, extent).await?,
        Measurement::StateSnapshot => snapshot::measure(programs, extent).await?,
        Measurement::Connections => {
            let measured = connections::measure(programs, extent).await?;
            draw_into(options, "connections.svg", &measured.plot)?;
            measured.outcome
        }
        Measurement::Adoption => adoption::measure(programs, extent).await?,
        Measurement::Probation => probation::measure(programs, extent).await?,
        Measurement::ReloadTime => reload_time::measure(programs).await?,
        Measurement::Throughput => throughput::measure(programs).await?,
        Measurement::Latency => latency::measure(programs).await?,
        Measurement::Idle => idle::measure(programs).await?,
        Measurement::Comparison => compare(options, peers, programs).await?,
    };
    Ok(vec![outcome])
}

async fn compare(options: &Options, peers: &[Peer], programs: &Programs) -> Result<Outcome> {
    let mut rows = Vec::new();
    for peer in peers {
        let row = comparison::measure(*peer, programs).await?;
        eprintln!("  {}: {}", peer.title(), row.report);
        rows.push(row);
    }
    let panels: Vec<Panel> = rows
        .iter()
        .map(|row| Panel {
            title: format!("{}: {} failed", row.peer.title(), row.report.failed),
            series: row.report.series.clone(),
            reloads: row.reloads.clone(),
        })
        .collect();
    let heading = "Latency while each server reloads under the same load";
    draw_into(options, "latency.svg", &draw(heading, &panels))?;
    Ok(comparison::outcome(&rows))
}

/// Writes a plot, if plots are wanted.
fn draw_into(options: &Options, name: &str, svg: &str) -> Result<()> {
    match &options.plots {
        Some(directory) => write(&directory.join(name), svg),
        None => Ok(()),
    }
}

fn publish(options: &Options, outcome: &Outcome) -> Result<()> {
    let table = outcome.table.to_markdown();
    println!("{table}");
    let Some(path) = &options.document else {
        return Ok(());
    };
    let document =
        fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    write(
        path,
        &replace_section(
            &document,
            outcome.section,
            &format!("{table}\n{}", conditions()?),
        )?,
    )
}

/// Under what the numbers were measured.
fn conditions() -> Result<String> {
    let system = nix::sys::utsname::uname().context("asking for the kernel's version")?;
    let processors = std::thread::available_parallelism()?;
    let release = system.release().to_string_lossy();
    // What a distribution appends to the version says nothing about the numbers.
    let version = release.split('-').next().unwrap_or_default();
    Ok(format!(
        "{processors} processors, {} {version}.",
        system.sysname().to_string_lossy()
    ))
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

async fn interrupted() {
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    match signals {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        // Without them the default applies, and the signal ends this program at once.
        (Err(_), _) | (_, Err(_)) => std::future::pending().await,
    }
}
