//! The machine in a simulated world: scenarios spelled out, every event in every state, and random
//! histories with the promises checked after each step.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
// proptest has the name as well.
use super::Strategy;
use proptest::strategy::Strategy as _;

/// What a process is doing in the simulated world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Starting,
    Serving,
    Leaving,
}

/// A machine with the processes and promises that belong to it.
#[derive(Clone, Debug)]
struct World {
    machine: Service,
    processes: BTreeMap<ProcessId, (Doing, usize, PlanId)>,
    backoffs: BTreeSet<usize>,
    told: BTreeSet<ProcessId>,
    forgotten: BTreeSet<PlanId>,
    /// Handovers that were asked for and have not ended.
    open: BTreeSet<PlanId>,
    finished: Vec<Finish>,
    stopped: u32,
    stopping: bool,
    last_plan: u64,
    /// The plan each generation is of.
    generations: BTreeMap<Generation, PlanId>,
    policy: Policy,
}

const OVERLAP: Policy = Policy {
    strategy: Strategy::Overlap,
    instances: 1,
    most_draining: 8,
};

const SEQUENTIAL: Policy = Policy {
    strategy: Strategy::Sequential,
    ..OVERLAP
};

impl World {
    fn new(policy: Policy) -> Self {
        Self {
            machine: Service::new(policy),
            processes: BTreeMap::new(),
            backoffs: BTreeSet::new(),
            told: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            open: BTreeSet::new(),
            finished: Vec::new(),
            stopped: 0,
            stopping: false,
            last_plan: 0,
            generations: BTreeMap::new(),
            policy,
        }
    }

    /// A world in which the first plan serves and is proven.
    fn serving(policy: Policy) -> Self {
        let mut world = Self::new(policy);
        world.start();
        world.fair();
        world
    }

    fn plan(&mut self) -> PlanId {
        self.last_plan += 1;
        PlanId(self.last_plan)
    }

    fn start(&mut self) {
        let plan = self.plan();
        self.feed(Event::Start(plan));
    }

    fn hand_over(&mut self, kind: Kind) -> PlanId {
        let plan = match kind {
            Kind::Rollback => self.machine.rollback_target().unwrap(),
            Kind::Reload | Kind::DryRun => self.plan(),
        };
        let policy = self.policy;
        self.open.insert(plan);
        self.feed(Event::Handover(Job { kind, plan, policy }));
        plan
    }

    /// Feeds an event and does what is answered, checking each action against the promises.
    fn feed(&mut self, event: Event) -> Vec<Action> {
        let newly_ready = match event {
            Event::Ready(process) => self.become_ready(process),
            Event::FailedToStart(process) | Event::Died(process) => self.leave(process),
            Event::Gone(process) => {
                self.processes.remove(&process);
                None
            }
            Event::Returned { new, old } => {
                self.told.remove(&old);
                self.leave(new);
                self.become_ready(old)
            }
            Event::BackoffOver(slot) => {
                self.backoffs.remove(&slot);
                None
            }
            Event::Stop | Event::StopAtOnce => {
                self.stopping = true;
                None
            }
            Event::Start(_) | Event::Handover(_) | Event::Proved(_) | Event::Settled(_) => None,
        };
        let actions = self.machine.handle(event);
        for action in &actions {
            self.act(*action, newly_ready);
        }
        actions
    }

    fn become_ready(&mut self, process: ProcessId) -> Option<usize> {
        let (doing, slot, _) = self.processes.get_mut(&process)?;
        *doing = Doing::Serving;
        Some(*slot)
    }

    fn leave(&mut self, process: ProcessId) -> Option<usize> {
        self.processes.get_mut(&process)?.0 = Doing::Leaving;
        None
    }

