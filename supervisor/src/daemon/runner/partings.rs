//! How processes are told to finish and end: by their signal, or in the words of the protocol.

use heirloom_handover::fault::{self, Point};
use heirloom_handover::message::Order;

use super::Runner;
use crate::control::protocol::EventKind;
use crate::core::generation::Event as Life;
use crate::core::service::ProcessId;
use crate::daemon::process::Custody;

impl Runner {
    /// Tells a process to finish and end: one that has given its state away by an order, one whose state
    /// is to be kept as well, any other by its signal.
    pub(super) fn tell_to_end(&mut self, id: ProcessId, event: Life) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let (custody, deaf) = (process.native.custody, process.native.deaf);
        let native = process.native.hello.is_some();
        match custody {
            Custody::Yielded => self.retire(id),
            // Before it knows, it would take the order for the end of the migration.
            Custody::Parting { number, .. } if !deaf => {
                let retire = true;
                self.entrust(id, Custody::Parting { number, retire });
            }
            Custody::Owner if event == Life::Retire && self.stop_and_keep(id) => {}
            Custody::Unasked if event == Life::Retire && native => {
                self.cannot_keep(id);
                self.stop_by_signal(id);
            }
            Custody::Owner
            | Custody::Unasked
            | Custody::Waiting
            | Custody::Receiving
            | Custody::Restoring { .. }
            | Custody::Dismissed
            | Custody::Parting { .. } => self.stop_by_signal(id),
        }
    }

    pub(super) fn stop_by_signal(&self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let stop_signal = process.plan.service.stop_signal;
        process.tell(stop_signal.0);
        if process.family.is_some() {
            let text = format!("told to finish and end ({stop_signal})");
            self.note(Some(process.generation), EventKind::Draining, &text);
        }
    }

    /// A process says that it knows that another owns its state.
    pub(super) fn yielded(&mut self, id: ProcessId, of: u64) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let text = "it has seen that the new generation owns the state";
        match process.native.custody {
            Custody::Parting { number, retire } if number == of => {
                self.note(Some(process.generation), EventKind::Yielded, text);
                self.entrust(id, Custody::Yielded);
                if retire {
                    self.retire(id);
                }
            }
            // It was silent for so long that the handover was given up, and the new one is gone.
            Custody::Owner if (1..=self.last_migration).contains(&of) => {
                self.note(Some(process.generation), EventKind::Yielded, text);
                self.bereave(id);
            }
            Custody::Owner
            | Custody::Parting { .. }
            | Custody::Unasked
            | Custody::Waiting
            | Custody::Receiving
            | Custody::Restoring { .. }
            | Custody::Dismissed
            | Custody::Yielded => {}
        }
    }

    /// Tells a process that has given its state away to finish and end.
    pub(super) fn retire(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        fault::reached(Point::Retire);
        match process.order(&Order::Retire, &[]) {
            Ok(()) => {
                fault::reached(Point::Retired);
                let text = "told to finish and end (RETIRE)";
                self.note(Some(process.generation), EventKind::Draining, text);
            }
            Err(_) => self.stop_by_signal(id),
        }
    }
}
