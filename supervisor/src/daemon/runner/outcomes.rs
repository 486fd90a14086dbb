//! What comes of moving a state: who owns it, what that means for the lives of both processes, and
//! the figures for the report.

use std::time::Duration;

use heirloom_handover::fault::{self, Point};

use super::Runner;
use super::migrations::Migration;
use crate::control::protocol::EventKind;
use crate::core::generation::{Event as Life, Phase};
use crate::core::service::ProcessId;
use crate::core::transfer::{Outcome, Purpose};
use crate::daemon::input::{ProcessInput, ServiceInput};
use crate::daemon::memory::size;
use crate::daemon::process::Custody;

/// How long a process whose state has gone to one that is dead may take to say that it has it back.
const LONGEST_RETURN: Duration = Duration::from_secs(2);

impl Runner {
    /// A migration is over.
    pub(super) fn transferred(&mut self, new: ProcessId, outcome: Outcome) {
        let Some(mut migration) = self.migrations.remove(&new) else {
            return;
        };
        let blame = migration.blame.take();
        fault::reached(Point::Verdict);
        match outcome {
            Outcome::Committed => {
                self.settle_accounts(new, &migration);
                self.passed_on(new, &migration);
                self.feed(new, Life::Ready);
                self.hear_early(new, &migration);
            }
            Outcome::Rehearsed => {
                self.settle_accounts(new, &migration);
                self.entrust(new, Custody::Dismissed);
                self.feed(new, Life::Ready);
            }
            Outcome::Aborted => {
                self.entrust(new, Custody::Dismissed);
                self.dismiss(new, blame, migration.remark.take());
            }
            Outcome::Fallen => {
                let starting = self
                    .processes
                    .get(&new)
                    .is_some_and(|process| process.phase == Phase::Starting);
                if starting {
                    self.passed_on(new, &migration);
                    self.expect_undoing();
                    self.feed(new, Life::Ready);
                    self.let_fall(new, blame);
                    self.hear_early(new, &migration);
                } else {
                    self.bereave(migration.old);
                }
            }
        }
        if self.stop_wanted && !self.is_undecided() {
            self.stop(false);
        }
    }

    /// The new process owns the state now.
    fn passed_on(&mut self, new: ProcessId, migration: &Migration) {
        self.entrust(new, Custody::Owner);
        let parting = if migration.yielded {
            Custody::Yielded
        } else {
            Custody::Parting {
                number: migration.number,
                retire: false,
            }
        };
        self.entrust(migration.old, parting);
        if migration.way_back {
            self.begin_reserve(new, migration.old, migration.number);
        }
    }

    /// What was said of the way back before it was known that there is one.
    fn hear_early(&mut self, new: ProcessId, migration: &Migration) {
        for (by, report) in &migration.early {
            self.reserve_said(new, *by, report);
        }
    }

    /// What the migration came to, for the report of its handover.
    fn settle_accounts(&mut self, new: ProcessId, migration: &Migration) {
        let (entries, bytes) = migration.verified;
        let frozen = migration.frozen;
        let pause_usec = frozen.and_then(|frozen| {
            let at = migration.committed_at_usec?;
            Some(at.saturating_sub(frozen.at_usec))
        });
        let pause_ms = in_ms(pause_usec.unwrap_or(0));
        let rounds = frozen.map_or(0, |frozen| frozen.rounds);
        let Some(process) = self.processes.get(&new) else {
            return;
        };
        let (generation, plan) = (Some(process.generation), process.plan_id);
        if migration.purpose == Purpose::Handover {
            let text = format!(
                "it owns the state: {entries} entries, {} in {}, paused {pause_ms:.1} ms",
                size(bytes),
                in_rounds(rounds)
            );
            self.note(generation, EventKind::TakenOver, &text);
        }
        if let Some(moved) = self.moved(plan) {
            moved.pause_ms = moved.pause_ms.max(pause_ms);
            moved.stall_ms = moved
                .stall_ms
                .max(in_ms(frozen.map_or(0, |frozen| frozen.stall_usec)));
            moved.bytes += bytes;
            moved.entries += entries;
            moved.rounds = moved.rounds.max(rounds);
        }
    }

    /// A process did not come to own the state: it is let go, with the reason, unless it is dead; then
    /// its death is told as any other.
    fn dismiss(&mut self, new: ProcessId, why: Option<String>, remark: Option<String>) {
        let Some(process) = self.processes.get_mut(&new) else {
            return;
        };
        if process.phase != Phase::Starting {
            return;
        }
        let reaped = process.family.as_ref().is_none_or(|one| one.main_is_reaped);
        let dead = reaped || process.is_ending();
        let known = why.is_some();
        if known {
            // Its death, if it is dead, is the effect.
            process.reason = why;
        } else if !reaped {
            process.native.remark = remark;
        } else if let (Some(reason), Some(remark)) = (&mut process.reason, remark) {
            reason.push_str(&format!("; {remark}"));
        }
        if process.output_over {
            self.feed(new, Life::Exited);
            self.check_for_empty();
        } else if !dead || (known && !reaped) {
            self.fail_with(new, "the state was not taken over".to_owned());
        }
    }

    /// A process that owned the state is dead, or was killed.
    fn let_fall(&mut self, new: ProcessId, why: Option<String>) {
        let Some(process) = self.processes.get_mut(&new) else {
            return;
        };
        let gone = "the program died in the instant in which it took the state over";
        let why = why.unwrap_or_else(|| gone.to_owned());
        if process.output_over {
            process.reason = Some(why);
            self.feed(new, Life::Exited);
            self.check_for_empty();
        } else if !process
            .family
            .as_ref()
            .is_some_and(|one| one.main_is_reaped)
        {
            self.fail_with(new, why);
        }
    }

    /// A process has given its state to one that is gone: it can serve nobody, and is replaced like one
    /// that died. That is for the next turn of the loop, for this may be within a step of the machine.
    pub(super) fn bereave(&mut self, old: ProcessId) {
        self.entrust(old, Custody::Yielded);
        let input = ServiceInput::Process(old, ProcessInput::Life(Life::Failed));
        let hello = self.processes.get(&old).map(|old| &old.native.hello);
        let may_return = hello.is_some_and(|hello| hello.as_ref().is_some_and(|one| one.way_back));
        let patience = if may_return {
            LONGEST_RETURN
        } else {
            Duration::ZERO
        };
        let timer = self.timer(patience, input);
        if let Some(process) = self.processes.get_mut(&old) {
            let why = "the program had given its state to another, which is gone";
            process.reason.get_or_insert_with(|| why.to_owned());
            process.deadlines.bereft = Some(timer);
        }
    }
}

fn in_ms(usec: u64) -> f64 {
    usec as f64 / 1e3
}

pub(super) fn in_rounds(rounds: u64) -> String {
    match rounds {
        1 => "1 round".to_owned(),
        more => format!("{more} rounds"),
    }
}
