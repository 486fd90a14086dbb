//! What the supervisor costs while it has nothing to do.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::time::{Instant, sleep};

use super::Outcome;
use crate::peers::Programs;
use crate::procfs::{resident_bytes, voluntary_switches};
use crate::publish::markdown::Table;
use crate::supervisor::Supervisor;

/// How long wake-ups are counted.
const STRETCH: Duration = Duration::from_secs(10);
/// How long the old generation may take to go and probation to pass before the second reading.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
const SETTLE_POLL: Duration = Duration::from_millis(250);
/// A connection that asked for the status is closed, and whatever else it set off has happened.
const QUIET: Duration = Duration::from_secs(2);
/// Probation lasts 10 s by default; its end is one last wake-up.
const PROBATION: Duration = Duration::from_secs(11);
const MEMORY_HOLD_BYTES: u64 = 8 * 1024 * 1024;

/// Reads memory and wake-ups after the start, and again after ten reloads.
///
/// # Errors
/// If the supervisor ends or does not come to rest.
pub async fn measure(programs: &Programs) -> Result<Outcome> {
    let demo = programs.demo.to_string_lossy().into_owned();
    let mut supervisor = Supervisor::start(&programs.heirloom, &[&demo]).await?;
    let mut table = Table::new(["when", "resident memory", "wake-ups in 10 s", "hold"]);
    let mut missed = Vec::new();
    for (when, reloads) in [("after the start", 0), ("after ten reloads", 10)] {
        for _ in 0..reloads {
            supervisor.reload(&[]).await?;
        }
        settle(&mut supervisor).await?;
        let pid = supervisor.pid()?;
        let before = voluntary_switches(pid)?;
        sleep(STRETCH).await;
        let wakeups = voluntary_switches(pid)?
            .checked_sub(before)
            .context("a thread ended")?;
        let memory = resident_bytes(pid)?;
        table.row([
            when.to_owned(),
            format!("{:.1} MiB", memory as f64 / (1024.0 * 1024.0)),
            wakeups.to_string(),
            "< 8 MiB, 0".to_owned(),
        ]);
        if memory >= MEMORY_HOLD_BYTES {
            missed.push(format!(
                "{when} the supervisor holds {memory} bytes, 8 MiB or more"
            ));
        }
        if wakeups > 0 {
            missed.push(format!(
                "{when} the idle supervisor woke {wakeups} times in {STRETCH:?}"
            ));
        }
    }
    supervisor.stop().await?;
    Ok(Outcome {
        section: "idle",
        table,
        missed,
    })
}

/// Waits until there is one generation and nothing is planned any more.
async fn settle(supervisor: &mut Supervisor) -> Result<()> {
    let deadline = Instant::now() + SETTLE_PATIENCE;
    loop {
        let service = supervisor.status().await?;
        if service.state == "serving" && service.generations.len() == 1 {
            break;
        }
        if Instant::now() >= deadline {
            bail!(
                "after {SETTLE_PATIENCE:?} the service is still {}",
                service.state
            );
        }
        sleep(SETTLE_POLL).await;
    }
    sleep(PROBATION + QUIET).await;
    Ok(())
}
