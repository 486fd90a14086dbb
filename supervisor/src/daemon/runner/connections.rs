//! Connections that go from one generation to the next, as the old one counts them.
//!
//! Owns the counts in a handover's report, and how long that report waits for them.

use std::collections::BTreeMap;
use std::time::Duration;

use heirloom_handover::message::Counts;

use super::Runner;
use super::handovers::Parting;
use crate::control::protocol::{Connections, EventKind};
use crate::core::service::ProcessId;
use crate::daemon::input::ServiceInput;
use crate::daemon::process::{Custody, Process};

/// How long a report waits for the first count of an old process that has yielded: it comes within
/// milliseconds of the last connection that was at rest.
const COUNT_LIMIT: Duration = Duration::from_millis(500);

impl Runner {
    /// An old process says how many connections have gone to the new one.
    pub(super) fn connections_moved(&mut self, id: ProcessId, moved: Counts, left: Counts) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let first = process.native.connections.is_none();
        let connections = process.native.connections.get_or_insert_default();
        connections.moved = moved.0;
        connections.left = left.0;
        let generation = process.generation;
        if first {
            let text = format!(
                "connections that have moved: {}; left to drain: {}",
                in_words(&connections.moved),
                in_words(&connections.left)
            );
            self.note(Some(generation), EventKind::Moved, &text);
        }
        self.counted(generation);
    }

    /// An old process is about to end and says what became of its connections.
    pub(super) fn connections_ended(&mut self, id: ProcessId, moved: Counts, cut: u64) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let connections = process.native.connections.get_or_insert_default();
        connections.moved = moved.0;
        connections.left.clear();
        connections.cut = cut;
        let generation = process.generation;
        let text = format!(
            "it has finished; connections that have moved: {}; cut off: {cut}",
            in_words(&connections.moved)
        );
        self.note(Some(generation), EventKind::Drained, &text);
        self.counted(generation);
    }

    /// A count has come; a report that waits for nothing else goes out.
    fn counted(&mut self, from: u64) {
        self.recount(from);
        let parting = self.parting.as_ref();
        if parting.is_some_and(|parting| parting.counts.is_some()) {
            self.parted();
        }
    }

    /// Brings the counts of the last handover, and of the one whose report waits, up to date.
    fn recount(&mut self, from: u64) {
        let mut sum = Connections::default();
        let old = self
            .processes
            .values()
            .filter(|process| process.generation == from);
        for one in old.filter_map(|process| process.native.connections.as_ref()) {
            sum.add(one);
        }
        let waiting = self.parting.as_mut().map(|parting| &mut parting.report);
        for report in self.last_handover.as_mut().into_iter().chain(waiting) {
            if report.from == from {
                report.connections_moved = sum.moved.values().sum();
                report.connections = Some(sum.clone());
            }
        }
    }

    /// No new connection reaches the programs that were replaced: the report of the handover goes out,
    /// once it is known what has moved.
    pub(super) fn parted(&mut self) {
        let uncounted = self.parting.as_ref().is_some_and(|parting| {
            let mut all = self.processes.values();
            all.any(|process| is_uncounted(process, parting))
        });
        let limit = self.timer(COUNT_LIMIT, ServiceInput::Uncounted);
        match &mut self.parting {
            Some(parting) if uncounted => {
                parting.counts.get_or_insert(limit);
            }
            Some(_) | None => self.report_parting(),
        }
    }
}

fn is_uncounted(process: &Process, parting: &Parting) -> bool {
    let gives = matches!(
        process.native.custody,
        Custody::Yielded | Custody::Parting { .. }
    );
    gives && process.generation == parting.report.from && process.native.connections.is_none()
}

fn in_words(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    let each = counts
        .iter()
        .map(|(protocol, count)| format!("{count} {protocol}"));
    each.collect::<Vec<_>>().join(", ")
}
