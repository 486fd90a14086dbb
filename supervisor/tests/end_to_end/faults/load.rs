//! Clients at work while something happens to a process: they change the state, keep connections, and note
//! what they were told and what went wrong. They never retry.
//!
//! What they were told is enough to see from outside that there was one owner: two would hand the same
//! numbers out, or forget some.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use crate::harness::{PATIENCE, eventually};
use crate::state::client::{Client, Habit};
use crate::state::{number, text};

/// A client's pause between two requests.
const PACE: Duration = Duration::from_millis(4);

/// Clients that count: so many that keep their connection, and so many that do not.
const COUNTING: [(Habit, usize); 2] = [(Habit::Keeps, 3), (Habit::Fresh, 1)];

/// Where to find the service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) http: SocketAddr,
    pub(super) chat: SocketAddr,
}

/// What the clients were told.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// What a counter came to, and the generation that said so.
    counted: Vec<(u64, u64)>,
    /// Requests to count of which nobody knows what became.
    counts_unknown: u64,
    transfers: u64,
    transfers_unknown: u64,
    /// Lines that were answered.
    said: u64,
    /// Each thing that went wrong, for people.
    pub(super) troubles: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.counted.extend(other.counted);
        self.counts_unknown += other.counts_unknown;
        self.transfers += other.transfers;
        self.transfers_unknown += other.transfers_unknown;
        self.said += other.said;
        self.troubles.extend(other.troubles);
    }
}

/// The state before, by which it is known again.
#[derive(Debug)]
pub(super) struct Mark {
    key: String,
    token: String,
    transfers: u64,
}

