//! What a program that has given its state away says of its connections.
//!
//! They go from process to process; the supervisor only counts what it is told. An event tells of the
//! first that have moved, and one of what became of all; in between a connection moves whenever it falls
//! idle, and `status` has the number.

use heirloom_handover::message::{Counts, Report};

use super::Runner;
use crate::control::protocol::EventKind;
use crate::core::generation::Phase;
use crate::core::service::ProcessId;
use crate::daemon::process::Custody;

impl Runner {
    /// A process has said how many of its connections have moved.
    pub(super) fn connections_said(&mut self, id: ProcessId, report: Report) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let parting = matches!(
            process.native.custody,
            Custody::Parting { .. } | Custody::Yielded
        );
        // What is said before the commit is known here belongs to a migration whose end is near.
        let giving = parting || self.migrations.values().any(|one| one.old == id);
        let moves = &mut process.native.moves;
        if !giving || moves.over {
            return;
        }
        let (moved, text) = match report {
            Report::Moved { moved, left, .. } => {
                let text = format!("{} moved, {} are left", among(&moved), among(&left));
                (moved.total(), Some(text).filter(|_| !moves.begun))
            }
            Report::Gone { moved, cut, .. } => {
                moves.over = true;
                let text = format!("in the end {} moved, {cut} were cut off", among(&moved));
                (moved.total(), Some(text))
            }
            // Not of connections.
            _other => return,
        };
        moves.begun = true;
        let more = moved.saturating_sub(moves.moved);
        moves.moved = moves.moved.max(moved);
        let (generation, phase) = (process.generation, process.phase);
        self.count_moved(generation, phase, more);
        if let Some(text) = text {
            self.note(Some(generation), EventKind::Moved, &text);
        }
    }

    /// Adds to the report of the handover that the generation gave its state away in.
    fn count_moved(&mut self, generation: u64, phase: Phase, more: u64) {
        // As long as it is the one that serves, that handover is not over.
        if phase == Phase::Serving {
            if let Some(active) = &mut self.active {
                active.moved.connections += more;
            }
            return;
        }
        let parting = self.parting.as_mut().map(|parting| &mut parting.report);
        for report in self.last_handover.iter_mut().chain(parting) {
            if report.from == generation {
                report.connections_moved += more;
            }
        }
    }
}

/// A count with its parts, as `812 (http/1: 800, session: 12)`.
fn among(counts: &Counts) -> String {
    let parts = counts.0.iter();
    let parts: Vec<String> = parts
        .map(|(protocol, count)| {
            // It is shown on terminals.
            let protocol = protocol.replace(char::is_control, " ");
            format!("{protocol}: {count}")
        })
        .collect();
    let total = counts.total();
    if parts.is_empty() {
        total.to_string()
    } else {
        format!("{total} ({})", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_told_with_their_parts() {
        let mut counts = Counts::default();
        assert_eq!(among(&counts), "0");
        counts.0.insert("session".to_owned(), 12);
        counts.0.insert("http/1\u{1b}".to_owned(), 800);
        assert_eq!(among(&counts), "812 (http/1 : 800, session: 12)");
    }
}
