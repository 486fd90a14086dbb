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

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::backoff;

/// One process, for the life of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ProcessId(pub(crate) u64);

/// One plan, for the life of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PlanId(pub(crate) u64);

/// The number of a generation, from 1.
pub(crate) type Generation = u64;

/// How one program takes over from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// The new process is ready before the old one is told to stop.
    Overlap,
    /// The old process has ended before the new one starts; clients wait in the listeners.
    Sequential,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Hand over to the program as it stands now.
    Reload,
    /// Hand over to a proven program of before.
    Rollback,
    /// Start the program, see it ready, and let it go again.
    DryRun,
}

/// The settings of a service that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// How a handover is done.
    pub(crate) strategy: Strategy,
    /// How many processes serve at once.
    pub(crate) instances: usize,
    /// A handover waits while this many processes of former generations still drain.
    pub(crate) most_draining: usize,
}

/// A handover, looked up and ready to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) kind: Kind,
    pub(crate) plan: PlanId,
    /// The settings that hold once it has committed.
    pub(crate) policy: Policy,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The service is to run this plan from nothing.
    Start(PlanId),
    /// A handover was asked for, and the program looked up.
    Handover(Job),
    /// A process became ready.
    Ready(ProcessId),
    /// A process ended, or gave up, before it was ready.
    FailedToStart(ProcessId),
    /// A process that served does not any more.
    Died(ProcessId),
    /// Nothing of a process is left.
    Gone(ProcessId),
    /// A process has lived through its probation.
    Proved(ProcessId),
    /// The wait before a slot's next attempt is over.
    BackoffOver(usize),
    /// Let everything finish and end.
    Stop,
    /// End everything now.
    StopAtOnce,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a process of a plan.
    Spawn {
        process: ProcessId,
        plan: PlanId,
        generation: Generation,
        slot: usize,
    },
    /// Let a process finish and end.
    Retire(ProcessId),
    /// Let a process that is not wanted end soon.
    Discard(ProcessId),
    /// End a process now.
    Kill(ProcessId),
    /// Let a process's probation begin.
    StartProbation(ProcessId),
    /// Wait, then report [`Event::BackoffOver`].
    StartBackoff { slot: usize, delay: Duration },
    /// A handover has begun.
    Begun { from: Generation, to: Generation },
    /// It waits for a former generation to end.
    WaitingForRoom,
    /// A handover has ended.
    Finished(Finish),
    /// Nobody will need this plan again.
    Forget(PlanId),
    /// A plan has become proven.
    Proven(PlanId),
    /// Nothing of the service runs any more.
    Stopped,
}

/// How a handover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finish {
    /// The generation that served before; 0 if none did.
    pub(crate) from: Generation,
    /// The generation that was to take over.
    pub(crate) to: Generation,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// The plan of the handover that was asked for and ends with this; none if it had ended before,
    /// and this undoes it.
    pub(crate) concludes: Option<PlanId>,
}

/// What came of a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The new generation serves.
    Committed,
    /// The dry run's process became ready.
    Rehearsed,
    /// The new generation failed; what served before serves on.
    Aborted {
        /// The process that failed.
        culprit: ProcessId,
    },
    /// The new generation failed after it had taken over at least in part; the plan before it was
    /// brought back.
    RolledBack {
        /// The process that failed.
        culprit: ProcessId,
        /// Whether the plan before it serves again.
        restored: bool,
    },
    /// The service is being stopped.
    Interrupted,
}

/// What the service is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A slot's process is on its way and no handover runs.
    Starting,
    /// Every slot serves.
    Serving,
    /// A handover runs.
    HandingOver,
    /// Nothing serves any more and processes still finish.
    Draining,
    /// A slot waits for its next attempt.
    BackingOff,
    /// Nothing runs.
    Stopped,
}

/// What holds a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
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

/// Why slots are being replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// For the old process to be gone.
    Emptying(ProcessId),
    /// For the new process to be ready.
    Starting(ProcessId),
}

#[derive(Clone, Debug)]
struct Rollout {
    purpose: Purpose,
    plan: PlanId,
    policy: Policy,
    from: Generation,
    to: Generation,
    slot: usize,
    stage: Stage,
    /// Slots still to come.
    to_come: VecDeque<usize>,
    /// Slots that do not run what they ran before.
    touched: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum Activity {
    Idle,
    WaitingForRoom(Job),
    Replacing(Rollout),
}

/// The machine.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    policy: Policy,
    slots: Vec<Slot>,
    /// Every process that was spawned and is not gone.
    living: BTreeMap<ProcessId, Generation>,
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
            activity: Activity::Idle,
            next: None,
            current: None,
            proven: Vec::new(),
            plans: BTreeSet::new(),
            last_commit: (0, 0),
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