impl Mark {
    /// Leaves a mark in the state; `key` is a counter that nobody has used.
    pub(super) fn leave(http: SocketAddr, key: &str) -> Self {
        let mut client = Client::new(http, Habit::Fresh);
        let session = client.post("/sessions", r#"{"user":"mark"}"#);
        Self {
            key: key.to_owned(),
            token: text(&session, "token"),
            transfers: number(&client.get("/ledger"), "transfers"),
        }
    }

    /// Whether the state is still the one that was marked, and all that was acknowledged is in it once. A
    /// state that is another one must come from a generation behind `owner`, the last that had this one.
    pub(super) fn is_kept(&self, http: SocketAddr, tally: &Tally, owner: u64) -> bool {
        let mut client = Client::new(http, Habit::Fresh);
        let session = client.ask("GET", &format!("/sessions/{}", self.token), "");
        let kept = match session.status {
            200 => true,
            404 => false,
            _ => panic!("{session:?}"),
        };
        let stands: u64 = client
            .get(&format!("/counters/{}", self.key))
            .parse()
            .unwrap();
        let ledger = client.get("/ledger");
        let total = number(&ledger, "accounts") * 1000;
        assert_eq!(number(&ledger, "total"), total, "{ledger}");
        let (lost, own): (Vec<_>, Vec<_>) = tally
            .counted
            .iter()
            .partition(|(_, generation)| !kept && *generation <= owner);
        once("of the state that is lost", &lost);
        once("of the state that is there", &own);
        let highest = own.iter().map(|(value, _)| *value).max().unwrap_or(0);
        assert!(
            highest <= stands,
            "{highest} was acknowledged, {stands} is there"
        );
        let acknowledged = own.len() as u64;
        let surplus = stands.checked_sub(acknowledged);
        assert!(
            surplus.is_some_and(|surplus| surplus <= tally.counts_unknown),
            "{acknowledged} acknowledged, {} unknown, {stands} there",
            tally.counts_unknown
        );
        if kept {
            let done = number(&ledger, "transfers").checked_sub(self.transfers);
            let most = tally.transfers + tally.transfers_unknown;
            assert!(
                done.is_some_and(|done| (tally.transfers..=most).contains(&done)),
                "{done:?} transfers, {} acknowledged of at most {most}",
                tally.transfers
            );
        }
        kept
    }
}

/// No number was handed out twice.
fn once(what: &str, counted: &[(u64, u64)]) {
    let different: BTreeSet<u64> = counted.iter().map(|(value, _)| *value).collect();
    assert_eq!(different.len(), counted.len(), "twice, {what}: {counted:?}");
}

/// Does `work` while the clients do theirs; the function it gets waits until some more were answered.
pub(super) fn beside(place: Place, key: &str, work: impl FnOnce(&dyn Fn())) -> Tally {
    let stop = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        let stopping = Stop(&stop);
        let (stop, answered) = (&stop, &answered);
        let mut clients = Vec::new();
        for (habit, count) in COUNTING {
            for _ in 0..count {
                clients.push(scope.spawn(move || count_on(place.http, habit, key, stop, answered)));
            }
        }
        clients.push(scope.spawn(move || transfer(place.http, stop)));
        clients.push(scope.spawn(move || talk(place.chat, stop)));
        let some_more = || {
            let before = answered.load(Ordering::Relaxed);
            eventually("clients are answered", || {
                answered.load(Ordering::Relaxed) > before + 8
            });
        };
        some_more();
        work(&some_more);
        drop(stopping);
        let mut all = Tally::default();
        for client in clients {
            match client.join() {
                Ok(tally) => all.add(tally),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

/// Ends the clients, also if the work fails that goes on beside them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts, after a wait that often straddles what happens.
fn count_on(
    http: SocketAddr,
    habit: Habit,
    key: &str,
    stop: &AtomicBool,
    answered: &AtomicU64,
) -> Tally {
    let mut client = Client::new(http, habit);
    let mut tally = Tally::default();
    let mut wait = 0;
    while !stop.load(Ordering::Relaxed) {
        wait = (wait + 7) % 20;
        match client.try_ask("GET", &format!("/slow?ms={wait}&key={key}"), "") {
            Ok(answer) if answer.status == 200 => {
                let numbers = answer.body.split(['=', ' ']);
                let numbers: Vec<u64> = numbers.filter_map(|word| word.parse().ok()).collect();
                let [value, generation] = numbers[..] else {
                    panic!("{answer:?}");
                };
                tally.counted.push((value, generation));
                answered.fetch_add(1, Ordering::Relaxed);
            }
            trouble => {
                tally.counts_unknown += 1;
                tally.troubles.push(format!("counting: {trouble:?}"));
                client = Client::new(http, habit);
            }
        }
        thread::sleep(PACE);
    }
    tally
}

fn transfer(http: SocketAddr, stop: &AtomicBool) -> Tally {
    let mut client = Client::new(http, Habit::Keeps);
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let (from, to) = match tally.transfers % 2 {
            0 => ("a", "b"),
            _ => ("b", "a"),
        };
        let body = format!(r#"{{"from":"{from}","to":"{to}","amount":1}}"#);
        match client.try_ask("POST", "/transfers", &body) {
            Ok(answer) if answer.status == 201 => tally.transfers += 1,
            // Those of which nobody knows have all gone one way.
            Ok(answer) if answer.status == 409 => {}
            trouble => {
                tally.transfers_unknown += 1;
                tally.troubles.push(format!("a transfer: {trouble:?}"));
                client = Client::new(http, Habit::Keeps);
            }
        }
        thread::sleep(PACE);
    }
    tally
}

/// A connection of lines: each answer has the number behind the one before it, whoever answers.
fn talk(chat: SocketAddr, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = talk_on(chat, stop, &mut tally) {
            tally.troubles.push(format!("talking: {error}"));
            thread::sleep(PACE);
        }
    }
    tally
}

fn talk_on(chat: SocketAddr, stop: &AtomicBool, tally: &mut Tally) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&chat, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = BufReader::new(stream);
    let mut ask = |line: &str| -> io::Result<String> {
        stream.get_mut().write_all(line.as_bytes())?;
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        let whole = answer.strip_suffix('\n').map(str::to_owned);
        whole.ok_or_else(|| io::Error::other(format!("it ended behind {answer:?}")))
    };
    assert_eq!(ask("NAME ann\n")?, "OK ann");
    for turn in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let answer = ask("SAY hi\n")?;
        let start = format!("ann #{turn} gen=");
        assert!(answer.starts_with(&start), "{answer:?} is not {start:?}…");
        tally.said += 1;
        thread::sleep(PACE);
    }
    Ok(())
}
