//! HTTP/1.1 requests, one after the other or several at once, on connections that are busy, mostly idle,
//! or in the middle of a request's head.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use heirloom_bench::load::{Pace, Plan, Request, Response, Reuse};

use super::{
    HANDOVERS,
    crew::{Turn, beside},
    hand_over, number,
    wire::{Wire, get, post},
};
use crate::{
    harness::{Setup, Supervisor, eventually},
    load::under,
};

/// Pauses between two requests: none, short, long, and longer than handovers take.
const PAUSES_MS: [u64; 4] = [0, 2, 50, 2000];

/// So that all handovers together take longer than two of the longest pauses.
const BETWEEN_HANDOVERS: Duration = Duration::from_millis(100);

/// Connections that are used once at the beginning and once at the end.
const IDLE: usize = 50;

/// Clients that look at a connection before they use it again, and such that do not, with each pause.
fn every_kind(supervisor: &Supervisor) -> (Plan, u64) {
    let mut plan = Plan::new(supervisor.address("http"), Request::get("/version")).idle(IDLE);
    let mut clients = 0;
    for pause_ms in PAUSES_MS {
        for reuse in [Reuse::Blind, Reuse::Checked] {
            let pace = Pace::Think(Duration::from_millis(pause_ms));
            plan = plan.keep_alive(2, pace, reuse);
            clients += 2;
        }
    }
    (plan.duration(Duration::from_secs(120)), clients)
}

#[test]
fn fifty_handovers_close_no_connection_fail_no_request_and_apply_each_once() {
    let mut supervisor = Setup::demo().start();
    let values = Arc::new(Mutex::new(Vec::new()));
    let (plan, clients) = every_kind(&supervisor);
    // The second client of each kind changes something, with a body that nobody reads.
    let plan = plan.requests(|client, _| {
        if client % 2 == 0 {
            Request::get("/version")
        } else {
            Request::post("/counters/all", "some body")
        }
    });
    let plan = {
        let values = Arc::clone(&values);
        plan.check(move |client, _, response: &Response| {
            if client % 2 == 1 {
                let value: u64 = response.text().parse().map_err(|_| response.text())?;
                values.lock().unwrap().push(value);
            }
            Ok(())
        })
    };
    let report = under(plan, &supervisor, || {
        for _ in 0..HANDOVERS {
            hand_over(&supervisor, 1);
            thread::sleep(BETWEEN_HANDOVERS);
        }
    });
    assert!(report.is_spotless(), "{report}\n{}", supervisor.log());
    assert_eq!(report.connections_opened, clients, "{report}");
    assert_eq!(report.idle.answered, IDLE as u64, "{report}");
    let answered = report.generations.len() as u64;
    assert!(answered > HANDOVERS / 2, "{answered} generations answered");
    let mut values = std::mem::take(&mut *values.lock().unwrap());
    values.sort_unstable();
    let all: Vec<u64> = (1..=values.len() as u64).collect();
    assert!(values == all, "{} answers: {values:?}", values.len());
    let stands = Wire::connect(supervisor.address("http")).get("/counters/all");
    assert_eq!(stands, values.len().to_string());
    supervisor.settle();
    supervisor.stop();
}

/// So many requests are sent before the first answer is read.
const PIPELINED: u64 = 20;

