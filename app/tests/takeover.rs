//! One generation after the other on one listener, under load: no request fails.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use support::{Client, Generation, PATIENCE, Start, Version, tcp_listener};

/// Requests each generation answers before the next one takes over.
const REQUESTS_PER_GENERATION: u64 = 1000;

const GENERATIONS: u64 = 6;

/// What became of one request: the generation that answered, or why none did.
type Report = Result<u64, String>;

/// How a client uses its connection.
#[derive(Debug, Clone, Copy)]
enum Habit {
    /// One request after the other, without ever looking whether the connection still stands.
    Busy,
    /// Pauses of up to 40 ms, and a look before each reuse, as a connection pool does.
    Pooled,
    /// A connection for each request.
    Fresh,
}

/// Starts a client that goes on until `stop` hangs up.
fn client(
    habit: Habit,
    seed: u64,
    address: SocketAddr,
    reports: Sender<Report>,
    stop: Receiver<()>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut kept: Option<Client> = None;
        let mut random = seed;
        loop {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let pause = match habit {
                Habit::Busy | Habit::Fresh => Duration::ZERO,
                Habit::Pooled => Duration::from_millis((random >> 33) % 40),
            };
            match stop.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) | Ok(()) => return,
            }
            let reused = kept.take().filter(|kept| match habit {
                Habit::Busy => true,
                Habit::Pooled => !kept.is_closed(),
                Habit::Fresh => false,
            });
            let was_reused = reused.is_some();
            let answered = reused
                .map_or_else(|| Client::connect(address), Ok)
                .and_then(|mut client| {
                    let answer = client.get("/hello")?;
                    if !answer.closes {
                        kept = Some(client);
                    }
                    Ok(answer)
                });
            let report = match answered {
                Ok(answer) => generation_of(&answer.body),
                Err(error) => Err(format!("{habit:?}, reused: {was_reused}: {error}")),
            };
            if reports.send(report).is_err() {
                return;
            }
        }
    })
}

/// Reads `generation=N` out of an answer of /hello.
fn generation_of(body: &str) -> Report {
    body.split(", ")
        .find_map(|part| part.strip_prefix("generation="))
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("not an answer of /hello: {body:?}"))
}

/// What has become of all requests so far.
#[derive(Debug, Default)]
struct Tally {
    answered: BTreeMap<u64, u64>,
    failed: Vec<String>,
}

impl Tally {
    fn add(&mut self, report: Report) {
        match report {
            Ok(generation) => *self.answered.entry(generation).or_default() += 1,
            Err(failure) => self.failed.push(failure),
        }
    }

    /// Collects reports until this generation has answered enough requests.
    fn wait_for(&mut self, generation: u64, reports: &Receiver<Report>) {
        let deadline = Instant::now() + PATIENCE;
        while self.answered.get(&generation).copied().unwrap_or(0) < REQUESTS_PER_GENERATION {
            let left = deadline.saturating_duration_since(Instant::now());
            let report = reports
                .recv_timeout(left)
                .unwrap_or_else(|error| panic!("generation {generation}: {error}, {self:?}"));
            self.add(report);
        }
    }
}

fn start(generation: u64) -> Start<'static> {
    Start {
        version: if generation.is_multiple_of(2) {
            Version::Two
        } else {
            Version::One
        },
        generation,
        ..Start::default()
    }
}

#[test]
fn no_request_fails_while_generations_follow_each_other() {
    let listener = tcp_listener();
    let address = listener.local_addr().unwrap();
    let mut current = Generation::serving(&listener, &start(1));

    let (report, reports) = channel();
    let habits = [(Habit::Busy, 5_u64), (Habit::Pooled, 5), (Habit::Fresh, 2)];
    let clients: Vec<_> = habits
        .into_iter()
        .flat_map(|(habit, count)| (0..count).map(move |seed| (habit, seed)))
        .map(|(habit, seed)| {
            let (stop, stopped) = channel();
            (stop, client(habit, seed, address, report.clone(), stopped))
        })
        .collect();
    drop(report);

    let mut tally = Tally::default();
    tally.wait_for(1, &reports);
    for generation in 2..=GENERATIONS {
        let next = Generation::serving(&listener, &start(generation));
        let former = std::mem::replace(&mut current, next);
        former.drain();
        tally.wait_for(generation, &reports);
        let (status, stderr) = former.wait();
        assert!(status.success(), "{status}: {stderr}");
    }
    for (stop, thread) in clients {
        drop(stop);
        thread.join().unwrap();
    }
    for report in reports {
        tally.add(report);
    }
    println!("{:?}", tally.answered);
    assert_eq!(tally.failed, Vec::<String>::new());
    assert_eq!(tally.answered.len() as u64, GENERATIONS);
}
