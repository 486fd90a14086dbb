//! Many clients at once who change the state in every way there is, and what must be there afterwards.
//!
//! Each change is acknowledged with what it came to, so that one that is lost, or carried out twice, shows.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use super::{
    client::{Client, Habit},
    number, text,
};
use crate::harness::{Supervisor, eventually};

/// A client's pause between two requests, so that the load is bounded.
const PACE: Duration = Duration::from_millis(8);

/// So many requests make it worth being called a load.
const WORTH: u64 = 500;

/// What was acknowledged.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// What a counter came to, each time.
    counters: BTreeMap<String, Vec<u64>>,
    /// What transactions added to a counter.
    added: BTreeMap<String, u64>,
    transfers: u64,
    /// A session's visits.
    sessions: BTreeMap<String, u64>,
    /// Open transactions: the counter, and what they will add to it.
    open: BTreeMap<String, (String, u64)>,
    /// Requests that an old generation answered when a new one served already.
    straddled: u64,
    requests: u64,
}

/// One client at work.
#[derive(Debug)]
struct Writer {
    client: Client,
    number: u64,
    random: u64,
    /// Of the ledger, when it was last read.
    transfers_seen: u64,
    tally: Tally,
}

/// Ends the writers, also if the work fails that goes on beside them.
pub(super) struct Stop<'a>(pub(super) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a writer does.
type Turn = fn(&mut Writer);

/// Everybody: what they do, on which connections, and how many.
const WRITERS: [(Turn, Habit, u64); 9] = [
    (Writer::count, Habit::Keeps, 4),
    (Writer::count, Habit::Fresh, 4),
    (Writer::transfer, Habit::Keeps, 2),
    (Writer::transfer, Habit::Fresh, 1),
    (Writer::read_ledger, Habit::Keeps, 1),
    (Writer::visit, Habit::Keeps, 2),
    (Writer::transact, Habit::Keeps, 2),
    (Writer::count_slowly, Habit::Keeps, 2),
    (Writer::count_slowly, Habit::Fresh, 2),
];

/// Does `work` while all of them write, and checks that all they wrote is there, once. How many requests
/// began before a handover and wrote after it.
pub(super) fn while_writing(supervisor: &Supervisor, work: impl FnOnce()) -> u64 {
    let address = supervisor.address("http");
    let stop = AtomicBool::new(false);
    let mut all = Tally::default();
    thread::scope(|scope| {
        let stopping = Stop(&stop);
        let mut writers = Vec::new();
        for (turn, habit, count) in WRITERS {
            for _ in 0..count {
                let number = writers.len() as u64;
                let stop = &stop;
                writers.push(scope.spawn(move || Writer::run(address, habit, number, turn, stop)));
            }
        }
        work();
        drop(stopping);
        for writer in writers {
            match writer.join() {
                Ok(tally) => all.add(tally),
                Err(panic) => {
                    eprintln!("{}", supervisor.log());
                    std::panic::resume_unwind(panic);
                }
            }
        }
    });
    assert!(all.requests > WORTH, "{} requests only", all.requests);
    let straddled = all.straddled;
    all.check(address);
    straddled
}

/// Waits until clients have got an answer since: whatever is asked for after it meets running requests.
pub(super) fn answers_come(address: SocketAddr, key: &str) {
    let mut client = Client::new(address, Habit::Fresh);
    let target = format!("/counters/{key}");
    let before = client.get(&target);
    eventually("a writer gets an answer", || client.get(&target) != before);
}

impl Writer {
    fn run(address: SocketAddr, habit: Habit, number: u64, turn: Turn, stop: &AtomicBool) -> Tally {
        let mut writer = Self {
            client: Client::new(address, habit),
            number,
            random: number + 1,
            transfers_seen: 0,
            tally: Tally::default(),
        };
        while !stop.load(Ordering::Relaxed) {
            turn(&mut writer);
            thread::sleep(PACE);
        }
        writer.tally
    }