    fn act(&mut self, action: Action, newly_ready: Option<usize>) {
        match action {
            Action::Spawn {
                process,
                plan,
                generation,
                slot,
            } => {
                if self.policy.strategy == Strategy::Sequential {
                    let there = self.processes.values().any(|one| one.1 == slot);
                    assert!(!there, "a sequential program runs twice");
                }
                assert!(!self.stopping, "nothing is started once it stops");
                assert!(
                    !self.forgotten.contains(&plan),
                    "a forgotten plan is started"
                );
                let named = *self.generations.entry(generation).or_insert(plan);
                assert_eq!(named, plan, "one number for two programs");
                let before = self
                    .processes
                    .insert(process, (Doing::Starting, slot, plan));
                assert_eq!(before, None, "a process is started twice");
            }
            Action::Retire(process) | Action::Discard(process) => {
                let (doing, slot, _) = self.processes[&process];
                assert!(self.told.insert(process), "told to go twice");
                let replaced = newly_ready == Some(slot);
                let surplus = slot >= self.machine.slots.len();
                let in_turn = self.policy.strategy == Strategy::Sequential;
                let rehearsed = doing == Doing::Serving && !self.holds_slot(process);
                if doing == Doing::Serving && !self.stopping {
                    assert!(
                        replaced || surplus || in_turn || rehearsed,
                        "{process:?} served and has no successor"
                    );
                }
                self.leave(process);
            }
            Action::Kill(process) => {
                self.leave(process);
            }
            Action::StartBackoff { slot, .. } => {
                // A wait that a handover cut short is replaced by the next.
                self.backoffs.insert(slot);
            }
            Action::Finished(finish) => {
                if let Some(plan) = finish.concludes {
                    assert!(self.open.remove(&plan), "a handover ends twice: {finish:?}");
                }
                self.finished.push(finish);
            }
            Action::Forget(plan) => assert!(self.forgotten.insert(plan), "forgotten twice"),
            Action::Stopped => self.stopped += 1,
            Action::StartProbation(_)
            | Action::Begun { .. }
            | Action::WaitingForRoom
            | Action::Proven(_) => {}
        }
    }

    fn holds_slot(&self, process: ProcessId) -> bool {
        self.machine
            .slots
            .iter()
            .any(|slot| slot.process() == Some(process))
    }

    fn all(&self, wanted: Doing) -> Vec<ProcessId> {
        let fits = self.processes.iter().filter(|(_, one)| one.0 == wanted);
        fits.map(|(process, _)| *process).collect()
    }

    fn serving_plans(&self) -> Vec<PlanId> {
        let serving = self.processes.values();
        serving
            .filter(|one| one.0 == Doing::Serving)
            .map(|one| one.2)
            .collect()
    }

    /// Everything goes well from here on, until nothing is left to happen.
    fn fair(&mut self) {
        // Each process lives through its probation once. After several failures in a row instances
        // may run more programs than are remembered as proven.
        let mut proved = BTreeSet::new();
        for _ in 0..1000 {
            if let Some(process) = self.all(Doing::Leaving).first() {
                self.feed(Event::Gone(*process));
            } else if let Some(slot) = self.backoffs.first() {
                self.feed(Event::BackoffOver(*slot));
            } else if let Some(process) = self.all(Doing::Starting).first() {
                self.feed(Event::Ready(*process));
            } else {
                let unproven = self
                    .all(Doing::Serving)
                    .into_iter()
                    .filter(|one| !self.machine.is_proven(self.processes[one].2))
                    .find(|one| proved.insert(*one));
                match unproven {
                    Some(process) => drop(self.feed(Event::Proved(process))),
                    None => return,
                }
            }
        }
        panic!("it does not come to rest: {self:?}");
    }

    fn only(&self, doing: Doing) -> ProcessId {
        let all = self.all(doing);
        assert_eq!(all.len(), 1, "{self:?}");
        all[0]
    }

    fn last_outcome(&self) -> Outcome {
        self.finished.last().unwrap().outcome
    }
}

