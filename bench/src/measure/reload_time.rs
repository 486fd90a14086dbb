//! How long `heirloom reload` takes, against merely starting the same program until it is ready.

use std::iter;

use anyhow::Result;

use super::{Outcome, Pairs, median};
use crate::peers::{Alone, Programs};
use crate::publish::markdown::Table;
use crate::supervisor::Supervisor;

/// The ratio to hold.
const HOLD: f64 = 1.2;

/// A program that is started and reloaded.
struct Case {
    name: &'static str,
    arguments: &'static [&'static str],
    rounds: usize,
}

const CASES: [Case; 2] = [
    Case {
        name: "the demo service as it is",
        arguments: &[],
        rounds: 40,
    },
    Case {
        name: "one that boots for 200 ms",
        arguments: &["--slow-start", "200ms"],
        rounds: 15,
    },
];

/// Starts and reloads by turns.
///
/// # Errors
/// If a start or a reload fails.
pub async fn measure(programs: &Programs) -> Result<Outcome> {
    let mut table = Table::new([
        "program",
        "rounds",
        "reload",
        "of it the handover",
        "start alone",
        "ratio",
        "middle half",
        "hold",
    ]);
    let mut missed = Vec::new();
    for case in CASES {
        let (pairs, handovers) = pairs(&case, programs).await?;
        let ratio = pairs.ratio();
        let (low, high) = pairs.spread();
        table.row([
            case.name.to_owned(),
            case.rounds.to_string(),
            format!("{:.1} ms", pairs.first()),
            format!("{:.1} ms", median(&handovers).unwrap_or(f64::NAN)),
            format!("{:.1} ms", pairs.second()),
            format!("**{ratio:.2}**"),
            format!("{low:.2} to {high:.2}"),
            format!("≤ {HOLD}"),
        ]);
        if ratio > HOLD {
            let name = case.name;
            missed.push(format!(
                "{name}: a reload takes {ratio:.2} times as long as a start"
            ));
        }
    }
    Ok(Outcome {
        section: "reload-time",
        table,
        missed,
    })
}

/// The reloads and starts, and how long the supervisor says each handover took.
async fn pairs(case: &Case, programs: &Programs) -> Result<(Pairs, Vec<f64>)> {
    let demo = programs.demo.to_string_lossy();
    let command: Vec<&str> = iter::once(demo.as_ref())
        .chain(case.arguments.iter().copied())
        .collect();
    let mut supervisor = Supervisor::start(&programs.heirloom, &command).await?;
    let mut pairs = Pairs::default();
    let mut handovers = Vec::new();
    for _ in 0..case.rounds {
        let (alone, start) = Alone::start(&programs.demo, case.arguments).await?;
        alone.end().await?;
        let reload = supervisor.reload(&[]).await?;
        pairs.add(reload.as_secs_f64() * 1e3, start.as_secs_f64() * 1e3);
        let last = supervisor.status().await?.last_handover;
        handovers.extend(last.and_then(|handover| handover.total_ms));
    }
    supervisor.stop().await?;
    Ok((pairs, handovers))
}