    /// A number below `end`.
    fn draw(&mut self, end: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.random >> 33) % end
    }

    fn get(&mut self, target: &str) -> String {
        self.tally.requests += 1;
        self.client.get(target)
    }

    fn post(&mut self, target: &str, body: &str) -> String {
        self.tally.requests += 1;
        self.client.post(target, body)
    }

    fn counted(&mut self, key: &str, value: u64) {
        let values = self.tally.counters.entry(key.to_owned()).or_default();
        // Whoever counts sees nobody take anything back.
        assert!(
            values.last().is_none_or(|last| *last < value),
            "{key} came to {value} after {:?}",
            values.last()
        );
        values.push(value);
    }

    /// Adds to one of a few counters that all share.
    fn count(&mut self) {
        let key = format!("shared-{}", self.draw(3));
        let value = self.post(&format!("/counters/{key}"), "");
        self.counted(&key, value.parse().unwrap());
    }

    /// Adds to a counter after a wait that often straddles a handover.
    fn count_slowly(&mut self) {
        let wait = 20 + self.draw(100);
        let answer = self.get(&format!("/slow?ms={wait}&key=slow"));
        let numbers: Vec<u64> = answer
            .split(['=', ' '])
            .filter_map(|word| word.parse().ok())
            .collect();
        let [value, generation] = numbers[..] else {
            panic!("{answer}");
        };
        self.counted("slow", value);
        if number(&self.get("/version"), "generation") > generation {
            self.tally.straddled += 1;
        }
    }

    fn transfer(&mut self) {
        let from = self.draw(8);
        let to = (from + 1 + self.draw(7)) % 8;
        let amount = 1 + self.draw(400);
        let body = format!(r#"{{"from":"a{from}","to":"a{to}","amount":{amount}}}"#);
        self.tally.requests += 1;
        let answer = self.client.ask("POST", "/transfers", &body);
        match answer.status {
            201 => self.tally.transfers += 1,
            // There is not enough in it, which others see to.
            409 => assert!(answer.body.contains("less than"), "{answer:?}"),
            _ => panic!("{answer:?}"),
        }
    }

    fn read_ledger(&mut self) {
        let ledger = self.get("/ledger");
        assert_eq!(
            number(&ledger, "total"),
            number(&ledger, "accounts") * 1000,
            "{ledger}"
        );
        let transfers = number(&ledger, "transfers");
        assert!(transfers >= self.transfers_seen, "{ledger}");
        self.transfers_seen = transfers;
    }

    /// Opens a session now and then, and visits those it has.
    fn visit(&mut self) {
        let known = self.tally.sessions.len() as u64;
        if known == 0 || (known < 50 && self.draw(5) == 0) {
            let user = format!(r#"{{"user":"user-{}"}}"#, self.number);
            let token = text(&self.post("/sessions", &user), "token");
            let former = self.tally.sessions.insert(token, 0);
            assert_eq!(former, None, "a token came twice");
            return;
        }
        let which = usize::try_from(self.draw(known)).unwrap();
        let token = self.tally.sessions.keys().nth(which).unwrap().clone();
        let session = self.get(&format!("/sessions/{token}"));
        assert_eq!(text(&session, "user"), format!("user-{}", self.number));
        let visits = self.tally.sessions.get_mut(&token).unwrap();
        *visits += 1;
        assert_eq!(number(&session, "visits"), *visits, "{session}");
    }

    /// Begins a transaction, adds to one, or ends one, so that each lives through several handovers.
    fn transact(&mut self) {
        let key = format!("sum-{}", self.number);
        let open = self.tally.open.len() as u64;
        if open < 4 {
            let id = text(&self.post("/transactions", ""), "id");
            self.tally.open.insert(id, (key, 0));
            return;
        }
        let which = usize::try_from(self.draw(open)).unwrap();
        let id = self.tally.open.keys().nth(which).unwrap().clone();
        match self.draw(40) {
            0 | 1 => {
                let answer = self.post(&format!("/transactions/{id}/commit"), "");
                let (key, total) = self.tally.open.remove(&id).unwrap();
                let sum = self.tally.added.entry(key.clone()).or_default();
                *sum += total;
                if total > 0 {
                    let came_to = super::field(&answer, "counters")[&key].clone();
                    assert_eq!(came_to, *sum, "{answer}");
                }
            }
            2 => {
                self.post(&format!("/transactions/{id}/abort"), "");
                self.tally.open.remove(&id);
            }
            n => {
                let (_, total) = self.tally.open.get_mut(&id).unwrap();
                *total += n;
                let expected = *total;
                let body = format!(r#"{{"key":"{key}","n":{n}}}"#);
                self.tally.requests += 1;
                let answer = self
                    .client
                    .ask("POST", &format!("/transactions/{id}/add"), &body);
                match answer.status {
                    200 => assert_eq!(number(&answer.body, "total"), expected),
                    // It has as many additions as it may.
                    409 => self.tally.open.get_mut(&id).unwrap().1 -= n,
                    _ => panic!("{answer:?}"),
                }
            }
        }
    }
}

impl Tally {
    /// Adds what another client did.
    fn add(&mut self, other: Self) {
        for (key, values) in other.counters {
            self.counters.entry(key).or_default().extend(values);
        }
        for (key, sum) in other.added {
            *self.added.entry(key).or_default() += sum;
        }
        self.sessions.extend(other.sessions);
        self.open.extend(other.open);
        self.transfers += other.transfers;
        self.straddled += other.straddled;
        self.requests += other.requests;
    }

    /// Whether all of it is there, once.
    fn check(mut self, address: SocketAddr) {
        let mut client = Client::new(address, Habit::Keeps);
        for (key, mut values) in self.counters {
            values.sort_unstable();
            let all: Vec<u64> = (1..=values.len() as u64).collect();
            assert!(values == all, "{key}: {values:?}");
            let stands = client.get(&format!("/counters/{key}"));
            assert_eq!(stands, values.len().to_string(), "{key}");
        }
        let ledger = client.get("/ledger");
        let total = number(&ledger, "accounts") * 1000;
        assert_eq!(number(&ledger, "total"), total, "{ledger}");
        assert_eq!(number(&ledger, "transfers"), self.transfers, "{ledger}");
        for (token, visits) in self.sessions {
            let session = client.get(&format!("/sessions/{token}"));
            assert_eq!(number(&session, "visits"), visits + 1, "{session}");
        }
        for (id, (key, total)) in self.open {
            client.post(&format!("/transactions/{id}/commit"), "");
            *self.added.entry(key).or_default() += total;
            let again = client.ask("POST", &format!("/transactions/{id}/commit"), "");
            assert_eq!(again.status, 404, "{again:?}");
        }
        for (key, sum) in self.added {
            let stands = client.get(&format!("/counters/{key}"));
            assert_eq!(stands, sum.to_string(), "{key}");
        }
    }
}