#[test]
fn the_old_process_serves_until_the_new_one_is_ready() {
    let mut world = World::serving(OVERLAP);
    let old = world.only(Doing::Serving);
    world.hand_over(Kind::Reload);
    assert_eq!(world.only(Doing::Serving), old);
    let new = world.only(Doing::Starting);
    let actions = world.feed(Event::Ready(new));
    assert!(actions.contains(&Action::Retire(old)));
    assert_eq!(world.last_outcome(), Outcome::Committed);
    assert_eq!(world.machine.state(), State::Serving);
}

#[test]
fn a_new_process_that_fails_changes_nothing() {
    let mut world = World::serving(OVERLAP);
    let old = world.only(Doing::Serving);
    let plan = world.hand_over(Kind::Reload);
    let culprit = world.only(Doing::Starting);
    let actions = world.feed(Event::FailedToStart(culprit));
    assert_eq!(world.last_outcome(), Outcome::Aborted { culprit });
    assert!(actions.contains(&Action::Forget(plan)));
    assert_eq!(world.only(Doing::Serving), old);
}

#[test]
fn a_sequential_failure_brings_the_former_program_back() {
    let mut world = World::serving(SEQUENTIAL);
    let old = world.only(Doing::Serving);
    let before = world.serving_plans();
    world.hand_over(Kind::Reload);
    assert_eq!(world.all(Doing::Serving), []);
    assert_eq!(
        world.all(Doing::Starting),
        [],
        "not before the old one is gone"
    );
    world.feed(Event::Gone(old));
    let culprit = world.only(Doing::Starting);
    world.feed(Event::FailedToStart(culprit));
    world.fair();
    let restored = true;
    assert_eq!(
        world.last_outcome(),
        Outcome::RolledBack { culprit, restored }
    );
    assert_eq!(world.serving_plans(), before);
}

#[test]
fn a_death_in_probation_brings_the_proven_program_back() {
    let mut world = World::serving(OVERLAP);
    let proven = world.serving_plans();
    world.hand_over(Kind::Reload);
    world.feed(Event::Ready(world.only(Doing::Starting)));
    let culprit = world.only(Doing::Serving);
    let asked = *world.finished.last().unwrap();
    world.feed(Event::Died(culprit));
    world.fair();
    assert_eq!(world.serving_plans(), proven);
    let undone = world.finished.last().unwrap();
    assert_eq!((undone.from, undone.to), (asked.from, asked.to));
    assert_eq!(undone.concludes, None);
}

#[test]
fn one_in_reserve_serves_again_without_a_start() {
    let mut world = World::serving(OVERLAP);
    let (old, before) = (world.only(Doing::Serving), world.serving_plans());
    world.hand_over(Kind::Reload);
    world.feed(Event::Ready(world.only(Doing::Starting)));
    let new = world.only(Doing::Serving);
    let asked = *world.finished.last().unwrap();
    let actions = world.feed(Event::Returned { new, old });
    assert!(actions.contains(&Action::StartProbation(old)));
    assert_eq!(world.only(Doing::Serving), old);
    assert_eq!(world.machine.state(), State::Serving);
    let undone = world.finished.last().unwrap();
    assert_eq!((undone.from, undone.to), (asked.from, asked.to));
    let (culprit, restored) = (new, true);
    assert_eq!(undone.outcome, Outcome::RolledBack { culprit, restored });
    world.fair();
    assert_eq!(world.serving_plans(), before);
}

#[test]
fn a_death_after_probation_is_answered_with_the_same_program() {
    let mut world = World::serving(OVERLAP);
    world.hand_over(Kind::Reload);
    world.fair();
    let plans = world.serving_plans();
    world.feed(Event::Died(world.only(Doing::Serving)));
    assert_eq!(world.machine.state(), State::Starting, "at once");
    world.fair();
    assert_eq!(world.serving_plans(), plans);
    assert_eq!(world.finished.len(), 1);
}

