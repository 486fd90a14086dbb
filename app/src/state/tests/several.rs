//! Operations on the state of one generation, and of several while the state moves between them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use heirloom_state_codec::{Context, State as Schema, Step, StepError};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, task::block_in_place, time::timeout};

use crate::Drain;
use crate::state::{
    Cell, Core, Log, Map, Set, State, StateError, Tracked,
    link::{self, Link, server},
    store::Budget,
    testing::{Relay, Tree},
};

/// Far more than any of this takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Tasks at a time, accounts, and what each begins with.
const TASKS: u64 = 4;
const ACCOUNTS: u64 = 8;
const BALANCE: u64 = 1000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Schema)]
#[state(name = "number", version = 1, oldest)]
struct Number {
    value: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Schema)]
#[state(name = "number", version = 2)]
struct Number2 {
    value: u64,
    note: String,
}

impl Step for Number2 {
    type Older = Number;
    type Attic = String;

    fn up(old: Number, attic: Option<String>, _: &mut Context) -> Result<Self, StepError> {
        Ok(Self {
            value: old.value,
            note: attic.unwrap_or_default(),
        })
    }

    fn down(self, _: &mut Context) -> Result<(Number, Option<String>), StepError> {
        Ok((Number { value: self.value }, Some(self.note)))
    }
}

fn number(value: u64) -> Number {
    Number { value }
}

/// A generation with one store of each kind.
struct Generation {
    state: State,
    map: Map<u64, Number>,
    set: Set<u64>,
    cell: Cell<Number>,
    log: Log<Number>,
    own: Tracked<Tree<Number>>,
}

impl Generation {
    fn new() -> Self {
        let state = State::new();
        Self {
            map: Map::new(&state, "map"),
            set: Set::new(&state, "set"),
            cell: Cell::new(&state, "cell", number(0)),
            log: Log::new(&state, "log"),
            own: Tracked::new(&state, "own", Tree::default()),
            state,
        }
    }
}

/// Moves the state while it is used, as the keepers of two generations do between them.
fn hand_over(old: &Arc<Core>, new: &Arc<Core>) {
    let budget = || Budget::new(Duration::from_micros(200), 64 * 1024);
    new.gate.close();
    old.gate.open(true);
    let (from, to) = (old.stores(), new.stores());
    let mut versions = HashMap::new();
    let mut relays = Vec::new();
    for (from, to) in from.iter().zip(&to) {
        let (read, written) = (to.reads(), from.reads());
        let common = written.iter().find(|one| read.contains(one)).unwrap();
        versions.insert(from.name().to_owned(), common.version);
        relays.push(Relay::begin(from.as_ref(), to.as_ref(), true));
    }
    for relay in &mut relays {
        // The base and a few rounds of changes.
        while relay.rounds() < 4 {
            relay.slice(&budget()).unwrap();
        }
    }
    old.gate.close();
    for relay in relays {
        relay.finish().unwrap();
    }
    let (here, there) = link::pair();
    let link = Link::start(here, versions, &Handle::current()).unwrap();
    let drain = Drain::new(Duration::from_secs(30));
    server::start(there, new, &drain, &Handle::current()).unwrap();
    new.gate.open(false);
    old.gate.yield_to(Arc::new(link));
}

