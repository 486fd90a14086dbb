//! Replacing the processes of slots, one after the other: a handover, its dry run, or its undoing.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::slots::Slot;
use super::vocabulary::{
    Action, Finish, Generation, Job, Kind, Outcome, PlanId, Policy, ProcessId, Strategy,
};
use super::{Actions, Activity, Service};

/// Why slots are being replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    Asked(Kind),
    /// To bring back the plan of before, because a process of this handover failed.
    Undo {
        culprit: ProcessId,
        from: Generation,
        to: Generation,
        concludes: Option<PlanId>,
    },
}

/// What the handover waits for in the slot it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// For the old process to be gone.
    Emptying(ProcessId),
    /// For the new process to be ready.
    Starting(ProcessId),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Rollout {
    pub(super) purpose: Purpose,
    pub(super) plan: PlanId,
    pub(super) policy: Policy,
    pub(super) from: Generation,
    pub(super) to: Generation,
    pub(super) slot: usize,
    pub(super) stage: Stage,
    /// Slots still to come.
    pub(super) to_come: VecDeque<usize>,
    /// Slots that do not run what they ran before.
    pub(super) touched: BTreeSet<usize>,
}

impl Service {
    pub(super) fn begin_or_wait(&mut self, job: Job, actions: &mut Actions) {
        if self.has_room() {
            self.begin(job, actions);
        } else {
            self.activity = Activity::WaitingForRoom(job);
            actions.push(Action::WaitingForRoom);
        }
    }

    pub(super) fn begin(&mut self, job: Job, actions: &mut Actions) {
        let slots = match job.kind {
            Kind::DryRun => 0..1,
            Kind::Reload | Kind::Rollback => {
                let more = job.policy.instances.max(self.slots.len());
                self.slots.resize(more, Slot::Vacant);
                0..job.policy.instances
            }
        };
        let purpose = Purpose::Asked(job.kind);
        self.replace(purpose, job.plan, job.policy, slots.collect(), actions);
    }

    /// Starts replacing `slots`, of which there is at least one.
    pub(super) fn replace(
        &mut self,
        purpose: Purpose,
        plan: PlanId,
        policy: Policy,
        mut slots: VecDeque<usize>,
        actions: &mut Actions,
    ) {
        // Slots in which nothing serves come first: they are what clients miss.
        slots
            .make_contiguous()
            .sort_by_key(|slot| self.serves(*slot));
        let from = self.serving_generation();
        let to = self.next_generation();
        actions.push(Action::Begun { from, to });
        let first = slots.pop_front().unwrap_or_default();
        let rollout = Rollout {
            purpose,
            plan,
            policy,
            from,
            to,
            slot: first,
            stage: Stage::Starting(ProcessId(0)),
            to_come: slots,
            touched: BTreeSet::new(),
        };
        self.enter_slot(rollout, first, actions);
    }

    pub(super) fn enter_slot(&mut self, mut rollout: Rollout, slot: usize, actions: &mut Actions) {
        let sequential = rollout.policy.strategy == Strategy::Sequential;
        let rehearsal = rollout.purpose == Purpose::Asked(Kind::DryRun);
        rollout.slot = slot;
        let spawned = |machine: &mut Self, rollout: &Rollout, actions: &mut Actions| {
            Stage::Starting(machine.spawn(rollout.plan, rollout.to, slot, actions))
        };
        rollout.stage = match self.slots[slot] {
            _any if rehearsal => spawned(self, &rollout, actions),
            Slot::Serving { process, .. } if sequential => {
                self.slots[slot] = Slot::Vacant;
                rollout.touched.insert(slot);
                actions.push(Action::Retire(process));
                Stage::Emptying(process)
            }
            Slot::Starting { process, .. } if sequential => {
                self.slots[slot] = Slot::Vacant;
                actions.push(Action::Discard(process));
                Stage::Emptying(process)
            }
            Slot::Vacant | Slot::BackingOff { .. } => {
                self.slots[slot] = Slot::Vacant;
                match self.must_wait_for(slot, rollout.policy) {
                    Some(process) => Stage::Emptying(process),
                    None => spawned(self, &rollout, actions),
                }
            }
            // What starts there may yet be what serves, should the new one fail.
            Slot::Serving { .. } | Slot::Starting { .. } => spawned(self, &rollout, actions),
        };
        self.activity = Activity::Replacing(rollout);
    }

