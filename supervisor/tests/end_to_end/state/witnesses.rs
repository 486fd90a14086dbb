//! Many clients at once who change the state while the process that owns it is killed: an answer may be lost
//! with it, and what was answered never is.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use super::{
    client::{Client, Habit},
    number, text,
    writers::Stop,
};
use crate::harness::Supervisor;

/// A client's pause between two requests, so that the load is bounded.
const PACE: Duration = Duration::from_millis(3);

/// How many count, each its own key; half of them on one connection for as long as it lasts.
const COUNTING: u64 = 6;

/// What one kind of change came to.
#[derive(Debug, Default)]
struct Count {
    /// Carried out, as was answered.
    certain: u64,
    /// Answers that were lost: carried out once, or not at all.
    open: u64,
}

impl Count {
    /// An answer says that the change was the `value`th.
    fn saw(&mut self, what: &str, value: u64) {
        let most = self.certain + self.open + 1;
        assert!(
            (self.certain + 1..=most).contains(&value),
            "{what} came to {value} where {self:?}"
        );
        *self = Self {
            certain: value,
            open: 0,
        };
    }

    fn check(&self, what: &str, value: u64) {
        let possible = self.certain..=self.certain + self.open;
        assert!(
            possible.contains(&value),
            "{what} is {value} where {self:?}"
        );
    }
}

/// Does `work` while all of them write, and checks that all that was answered is there, once. `work` is given
/// how many answers have come, so that it can wait for more of them. How many answers were lost is returned.
pub(super) fn while_witnessed(supervisor: &Supervisor, work: impl FnOnce(&AtomicU64)) -> u64 {
    let address = supervisor.address("http");
    let stop = AtomicBool::new(false);
    let answers = AtomicU64::new(0);
    let lost = AtomicU64::new(0);
    thread::scope(|scope| {
        let stopping = Stop(&stop);
        let all = Witness {
            address,
            stop: &stop,
            answers: &answers,
            lost: &lost,
        };
        let mut witnesses: Vec<_> = (0..COUNTING)
            .map(|key| scope.spawn(move || all.counts(key)))
            .collect();
        witnesses.push(scope.spawn(move || all.visits()));
        witnesses.push(scope.spawn(move || all.transfers()));
        work(&answers);
        drop(stopping);
        for witness in witnesses {
            if let Err(panic) = witness.join() {
                eprintln!("{}", supervisor.log());
                std::panic::resume_unwind(panic);
            }
        }
    });
    lost.into_inner()
}

#[derive(Clone, Copy)]
struct Witness<'a> {
    address: SocketAddr,
    stop: &'a AtomicBool,
    answers: &'a AtomicU64,
    lost: &'a AtomicU64,
}

impl Witness<'_> {
    /// The body of a good answer; none if none came, or the request met the end of its owner.
    fn ask(&self, client: &mut Client, method: &str, target: &str, body: &str) -> Option<String> {
        match client.try_ask(method, target, body) {
            Ok(answer) if matches!(answer.status, 200 | 201) => {
                self.answers.fetch_add(1, Ordering::Relaxed);
                Some(answer.body)
            }
            Ok(answer) if answer.status >= 500 => self.missed(),
            Ok(answer) => panic!("{method} {target}: {answer:?}"),
            Err(_gone) => self.missed(),
        }
    }

    fn missed(&self) -> Option<String> {
        self.lost.fetch_add(1, Ordering::Relaxed);
        None
    }

    fn goes_on(&self) -> bool {
        thread::sleep(PACE);
        !self.stop.load(Ordering::Relaxed)
    }

    fn counts(&self, key: u64) {
        let habit = if key % 2 == 0 {
            Habit::Keeps
        } else {
            Habit::Fresh
        };
        let mut client = Client::new(self.address, habit);
        let target = format!("/counters/w{key}");
        let mut count = Count::default();
        while self.goes_on() {
            match self.ask(&mut client, "POST", &target, "") {
                Some(value) => count.saw(&target, value.parse().unwrap()),
                None => count.open += 1,
            }
        }
        count.check(&target, client.get(&target).parse().unwrap());
    }

    /// Visits one session, which newer versions know more of.
    fn visits(&self) {
        let mut client = Client::new(self.address, Habit::Keeps);
        let opened = client.post("/sessions", r#"{"user":"witness"}"#);
        let target = format!("/sessions/{}", text(&opened, "token"));
        let mut count = Count::default();
        while self.goes_on() {
            match self.ask(&mut client, "GET", &target, "") {
                Some(session) => {
                    assert_eq!(text(&session, "user"), "witness");
                    count.saw(&target, number(&session, "visits"));
                }
                None => count.open += 1,
            }
        }
        count.open += 1;
        let session = client.get(&target);
        count.check(&target, number(&session, "visits"));
    }

    /// Transfers between accounts: several entries of several stores at once, all of it or nothing.
    fn transfers(&self) {
        let mut client = Client::new(self.address, Habit::Fresh);
        let mut count = Count::default();
        let mut turn = 0;
        while self.goes_on() {
            turn += 1;
            let (from, to) = (turn % 7, (turn + 3) % 7);
            let body = format!(r#"{{"from":"w{from}","to":"w{to}","amount":1}}"#);
            match self.ask(&mut client, "POST", "/transfers", &body) {
                Some(_) => count.certain += 1,
                None => count.open += 1,
            }
            if turn % 10 == 0
                && let Some(ledger) = self.ask(&mut client, "GET", "/ledger", "")
            {
                check_ledger(&ledger, &count);
            }
        }
        check_ledger(&client.get("/ledger"), &count);
    }
}

fn check_ledger(ledger: &str, count: &Count) {
    let total = number(ledger, "accounts") * 1000;
    assert_eq!(number(ledger, "total"), total, "{ledger}");
    count.check("the transfers", number(ledger, "transfers"));
}
