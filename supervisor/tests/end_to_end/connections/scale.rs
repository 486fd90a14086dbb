//! Many connections: all of them move, in little time, and nothing of them is left behind.

use std::time::{Duration, Instant};

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    crew::{Turn, beside},
    wire::Wire,
};
use crate::harness::{Setup, Supervisor, eventually, open_descriptors};

/// The test has as many connections as it asks for, and some files.
fn allow_descriptors(count: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = count + 500;
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).unwrap_or_else(|error| {
        panic!("{wanted} open files are needed, {hard} are allowed: {error}")
    });
}

/// So many connections on which a request has been answered.
fn idle(supervisor: &Supervisor, count: usize) -> Vec<Wire> {
    let address = supervisor.address("http");
    let mut wires: Vec<Wire> = (0..count).map(|_| Wire::connect(address)).collect();
    each(&mut wires, 1);
    wires
}

/// Asks on all of them; this generation answers.
fn each(wires: &mut [Wire], generation: u64) {
    for some in wires.chunks_mut(500) {
        for wire in &mut *some {
            wire.send(super::wire::get("/hello"));
        }
        for wire in some {
            let answer = wire.answer();
            assert_eq!(super::number(&answer, "generation"), generation);
        }
    }
}

/// When the last event of one of these kinds happened, in seconds of its day.
fn second_of(supervisor: &Supervisor, kinds: &[&str]) -> f64 {
    let history = supervisor.history();
    let event = history
        .iter()
        .rfind(|event| kinds.contains(&event["event"].as_str().unwrap()));
    let time = event.unwrap()["time"].as_str().unwrap();
    let clock = time.split_once('T').unwrap().1.trim_end_matches('Z');
    let parts = clock.split(':').map(|part| part.parse::<f64>().unwrap());
    parts.fold(0.0, |sum, part| sum * 60.0 + part)
}

fn moved(report: &Value) -> u64 {
    report["connections_moved"].as_u64().unwrap()
}

#[test]
fn five_thousand_connections_move_where_six_thousand_files_are_allowed() {
    allow_descriptors(5000);
    let setup = Setup::demo().launcher(["prlimit", "--nofile=6000:6000"]);
    let mut supervisor = setup.start();
    let mut wires = idle(&supervisor, 5000);
    supervisor.reload();
    supervisor.wait_until("all have moved", |status| {
        status["services"][0]["last_handover"]["connections_moved"] == 5000
    });
    each(&mut wires, 2);
    supervisor.settle();
    supervisor.stop();
}

/// What is promised is half a second; a test's machine may be a slow one that is busy with others.
const MOVE_LIMIT: Duration = Duration::from_secs(10);

/// So long an answer may take meanwhile, there.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

#[test]
fn ten_thousand_idle_connections_move_while_busy_ones_are_served() {
    allow_descriptors(10_100);
    let setup = Setup::demo().launcher(["prlimit", "--nofile=16000:16000"]);
    let mut supervisor = setup.start();
    let mut wires = idle(&supervisor, 10_000);
    let address = supervisor.address("http");
    let longest = std::sync::Mutex::new(Duration::ZERO);
    let clients: Vec<Turn<'_>> = (0..4)
        .map(|_| {
            let mut wire = Wire::connect(address);
            let longest = &longest;
            Box::new(move || {
                let asked = Instant::now();
                wire.generation();
                let mut longest = longest.lock().unwrap();
                *longest = longest.max(asked.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }) as Turn<'_>
        })
        .collect();
    beside(&supervisor, clients, || {
        supervisor.reload();
        eventually("all have moved", || {
            moved(&supervisor.service()["last_handover"]) >= 10_004
        });
    });
    // The old one says how many it was, or that it has finished, whichever it comes to first.
    let told = second_of(&supervisor, &["moved", "drained"]);
    let took = told - second_of(&supervisor, &["yielded"]);
    let longest = longest.into_inner().unwrap();
    let report = supervisor.service()["last_handover"].clone();
    println!(
        "{} connections moved in {took:.3} s (pause {} ms, longest answer {longest:?})",
        moved(&report),
        report["pause_ms"]
    );
    assert!(took < MOVE_LIMIT.as_secs_f64(), "{took} s");
    assert!(longest < ANSWER_LIMIT, "{longest:?}");
    each(&mut wires, 2);
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn two_hundred_handovers_of_connections_leak_nothing() {
    let mut supervisor = Setup::demo().args(["--probation", "0s"]).start();
    let mut wires = idle(&supervisor, 20);
    let open = |supervisor: &mut Supervisor| {
        supervisor.settle();
        let (_, serving) = supervisor.serving();
        let both = [supervisor.pid(), Pid::from_raw(serving)];
        both.map(open_descriptors)
    };
    supervisor.reload();
    each(&mut wires, 2);
    let before = open(&mut supervisor);
    for _ in 0..200 {
        supervisor.reload();
    }
    each(&mut wires, 202);
    eventually("every descriptor is given back", || {
        open(&mut supervisor) <= before
    });
    supervisor.stop();
}
