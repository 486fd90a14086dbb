//! How soon the next supervisor has taken over what one that was killed has left, against starting the same
//! from nothing; and what clients notice, which must be nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::sleep;

use super::state::Extent;
use super::{Outcome, Pairs};
use crate::load::{Load, Pace, Plan, Request, Reuse};
use crate::peers::Programs;
use crate::publish::markdown::Table;
use crate::supervisor::Supervisor;

/// How long clients ask in a round, before and after the death.
const STRETCH: Duration = Duration::from_secs(1);
const KEEP_ALIVE: usize = 16;
const FRESH: usize = 4;
const RATE: u32 = 100;

/// Kills supervisors under load, each followed by another at once.
///
/// # Errors
/// If what served is not served on by the next supervisor.
pub async fn measure(programs: &Programs, extent: Extent) -> Result<Outcome> {
    let rounds = match extent {
        Extent::Small => 2,
        Extent::Full => 20,
    };
    let demo = programs.demo.to_string_lossy();
    let mut pairs = Pairs::default();
    let (mut requests, mut failed) = (0, 0);
    for _ in 0..rounds {
        let mut supervisor = Supervisor::start(&programs.heirloom, &[demo.as_ref()]).await?;
        let anew = supervisor.took();
        let serving = supervisor.service_pid().await?;
        let pace = Pace::per_second(RATE);
        let plan = Plan::new(supervisor.address(), Request::get("/version"))
            .keep_alive(KEEP_ALIVE, pace, Reuse::Checked)
            .fresh(FRESH, pace)
            .duration(STRETCH);
        let load = Load::start(plan).await?;
        sleep(STRETCH / 2).await;
        supervisor.kill_and_follow().await?;
        let adopted = supervisor.took();
        let report = load.finish().await;
        requests += report.latency.count() + report.failed;
        failed += report.failed;
        ensure!(
            supervisor.service_pid().await? == serving,
            "the next supervisor has started the program anew"
        );
        supervisor.stop().await?;
        pairs.add(adopted.as_secs_f64() * 1e3, anew.as_secs_f64() * 1e3);
    }
    let mut table = Table::new([
        "rounds",
        "from kill -9 to adopted",
        "supervisor and program from nothing",
        "ratio",
        "middle half",
        "requests",
        "**failed**",
    ]);
    let (low, high) = pairs.spread();
    table.row([
        rounds.to_string(),
        format!("{:.1} ms", pairs.first()),
        format!("{:.1} ms", pairs.second()),
        format!("**{:.2}**", pairs.ratio()),
        format!("{low:.2} to {high:.2}"),
        requests.to_string(),
        format!("**{failed}**"),
    ]);
    let mut missed = Vec::new();
    if failed > 0 {
        missed.push(format!(
            "{failed} requests failed while the supervisor was killed"
        ));
    }
    Ok(Outcome {
        section: "adoption",
        table,
        missed,
    })
}
