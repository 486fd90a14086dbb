//! `heirloom torture`: handovers of a program under load while its processes are killed and stopped, and
//! what became of the clients.
//!
//! * [`plan`] is what is wanted, [`dice`] what happens to which handover and when;
//! * [`instance`] is the supervisor it is done with, [`victim`] a process something happens to,
//!   [`handovers`] does it, one handover after the other;
//! * [`load`] are the clients: [`http`] is what they speak, [`sequence`] how they see that a write is there
//!   once;
//! * [`tally`] says what of it was lost, and [`report`] tells.
//!
//! What can be decided without a process or a socket is pure: dice, sequences, answers, the tally.

mod dice;
mod handovers;
mod http;
mod instance;
mod load;
mod plan;
mod report;
mod sequence;
mod tally;
mod victim;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use plan::{Aim, Crowd, Plan, Until, Work};
pub(crate) use report::Report;

use handovers::Handovers;
use instance::Instance;
use load::{Load, Records};
use tally::Leaks;

/// How long everything may take to come to rest at the end; then what is still there counts as left over.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// The program, or the supervisor, did not come up.
    #[error("{0}")]
    NotUp(String),
    /// The machine does not give what this needs.
    #[error("{0}")]
    System(String),
}

/// Does it, until the plan is fulfilled or `interrupted` is set.
///
/// # Errors
///
/// [`Failed`]; nothing of what was started is left then.
pub(crate) fn run(
    plan: &Plan,
    interrupted: &AtomicBool,
    tell: &dyn Fn(&str),
) -> Result<Report, Failed> {
    let instance = Instance::start(plan)?;
    let address = instance.address()?;
    tell(&format!(
        "seed {}; listening on {address}; what supervisor and program say is in {}",
        plan.seed,
        instance.log().display()
    ));
    let start = Instant::now();
    let records = Arc::new(Records::new(start, plan.seed));
    let mut handovers = Handovers::new(plan, &instance, start);
    let load = Load {
        address,
        work: plan.work.clone(),
        crowd: plan.crowd,
        records: Arc::clone(&records),
    };
    let stop = AtomicBool::new(false);
    let worked = thread::scope(|scope| {
        for client in load.clients() {
            let stop = &stop;
            scope.spawn(move || client.run(stop));
        }
        let worked = handovers.work(interrupted, tell);
        stop.store(true, Ordering::Relaxed);
        worked
    });
    let elapsed = start.elapsed();
    let left = worked.is_ok().then(|| rest(&instance, &handovers));
    let (log, supervisor_gone) = (instance.log(), worked.err());
    let counts = handovers.outcome();
    let told = instance.end(supervisor_gone.is_none());
    let report = Report::new(
        plan,
        elapsed,
        counts,
        records.take(),
        left,
        (supervisor_gone.or(told.err()), log.clone()),
    );
    if report.is_clean() {
        instance::forget(&log);
    }
    Ok(report)
}

/// Waits until only what serves is left, and measures what there is more than at the beginning.
fn rest(instance: &Instance, handovers: &Handovers<'_>) -> Leaks {
    let end = Instant::now() + LONGEST_REST;
    loop {
        let now = instance.footprint();
        let leaks = handovers.leaks(&now);
        if leaks.nothing() || Instant::now() >= end {
            return leaks;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
