//! Handovers of a service that holds entries and writes to them all the time, and what became of the
//! writes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use super::supervised::{Life, Supervised};
use crate::measure::median;
use crate::peers::Programs;
use crate::state::account::Around;
use crate::state::record::CodecName;

/// The least time without a handover before each.
const QUIET_MIN: Duration = Duration::from_millis(100);

/// What a run came to. All times in milliseconds.
#[derive(Debug, Clone)]
pub struct Figures {
    /// How many entries there were.
    pub entries: u64,
    /// Bytes of a snapshot, in the middle.
    pub bytes: f64,
    /// Writes a second that were acknowledged while writers ran.
    pub rate: f64,
    /// Freeze to commit, as the supervisor says.
    pub pauses: Vec<f64>,
    /// The longest write that each pause held up.
    pub seen: Vec<f64>,
    /// The longest write in as long a time as the copying took, before it.
    pub quiet: Vec<f64>,
    /// The longest write while copying.
    pub copying: Vec<f64>,
    /// The longest write that was carried out in the new generation for the old one.
    pub late: Vec<f64>,
    /// How long the library says that it may have held up a write while copying.
    pub stalls: Vec<f64>,
    /// From being asked for to the end.
    pub totals: Vec<f64>,
    /// Acknowledged writes that the entries do not know of at the end.
    pub lost: u64,
    /// Writes that the entries know of and nobody acknowledged.
    pub extra: u64,
    /// Writes that failed.
    pub failed: u64,
}

/// Hands over `count` times, with as long a time without before each as the last one took.
///
/// # Errors
/// If a handover fails.
pub async fn run(programs: &Programs, entries: u64, rate: u64, count: usize) -> Result<Figures> {
    let mut service = Supervised::start(programs, entries, rate, CodecName::Bincode).await?;
    // The first one is not measured: the first generation's memory lies as it was filled.
    let mut last = service.hand_over().await?;
    for _ in 0..count {
        let took = Duration::from_secs_f64(last.total_ms.unwrap_or_default() / 1e3);
        sleep(took.mul_f64(1.1).max(QUIET_MIN)).await;
        last = service.hand_over().await?;
    }
    let life = service.end().await?;
    figures(entries, &life).context("the accounts are not complete")
}

fn figures(entries: u64, life: &Life) -> Option<Figures> {
    let ms = |ns: u64| ns as f64 / 1e6;
    // Neither the first nor the last, whose new generation does not write.
    let measured = life.handovers.len().checked_sub(1)?;
    let handovers = life.handovers.get(1..measured)?;
    let mut around: Vec<Around> = Vec::new();
    for (number, (asked_ns, handover)) in (1..).zip(handovers) {
        let (old, new) = (life.accounts.get(number)?, life.accounts.get(number + 1)?);
        let pause = Duration::from_secs_f64(handover.pause_ms? / 1e3);
        around.push(old.around(*asked_ns, new.owned_ns, pause));
    }
    let of = |part: fn(&Around) -> u64| around.iter().map(|one| ms(part(one))).collect();
    let writers = life.accounts.get(..life.accounts.len() - 1)?;
    let acknowledged: u64 = life.accounts.iter().map(|one| one.acknowledged).sum();
    let seconds: f64 = writers
        .iter()
        .map(|one| (one.ended_ns - one.began_ns) as f64 / 1e9)
        .sum();
    let counted = life.accounts.last()?.counted?;
    let each = |value: fn(&crate::supervisor::Handover) -> Option<f64>| -> Vec<f64> {
        handovers.iter().filter_map(|(_, one)| value(one)).collect()
    };
    Some(Figures {
        entries,
        bytes: median(&each(|one| one.snapshot_bytes.map(|bytes| bytes as f64)))?,
        rate: acknowledged as f64 / seconds,
        pauses: each(|one| one.pause_ms),
        seen: of(|one| one.pause_ns),
        quiet: of(|one| one.quiet_ns),
        copying: of(|one| one.copying_ns),
        late: of(|one| one.late_ns),
        stalls: each(|one| one.stall_ms),
        totals: each(|one| one.total_ms),
        lost: acknowledged.saturating_sub(counted),
        extra: counted.saturating_sub(acknowledged),
        failed: life.accounts.iter().map(|one| one.failed).sum(),
    })
}