#[test]
fn a_program_that_keeps_dying_is_held_back_longer_and_longer() {
    let mut world = World::serving(OVERLAP);
    let mut delays = Vec::new();
    world.feed(Event::Died(world.only(Doing::Serving)));
    for _ in 0..12 {
        let process = world.only(Doing::Starting);
        let actions = world.feed(Event::FailedToStart(process));
        world.feed(Event::Gone(process));
        delays.extend(actions.iter().filter_map(|action| match action {
            Action::StartBackoff { delay, .. } => Some(delay.as_secs_f64()),
            _other => None,
        }));
        assert_eq!(world.machine.state(), State::BackingOff);
        world.feed(Event::BackoffOver(0));
    }
    assert_eq!(delays[..3], [1.5, 2.25, 3.375]);
    assert_eq!(delays.last(), Some(&30.0));
    // A handover does not wait for it.
    world.feed(Event::FailedToStart(world.only(Doing::Starting)));
    world.hand_over(Kind::Reload);
    world.feed(Event::Ready(world.only(Doing::Starting)));
    assert_eq!(world.last_outcome(), Outcome::Committed);
}

#[test]
fn a_respawn_under_way_goes_on_until_a_new_process_is_ready() {
    let mut world = World::serving(OVERLAP);
    let old = world.only(Doing::Serving);
    world.feed(Event::Died(old));
    world.feed(Event::Gone(old));
    let respawned = world.only(Doing::Starting);
    world.hand_over(Kind::Reload);
    let new = *world.all(Doing::Starting).last().unwrap();
    assert_ne!(new, respawned);
    let mut failing = world.clone();
    failing.feed(Event::FailedToStart(new));
    failing.feed(Event::Ready(respawned));
    assert_eq!(failing.only(Doing::Serving), respawned);
    world.feed(Event::Ready(new));
    assert_eq!(world.only(Doing::Serving), new);
    assert_eq!(world.only(Doing::Leaving), respawned);
}

#[test]
fn instances_are_replaced_one_at_a_time() {
    let policy = Policy {
        instances: 3,
        ..OVERLAP
    };
    let mut world = World::serving(policy);
    world.hand_over(Kind::Reload);
    for _ in 0..3 {
        assert_eq!(world.all(Doing::Serving).len(), 3);
        world.feed(Event::Ready(world.only(Doing::Starting)));
    }
    assert_eq!(world.last_outcome(), Outcome::Committed);
}

#[test]
fn a_failure_at_a_later_instance_brings_the_earlier_ones_back() {
    let policy = Policy {
        instances: 3,
        ..OVERLAP
    };
    let mut world = World::serving(policy);
    let before = world.serving_plans();
    world.hand_over(Kind::Reload);
    world.feed(Event::Ready(world.only(Doing::Starting)));
    let culprit = world.only(Doing::Starting);
    world.feed(Event::FailedToStart(culprit));
    world.fair();
    let restored = true;
    assert_eq!(
        world.last_outcome(),
        Outcome::RolledBack { culprit, restored }
    );
    assert_eq!(world.serving_plans(), before);
}

#[test]
fn instances_come_and_go_with_the_handover_that_says_so() {
    let mut world = World::serving(OVERLAP);
    world.policy.instances = 3;
    world.hand_over(Kind::Reload);
    world.fair();
    assert_eq!(world.all(Doing::Serving).len(), 3);
    world.policy.instances = 2;
    world.hand_over(Kind::Reload);
    world.feed(Event::FailedToStart(world.only(Doing::Starting)));
    assert_eq!(
        world.all(Doing::Serving).len(),
        3,
        "a failed one changes nothing"
    );
    world.hand_over(Kind::Reload);
    world.fair();
    assert_eq!(world.all(Doing::Serving).len(), 2);
}