    pub(super) fn slot_is_ready(
        &mut self,
        mut rollout: Rollout,
        process: ProcessId,
        actions: &mut Actions,
    ) {
        if rollout.purpose == Purpose::Asked(Kind::DryRun) {
            actions.push(Action::Retire(process));
            self.finish(&rollout, Outcome::Rehearsed, actions);
            return;
        }
        let slot = rollout.slot;
        match self.slots[slot] {
            Slot::Serving { process: old, .. } => {
                self.replaced.insert(old);
                actions.push(Action::Retire(old));
            }
            Slot::Starting { process: old, .. } => actions.push(Action::Discard(old)),
            Slot::Vacant | Slot::BackingOff { .. } => {}
        }
        self.slots[slot] = Slot::Serving {
            process,
            plan: rollout.plan,
            failures: 0,
        };
        rollout.touched.insert(slot);
        actions.push(Action::StartProbation(process));
        if let Some(next) = rollout.to_come.pop_front() {
            self.enter_slot(rollout, next, actions);
            return;
        }
        self.current = Some(rollout.plan);
        self.policy = rollout.policy;
        self.shrink(actions);
        if self.proven.is_empty() {
            self.prove(rollout.plan, actions);
        }
        let outcome = match rollout.purpose {
            Purpose::Asked(_) => {
                self.last_commit = (rollout.from, rollout.to);
                Outcome::Committed
            }
            Purpose::Undo { culprit, .. } => Outcome::RolledBack {
                culprit,
                restored: true,
            },
        };
        self.finish(&rollout, outcome, actions);
    }

    /// The new process of a handover failed, or one that it had put in place already.
    pub(super) fn rollout_failed(
        &mut self,
        rollout: Rollout,
        culprit: ProcessId,
        actions: &mut Actions,
    ) {
        match rollout.purpose {
            Purpose::Asked(Kind::DryRun) => {
                self.finish(&rollout, Outcome::Aborted { culprit }, actions);
            }
            Purpose::Asked(Kind::Reload | Kind::Rollback) => match self.current {
                Some(before) if !rollout.touched.is_empty() => {
                    self.shrink(actions);
                    let mut slots = rollout.touched.clone();
                    slots.insert(rollout.slot);
                    slots.retain(|slot| *slot < self.slots.len() && !self.runs(*slot, before));
                    let Rollout { from, to, .. } = rollout;
                    if slots.is_empty() {
                        // Only instances that were to be added had been touched.
                        self.finish(&rollout, Outcome::Aborted { culprit }, actions);
                    } else {
                        let concludes = Some(rollout.plan);
                        let purpose = Purpose::Undo {
                            culprit,
                            from,
                            to,
                            concludes,
                        };
                        let slots = slots.into_iter().collect();
                        self.replace(purpose, before, self.policy, slots, actions);
                    }
                }
                Some(_) => {
                    self.shrink(actions);
                    self.finish(&rollout, Outcome::Aborted { culprit }, actions);
                }
                None => {
                    // Nothing ever served: what came up stays, the rest is tried again.
                    if !rollout.touched.is_empty() {
                        self.current = Some(rollout.plan);
                        self.policy = rollout.policy;
                    }
                    self.finish(&rollout, Outcome::Aborted { culprit }, actions);
                }
            },
            Purpose::Undo { culprit, .. } => {
                self.current = Some(rollout.plan);
                let restored = false;
                self.finish(&rollout, Outcome::RolledBack { culprit, restored }, actions);
            }
        }
    }

    pub(super) fn finish(&mut self, rollout: &Rollout, outcome: Outcome, actions: &mut Actions) {
        self.activity = Activity::Idle;
        actions.push(rollout.finish(outcome));
        let failures = match outcome {
            // The plan that is to fill them has just failed.
            Outcome::RolledBack {
                restored: false, ..
            } => 2,
            Outcome::Committed
            | Outcome::Rehearsed
            | Outcome::Aborted { .. }
            | Outcome::RolledBack { .. }
            | Outcome::Interrupted => 1,
        };
        self.fill_vacant(failures, actions);
        if let Some(job) = self.next.take() {
            self.begin_or_wait(job, actions);
        }
    }

    pub(super) fn finish_unbegun(&self, job: Job) -> Action {
        let from = self.serving_generation();
        let outcome = Outcome::Interrupted;
        Action::Finished(Finish {
            from,
            to: from,
            outcome,
            concludes: Some(job.plan),
        })
    }

    /// Lets the process go that the handover was starting.
    pub(super) fn abandon_new(&mut self, rollout: &Rollout, actions: &mut Actions) {
        match rollout.stage {
            Stage::Starting(process) => actions.push(Action::Discard(process)),
            Stage::Emptying(_) => {}
        }
    }

    /// Former generations that still drain leave room for one more.
    pub(super) fn has_room(&self) -> bool {
        let held = self
            .slots
            .iter()
            .filter(|slot| slot.process().is_some())
            .count();
        self.living.len() - held.min(self.living.len()) < self.policy.most_draining
    }

    /// Gives up the slots beyond the number of instances that holds now.
    pub(super) fn shrink(&mut self, actions: &mut Actions) {
        let kept = self.policy.instances.min(self.slots.len());
        for slot in self.slots.drain(kept..) {
            if let Some(process) = slot.process() {
                actions.push(Action::Retire(process));
            }
        }
    }
}

impl Rollout {
    pub(super) fn finish(&self, outcome: Outcome) -> Action {
        let (from, to, concludes) = match self.purpose {
            Purpose::Asked(_) => (self.from, self.to, Some(self.plan)),
            Purpose::Undo {
                from,
                to,
                concludes,
                ..
            } => (from, to, concludes),
        };
        Action::Finished(Finish {
            from,
            to,
            outcome,
            concludes,
        })
    }
}