    /// Whether the plan has lived through its probation.
    pub(crate) fn is_proven(&self, plan: PlanId) -> bool {
        self.proven.contains(&plan)
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
            Event::Gone(process) => self.on_gone(process, &mut actions),
            Event::Proved(process) => self.on_proved(process, &mut actions),
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

    fn on_gone(&mut self, process: ProcessId, actions: &mut Actions) {
        self.living.remove(&process);
        if self.stopping {
            self.note_stopped(actions);
            return;
        }
        match &self.activity {
            Activity::Replacing(rollout) if rollout.stage == Stage::Emptying(process) => {
                let mut rollout = rollout.clone();
                rollout.stage =
                    Stage::Starting(self.spawn(rollout.plan, rollout.to, rollout.slot, actions));
                self.activity = Activity::Replacing(rollout);
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
        let Slot::Serving { plan, failures, .. } = &mut self.slots[slot] else {
            return;
        };
        *failures = 0;
        let plan = *plan;
        let rolled_out = !matches!(&self.activity, Activity::Replacing(r) if r.plan == plan);
        if rolled_out {
            self.prove(plan, actions);
        }
    }

    fn on_backoff_over(&mut self, slot: usize, actions: &mut Actions) {
        let Some(Slot::BackingOff { plan, failures }) = self.slots.get(slot).copied() else {
            return;
        };
        if !self.stopping {
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

    // Handovers.

    fn begin_or_wait(&mut self, job: Job, actions: &mut Actions) {
        if self.has_room() {
            self.begin(job, actions);
        } else {
            self.activity = Activity::WaitingForRoom(job);
            actions.push(Action::WaitingForRoom);
        }
    }

    fn begin(&mut self, job: Job, actions: &mut Actions) {
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
    fn replace(
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

    fn enter_slot(&mut self, mut rollout: Rollout, slot: usize, actions: &mut Actions) {
        let sequential = rollout.policy.strategy == Strategy::Sequential;
        let rehearsal = rollout.purpose == Purpose::Asked(Kind::DryRun);
        rollout.slot = slot;
        rollout.stage = match self.slots[slot] {
            Slot::Serving { process, .. } if sequential && !rehearsal => {
                self.slots[slot] = Slot::Vacant;
                rollout.touched.insert(slot);
                actions.push(Action::Retire(process));
                Stage::Emptying(process)
            }
            Slot::Starting { process, .. } if !rehearsal => {
                self.slots[slot] = Slot::Vacant;
                actions.push(Action::Discard(process));
                Stage::Starting(self.spawn(rollout.plan, rollout.to, slot, actions))
            }
            Slot::BackingOff { .. } if !rehearsal => {
                self.slots[slot] = Slot::Vacant;
                Stage::Starting(self.spawn(rollout.plan, rollout.to, slot, actions))
            }
            Slot::Vacant
            | Slot::Serving { .. }
            | Slot::Starting { .. }
            | Slot::BackingOff { .. } => {
                Stage::Starting(self.spawn(rollout.plan, rollout.to, slot, actions))
            }
        };
        self.activity = Activity::Replacing(rollout);
    }

    fn slot_is_ready(&mut self, mut rollout: Rollout, process: ProcessId, actions: &mut Actions) {
        if rollout.purpose == Purpose::Asked(Kind::DryRun) {
            actions.push(Action::Retire(process));
            self.finish(&rollout, Outcome::Rehearsed, actions);
            return;
        }
        let slot = rollout.slot;
        if let Slot::Serving { process: old, .. } = self.slots[slot] {
            actions.push(Action::Retire(old));
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
    fn rollout_failed(&mut self, rollout: Rollout, culprit: ProcessId, actions: &mut Actions) {
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
                Some(before) => {
                    self.shrink(actions);
                    if self.slots.get(rollout.slot) == Some(&Slot::Vacant) {
                        self.respawn(rollout.slot, before, 0, actions);
                    }
                    self.finish(&rollout, Outcome::Aborted { culprit }, actions);
                }
                None => {
                    // Nothing ever served: what came up stays, the rest is tried again.
                    if !rollout.touched.is_empty() {
                        self.current = Some(rollout.plan);
                        self.policy = rollout.policy;
                        self.retry_slot(rollout.slot, rollout.plan, 2, actions);
                    }
                    self.finish(&rollout, Outcome::Aborted { culprit }, actions);
                }
            },
            Purpose::Undo { culprit, .. } => {
                self.current = Some(rollout.plan);
                self.retry_slot(rollout.slot, rollout.plan, 2, actions);
                let outcome = Outcome::RolledBack {
                    culprit,
                    restored: false,
                };
                self.finish(&rollout, outcome, actions);
            }
        }
    }

    fn finish(&mut self, rollout: &Rollout, outcome: Outcome, actions: &mut Actions) {
        self.activity = Activity::Idle;
        actions.push(rollout.finish(outcome));
        if let Some(job) = self.next.take() {
            self.begin_or_wait(job, actions);
        }
    }

    fn finish_unbegun(&self, job: Job) -> Action {
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
    fn abandon_new(&mut self, rollout: &Rollout, actions: &mut Actions) {
        match rollout.stage {
            Stage::Starting(process) => actions.push(Action::Discard(process)),
            Stage::Emptying(_) => {}
        }
    }

    /// Former generations that still drain leave room for one more.
    fn has_room(&self) -> bool {
        let held = self
            .slots
            .iter()
            .filter(|slot| slot.process().is_some())
            .count();
        self.living.len() - held.min(self.living.len()) < self.policy.most_draining
    }

    /// Gives up the slots beyond the number of instances that holds now.
    fn shrink(&mut self, actions: &mut Actions) {
        let kept = self.policy.instances.min(self.slots.len());
        for slot in self.slots.drain(kept..) {
            if let Some(process) = slot.process() {
                actions.push(Action::Retire(process));
            }
        }
    }

    // Single slots.

    fn spawn(
        &mut self,
        plan: PlanId,
        generation: Generation,
        slot: usize,
        actions: &mut Actions,
    ) -> ProcessId {
        self.last_process += 1;
        let process = ProcessId(self.last_process);
        self.living.insert(process, generation);
        actions.push(Action::Spawn {
            process,
            plan,
            generation,
            slot,
        });
        process
    }

    fn start_slot(
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
    fn respawn(&mut self, slot: usize, plan: PlanId, failures: u32, actions: &mut Actions) {
        let plan = match self.proven.last() {
            Some(proven) if !self.is_proven(plan) => *proven,
            Some(_) | None => plan,
        };
        self.retry_slot(slot, plan, failures.saturating_add(1), actions);
    }

    fn retry_slot(&mut self, slot: usize, plan: PlanId, failures: u32, actions: &mut Actions) {
        let delay = backoff::delay(failures);
        if delay.is_zero() {
            let generation = self.next_generation();
            self.start_slot(slot, plan, generation, failures, actions);
        } else {
            self.slots[slot] = Slot::BackingOff { plan, failures };
            actions.push(Action::StartBackoff { slot, delay });
        }
    }

    fn slot_of(&self, process: ProcessId) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| slot.process() == Some(process))
    }

    fn serves(&self, slot: usize) -> bool {
        matches!(self.slots[slot], Slot::Serving { .. })
    }

    fn runs(&self, slot: usize, wanted: PlanId) -> bool {
        matches!(self.slots[slot], Slot::Serving { plan, .. } if plan == wanted)
    }

    fn serving_generation(&self) -> Generation {
        let serving = self.slots.iter().filter_map(|slot| match slot {
            Slot::Serving { process, .. } => self.living.get(process).copied(),
            Slot::Vacant | Slot::Starting { .. } | Slot::BackingOff { .. } => None,
        });
        serving.max().unwrap_or(0)
    }

    fn next_generation(&mut self) -> Generation {
        self.last_generation += 1;
        self.last_generation
    }

    // Plans.

    fn prove(&mut self, plan: PlanId, actions: &mut Actions) {
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

    /// Gives up every plan that nothing runs, waits for or may return to.
    fn forget_unneeded(&mut self, actions: &mut Actions) {
        let mut needed: BTreeSet<PlanId> = self.proven.iter().copied().collect();
        needed.extend(self.current);
        needed.extend(self.next.map(|job| job.plan));
        needed.extend(self.slots.iter().filter_map(Slot::plan));
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

    fn note_stopped(&mut self, actions: &mut Actions) {
        if self.living.is_empty() && !self.stopped {
            self.stopped = true;
            actions.push(Action::Stopped);
        }
    }
}

impl Rollout {
    fn finish(&self, outcome: Outcome) -> Action {
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

impl Slot {
    fn process(&self) -> Option<ProcessId> {
        match self {
            Self::Starting { process, .. } | Self::Serving { process, .. } => Some(*process),
            Self::Vacant | Self::BackingOff { .. } => None,
        }
    }

    fn plan(&self) -> Option<PlanId> {
        match self {
            Self::Starting { plan, .. }
            | Self::Serving { plan, .. }
            | Self::BackingOff { plan, .. } => Some(*plan),
            Self::Vacant => None,
        }
    }
}
