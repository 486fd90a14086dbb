//! Latency with a reload every second, against none.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep_until};

use super::{Outcome, milliseconds};
use crate::load::{Latency, Load, Pace, Plan, Report, Request, Reuse};
use crate::peers::Programs;
use crate::publish::markdown::Table;
use crate::supervisor::Supervisor;

const ROUNDS: usize = 4;
const STRETCH: Duration = Duration::from_secs(6);
const EVERY: Duration = Duration::from_secs(1);
const KEEP_ALIVE: usize = 16;
const FRESH: usize = 4;
const RATE: u32 = 100;
/// The ratio of the 99.9th percentiles to hold.
const HOLD: f64 = 2.0;

/// One side of the comparison, over all its stretches.
#[derive(Debug, Default)]
struct Side {
    latency: Option<Latency>,
    failed: u64,
    reloads: usize,
}

impl Side {
    fn add(&mut self, report: &Report) {
        self.failed += report.failed;
        match &mut self.latency {
            Some(latency) => latency.add(&report.latency),
            None => self.latency = Some(report.latency.clone()),
        }
    }

    fn quantile(&self, share: f64) -> Duration {
        self.latency
            .as_ref()
            .map_or(Duration::ZERO, |latency| latency.quantile(share))
    }
}

/// Stretches with reloads and without, by turns.
///
/// # Errors
/// If a reload fails.
pub async fn measure(programs: &Programs) -> Result<Outcome> {
    let demo = programs.demo.to_string_lossy().into_owned();
    let mut supervisor = Supervisor::start(&programs.heirloom, &[&demo]).await?;
    let (mut without, mut with) = (Side::default(), Side::default());
    for _ in 0..ROUNDS {
        without.add(&load(&supervisor).await?.finish().await);

        let load = load(&supervisor).await?;
        let start = Instant::now();
        for number in 0..reloads_in_stretch() {
            sleep_until(start + EVERY / 2 + EVERY * number).await;
            supervisor.reload(&[]).await?;
            with.reloads += 1;
        }
        with.add(&load.finish().await);
    }
    supervisor.stop().await?;

    let share =
        |quantile| with.quantile(quantile).as_secs_f64() / without.quantile(quantile).as_secs_f64();
    let ratio = share(0.999);
    let mut table = Table::new(["", "requests", "failed", "reloads", "p50", "p99", "p99.9"]);
    for (name, side) in [("no reload", &without), ("a reload each second", &with)] {
        let latency = side.latency.as_ref().context("no stretch was measured")?;
        table.row([
            name.to_owned(),
            (latency.count() + side.failed).to_string(),
            side.failed.to_string(),
            side.reloads.to_string(),
            milliseconds(side.quantile(0.5)),
            milliseconds(side.quantile(0.99)),
            milliseconds(side.quantile(0.999)),
        ]);
    }
    table.row([
        format!("ratio (hold: p99.9 ≤ {HOLD})"),
        String::new(),
        String::new(),
        String::new(),
        format!("{:.2}", share(0.5)),
        format!("{:.2}", share(0.99)),
        format!("**{ratio:.2}**"),
    ]);
    let mut missed = Vec::new();
    if ratio > HOLD {
        missed.push(format!(
            "p99.9 with reloads is {ratio:.2} times that without, not {HOLD}"
        ));
    }
    if with.failed + without.failed > 0 {
        missed.push(format!("{} requests failed", with.failed + without.failed));
    }
    Ok(Outcome {
        section: "latency",
        table,
        missed,
    })
}

fn reloads_in_stretch() -> u32 {
    u32::try_from(STRETCH.as_millis() / EVERY.as_millis()).unwrap_or(1)
}

async fn load(supervisor: &Supervisor) -> Result<Load> {
    let pace = Pace::per_second(RATE);
    let plan = Plan::new(supervisor.address(), Request::get("/version"))
        .keep_alive(KEEP_ALIVE, pace, Reuse::Checked)
        .fresh(FRESH, pace)
        .duration(STRETCH);
    Ok(Load::start(plan).await?)
}
