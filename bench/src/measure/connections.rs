//! Connections that move: how long it takes over their number, and whether those that are busy notice.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::state::Extent;
use super::{Outcome, median, milliseconds};
use crate::load::{Load, Pace, Plan, Report, Request, Reuse};
use crate::peers::Programs;
use crate::procfs::{children, open_descriptors};
use crate::publish::chart::{Chart, Line};
use crate::publish::markdown::Table;
use crate::supervisor::Supervisor;

/// Idle connections of the full extent, and of the small one.
const FULL: [usize; 4] = [100, 1000, 5000, 10_000];
const SMALL: [usize; 1] = [50];
/// Clients that go on meanwhile, and their requests a second.
const BUSY: usize = 8;
const RATE: u32 = 100;
const HANDOVERS: usize = 5;
/// Between two handovers: the one before has ended, and clients have gone on.
const BETWEEN: Duration = Duration::from_millis(700);
/// How long all connections may take to arrive.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(20);
/// How often to look whether they have: the look costs microseconds.
const ARRIVAL_POLL: Duration = Duration::from_millis(1);
/// Descriptors of the load beside its connections.
const OTHER_DESCRIPTORS: u64 = 256;
/// The longest to hold, for 10,000 connections.
const HOLD: Duration = Duration::from_millis(500);
const HOLD_CONNECTIONS: usize = 10_000;

/// What was seen with one number of connections.
#[derive(Debug)]
struct Row {
    connections: usize,
    /// From asking until the last had arrived, in milliseconds.
    arrivals_ms: Vec<f64>,
    /// Until `heirloom reload` returned, in milliseconds.
    commands_ms: Vec<f64>,
    /// From being asked until the new generation served, in milliseconds.
    totals_ms: Vec<f64>,
    pauses_ms: Vec<f64>,
    quiet: Report,
    busy: Report,
}

/// The table and the plot.
#[derive(Debug)]
pub struct Measured {
    /// The table.
    pub outcome: Outcome,
    /// The plot, as SVG.
    pub plot: String,
}

/// Handovers with more and more idle connections, busy ones beside them.
///
/// # Errors
/// If a handover fails, or the system does not allow so many connections.
pub async fn measure(programs: &Programs, extent: Extent) -> Result<Measured> {
    let sizes: &[usize] = match extent {
        Extent::Full => &FULL,
        Extent::Small => &SMALL,
    };
    let mut rows = Vec::new();
    for &connections in sizes {
        allow(connections as u64 + OTHER_DESCRIPTORS)?;
        let row = row(programs, connections)
            .await
            .with_context(|| format!("with {connections} connections"))?;
        rows.push(row);
    }
    let line = |title: &str, colour: &'static str, value: &dyn Fn(&Row) -> f64| Line {
        title: title.to_owned(),
        colour,
        points: rows
            .iter()
            .map(|row| (row.connections as f64, value(row).max(0.01)))
            .collect(),
    };
    let lines = vec![
        line("all of them in the new generation", "#1f5fa8", &|row| {
            median(&row.arrivals_ms).unwrap_or_default()
        }),
        line("longest request of busy clients", "#d62728", &|row| {
            row.busy.latency.max().as_secs_f64() * 1e3
        }),
        line("pause of the state", "#2ca02c", &|row| {
            median(&row.pauses_ms).unwrap_or_default()
        }),
    ];
    let plot = Chart {
        heading: "A handover over the number of connections",
        across: "idle connections",
        down: "milliseconds",
        lines,
    }
    .draw();
    Ok(Measured {
        outcome: outcome(&rows, extent),
        plot,
    })
}

