//! What is shown: a table that is drawn anew on a terminal, lines elsewhere, a tally at the end.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use heirloom_bench::load::{FailureKind, Latency, Report};
use heirloom_bench::supervisor::Handover;

use crate::demo::{Versions, Writes};
use crate::options::Options;

/// Generations shown in the live table; older ones scroll out.
const ROWS: usize = 8;

/// What is known about the handovers.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    reloads: Vec<Duration>,
    pauses_ms: Vec<f64>,
    /// Entries that the last handover took over.
    entries: u64,
    /// Bytes of its snapshot.
    bytes: u64,
    /// Handovers that left the state behind.
    without_state: usize,
    /// Acknowledged writes; against those that are held only at the end.
    pub(crate) writes: Writes,
    /// Clients that keep their connection.
    keep_alive: u64,
}

impl Facts {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            keep_alive: options.keep_alive_clients().into(),
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, took: Duration, handover: Option<Handover>) {
        self.reloads.push(took);
        match handover.filter(Handover::moves_connections) {
            Some(handover) => {
                self.pauses_ms.extend(handover.pause_ms);
                self.entries = handover.entries.unwrap_or_default();
                self.bytes = handover.snapshot_bytes.unwrap_or_default();
            }
            None => self.without_state += 1,
        }
    }

    /// Whether nobody lost anything: no request, no connection, no write, no state.
    pub(crate) fn promise_kept(&self, report: &Report) -> bool {
        report.requests > 0
            && report.is_spotless()
            && report.connections_lasting == self.keep_alive
            && (self.writes.lost, self.writes.extra) == (0, 0)
            && self.without_state == 0
    }

    fn last(&self) -> String {
        match (self.reloads.last(), self.pauses_ms.last()) {
            (None, _) => "none yet".to_owned(),
            (Some(took), None) => format!("the last took {}", milliseconds(*took)),
            (Some(took), Some(pause)) => {
                format!(
                    "the last took {}, writes paused for {pause:.1} ms",
                    milliseconds(*took)
                )
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Screen {
    live: bool,
    /// Lines of the table on the terminal, to be drawn over.
    drawn: usize,
}

impl Screen {
    pub(crate) fn new(options: &Options) -> Self {
        put(&format!(
            "A service replaced every {}, under {} requests/s by {} clients that never retry. \
             Ctrl-C ends it.\n",
            humantime::format_duration(options.every),
            u32::from(options.clients) * options.rate,
            options.clients,
        ));
        Self {
            live: std::io::stdout().is_terminal(),
            drawn: 0,
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live
    }

    /// Shows the present state.
    pub(crate) fn draw(&mut self, report: &Report, versions: &Versions, facts: &Facts) {
        if self.live {
            self.redraw(&picture(report, versions, facts));
        } else if report.requests > 0 {
            put(&format!("{}; {}\n", counts(report, facts), costs(report)));
        }
    }

    /// Shows that a handover has happened.
    pub(crate) fn handed_over(&mut self, report: &Report, versions: &Versions, facts: &Facts) {
        if self.live {
            self.redraw(&picture(report, versions, facts));
        } else {
            put(&format!(
                "handover {}: {}\n",
                facts.reloads.len(),
                facts.last()
            ));
        }
    }

    /// Shows the result.
    pub(crate) fn tally(&mut self, report: &Report, versions: &Versions, facts: &Facts) {
        if self.live {
            self.redraw("");
        }
        let mut text = table(report, versions, usize::MAX);
        text.push('\n');
        text.push_str(&summary(report, facts));
        put(&text);
        self.drawn = 0;
    }

    fn redraw(&mut self, picture: &str) {
        let back = match self.drawn {
            0 => String::new(),
            // To the start of the line so many lines up, and erase from there.
            lines => format!("\x1b[{lines}F\x1b[J"),
        };
        put(&format!("{back}{picture}"));
        self.drawn = picture.lines().count();
    }
}

/// Writes at once. Nobody may be reading any more; the showcase must clean up all the same.
fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// What a live table shows. No line is longer than 80 columns: a terminal that broke one would
/// make the way back to the first line longer than counted.
fn picture(report: &Report, versions: &Versions, facts: &Facts) -> String {
    format!(
        "\n{}\n  {}\n  {}\n  state: {} entries, {:.1} MB\n  handover: {}\n",
        table(report, versions, ROWS),
        counts(report, facts),
        costs(report),
        facts.entries,
        facts.bytes as f64 / 1e6,
        facts.last()
    )
}

fn table(report: &Report, versions: &Versions, rows: usize) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_BORDERS_ONLY_CONDENSED);
    table.set_header(["generation", "version", "answers", "p50", "p99", "max"]);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let skipped = report.generations.len().saturating_sub(rows);
    for (generation, latency) in report.generations.iter().skip(skipped) {
        let version = versions.get(generation).map_or("", String::as_str);
        table.add_row([
            generation.to_string(),
            version.to_owned(),
            latency.count().to_string(),
            milliseconds(latency.quantile(0.5)),
            milliseconds(latency.quantile(0.99)),
            milliseconds(latency.max()),
        ]);
    }
    table.to_string()
}

fn counts(report: &Report, facts: &Facts) -> String {
    format!(
        "{:.0} s, {} handovers: {} requests ({} writes), {} failed",
        report.elapsed.as_secs_f64(),
        facts.reloads.len(),
        report.requests,
        facts.writes.acknowledged,
        report.failed,
    )
}

fn costs(report: &Report) -> String {
    format!(
        "{} connections closed; {}",
        closed(report),
        quantiles(&report.latency)
    )
}

fn closed(report: &Report) -> u64 {
    report.connections_closed_by_server
        + report.connections_told_to_close
        + report.connections_unsolicited
}

fn summary(report: &Report, facts: &Facts) -> String {
    let mut reloads = facts.reloads.clone();
    reloads.sort_unstable();
    let mut lines = vec![
        format!("handovers            {}", facts.reloads.len()),
        format!("requests             {}", report.requests),
        format!("  failed             {}", report.failed),
        format!(
            "  of these refused   {}",
            report.failed_by(FailureKind::Refused)
        ),
        format!("writes acknowledged  {}", facts.writes.acknowledged),
        format!(
            "  lost, made twice   {}, {} (each counter against what its client was told)",
            facts.writes.lost, facts.writes.extra
        ),
        format!(
            "connections          {} of {} in use from the first request to the last, {} closed",
            report.connections_lasting,
            facts.keep_alive,
            closed(report)
        ),
        format!(
            "idle connections     {} of {} alive and answered",
            report.idle.answered, report.idle.opened
        ),
        format!(
            "state                {} entries, {:.1} MB, moved {} times",
            facts.entries,
            facts.bytes as f64 / 1e6,
            facts.reloads.len() - facts.without_state
        ),
        format!("latency              {}", quantiles(&report.latency)),
    ];
    if let (Some(middle), Some(longest)) = (reloads.get(reloads.len() / 2), reloads.last()) {
        let (middle, longest) = (milliseconds(*middle), milliseconds(*longest));
        lines.push(format!(
            "heirloom reload      took {middle} in the middle, {longest} at most"
        ));
    }
    if !facts.pauses_ms.is_empty() {
        let each: Vec<String> = facts
            .pauses_ms
            .iter()
            .map(|pause| format!("{pause:.2}"))
            .collect();
        lines.push(format!("writes paused, in ms {}", each.join(" ")));
    }
    lines.push(String::new());
    if report.requests == 0 {
        lines.push("No request was sent, so nothing was shown.".to_owned());
    } else if !facts.promise_kept(report) {
        lines.push("LOST; see above. The first failures:".to_owned());
        lines.extend(
            report
                .first_failures
                .iter()
                .map(|failure| format!("  {failure}")),
        );
    } else {
        lines.push(
            "Nothing was lost: no request failed, no connection was closed, every write is there \
             once."
                .to_owned(),
        );
    }
    lines.push(String::new());
    lines.join("\n")
}

fn quantiles(latency: &Latency) -> String {
    format!(
        "p50 {} p99 {} max {}",
        milliseconds(latency.quantile(0.5)),
        milliseconds(latency.quantile(0.99)),
        milliseconds(latency.max())
    )
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use heirloom_bench::load::{Load, Plan, Request};

    use super::*;

    #[tokio::test]
    async fn no_line_of_a_live_table_is_broken_by_a_terminal() {
        let server = SocketAddr::from(([127, 0, 0, 1], 9));
        let plan = Plan::new(server, Request::get("/")).request_limit(0);
        let plan = plan.fresh(1, heirloom_bench::load::Pace::per_second(1));
        let mut report = Load::start(plan).await.unwrap().finish().await;
        report.elapsed = Duration::from_secs(3600);
        report.requests = u64::from(u32::MAX);
        report.failed = 1_000_000;
        report.connections_told_to_close = 1_000_000;
        let mut facts = Facts::default();
        facts.add(Duration::from_secs(100), None);
        facts.writes.acknowledged = u64::from(u32::MAX);
        facts.pauses_ms.push(10_000.0);
        for line in picture(&report, &BTreeMap::new(), &facts).lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