#[tokio::test(flavor = "multi_thread")]
async fn late_operations_take_place_in_the_owner() {
    let (old, new) = (Generation::new(), Generation::new());
    old.map.insert(1, number(10)).await.unwrap();
    old.set.insert(1).await.unwrap();
    old.cell.set(number(5)).await.unwrap();
    old.log.push(number(0)).await.unwrap();
    block_in_place(|| hand_over(&old.state.core, &new.state.core));

    let add = |held: &mut Option<Number>| {
        let held = held.get_or_insert(number(0));
        held.value += 1;
        held.value
    };
    assert_eq!(old.map.update(1, add).await.unwrap(), 11);
    assert_eq!(old.map.update(2, add).await.unwrap(), 1);
    assert_eq!(old.map.insert(3, number(3)).await.unwrap(), None);
    assert_eq!(old.map.remove(&1).await.unwrap(), Some(number(11)));
    assert_eq!(old.map.remove(&1).await.unwrap(), None);
    assert_eq!(new.map.get(&2).await.unwrap(), Some(number(1)));
    assert_eq!(old.map.get(&3).await.unwrap(), Some(number(3)));
    let mut entries = old.map.entries().await.unwrap();
    entries.sort_by_key(|(key, _)| *key);
    assert_eq!(entries, [(2, number(1)), (3, number(3))]);
    assert_eq!(new.map.len().await.unwrap(), 2);
    assert_eq!(old.map.len().await.unwrap(), 2);

    assert!(!old.set.insert(1).await.unwrap());
    assert!(old.set.insert(2).await.unwrap());
    assert!(old.set.remove(&1).await.unwrap());
    assert_eq!(new.set.keys().await.unwrap(), [2]);
    assert!(old.set.contains(&2).await.unwrap());

    assert_eq!(old.cell.set(number(6)).await.unwrap(), number(5));
    old.cell.update(|held| held.value *= 2).await.unwrap();
    assert_eq!(new.cell.get().await.unwrap(), number(12));
    assert_eq!(old.cell.get().await.unwrap(), number(12));

    assert_eq!(new.log.push(number(1)).await.unwrap(), 1);
    assert_eq!(old.log.push(number(2)).await.unwrap(), 2);
    let all = [number(0), number(1), number(2)];
    assert_eq!(old.log.range(0..9).await.unwrap(), all);
    assert_eq!(new.log.range(0..9).await.unwrap(), all);
    assert_eq!(old.log.len().await.unwrap(), 3);

    old.own
        .change(1, |held| *held = Some(number(1)))
        .await
        .unwrap();
    assert_eq!(old.own.change(1, add).await.unwrap(), 2);
    assert_eq!(new.own.get(&1).await.unwrap(), Some(number(2)));
    assert_eq!(old.own.get(&1).await.unwrap(), Some(number(2)));
    assert_eq!(old.own.entries().await.unwrap(), [(1, number(2))]);
    assert_eq!(
        old.own.change(1, Option::take).await.unwrap(),
        Some(number(2))
    );
    assert_eq!(new.own.entries().await.unwrap(), []);

    let mut transaction = old.state.transaction();
    assert_eq!(
        transaction.get(&old.map, &2).await.unwrap(),
        Some(number(1))
    );
    transaction.put(&old.map, 2, number(2));
    transaction.put(&old.map, 9, number(9)); // without a look
    transaction.set_cell(&old.cell, number(1));
    transaction.set_member(&old.set, 7, true);
    transaction.push(&old.log, number(3));
    assert!(transaction.commit().await.unwrap());
    assert_eq!(new.map.get(&9).await.unwrap(), Some(number(9)));
    assert_eq!(new.cell.get().await.unwrap(), number(1));
    assert!(new.set.contains(&7).await.unwrap());
    assert_eq!(new.log.len().await.unwrap(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_spans_the_handover_commits_or_conflicts() {
    let (old, new) = (Generation::new(), Generation::new());
    for key in [1, 2] {
        old.map.insert(key, number(key)).await.unwrap();
    }
    let mut whole = old.state.transaction();
    whole.get(&old.map, &1).await.unwrap();
    whole.put(&old.map, 1, number(100));
    let mut broken = old.state.transaction();
    broken.get(&old.map, &2).await.unwrap();
    broken.put(&old.map, 2, number(200));
    broken.put(&old.map, 1, number(300));
    block_in_place(|| hand_over(&old.state.core, &new.state.core));
    new.map.insert(2, number(3)).await.unwrap();
    assert!(whole.commit().await.unwrap());
    assert!(!broken.commit().await.unwrap());
    assert_eq!(new.map.get(&1).await.unwrap(), Some(number(100)));
    assert_eq!(new.map.get(&2).await.unwrap(), Some(number(3)));
}

#[test]
fn a_transaction_sees_its_own_changes_and_nobody_elses() {
    let generation = Generation::new();
    let now = |value: Option<Number>| value.map(|number| number.value);
    let insert = |key, value| generation.map.insert(key, number(value)).now_or_never();
    insert(1, 1).unwrap().unwrap();
    let mut first = generation.state.transaction();
    let mut second = generation.state.transaction();
    let mut get = |key| {
        let seen = first.get(&generation.map, &key).now_or_never();
        now(seen.unwrap().unwrap())
    };
    assert_eq!((get(1), get(2)), (Some(1), None));
    insert(1, 5).unwrap().unwrap();
    assert_eq!(get(1), Some(1), "what was read once stays");
    first.put(&generation.map, 2, number(7));
    first.remove(&generation.map, 1);
    let mut get = |key| {
        let seen = first.get(&generation.map, &key).now_or_never();
        now(seen.unwrap().unwrap())
    };
    assert_eq!((get(1), get(2)), (None, Some(7)));
    assert!(!first.commit().now_or_never().unwrap().unwrap());
    // What is written without having been read does not conflict.
    second.put(&generation.map, 1, number(8));
    second.remove(&generation.map, 99);
    insert(1, 6).unwrap().unwrap();
    assert!(second.commit().now_or_never().unwrap().unwrap());
    let seen = generation.map.get(&1).now_or_never().unwrap().unwrap();
    assert_eq!(now(seen), Some(8));
    // That something is not there is a thing to have read, too.
    let mut third = generation.state.transaction();
    third
        .get(&generation.map, &50)
        .now_or_never()
        .unwrap()
        .unwrap();
    third.put(&generation.map, 51, number(1));
    insert(50, 1).unwrap().unwrap();
    generation.map.remove(&50).now_or_never().unwrap().unwrap();
    let unchanged = third.commit().now_or_never().unwrap().unwrap();
    assert!(unchanged, "it is not there again");
}

#[test]
#[should_panic(expected = "different states")]
fn a_store_of_another_state_is_refused() {
    let (one, other) = (Generation::new(), Generation::new());
    let mut transaction = one.state.transaction();
    transaction.put(&other.map, 1, number(1));
}

/// What is done to a generation for as long as the test runs, and what came of it.
#[derive(Default)]
struct Load {
    ends: AtomicBool,
    added: [AtomicU64; TASKS as usize],
    pushed: AtomicU64,
    transfers: AtomicU64,
}

impl Load {
    /// One request after the other. Each counts only once it is acknowledged.
    async fn run(&self, generation: &Generation, task: u64) -> Result<(), StateError> {
        let mut turn = task;
        while !self.ends.load(Ordering::Relaxed) {
            turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (from, to) = ((turn >> 33) % ACCOUNTS, (turn >> 43) % ACCOUNTS);
            let key = 100 + task;
            generation
                .map
                .update(key, |held| {
                    held.get_or_insert(number(0)).value += 1;
                })
                .await?;
            self.added[task as usize].fetch_add(1, Ordering::Relaxed);
            generation.cell.update(|held| held.value += 1).await?;
            let add_one = |held: &mut Option<Number>| held.get_or_insert(number(0)).value += 1;
            generation.own.change(0, add_one).await?;
            if turn & 1 == 0 {
                generation.log.push(number(turn)).await?;
                self.pushed.fetch_add(1, Ordering::Relaxed);
            }
            // An entry that comes and goes.
            generation.map.insert(1000 + from, number(turn)).await?;
            generation.map.remove(&(1000 + to)).await?;
            if from != to && self.transfer(generation, from, to).await? {
                self.transfers.fetch_add(1, Ordering::Relaxed);
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn transfer(
        &self,
        generation: &Generation,
        from: u64,
        to: u64,
    ) -> Result<bool, StateError> {
        let mut transaction = generation.state.transaction();
        let giver = transaction.get(&generation.map, &from).await?;
        let taker = transaction.get(&generation.map, &to).await?;
        let (Some(giver), Some(taker)) = (giver, taker) else {
            panic!("an account is lost");
        };
        let Some(rest) = giver.value.checked_sub(1) else {
            return Ok(false);
        };
        transaction.put(&generation.map, from, number(rest));
        transaction.put(&generation.map, to, number(taker.value + 1));
        transaction.push(&generation.log, number(0));
        transaction.commit().await
    }
}

/// Counters, transfers and a log under load while the state moves on twice: what was acknowledged is
/// there once, whichever generation it was asked of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_done_twice_while_the_state_moves_on() {
    let generations: Vec<_> = (0..3).map(|_| Arc::new(Generation::new())).collect();
    let load = Arc::new(Load::default());
    for account in 0..ACCOUNTS {
        let balance = number(BALANCE);
        generations[0].map.insert(account, balance).await.unwrap();
    }
    for key in 5000..9000 {
        generations[0].map.insert(key, number(key)).await.unwrap();
    }
    // Whoever asks before a handover goes on asking the generation that has handed over.
    let mut tasks = Vec::new();
    for (at, generation) in generations.iter().enumerate() {
        if at > 0 {
            let old = &generations[at - 1].state.core;
            block_in_place(|| hand_over(old, &generation.state.core));
        }
        for task in 0..TASKS {
            let (load, generation) = (Arc::clone(&load), Arc::clone(generation));
            tasks.push(tokio::spawn(async move {
                load.run(&generation, task).await.unwrap();
            }));
        }
        let before = load.transfers.load(Ordering::Relaxed);
        let progress = async {
            while load.transfers.load(Ordering::Relaxed) < before + 200 {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, progress).await.unwrap();
    }
    load.ends.store(true, Ordering::Relaxed);
    for task in timeout(LIMIT, join_all(tasks)).await.unwrap() {
        task.unwrap();
    }
    let last = &generations[2];
    let mut added = 0;
    for task in 0..TASKS {
        let expected = load.added[task as usize].load(Ordering::Relaxed);
        let found = last.map.get(&(100 + task)).await.unwrap();
        assert_eq!(found, Some(number(expected)), "task {task}");
        added += expected;
    }
    assert_eq!(last.cell.get().await.unwrap(), number(added));
    assert_eq!(last.own.get(&0).await.unwrap(), Some(number(added)));
    let transfers = load.transfers.load(Ordering::Relaxed);
    let pushed = load.pushed.load(Ordering::Relaxed) + transfers;
    assert_eq!(last.log.len().await.unwrap(), pushed);
    let entries = last.map.entries().await.unwrap();
    let accounts = entries.iter().filter(|(key, _)| *key < ACCOUNTS);
    let total: u64 = accounts.map(|(_, account)| account.value).sum();
    assert_eq!(total, ACCOUNTS * BALANCE);
    let others = entries.iter().filter(|(key, _)| *key >= 5000);
    assert_eq!(others.count(), 4000);
    // The first generation asks the last by way of the second.
    assert_eq!(
        generations[0].map.len().await.unwrap(),
        entries.len() as u64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_of_different_versions_speak_the_older_one() {
    let states = [State::new(), State::new(), State::new()];
    let old: Map<u64, Number> = Map::new(&states[0], "map");
    let new: Map<u64, Number2> = Map::new(&states[1], "map");
    let again: Map<u64, Number> = Map::new(&states[2], "map");
    old.insert(1, number(1)).await.unwrap();
    block_in_place(|| hand_over(&states[0].core, &states[1].core));
    let change = |held: &mut Option<Number2>| {
        if let Some(held) = held {
            held.note = "kept".to_owned();
        }
    };
    new.update(1, change).await.unwrap();
    let add = |held: &mut Option<Number>| held.as_mut().map(|held| held.value += 1);
    assert_eq!(old.update(1, add).await.unwrap(), Some(()));
    let expected = Number2 {
        value: 2,
        note: "kept".to_owned(),
    };
    assert_eq!(new.get(&1).await.unwrap(), Some(expected));
    // Down again: the newer program is the one that asks now.
    block_in_place(|| hand_over(&states[1].core, &states[2].core));
    let entry = Number2 {
        value: 7,
        note: "lost, for the owner has no room for it".to_owned(),
    };
    new.insert(2, entry).await.unwrap();
    assert_eq!(again.get(&2).await.unwrap(), Some(number(7)));
    assert_eq!(old.update(2, add).await.unwrap(), Some(()));
    assert_eq!(again.get(&2).await.unwrap(), Some(number(8)));
}