async fn row(programs: &Programs, connections: usize) -> Result<Row> {
    let demo = programs.demo.to_string_lossy().into_owned();
    let mut supervisor = Supervisor::start(&programs.heirloom, &[&demo]).await?;
    let stretch = BETWEEN * u32::try_from(HANDOVERS)?;
    let quiet = plan(&supervisor, 0).duration(stretch);
    let quiet = Load::start(quiet).await?.finish().await;
    // It is told to end when the handovers are over.
    let load = plan(&supervisor, connections).duration(stretch + ARRIVAL_PATIENCE);
    let load = Load::start(load).await?;
    let (mut arrivals_ms, mut commands_ms) = (Vec::new(), Vec::new());
    let (mut totals_ms, mut pauses_ms) = (Vec::new(), Vec::new());
    for _ in 0..HANDOVERS {
        sleep(BETWEEN).await;
        let start = Instant::now();
        let (parent, old) = (supervisor.pid()?, supervisor.service_pid().await?);
        // The command may return before or after the last has arrived.
        let (reloaded, arrived) = tokio::join!(
            supervisor.reload(&[]),
            wait_for_arrival(parent, old, connections)
        );
        commands_ms.push(reloaded?.as_secs_f64() * 1e3);
        arrivals_ms.push((arrived? - start).as_secs_f64() * 1e3);
        let last = supervisor.status().await?.last_handover;
        let last = last.context("the supervisor does not know of the handover")?;
        totals_ms.extend(last.total_ms);
        pauses_ms.extend(last.pause_ms);
    }
    let busy = load.stop_and_finish().await;
    supervisor.stop().await?;
    Ok(Row {
        connections,
        arrivals_ms,
        commands_ms,
        totals_ms,
        pauses_ms,
        quiet,
        busy,
    })
}

fn plan(supervisor: &Supervisor, idle: usize) -> Plan {
    Plan::new(supervisor.address(), Request::get("/version"))
        .keep_alive(BUSY, Pace::per_second(RATE), Reuse::Checked)
        .idle(idle)
}

/// Waits until a child of `parent` other than `old` has at least so many descriptors open; says when.
async fn wait_for_arrival(parent: Pid, old: Pid, connections: usize) -> Result<Instant> {
    let deadline = Instant::now() + ARRIVAL_PATIENCE;
    loop {
        let most = children(parent)?
            .into_iter()
            .filter(|child| *child != old)
            .filter_map(open_descriptors)
            .max();
        if most.is_some_and(|most| most >= connections as u64) {
            return Ok(Instant::now());
        }
        if Instant::now() >= deadline {
            bail!("after {ARRIVAL_PATIENCE:?} the new generation has {most:?} descriptors");
        }
        sleep(ARRIVAL_POLL).await;
    }
}

/// Lets this process open so many descriptors.
fn allow(descriptors: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < descriptors {
        bail!("{descriptors} descriptors are needed and {hard} allowed: raise ulimit -Hn");
    }
    if soft < descriptors {
        setrlimit(Resource::RLIMIT_NOFILE, descriptors, hard)?;
    }
    Ok(())
}

fn outcome(rows: &[Row], extent: Extent) -> Outcome {
    let mut table = Table::new([
        "idle connections",
        "handovers",
        "all of them moved, p50",
        "longest",
        "of it the handover",
        "`heirloom reload` returned",
        "pause of the state",
        "kept",
        "requests of busy clients",
        "failed",
        "their connections closed",
        "longest without, with",
    ]);
    let mut missed = Vec::new();
    for row in rows {
        let longest = row.arrivals_ms.iter().copied().fold(0.0, f64::max);
        let closed = row.busy.connections_closed_by_server + row.busy.connections_told_to_close;
        table.row([
            row.connections.to_string(),
            row.arrivals_ms.len().to_string(),
            format!("{:.1} ms", median(&row.arrivals_ms).unwrap_or(f64::NAN)),
            format!("**{longest:.1} ms**"),
            format!("{:.1} ms", median(&row.totals_ms).unwrap_or(f64::NAN)),
            format!("{:.1} ms", median(&row.commands_ms).unwrap_or(f64::NAN)),
            format!("{:.2} ms", median(&row.pauses_ms).unwrap_or(f64::NAN)),
            format!("{} of {}", row.busy.idle.answered, row.busy.idle.opened),
            row.busy.requests.to_string(),
            format!("**{}**", row.busy.failed),
            closed.to_string(),
            format!(
                "{}, {}",
                milliseconds(row.quiet.latency.max()),
                milliseconds(row.busy.latency.max())
            ),
        ]);
        let connections = row.connections;
        if row.busy.failed + row.busy.idle.lost() + closed > 0 {
            missed.push(format!("with {connections} connections: {}", row.busy));
        }
        if extent == Extent::Full
            && connections == HOLD_CONNECTIONS
            && longest > HOLD.as_secs_f64() * 1e3
        {
            missed.push(format!(
                "{connections} connections took {longest:.0} ms to move, not {HOLD:?}"
            ));
        }
    }
    Outcome {
        section: "connections",
        table,
        missed,
    }
}
