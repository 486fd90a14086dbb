//! One service: which of its processes serve, and how one program takes over from another.
//!
//! A service has a number of *slots*, one an instance, and each slot at most one process that
//! serves or is about to. A handover replaces the process of one slot after the other. The machine
//! is told what happened ([`Event`]) and answers what is to be done ([`Action`]); it holds no
//! reasons, times or descriptors, only identities.
//!
//! A *plan* is a program as it was looked up: the opened file, arguments, environment, directory.
//! A plan is *proven* once a process of it has lived through its probation; the first plan ever to
//! serve is taken as proven, for there is nothing better.

//!
//! [`vocabulary`] has the words, [`rollout`] replaces processes, [`slots`] keeps each slot filled;
//! here is what each event means for the whole.

mod rollout;
mod slots;
mod vocabulary;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use rollout::{Purpose, Rollout, Stage};
use slots::{LOOK_AGAIN_AFTER, Slot};
pub(crate) use vocabulary::{
    Action, Event, Finish, Generation, Job, Kind, Outcome, PlanId, Policy, ProcessId, State,
    Strategy,
};

/// What is being done beside keeping slots filled.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Activity {
    Idle,
    /// A handover waits until fewer processes drain.
    WaitingForRoom(Job),
    Replacing(Rollout),
}

/// The machine. Its form in JSON is part of the record that one supervisor leaves to the next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Service {
    policy: Policy,
    slots: Vec<Slot>,
    /// Every process that was spawned and is not gone: its generation, slot and plan.
    living: BTreeMap<ProcessId, (Generation, usize, PlanId)>,
    /// Those of them whose place another has taken, and that may yet come back.
    replaced: BTreeSet<ProcessId>,
    activity: Activity,
    /// A handover that arrived while another ran.
    next: Option<Job>,
    /// What the slots run when nothing is being done.
    current: Option<PlanId>,
    /// Proven plans, the latest last; two at most.
    proven: Vec<PlanId>,
    /// Every plan that was handed in and not given up.
    plans: BTreeSet<PlanId>,
    /// The last handover that committed.
    last_commit: (Generation, Generation),
    last_death: ProcessId,
    stopping: bool,
    stopped: bool,
    last_process: u64,
    last_generation: Generation,
}

type Actions = Vec<Action>;