#[test]
fn pipelined_requests_are_answered_in_their_order_and_each_once() {
    let mut supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    let seen = Mutex::new(BTreeSet::new());
    let clients: Vec<Turn<'_>> = (0..4)
        .map(|client| {
            let mut wire = Wire::connect(address);
            let mut count = 0;
            let seen = &seen;
            Box::new(move || {
                let add = post(&format!("/counters/{client}"), "");
                let all = format!("{}{}", add.repeat(PIPELINED as usize), get("/hello"));
                // The last one comes in two parts.
                let (most, rest) = all.split_at(all.len() - 10);
                wire.send(most);
                for _ in 0..PIPELINED {
                    count += 1;
                    assert_eq!(wire.answer(), count.to_string());
                }
                wire.send(rest);
                let generation = number(&wire.answer(), "generation");
                seen.lock().unwrap().insert(generation);
            }) as Turn<'_>
        })
        .collect();
    let turns = beside(&supervisor, clients, || hand_over(&supervisor, HANDOVERS));
    for (client, turns) in turns.into_iter().enumerate() {
        let stands = Wire::connect(address).get(&format!("/counters/{client}"));
        assert_eq!(stands, (turns * PIPELINED).to_string());
    }
    assert!(seen.lock().unwrap().len() as u64 > HANDOVERS / 2);
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn half_a_head_before_a_handover_and_the_rest_after_it() {
    let supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    let mut used = Wire::connect(address);
    assert_eq!(used.generation(), 1);
    let mut unused = Vec::new();
    let whole = post("/counters/halves", "a body of some length");
    let mut count = 0;
    for generation in 2..=HANDOVERS + 1 {
        // Elsewhere each time, so that every byte of a head is a border once.
        let (first, rest) = whole.split_at(generation as usize % whole.len());
        used.send(first);
        let mut fresh = Wire::connect(address);
        fresh.send(first);
        supervisor.reload();
        for wire in [&mut used, &mut fresh] {
            wire.send(rest);
            count += 1;
            assert_eq!(wire.answer(), count.to_string(), "{first:?}");
            // A request whose head was complete may have been the former generation's.
            assert_eq!(wire.generation(), generation);
        }
        unused.push(Wire::connect(address));
    }
    // Those that have never sent anything, over up to fifty generations.
    for mut wire in unused {
        assert_eq!(wire.generation(), HANDOVERS + 1);
    }
    supervisor.stop();
}

#[test]
fn a_slow_request_reaches_the_state_through_every_generation_in_between() {
    let mut supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    let mut slow = Wire::connect(address);
    assert_eq!(slow.get("/slow?ms=0&key=s"), "value=1 generation=1");
    let mut pipelined = Wire::connect(address);
    pipelined.get("/hello");
    let ask = get("/slow?ms=3000&key=s");
    slow.send(&ask);
    pipelined.send(format!("{ask}{}", post("/counters/s", "")));
    // Both have been begun when these, which came later, are answered.
    Wire::connect(address).get("/hello");
    Wire::connect(address).get("/hello");
    for _ in 0..4 {
        supervisor.reload();
    }
    Wire::connect(address).post("/counters/s", "");
    assert_eq!(supervisor.serving().0, 5);
    let mut values = Vec::new();
    for answer in [slow.answer(), pipelined.answer()] {
        assert_eq!(number(&answer, "generation"), 1);
        values.push(number(&answer, "value"));
    }
    let behind: u64 = pipelined.answer().parse().unwrap();
    assert!(behind > values[1], "{behind} behind {values:?}");
    values.push(behind);
    values.sort_unstable();
    assert_eq!(values, [3, 4, 5]);
    // They have gone through all generations as well.
    for wire in [&mut slow, &mut pipelined] {
        assert_eq!(wire.generation(), 5);
    }
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn clients_that_close_in_the_moment_of_the_move_leave_nothing_behind() {
    let mut supervisor = Setup::demo().args(["--probation", "0s"]).start();
    let address = supervisor.address("http");
    let mut stays = Wire::connect(address);
    let clients: Vec<Turn<'_>> = (0..8_u64)
        .map(|client| {
            let mut turn = client;
            Box::new(move || {
                turn += 1;
                let mut wire = Wire::connect(address);
                match turn % 4 {
                    // With nothing sent, in a head, after an answer, with an answer on its way.
                    0 => {}
                    1 => wire.send("GET / HT"),
                    2 => drop(wire.get("/hello")),
                    _ => wire.send(get(&format!("/slow?ms=5&key={client}"))),
                }
                thread::sleep(Duration::from_millis(1));
                if client % 2 == 0 {
                    // It is reset rather than closed.
                    let linger = Some(Duration::ZERO);
                    let socket = socket2::SockRef::from(wire.socket());
                    socket.set_linger(linger).unwrap();
                }
            }) as Turn<'_>
        })
        .collect();
    beside(&supervisor, clients, || hand_over(&supervisor, 20));
    assert_eq!(stays.generation(), 21);
    supervisor.settle();
    // The one that stays, and the one that asks.
    eventually("nobody else is served", || {
        let service = supervisor.service();
        service["generations"][0]["connections"].as_u64() <= Some(1)
    });
    supervisor.stop();
}
