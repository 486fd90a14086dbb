//! The pause over the size of the state, against copying all of it while everything stands still.

use anyhow::{Context as _, Result};

use super::handovers::{self, Figures};
use super::{Extent, transfers};
use crate::measure::{Outcome, median};
use crate::peers::Programs;
use crate::publish::chart::{Chart, Line};
use crate::publish::markdown::Table;
use crate::state::record::CodecName;
use crate::state::transfer::Way;

/// Writes a second, of two threads together.
const RATE: u64 = 50_000;
/// The longest pause to hold, at this many entries.
const HOLD_MS: f64 = 5.0;
const HOLD_ENTRIES: u64 = 1_000_000;
/// How many times as long the pause at the largest size may be as at the size below.
const HOLD_GROWTH: f64 = 2.0;
const GROWTH_FROM: u64 = 100_000;
const GROWTH_TO: u64 = 4_000_000;

/// One size: entries, handovers, runs of each of the other ways.
type Size = (u64, usize, usize);

const FULL: [Size; 5] = [
    (10_000, 15, 3),
    (100_000, 30, 3),
    (400_000, 10, 3),
    (HOLD_ENTRIES, 30, 3),
    (GROWTH_TO, 6, 1),
];
const SMALL: [Size; 2] = [(2000, 3, 1), (20_000, 3, 1)];

/// All that is known of one size, in milliseconds.
#[derive(Debug)]
struct Row {
    figures: Figures,
    stream_ms: f64,
    whole_ms: f64,
}

/// What came out: the two tables and the plot.
#[derive(Debug)]
pub struct Measured {
    /// The table of pauses, and the one of stalls.
    pub outcomes: [Outcome; 2],
    /// The plot, as SVG.
    pub plot: String,
}

/// Handovers at each size, and the other ways of moving as many entries.
///
/// # Errors
/// If a handover or a transfer fails.
pub async fn measure(programs: &Programs, extent: Extent) -> Result<Measured> {
    let sizes: &[Size] = match extent {
        Extent::Full => &FULL,
        Extent::Small => &SMALL,
    };
    let mut rows = Vec::new();
    for &(entries, handovers, runs) in sizes {
        let (mut stream, mut whole) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let codec = CodecName::Bincode;
            stream.push(
                transfers::run(programs, entries, Way::Stream, codec)
                    .await?
                    .pause_ms,
            );
            whole.push(
                transfers::run(programs, entries, Way::Whole, codec)
                    .await?
                    .pause_ms,
            );
        }
        let figures = handovers::run(programs, entries, RATE, handovers).await?;
        let row = Row {
            stream_ms: median(&stream).context("there was no run")?,
            whole_ms: median(&whole).context("there was no run")?,
            figures,
        };
        eprintln!("  {row:?}");
        rows.push(row);
    }
    let missed = match extent {
        Extent::Full => missed(&rows),
        Extent::Small => lost(&rows),
    };
    Ok(Measured {
        plot: plot(&rows),
        outcomes: [pauses(&rows, missed), stalls(&rows, extent)],
    })
}

fn pauses(rows: &[Row], missed: Vec<String>) -> Outcome {
    let mut table = Table::new([
        "entries",
        "snapshot",
        "writes/s",
        "handovers",
        "pause p50",
        "pause p99",
        "as a writer sees it, p50",
        "p99",
        "stop and copy",
        "one blocking write",
        "stop and copy ÷ p50",
        "writes lost, or twice",
    ]);
    for row in rows {
        let figures = &row.figures;
        let middle = quantile(&figures.pauses, 0.5);
        table.row([
            figures.entries.to_string(),
            format!("{:.0} MB", figures.bytes / 1e6),
            format!("{:.0}", figures.rate),
            figures.pauses.len().to_string(),
            format!("{middle:.2} ms"),
            format!("**{:.2} ms**", quantile(&figures.pauses, 0.99)),
            format!("{:.2} ms", quantile(&figures.seen, 0.5)),
            format!("{:.2} ms", quantile(&figures.seen, 0.99)),
            format!("{:.0} ms", row.stream_ms),
            format!("{:.0} ms", row.whole_ms),
            format!("{:.0}", row.stream_ms / middle),
            format!("{}, {}", figures.lost, figures.extra),
        ]);
    }
    Outcome {
        section: "state-pause",
        table,
        missed,
    }
}