impl Service {
    /// A service that has not been started.
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            slots: vec![Slot::Vacant; policy.instances],
            policy,
            living: BTreeMap::new(),
            replaced: BTreeSet::new(),
            activity: Activity::Idle,
            next: None,
            current: None,
            proven: Vec::new(),
            plans: BTreeSet::new(),
            last_commit: (0, 0),
            last_death: ProcessId(0),
            stopping: false,
            stopped: false,
            last_process: 0,
            last_generation: 0,
        }
    }

    /// The plan that `rollback` would bring back.
    pub(crate) fn rollback_target(&self) -> Option<PlanId> {
        self.proven
            .iter()
            .rev()
            .find(|plan| Some(**plan) != self.current)
            .copied()
    }

    /// What the slots run when nothing is being done.
    pub(crate) fn current(&self) -> Option<PlanId> {
        self.current
    }

    /// Whether the plan has lived through its probation.
    pub(crate) fn is_proven(&self, plan: PlanId) -> bool {
        self.proven.contains(&plan)
    }

    /// The serving process whose place a starting one is to take.
    pub(crate) fn predecessor(&self, process: ProcessId) -> Option<ProcessId> {
        let Activity::Replacing(rollout) = &self.activity else {
            return None;
        };
        if rollout.stage != Stage::Starting(process) {
            return None;
        }
        match self.slots.get(rollout.slot) {
            Some(Slot::Serving { process, .. }) => Some(*process),
            Some(Slot::Vacant | Slot::Starting { .. } | Slot::BackingOff { .. }) | None => None,
        }
    }

    /// The process that is about to serve and whose place another starting one is to take.
    pub(crate) fn starting_predecessor(&self, process: ProcessId) -> Option<ProcessId> {
        let Activity::Replacing(rollout) = &self.activity else {
            return None;
        };
        match self.slots.get(rollout.slot) {
            Some(Slot::Starting { process: old, .. }) if *old != process => Some(*old),
            Some(_) | None => None,
        }
    }

    /// Whether it was told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether a handover runs or waits.
    pub(crate) fn is_handing_over(&self) -> bool {
        !matches!(self.activity, Activity::Idle)
    }

    /// What it is doing.
    pub(crate) fn state(&self) -> State {
        if self.stopped || (self.living.is_empty() && self.current.is_none()) {
            return State::Stopped;
        }
        if self.stopping {
            return State::Draining;
        }
        if self.is_handing_over() {
            return State::HandingOver;
        }
        let any = |wanted: fn(&Slot) -> bool| self.slots.iter().any(wanted);
        if any(|slot| matches!(slot, Slot::BackingOff { .. })) {
            State::BackingOff
        } else if any(|slot| matches!(slot, Slot::Starting { .. })) {
            State::Starting
        } else if any(|slot| matches!(slot, Slot::Serving { .. })) {
            State::Serving
        } else {
            State::Draining
        }
    }

    /// What follows when `event` happens.
    pub(crate) fn handle(&mut self, event: Event) -> Actions {
        let mut actions = Vec::new();
        match event {
            Event::Start(plan) => self.on_start(plan, &mut actions),
            Event::Handover(job) => self.on_handover(job, &mut actions),
            Event::Ready(process) => self.on_ready(process, &mut actions),
            Event::FailedToStart(process) => self.on_failed_to_start(process, &mut actions),
            Event::Died(process) => self.on_died(process, &mut actions),
            Event::Returned { new, old } => self.on_returned(new, old, &mut actions),
            Event::Gone(process) => self.on_gone(process, &mut actions),
            Event::Proved(process) => self.on_proved(process, &mut actions),
            Event::Settled(process) => self.on_settled(process),
            Event::BackoffOver(slot) => self.on_backoff_over(slot, &mut actions),
            Event::Stop => self.on_stop(&mut actions),
            Event::StopAtOnce => self.on_stop_at_once(&mut actions),
        }
        self.forget_unneeded(&mut actions);
        actions
    }

    fn on_start(&mut self, plan: PlanId, actions: &mut Actions) {
        self.plans.insert(plan);
        if self.stopping || self.current.is_some() {
            return;
        }
        self.current = Some(plan);
        let generation = self.next_generation();
        for slot in 0..self.slots.len() {
            self.start_slot(slot, plan, generation, 0, actions);
        }
    }

    fn on_handover(&mut self, job: Job, actions: &mut Actions) {
        self.plans.insert(job.plan);
        if self.stopping {
            actions.push(self.finish_unbegun(job));
        } else if self.is_handing_over() {
            // The daemon sends one at a time; a repair of our own may run all the same.
            self.next = Some(job);
        } else {
            self.begin_or_wait(job, actions);
        }
    }

    fn on_ready(&mut self, process: ProcessId, actions: &mut Actions) {
        if let Activity::Replacing(rollout) = &self.activity
            && rollout.stage == Stage::Starting(process)
        {
            let rollout = rollout.clone();
            self.slot_is_ready(rollout, process, actions);
            return;
        }
        let Some(slot) = self.slot_of(process) else {
            return;
        };
        if let Slot::Starting {
            process,
            plan,
            failures,
        } = self.slots[slot]
        {
            self.slots[slot] = Slot::Serving {
                process,
                plan,
                failures,
            };
            actions.push(Action::StartProbation(process));
            if self.proven.is_empty() {
                self.prove(plan, actions);
            }
        }
    }

    fn on_failed_to_start(&mut self, process: ProcessId, actions: &mut Actions) {
        if let Activity::Replacing(rollout) = &self.activity
            && rollout.stage == Stage::Starting(process)
        {
            let rollout = rollout.clone();
            self.rollout_failed(rollout, process, actions);
            return;
        }
        let Some(slot) = self.slot_of(process) else {
            return;
        };
        if let Slot::Starting { plan, failures, .. } = self.slots[slot] {
            self.retry_slot(slot, plan, failures.saturating_add(1).max(2), actions);
        }
    }

    fn on_died(&mut self, process: ProcessId, actions: &mut Actions) {
        let Some(slot) = self.slot_of(process) else {
            return;
        };
        let Slot::Serving { plan, failures, .. } = self.slots[slot] else {
            return;
        };
        self.slots[slot] = Slot::Vacant;
        self.last_death = process;
        match &self.activity {
            Activity::Replacing(rollout) => {
                let replaces_it = rollout.slot == slot;
                let spoiled =
                    rollout.touched.contains(&slot) && matches!(rollout.purpose, Purpose::Asked(_));
                let rollout = rollout.clone();
                if spoiled && !replaces_it {
                    self.abandon_new(&rollout, actions);
                    self.rollout_failed(rollout, process, actions);
                } else if !replaces_it || matches!(rollout.purpose, Purpose::Asked(Kind::DryRun)) {
                    self.respawn(slot, plan, failures, actions);
                }
                // Otherwise its successor is on its way and takes the slot.
            }
            Activity::WaitingForRoom(_) => self.respawn(slot, plan, failures, actions),
            Activity::Idle => {
                let unproven = Some(plan) == self.current && !self.is_proven(plan);
                match self.rollback_target().filter(|_| unproven) {
                    Some(proven) => {
                        let (from, to) = self.last_commit;
                        let purpose = Purpose::Undo {
                            culprit: process,
                            from,
                            to,
                            concludes: None,
                        };
                        let slots = (0..self.slots.len()).collect();
                        self.replace(purpose, proven, self.policy, slots, actions);
                    }
                    None => self.respawn(slot, plan, failures, actions),
                }
            }
        }
    }

    fn on_returned(&mut self, new: ProcessId, old: ProcessId, actions: &mut Actions) {
        let Some((_, _, plan)) = self.living.get(&old).copied() else {
            return;
        };
        let Some(slot) = self.slot_of(new) else {
            // Its slot was given up meanwhile.
            return actions.push(Action::Retire(old));
        };
        let failures = 0;
        self.replaced.remove(&old);
        self.slots[slot] = Slot::Serving {
            process: old,
            plan,
            failures,
        };
        actions.extend([Action::Retire(new), Action::StartProbation(old)]);
        let (from, to) = self.last_commit;
        match &self.activity {
            Activity::Idle if Some(plan) != self.current => {
                let others = (0..self.slots.len()).filter(|other| !self.runs(*other, plan));
                let others: VecDeque<usize> = others.collect();
                let concludes = None;
                if others.is_empty() {
                    self.current = Some(plan);
                    let (culprit, restored) = (new, true);
                    let outcome = Outcome::RolledBack { culprit, restored };
                    actions.push(Action::Finished(Finish {
                        from,
                        to,
                        outcome,
                        concludes,
                    }));
                } else {
                    let purpose = Purpose::Undo {
                        culprit: new,
                        from,
                        to,
                        concludes,
                    };
                    self.replace(purpose, plan, self.policy, others, actions);
                }
            }
            Activity::Replacing(rollout)
                if rollout.touched.contains(&slot)
                    && matches!(rollout.purpose, Purpose::Asked(_)) =>
            {
                let mut rollout = rollout.clone();
                rollout.touched.remove(&slot);
                self.abandon_new(&rollout, actions);
                self.rollout_failed(rollout, new, actions);
            }
            Activity::Idle | Activity::WaitingForRoom(_) | Activity::Replacing(_) => {}
        }
    }

    fn on_gone(&mut self, process: ProcessId, actions: &mut Actions) {
        self.living.remove(&process);
        self.replaced.remove(&process);
        if self.stopping {
            self.note_stopped(actions);
            return;
        }
        match &self.activity {
            Activity::Replacing(rollout) if rollout.stage == Stage::Emptying(process) => {
                let rollout = rollout.clone();
                let slot = rollout.slot;
                self.enter_slot(rollout, slot, actions);
            }
            Activity::WaitingForRoom(job) => {
                let job = *job;
                if self.has_room() {
                    self.begin(job, actions);
                }
            }
            Activity::Replacing(_) | Activity::Idle => {}
        }
    }

    fn on_proved(&mut self, process: ProcessId, actions: &mut Actions) {
        let Some(slot) = self.slot_of(process) else {
            return;
        };
        let Slot::Serving { plan, .. } = self.slots[slot] else {
            return;
        };
        let rolled_out = !matches!(&self.activity, Activity::Replacing(r) if r.plan == plan);
        if rolled_out {
            self.prove(plan, actions);
        }
    }

    fn on_settled(&mut self, process: ProcessId) {
        if let Some(slot) = self.slot_of(process)
            && let Slot::Serving { failures, .. } = &mut self.slots[slot]
        {
            *failures = 0;
        }
    }

    fn on_backoff_over(&mut self, slot: usize, actions: &mut Actions) {
        let Some(Slot::BackingOff { plan, failures }) = self.slots.get(slot).copied() else {
            return;
        };
        if self.stopping {
            return;
        }
        if self.must_wait_for(slot, self.policy).is_some() {
            let delay = LOOK_AGAIN_AFTER;
            actions.push(Action::StartBackoff { slot, delay });
        } else {
            let generation = self.next_generation();
            self.start_slot(slot, plan, generation, failures, actions);
        }
    }

    fn on_stop(&mut self, actions: &mut Actions) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        match std::mem::replace(&mut self.activity, Activity::Idle) {
            Activity::Idle => {}
            Activity::WaitingForRoom(job) => actions.push(self.finish_unbegun(job)),
            Activity::Replacing(rollout) => {
                self.abandon_new(&rollout, actions);
                actions.push(rollout.finish(Outcome::Interrupted));
            }
        }
        if let Some(job) = self.next.take() {
            actions.push(self.finish_unbegun(job));
        }
        for slot in &mut self.slots {
            match std::mem::replace(slot, Slot::Vacant) {
                Slot::Serving { process, .. } | Slot::Starting { process, .. } => {
                    actions.push(Action::Retire(process));
                }
                Slot::Vacant | Slot::BackingOff { .. } => {}
            }
        }
        self.note_stopped(actions);
    }

    fn on_stop_at_once(&mut self, actions: &mut Actions) {
        self.on_stop(actions);
        actions.extend(self.living.keys().map(|process| Action::Kill(*process)));
    }

    fn note_stopped(&mut self, actions: &mut Actions) {
        if self.living.is_empty() && !self.stopped {
            self.stopped = true;
            actions.push(Action::Stopped);
        }
    }
}
