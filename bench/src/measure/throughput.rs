//! Requests a second of a supervised program, against the same program alone.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Outcome, Pairs};
use crate::load::{Load, Pace, Plan, Request, Reuse};
use crate::peers::{Alone, Programs};
use crate::publish::markdown::Table;
use crate::supervisor::Supervisor;

const ROUNDS: usize = 40;
const CLIENTS: usize = 16;
const STRETCH: Duration = Duration::from_secs(1);
/// The ratio to hold.
const HOLD: f64 = 0.99;

/// Both run all the time; the load goes to one and the other by turns.
///
/// # Errors
/// If one of them fails a single request.
pub async fn measure(programs: &Programs) -> Result<Outcome> {
    let demo = programs.demo.to_string_lossy().into_owned();
    let supervisor = Supervisor::start(&programs.heirloom, &[&demo]).await?;
    let (alone, _) = Alone::start(&programs.demo).await?;
    let mut pairs = Pairs::default();
    for round in 0..ROUNDS {
        // Who is first changes, so that warming up favours nobody.
        if round.is_multiple_of(2) {
            let first = rate(supervisor.address()).await?;
            pairs.add(first, rate(alone.address()).await?);
        } else {
            let second = rate(alone.address()).await?;
            pairs.add(rate(supervisor.address()).await?, second);
        }
    }
    alone.end().await?;
    supervisor.stop().await?;

    let ratio = pairs.ratio();
    let (low, high) = pairs.spread();
    let mut table = Table::new([
        "rounds",
        "supervised",
        "alone",
        "ratio",
        "middle half",
        "hold",
    ]);
    table.row([
        ROUNDS.to_string(),
        format!("{:.0}/s", pairs.first()),
        format!("{:.0}/s", pairs.second()),
        format!("**{ratio:.3}**"),
        format!("{low:.3} to {high:.3}"),
        format!("≥ {HOLD}"),
    ]);
    let mut missed = Vec::new();
    if ratio < HOLD {
        missed.push(format!(
            "supervised it answers {ratio:.3} times as many requests, not {HOLD}"
        ));
    }
    Ok(Outcome {
        section: "throughput",
        table,
        missed,
    })
}

async fn rate(server: SocketAddr) -> Result<f64> {
    let plan = Plan::new(server, Request::get("/version"))
        .keep_alive(CLIENTS, Pace::Think(Duration::ZERO), Reuse::Blind)
        .duration(STRETCH);
    let report = Load::start(plan).await?.finish().await;
    if report.failed > 0 {
        bail!("nothing reloads here, and yet: {report}");
    }
    Ok(report.requests as f64 / report.elapsed.as_secs_f64())
}