#[test]
fn a_handover_waits_while_too_many_drain() {
    let policy = Policy {
        most_draining: 2,
        ..OVERLAP
    };
    let mut world = World::serving(policy);
    for _ in 0..2 {
        world.hand_over(Kind::Reload);
        world.feed(Event::Ready(world.only(Doing::Starting)));
    }
    world.hand_over(Kind::Reload);
    assert_eq!(world.all(Doing::Starting), []);
    assert_eq!(world.machine.state(), State::HandingOver);
    world.feed(Event::Gone(world.all(Doing::Leaving)[0]));
    world.only(Doing::Starting);
}

#[test]
fn a_rollback_goes_to_the_proven_program_and_back() {
    let mut world = World::serving(OVERLAP);
    assert_eq!(world.machine.rollback_target(), None);
    let first = world.serving_plans();
    world.hand_over(Kind::Reload);
    world.fair();
    let second = world.serving_plans();
    world.hand_over(Kind::Rollback);
    world.fair();
    assert_eq!(world.serving_plans(), first);
    world.hand_over(Kind::Rollback);
    world.fair();
    assert_eq!(world.serving_plans(), second);
}

#[test]
fn a_dry_run_lets_its_process_go() {
    let mut world = World::serving(OVERLAP);
    let old = world.only(Doing::Serving);
    world.hand_over(Kind::DryRun);
    world.feed(Event::Ready(world.only(Doing::Starting)));
    assert_eq!(world.last_outcome(), Outcome::Rehearsed);
    assert_eq!(world.only(Doing::Serving), old);
}

#[test]
fn a_death_in_probation_during_a_dry_run_is_a_rollback_too() {
    let mut world = World::serving(OVERLAP);
    world.hand_over(Kind::Reload);
    world.feed(Event::Ready(world.only(Doing::Starting)));
    let culprit = world.only(Doing::Serving);
    world.hand_over(Kind::DryRun);
    world.feed(Event::Died(culprit));
    let restored = true;
    assert_eq!(
        world.last_outcome(),
        Outcome::RolledBack { culprit, restored }
    );
    assert_eq!(world.finished.last().unwrap().concludes, None);
    world.fair();
    assert_eq!(world.serving_plans(), [PlanId(1)]);
    assert_eq!(world.machine.rollback_target(), None, "it serves already");
}

#[test]
fn a_sequential_program_never_runs_twice() {
    let mut world = World::serving(SEQUENTIAL);
    world.hand_over(Kind::Reload);
    world.feed(Event::Gone(world.only(Doing::Leaving)));
    let failed = world.only(Doing::Starting);
    world.feed(Event::FailedToStart(failed));
    assert_eq!(
        world.all(Doing::Starting),
        [],
        "the failed one is not gone yet"
    );
    world.feed(Event::Gone(failed));
    world.only(Doing::Starting);
}

#[test]
fn the_old_process_may_die_while_the_new_one_starts() {
    let mut world = World::serving(OVERLAP);
    world.hand_over(Kind::Reload);
    world.feed(Event::Died(world.only(Doing::Serving)));
    let new = world.only(Doing::Starting);
    let mut failing = world.clone();
    world.feed(Event::Ready(new));
    assert_eq!(world.last_outcome(), Outcome::Committed);
    failing.feed(Event::FailedToStart(new));
    assert_eq!(failing.last_outcome(), Outcome::Aborted { culprit: new });
    failing.fair();
    assert_eq!(failing.serving_plans(), [PlanId(1)]);
}

