//! How long `heirloom reload` takes, against merely starting the same program until it is ready.

use anyhow::Result;

use super::{Outcome, Pairs};
use crate::peers::{Alone, Programs};
use crate::publish::markdown::Table;
use crate::supervisor::Supervisor;

/// Pairs measured.
const ROUNDS: usize = 30;
/// The ratio to hold.
const HOLD: f64 = 1.2;

/// Starts and reloads by turns.
///
/// # Errors
/// If a start or a reload fails.
pub async fn measure(programs: &Programs) -> Result<Outcome> {
    let demo = programs.demo.to_string_lossy().into_owned();
    let mut supervisor = Supervisor::start(&programs.heirloom, &[&demo]).await?;
    let mut pairs = Pairs::default();
    for _ in 0..ROUNDS {
        let (alone, start) = Alone::start(&programs.demo).await?;
        alone.end().await?;
        let reload = supervisor.reload(&[]).await?;
        pairs.add(reload.as_secs_f64() * 1e3, start.as_secs_f64() * 1e3);
    }
    supervisor.stop().await?;

    let ratio = pairs.ratio();
    let (low, high) = pairs.spread();
    let mut table = Table::new([
        "rounds",
        "reload",
        "start alone",
        "ratio",
        "middle half",
        "hold",
    ]);
    table.row([
        ROUNDS.to_string(),
        format!("{:.1} ms", pairs.first()),
        format!("{:.1} ms", pairs.second()),
        format!("**{ratio:.2}**"),
        format!("{low:.2} to {high:.2}"),
        format!("≤ {HOLD}"),
    ]);
    let mut missed = Vec::new();
    if ratio > HOLD {
        missed.push(format!(
            "a reload takes {ratio:.2} times as long as a start, not {HOLD}"
        ));
    }
    Ok(Outcome {
        section: "reload-time",
        table,
        missed,
    })
}
