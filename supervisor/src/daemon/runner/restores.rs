//! Taking up a state that was saved.
//!
//! A process that would begin with nothing is given the file, verifies it, and owns what it holds; then
//! the file gets another name, so that it is taken up once.

use std::os::fd::AsFd;

use heirloom_handover::fault::{self, Point};
use heirloom_handover::message::{Order, Report};

use super::Runner;
use crate::control::protocol::EventKind;
use crate::core::service::ProcessId;
use crate::daemon::memory::size;
use crate::daemon::process::Custody;
use crate::daemon::state_file;

impl Runner {
    /// Lets a process take a saved state up, if there is one; says whether there is.
    pub(super) fn restore(&mut self, id: ProcessId) -> bool {
        let Some(process) = self.processes.get(&id) else {
            return false;
        };
        let Some(path) = process.plan.service.state_file.clone() else {
            return false;
        };
        let file = match state_file::open(&path) {
            Ok(Some(file)) => file,
            Ok(None) => return false,
            Err(error) => {
                self.fail_with(id, cannot_restore(&path, &error.to_string()));
                return true;
            }
        };
        self.last_migration += 1;
        let number = self.last_migration;
        let order = Order::Restore {
            migration: number,
            bytes_max: Some(process.plan.service.max_state.bytes()),
        };
        fault::reached(Point::Restore);
        let told = process.order(&order, &[file.as_fd()]);
        let ready = false;
        self.entrust(id, Custody::Restoring { number, ready });
        self.look_no_longer(id);
        if let Err(error) = told {
            self.fail_with(id, cannot_restore(&path, &error.to_string()));
        }
        true
    }

    /// A process that takes a saved state up has said something.
    pub(super) fn restore_said(&mut self, id: ProcessId, report: Report) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let Custody::Restoring { number, ready } = process.native.custody else {
            return;
        };
        let Some(path) = process.plan.service.state_file.clone() else {
            return;
        };
        match report {
            Report::Ready { entries, bytes, .. } if !ready => {
                let order = Order::Commit {
                    migration: number,
                    alone: true,
                };
                let told = process.order(&order, &[]);
                let text = format!(
                    "it has read {}: {entries} entries, {}",
                    path.display(),
                    size(bytes)
                );
                let ready = true;
                process.native.custody = Custody::Restoring { number, ready };
                let generation = Some(process.generation);
                self.note(generation, EventKind::Restored, &text);
                if let Err(error) = told {
                    self.fail_with(id, cannot_restore(&path, &error.to_string()));
                }
            }
            Report::Committed { .. } if ready => {
                fault::reached(Point::Restored);
                process.native.restored = true;
                process.native.custody = Custody::Owner;
                // It must not come back with a later start.
                if let Err(error) = state_file::mark_restored(&path) {
                    let (service, generation) = (&self.service.name, process.generation);
                    let path = path.display();
                    tracing::error!(
                        service,
                        generation,
                        "{path} was taken up and cannot be renamed ({error}); move it away, or the next start takes it up again"
                    );
                }
                self.look_for_readiness(id);
            }
            Report::Reject { reason, .. } => {
                self.fail_with(id, cannot_restore(&path, &reason));
            }
            other => {
                let bytes = other.to_bytes();
                let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
                let line = String::from_utf8_lossy(line);
                self.fail_with(id, cannot_restore(&path, &format!("it answered {line}")));
            }
        }
    }
}

fn cannot_restore(path: &std::path::Path, why: &str) -> String {
    let path = path.display();
    format!(
        "the new program did not take the state in {path} up: {why}; the file was left alone: see `heirloom inspect {path}`, or move it away to begin without"
    )
}