/// Worlds in every state a service can be in.
fn every_state() -> Vec<(&'static str, World)> {
    let mut worlds = vec![("new", World::new(OVERLAP))];
    let mut add = |name, policy, steps: fn(&mut World)| {
        let mut world = World::serving(policy);
        steps(&mut world);
        worlds.push((name, world));
    };
    add("serving", OVERLAP, |_| {});
    add("starting", OVERLAP, |world| {
        world.feed(Event::Died(world.only(Doing::Serving)));
    });
    add("backing off", OVERLAP, |world| {
        world.feed(Event::Died(world.only(Doing::Serving)));
        world.feed(Event::FailedToStart(world.only(Doing::Starting)));
    });
    add("handing over", OVERLAP, |world| {
        world.hand_over(Kind::Reload);
    });
    add("rehearsing", OVERLAP, |world| {
        world.hand_over(Kind::DryRun);
    });
    add("emptying", SEQUENTIAL, |world| {
        world.hand_over(Kind::Reload);
    });
    add("undoing", OVERLAP, |world| {
        world.hand_over(Kind::Reload);
        world.feed(Event::Ready(world.only(Doing::Starting)));
        world.feed(Event::Died(world.only(Doing::Serving)));
    });
    add("in probation", OVERLAP, |world| {
        world.hand_over(Kind::Reload);
        world.feed(Event::Ready(world.only(Doing::Starting)));
    });
    add("stopping", OVERLAP, |world| {
        world.feed(Event::Stop);
    });
    add("stopped", OVERLAP, |world| {
        world.feed(Event::Stop);
        world.feed(Event::Gone(world.only(Doing::Leaving)));
    });
    let crowded = Policy {
        most_draining: 1,
        ..OVERLAP
    };
    add("waiting for room", crowded, |world| {
        world.hand_over(Kind::Reload);
        world.feed(Event::Ready(world.only(Doing::Starting)));
        world.hand_over(Kind::Reload);
    });
    worlds
}

#[test]
fn every_state_with_every_event_keeps_the_promises() {
    for (name, world) in every_state() {
        let stranger = ProcessId(9999);
        let mut events = vec![Event::Stop, Event::StopAtOnce, Event::BackoffOver(0)];
        events.push(Event::BackoffOver(77));
        for process in world.processes.keys().copied().chain([stranger]) {
            match world.processes.get(&process).map(|one| one.0) {
                Some(Doing::Starting) => {
                    events.extend([Event::Ready(process), Event::FailedToStart(process)]);
                }
                Some(Doing::Serving) => {
                    events.extend([Event::Died(process), Event::Proved(process)]);
                }
                Some(Doing::Leaving) => events.push(Event::Gone(process)),
                // Events of the past may still be in the queue.
                None => events.extend([
                    Event::Ready(process),
                    Event::FailedToStart(process),
                    Event::Died(process),
                    Event::Proved(process),
                    Event::Gone(process),
                ]),
            }
        }
        for event in events {
            let mut after = world.clone();
            after.feed(event);
            come_to_rest(&mut after, &format!("{event:?} when {name}"));
        }
        for kind in [Kind::Reload, Kind::DryRun] {
            if kind == Kind::DryRun && world.policy.strategy == Strategy::Sequential {
                // The daemon answers it without the machine: it cannot run twice.
                continue;
            }
            let mut after = world.clone();
            after.hand_over(kind);
            come_to_rest(&mut after, &format!("{kind:?} when {name}"));
        }
        let mut after = world.clone();
        after.start();
        come_to_rest(&mut after, &format!("Start when {name}"));
    }
}

/// Once everything goes well again, the service is whole, or has ended, and owes nobody an answer.
fn come_to_rest(world: &mut World, history: &str) {
    world.fair();
    assert_eq!(world.open, BTreeSet::new(), "{history}: unanswered");
    if world.stopping {
        assert_eq!(world.processes, BTreeMap::new(), "{history}");
        assert_eq!(world.stopped, 1, "{history}");
        assert_eq!(world.machine.state(), State::Stopped, "{history}");
        return;
    }
    if world.machine.current.is_none() {
        return;
    }
    assert_eq!(world.machine.state(), State::Serving, "{history}");
    let serving = world.serving_plans();
    assert_eq!(serving.len(), world.machine.slots.len(), "{history}");
    let alive = world.last_plan - world.forgotten.len() as u64;
    assert!(alive <= 4, "{history}: {alive} plans are kept");
}

