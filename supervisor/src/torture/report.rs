//! What is told at the end of a torture: as JSON, and for people.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::dice::{Deed, Target};
use super::handovers::Counts;
use super::load::Seen;
use super::plan::Plan;
use super::tally::{Cause, Leaks, Tally};

/// Everything. Fields are only ever added.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// The same seed disturbs the same handovers in the same way.
    seed: u64,
    seconds: f64,
    handovers: Handovers,
    /// What was done to processes, by `kill-new`, `kill-old`, `stall-new`, `stall-old`.
    disturbed: BTreeMap<String, u64>,
    requests: Requests,
    connections: Connections,
    writes: Writes,
    /// What was lost that had not to be, by cause.
    lost: BTreeMap<&'static str, u64>,
    /// What went with a process that was killed, by cause.
    cut: BTreeMap<&'static str, u64>,
    /// What is left over; none if it could not be measured.
    leaks: Option<Leaks>,
    /// What supervisor and program have said; removed if all is well.
    log: Option<PathBuf>,
    /// What is wrong, a line each; nothing if all is well.
    problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Handovers {
    tried: u64,
    committed: u64,
    aborted: u64,
    rolled_back: u64,
    /// Nobody disturbed them, and they failed.
    failed_undisturbed: u64,
    longest_ms: f64,
    longest_pause_ms: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Requests {
    sent: u64,
    answered: u64,
    /// They were in flight on a process that was killed.
    cut_by_a_kill: u64,
    lost: u64,
    refused: u64,
    longest_ms: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Connections {
    opened: u64,
    /// The program closed them, between two requests or behind an answer.
    closed: u64,
    cut_by_a_kill: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Writes {
    acknowledged: u64,
    /// They were gone with the process that alone had them.
    gone_with_a_killed_owner: u64,
    lost: u64,
}

impl Report {
    /// `left` is what is left over, `trouble` why it ended early or badly, `log` where more can be read.
    pub(crate) fn new(
        plan: &Plan,
        elapsed: Duration,
        counts: Counts,
        seen: Seen,
        left: Option<Leaks>,
        (trouble, log): (Option<String>, PathBuf),
    ) -> Self {
        let tally = Tally::new(&seen.misses, &counts.harms, plan.strict);
        let mut problems = Vec::new();
        problems.extend(trouble);
        problems.extend(counts.first_failed);
        if let Some(first) = &tally.first {
            problems.push(format!(
                "lost, first after {:.3} s{}: {} ({})",
                first.at.as_secs_f64(),
                nearest(first.at, &counts.harms),
                first.text,
                first.cause.word()
            ));
        }
        problems.extend(left.into_iter().filter(|left| !left.nothing()).map(told));
        if seen.answered == 0 {
            problems.push("no request was answered, so nothing was tried".to_owned());
        }
        let mut disturbed = BTreeMap::new();
        for harm in &counts.harms {
            let deed = match harm.deed {
                Deed::Kill => "kill",
                Deed::Stall => "stall",
            };
            let target = match harm.target {
                Target::New => "new",
                Target::Old => "old",
            };
            *disturbed.entry(format!("{deed}-{target}")).or_default() += 1;
        }
        let by_word = |by_cause: &BTreeMap<Cause, u64>| -> BTreeMap<&'static str, u64> {
            let all = by_cause.iter().map(|(cause, count)| (cause.word(), *count));
            all.collect()
        };
        Self {
            seed: plan.seed,
            seconds: elapsed.as_secs_f64(),
            handovers: Handovers {
                tried: counts.tried,
                committed: counts.committed,
                aborted: counts.aborted,
                rolled_back: counts.rolled_back,
                failed_undisturbed: counts.failed,
                longest_ms: counts.longest_ms,
                longest_pause_ms: counts.longest_pause_ms,
            },
            disturbed,
            requests: Requests {
                sent: seen.sent,
                answered: seen.answered,
                cut_by_a_kill: tally.requests_cut,
                lost: tally.requests_lost,
                refused: tally.lost.get(&Cause::Refused).copied().unwrap_or(0),
                longest_ms: seen.longest.as_secs_f64() * 1e3,
            },
            connections: Connections {
                opened: seen.opened,
                closed: tally.closed,
                cut_by_a_kill: tally.closed_cut,
            },
            writes: Writes {
                acknowledged: seen.writes,
                gone_with_a_killed_owner: tally.writes_cut,
                lost: tally.writes_lost,
            },
            lost: by_word(&tally.lost),
            cut: by_word(&tally.cut),
            leaks: left,
            log: Some(log).filter(|_| !problems.is_empty()),
            problems,
        }
    }

    /// Whether nothing was lost that had not to be, nothing failed, and nothing is left over.
    pub(crate) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// What is wrong, a line each.
    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// What had been done to a process before, if anything.
fn nearest(at: Duration, harms: &[super::tally::Harm]) -> String {
    let before = harms.iter().rev().find(|harm| harm.at <= at);
    before.map_or_else(String::new, |harm| {
        format!(
            ", {:.3} s after generation {} was disturbed in handover {}",
            (at.saturating_sub(harm.at)).as_secs_f64(),
            harm.generation,
            harm.handover
        )
    })
}

fn told(left: Leaks) -> String {
    let Leaks {
        descriptors,
        processes,
        zombies,
        resident_kib,
    } = left;
    format!(
        "left over at the end: {descriptors} descriptors, {processes} processes, {zombies} zombies, {resident_kib} KiB of the supervisor"
    )
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            seconds,
            handovers: h,
            disturbed,
            requests: r,
            connections: c,
            writes: w,
            ..
        } = self;
        let disturbed: Vec<String> = disturbed
            .iter()
            .map(|(what, count)| format!("{what} {count}"))
            .collect();
        writeln!(formatter, "seed         {seed}, {seconds:.1} s")?;
        writeln!(
            formatter,
            "handovers    {} tried: {} committed, {} aborted, {} rolled back; longest {:.1} ms, longest pause {:.1} ms",
            h.tried, h.committed, h.aborted, h.rolled_back, h.longest_ms, h.longest_pause_ms
        )?;
        let none = || "none".to_owned();
        let all = Some(disturbed.join(", ")).filter(|all| !all.is_empty());
        writeln!(formatter, "disturbed    {}", all.unwrap_or_else(none))?;
        writeln!(
            formatter,
            "requests     {} sent, {} answered, {} cut by a kill, {} lost ({} refused); longest answer {:.1} ms",
            r.sent, r.answered, r.cut_by_a_kill, r.lost, r.refused, r.longest_ms
        )?;
        writeln!(
            formatter,
            "connections  {} opened, {} closed by the program, {} cut by a kill",
            c.opened, c.closed, c.cut_by_a_kill
        )?;
        writeln!(
            formatter,
            "writes       {} acknowledged, {} gone with a killed owner, {} lost",
            w.acknowledged, w.gone_with_a_killed_owner, w.lost
        )?;
        for (what, causes) in [("lost", &self.lost), ("cut", &self.cut)] {
            for (cause, count) in causes {
                writeln!(formatter, "  {what:<10} {count} {cause}")?;
            }
        }
        match self.leaks {
            Some(left) if left.nothing() => write!(formatter, "left over    nothing"),
            Some(left) => write!(formatter, "{}", told(left)),
            None => write!(formatter, "left over    not measured"),
        }
    }
}