fn stalls(rows: &[Row], extent: Extent) -> Outcome {
    let mut table = Table::new([
        "entries",
        "from being asked to the end",
        "longest write without a handover, p50",
        "longest",
        "while copying, p50",
        "longest",
        "of these held up by the copy",
        "carried out in the new generation, longest",
    ]);
    let mut missed = Vec::new();
    for row in rows {
        let figures = &row.figures;
        let held_up = quantile(&figures.stalls, 1.0);
        let longest = quantile(&figures.copying, 1.0);
        table.row([
            figures.entries.to_string(),
            format!("{:.0} ms", quantile(&figures.totals, 0.5)),
            format!("{:.2} ms", quantile(&figures.quiet, 0.5)),
            format!("{:.2} ms", quantile(&figures.quiet, 1.0)),
            format!("{:.2} ms", quantile(&figures.copying, 0.5)),
            format!("**{longest:.2} ms**"),
            format!("{held_up:.2} ms"),
            format!("{:.2} ms", quantile(&figures.late, 1.0)),
        ]);
        if extent == Extent::Full && longest > HOLD_MS {
            missed.push(format!(
                "with {} entries a write took {longest:.1} ms while copying, not {HOLD_MS}",
                figures.entries
            ));
        }
    }
    Outcome {
        section: "state-stall",
        table,
        missed,
    }
}

fn lost(rows: &[Row]) -> Vec<String> {
    let wrong = |figures: &&Figures| figures.lost + figures.extra + figures.failed > 0;
    rows.iter()
        .map(|row| &row.figures)
        .filter(wrong)
        .map(|figures| {
            format!(
                "with {} entries {} writes were lost, {} were made twice, {} failed",
                figures.entries, figures.lost, figures.extra, figures.failed
            )
        })
        .collect()
}

fn missed(rows: &[Row]) -> Vec<String> {
    let mut missed = lost(rows);
    let pauses = |entries: u64| {
        let mut rows = rows.iter();
        let row = rows.find(|row| row.figures.entries == entries);
        row.map(|row| row.figures.pauses.as_slice())
    };
    if let Some(pauses) = pauses(HOLD_ENTRIES) {
        let longest = quantile(pauses, 0.99);
        if longest > HOLD_MS {
            missed.push(format!(
                "with {HOLD_ENTRIES} entries the pause is {longest:.1} ms at the 99th percentile, \
                 not {HOLD_MS}"
            ));
        }
    }
    if let (Some(few), Some(many)) = (pauses(GROWTH_FROM), pauses(GROWTH_TO)) {
        let growth = quantile(many, 0.5) / quantile(few, 0.5);
        if growth > HOLD_GROWTH {
            missed.push(format!(
                "the pause with {GROWTH_TO} entries is {growth:.1} times that with {GROWTH_FROM}, \
                 not {HOLD_GROWTH}"
            ));
        }
    }
    missed
}

fn plot(rows: &[Row]) -> String {
    let line = |title: &str, colour: &'static str, value: &dyn Fn(&Row) -> f64| Line {
        title: title.to_owned(),
        colour,
        points: rows
            .iter()
            .map(|row| (row.figures.entries as f64, value(row)))
            .collect(),
    };
    let whole = line("one blocking write", "#8c564b", &|row| row.whole_ms);
    let stream = line("stop and copy", "#d62728", &|row| row.stream_ms);
    let seen = line("Heirloom, as a writer sees it, p99", "#7fa8d1", &|row| {
        quantile(&row.figures.seen, 0.99)
    });
    let worst = line("Heirloom, p99", "#1f5fa8", &|row| {
        quantile(&row.figures.pauses, 0.99)
    });
    let middle = line("Heirloom, p50", "#2ca02c", &|row| {
        quantile(&row.figures.pauses, 0.5)
    });
    Chart {
        heading: "How long nothing can be written, while 50,000 writes/s go on",
        across: "entries of about 100 bytes",
        down: "milliseconds",
        lines: vec![whole, stream, seen, worst, middle],
    }
    .draw()
}

/// The value that this share of the values, from 0 to 1, does not exceed. NaN if there are none.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=30).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), 15.0);
        assert_eq!(quantile(&values, 0.99), 30.0);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
