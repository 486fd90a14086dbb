//! The same load on several servers while each reloads in its own way: what do clients lose?

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{Instant, sleep_until};

use super::{Outcome, milliseconds};
use crate::load::{Load, Pace, Plan, Report, Request, Reuse};
use crate::peers::{Peer, Programs, Running};
use crate::publish::markdown::Table;

/// How finely the plot shows time.
const BUCKET: Duration = Duration::from_millis(50);
/// The load on every server.
const DURATION: Duration = Duration::from_secs(12);
const IDLE: usize = 500;

/// The load on one server, and how often it reloads meanwhile.
#[derive(Debug, Clone, Copy)]
struct Setup {
    keep_alive: usize,
    fresh: usize,
    rate: u32,
    reloads: u32,
}

/// What one server's clients saw.
#[derive(Debug)]
pub struct Row {
    /// The server.
    pub peer: Peer,
    /// Its version.
    pub version: String,
    /// When it was told to reload, since the load started.
    pub reloads: Vec<Duration>,
    /// What was seen.
    pub report: Report,
    setup: Setup,
}

impl Setup {
    fn of(peer: Peer) -> Self {
        let full = Self {
            keep_alive: 32,
            fresh: 8,
            rate: 200,
            reloads: 10,
        };
        match peer {
            Peer::NginxHup | Peer::HaproxyUsr2 | Peer::HeirloomDemo => full,
            Peer::NginxUsr2 | Peer::StartServerHup | Peer::HeirloomPlain => {
                Self { reloads: 5, ..full }
            }
            // A lighter load for a server in Python; the full one was not tried.
            Peer::GunicornHup => Self {
                keep_alive: 16,
                fresh: 4,
                rate: 40,
                reloads: 5,
            },
        }
    }
}

/// Puts the load on `peer` while it reloads.
///
/// # Errors
/// If it does not start, or ends, or says that a reload failed.
pub async fn measure(peer: Peer, programs: &Programs) -> Result<Row> {
    let version = peer.version(programs)?;
    let setup = Setup::of(peer);
    let mut running = peer.start(programs).await.with_context(|| peer.title())?;
    let result = load(&mut running, setup)
        .await
        .with_context(|| peer.title());
    let ended = running
        .end()
        .await
        .with_context(|| format!("ending {}", peer.title()));
    let (report, reloads) = result?;
    ended?;
    Ok(Row {
        peer,
        version,
        reloads,
        report,
        setup,
    })
}

async fn load(running: &mut Running, setup: Setup) -> Result<(Report, Vec<Duration>)> {
    let pace = Pace::per_second(setup.rate);
    let plan = Plan::new(running.address(), Request::get("/version"))
        .keep_alive(setup.keep_alive, pace, Reuse::Checked)
        .fresh(setup.fresh, pace)
        .idle(IDLE)
        .series(BUCKET)
        .duration(DURATION);
    let load = Load::start(plan).await?;
    let start = Instant::now();
    let mut reloads = Vec::new();
    let period = DURATION / setup.reloads;
    for number in 0..setup.reloads {
        sleep_until(start + period * number + period / 2).await;
        reloads.push(start.elapsed());
        running.reload().await?;
    }
    Ok((load.finish().await, reloads))
}

/// The table of all rows, and whether Heirloom lost a request.
#[must_use]
pub fn outcome(rows: &[Row]) -> Outcome {
    let mut table = Table::new([
        "server and reload",
        "version",
        "reloads",
        "requests",
        "**failed**",
        "not sent in time",
        "found closed",
        "told to close",
        "idle kept",
        "p99",
        "longest",
    ]);
    let mut missed = Vec::new();
    for row in rows {
        let report = &row.report;
        let load = match row.peer {
            Peer::GunicornHup => {
                let Setup {
                    keep_alive,
                    fresh,
                    rate,
                    ..
                } = row.setup;
                format!(" ({keep_alive} + {fresh} clients at {rate}/s)")
            }
            Peer::NginxHup
            | Peer::NginxUsr2
            | Peer::HaproxyUsr2
            | Peer::StartServerHup
            | Peer::HeirloomPlain
            | Peer::HeirloomDemo => String::new(),
        };
        table.row([
            format!("{}{load}", row.peer.title()),
            row.version.clone(),
            row.reloads.len().to_string(),
            report.requests.to_string(),
            format!("**{}**", report.failed),
            report.unsent.to_string(),
            report.connections_closed_by_server.to_string(),
            report.connections_told_to_close.to_string(),
            format!("{} of {}", report.idle.answered, report.idle.opened),
            milliseconds(report.latency.quantile(0.99)),
            milliseconds(report.latency.max()),
        ]);
        // The plain worker closes its idle connections itself when it is told to end, under any
        // supervisor; only for the demo is every request Heirloom's to keep.
        if row.peer == Peer::HeirloomDemo && report.failed > 0 {
            missed.push(format!("{} lost requests: {report}", row.peer.title()));
        }
    }
    Outcome {
        section: "comparison",
        table,
        missed,
    }
}