/// One thing that may happen; the number picks among what is possible.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Ready(usize),
    Fails(usize),
    Dies(usize),
    Returns(usize),
    Ends(usize),
    Proves(usize),
    BackoffOver(usize),
    Asked(Kind, usize),
    Stops,
}

fn happening() -> impl proptest::strategy::Strategy<Value = Happening> {
    prop_oneof![
        6 => any::<usize>().prop_map(Happening::Ready),
        3 => any::<usize>().prop_map(Happening::Fails),
        2 => any::<usize>().prop_map(Happening::Dies),
        2 => any::<usize>().prop_map(Happening::Returns),
        6 => any::<usize>().prop_map(Happening::Ends),
        2 => any::<usize>().prop_map(Happening::Proves),
        3 => any::<usize>().prop_map(Happening::BackoffOver),
        4 => (1_usize..4).prop_map(|n| Happening::Asked(Kind::Reload, n)),
        1 => (1_usize..4).prop_map(|n| Happening::Asked(Kind::Rollback, n)),
        1 => (1_usize..4).prop_map(|n| Happening::Asked(Kind::DryRun, n)),
    ]
}

fn pick<T: Copy>(all: &[T], number: usize) -> Option<T> {
    if all.is_empty() {
        None
    } else {
        Some(all[number % all.len()])
    }
}

fn happen(world: &mut World, happening: Happening) {
    let event = match happening {
        Happening::Ready(n) => pick(&world.all(Doing::Starting), n).map(Event::Ready),
        Happening::Fails(n) => pick(&world.all(Doing::Starting), n).map(Event::FailedToStart),
        Happening::Dies(n) => pick(&world.all(Doing::Serving), n).map(Event::Died),
        Happening::Returns(n) => {
            let returning = |(new, one): (&ProcessId, &(Doing, usize, PlanId))| {
                let replaced = world.machine.replaced.iter().copied();
                let mut old = replaced.filter(|old| world.processes[old].1 == one.1);
                let old = old.next_back()?;
                (one.0 == Doing::Serving).then_some(Event::Returned { new: *new, old })
            };
            let all: Vec<Event> = world.processes.iter().filter_map(returning).collect();
            pick(&all, n)
        }
        Happening::Ends(n) => pick(&world.all(Doing::Leaving), n).map(Event::Gone),
        Happening::Proves(n) => pick(&world.all(Doing::Serving), n).map(Event::Proved),
        Happening::BackoffOver(n) => {
            let slots: Vec<usize> = world.backoffs.iter().copied().collect();
            pick(&slots, n).map(Event::BackoffOver)
        }
        Happening::Stops => Some(Event::Stop),
        Happening::Asked(kind, instances) => {
            // The daemon sends one at a time, and no rollback to nothing.
            let possible = match kind {
                Kind::Reload => true,
                Kind::Rollback => world.machine.rollback_target().is_some(),
                Kind::DryRun => world.policy.strategy == Strategy::Overlap,
            };
            if world.open.is_empty() && possible {
                if kind == Kind::Reload {
                    world.policy.instances = instances;
                }
                world.hand_over(kind);
            }
            None
        }
    };
    if let Some(event) = event {
        world.feed(event);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_histories_keep_the_promises(
        happenings in proptest::collection::vec(happening(), 0..80),
        sequential in any::<bool>(),
        most_draining in 1_usize..4,
        stops in any::<bool>(),
    ) {
        let strategy = if sequential { Strategy::Sequential } else { Strategy::Overlap };
        let mut world = World::new(Policy { strategy, instances: 2, most_draining });
        world.start();
        for one in happenings {
            happen(&mut world, one);
        }
        if stops {
            happen(&mut world, Happening::Stops);
        }
        come_to_rest(&mut world, "a random history");
    }
}
