//! Single slots, and the plans their processes are of.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::vocabulary::{Action, Finish, Generation, Outcome, PlanId, Policy, ProcessId, Strategy};
use super::{Actions, Activity, Service};
use crate::core::backoff;

/// How soon it is looked again whether the last process of a slot has gone.
pub(super) const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What holds a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Slot {
    Vacant,
    /// A process starts, outside any handover, after so many failures in a row.
    Starting {
        process: ProcessId,
        plan: PlanId,
        failures: u32,
    },
    Serving {
        process: ProcessId,
        plan: PlanId,
        failures: u32,
    },
    BackingOff {
        plan: PlanId,
        failures: u32,
    },
}

impl Service {
    pub(super) fn spawn(
        &mut self,
        plan: PlanId,
        generation: Generation,
        slot: usize,
        actions: &mut Actions,
    ) -> ProcessId {
        self.last_process += 1;
        let process = ProcessId(self.last_process);
        self.living.insert(process, (generation, slot, plan));
        actions.push(Action::Spawn {
            process,
            plan,
            generation,
            slot,
        });
        process
    }

    pub(super) fn start_slot(
        &mut self,
        slot: usize,
        plan: PlanId,
        generation: Generation,
        failures: u32,
        actions: &mut Actions,
    ) {
        let process = self.spawn(plan, generation, slot, actions);
        self.slots[slot] = Slot::Starting {
            process,
            plan,
            failures,
        };
    }

    /// Puts a process into a slot whose process died, from a proven plan if there is one.
    pub(super) fn respawn(
        &mut self,
        slot: usize,
        plan: PlanId,
        failures: u32,
        actions: &mut Actions,
    ) {
        let plan = match self.proven.last().copied() {
            Some(proven) if !self.is_proven(plan) => {
                if self.current == Some(plan) {
                    self.note_rolled_back(proven, actions);
                }
                proven
            }
            Some(_) | None => plan,
        };
        self.retry_slot(slot, plan, failures.saturating_add(1), actions);
    }

    /// A plan that had committed and was not proven is given up without a handover of its own:
    /// another one is under way.
    fn note_rolled_back(&mut self, proven: PlanId, actions: &mut Actions) {
        self.current = Some(proven);
        let (from, to) = self.last_commit;
        let outcome = Outcome::RolledBack {
            culprit: self.last_death,
            restored: true,
        };
        actions.push(Action::Finished(Finish {
            from,
            to,
            outcome,
            concludes: None,
        }));
    }

    /// A process that must be gone before another may start in the slot: none may run twice.
    pub(super) fn must_wait_for(&self, slot: usize, policy: Policy) -> Option<ProcessId> {
        if policy.strategy != Strategy::Sequential {
            return None;
        }
        let in_slot = self.living.iter().find(|(_, (_, of, _))| *of == slot);
        in_slot.map(|(process, _)| *process)
    }

    /// Sees to it that no slot stays empty once nothing is being done to it.
    pub(super) fn fill_vacant(&mut self, failures: u32, actions: &mut Actions) {
        let Some(plan) = self.current else { return };
        for slot in 0..self.slots.len() {
            if self.slots[slot] == Slot::Vacant {
                self.respawn(slot, plan, failures.saturating_sub(1), actions);
            }
        }
    }

    pub(super) fn retry_slot(
        &mut self,
        slot: usize,
        plan: PlanId,
        failures: u32,
        actions: &mut Actions,
    ) {
        let delay = match self.must_wait_for(slot, self.policy) {
            Some(_) => backoff::delay(failures).max(LOOK_AGAIN_AFTER),
            None => backoff::delay(failures),
        };
        if delay.is_zero() {
            let generation = self.next_generation();
            self.start_slot(slot, plan, generation, failures, actions);
        } else {
            self.slots[slot] = Slot::BackingOff { plan, failures };
            actions.push(Action::StartBackoff { slot, delay });
        }
    }

    pub(super) fn slot_of(&self, process: ProcessId) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| slot.process() == Some(process))
    }

    pub(super) fn serves(&self, slot: usize) -> bool {
        matches!(self.slots[slot], Slot::Serving { .. })
    }

    pub(super) fn runs(&self, slot: usize, wanted: PlanId) -> bool {
        matches!(self.slots[slot], Slot::Serving { plan, .. } if plan == wanted)
    }

    pub(super) fn serving_generation(&self) -> Generation {
        let serving = self.slots.iter().filter_map(|slot| match slot {
            Slot::Serving { process, .. } => self
                .living
                .get(process)
                .map(|(generation, _, _)| *generation),
            Slot::Vacant | Slot::Starting { .. } | Slot::BackingOff { .. } => None,
        });
        serving.max().unwrap_or(0)
    }

    pub(super) fn next_generation(&mut self) -> Generation {
        self.last_generation += 1;
        self.last_generation
    }

    pub(super) fn prove(&mut self, plan: PlanId, actions: &mut Actions) {
        if self.proven.last() == Some(&plan) {
            return;
        }
        let news = !self.is_proven(plan);
        self.proven.retain(|proven| *proven != plan);
        self.proven.push(plan);
        if self.proven.len() > 2 {
            self.proven.remove(0);
        }
        if news {
            actions.push(Action::Proven(plan));
        }
    }

    /// Whether something may be started by this plan.
    pub(crate) fn needs(&self, plan: PlanId) -> bool {
        self.plans.contains(&plan)
    }

    /// Gives up every plan that nothing runs, waits for or may return to.
    pub(super) fn forget_unneeded(&mut self, actions: &mut Actions) {
        let mut needed: BTreeSet<PlanId> = self.proven.iter().copied().collect();
        needed.extend(self.current);
        needed.extend(self.next.map(|job| job.plan));
        needed.extend(self.slots.iter().filter_map(Slot::plan));
        let plan_of = |process| self.living.get(process).map(|(_, _, plan)| *plan);
        needed.extend(self.replaced.iter().filter_map(plan_of));
        match &self.activity {
            Activity::Idle => {}
            Activity::WaitingForRoom(job) => needed.extend([job.plan]),
            Activity::Replacing(rollout) => needed.extend([rollout.plan]),
        }
        let unneeded: Vec<PlanId> = self.plans.difference(&needed).copied().collect();
        for plan in unneeded {
            self.plans.remove(&plan);
            actions.push(Action::Forget(plan));
        }
    }
}

impl Slot {
    pub(super) fn process(&self) -> Option<ProcessId> {
        match self {
            Self::Starting { process, .. } | Self::Serving { process, .. } => Some(*process),
            Self::Vacant | Self::BackingOff { .. } => None,
        }
    }

    pub(super) fn plan(&self) -> Option<PlanId> {
        match self {
            Self::Starting { plan, .. }
            | Self::Serving { plan, .. }
            | Self::BackingOff { plan, .. } => Some(*plan),
            Self::Vacant => None,
        }
    }
}
