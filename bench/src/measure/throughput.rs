//! Requests a second of a supervised program, against the same program alone.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::unistd::Pid;

use super::{Outcome, Pairs};
use crate::load::{Load, Pace, Plan, Request, Reuse};
use crate::peers::{Alone, Programs};
use crate::procfs::processor_time;
use crate::publish::markdown::Table;
use crate::supervisor::Supervisor;

const ROUNDS: usize = 40;
const CLIENTS: usize = 16;
const STRETCH: Duration = Duration::from_secs(1);
/// The ratio to hold.
const HOLD: f64 = 0.99;

/// What one side did in one stretch.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    per_second: f64,
    /// Requests for each second of processor time that the server had.
    per_processor_second: f64,
}

/// Both run all the time; the load goes to one and the other by turns.
///
/// # Errors
/// If one of them fails a single request.
pub async fn measure(programs: &Programs) -> Result<Outcome> {
    let demo = programs.demo.to_string_lossy().into_owned();
    let mut supervisor = Supervisor::start(&programs.heirloom, &[&demo]).await?;
    let supervised = (supervisor.address(), supervisor.service_pid().await?);
    let (process, _) = Alone::start(&programs.demo, &[]).await?;
    let alone = (process.address(), process.pid());
    let (mut rates, mut costs) = (Pairs::default(), Pairs::default());
    for round in 0..ROUNDS {
        // Who is first changes, so that warming up favours nobody.
        let (first, second) = if round.is_multiple_of(2) {
            let first = stretch(supervised).await?;
            (first, stretch(alone).await?)
        } else {
            let second = stretch(alone).await?;
            (stretch(supervised).await?, second)
        };
        rates.add(first.per_second, second.per_second);
        costs.add(first.per_processor_second, second.per_processor_second);
    }
    process.end().await?;
    supervisor.stop().await?;

    let mut table = Table::new([
        "requests",
        "rounds",
        "supervised",
        "alone",
        "ratio",
        "middle half",
        "hold",
    ]);
    let rows = [
        ("a second", &rates, format!("≥ {HOLD}")),
        (
            "a second of the server's processor time",
            &costs,
            "not judged".to_owned(),
        ),
    ];
    for (name, pairs, hold) in rows {
        let (low, high) = pairs.spread();
        table.row([
            name.to_owned(),
            ROUNDS.to_string(),
            format!("{:.0}", pairs.first()),
            format!("{:.0}", pairs.second()),
            format!("**{:.3}**", pairs.ratio()),
            format!("{low:.3} to {high:.3}"),
            hold,
        ]);
    }
    let mut missed = Vec::new();
    if rates.ratio() < HOLD {
        let ratio = rates.ratio();
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

async fn stretch((server, pid): (SocketAddr, Pid)) -> Result<Stretch> {
    let plan = Plan::new(server, Request::get("/version"))
        .keep_alive(CLIENTS, Pace::Think(Duration::ZERO), Reuse::Blind)
        .duration(STRETCH);
    let before = processor_time(pid)?;
    let report = Load::start(plan).await?.finish().await;
    let spent = processor_time(pid)?.saturating_sub(before);
    if report.failed > 0 {
        bail!("nothing reloads here, and yet: {report}");
    }
    let requests = report.requests as f64;
    Ok(Stretch {
        per_second: requests / report.elapsed.as_secs_f64(),
        per_processor_second: requests / spent.as_secs_f64(),
    })
}
