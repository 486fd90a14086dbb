//! Processes die, or stand still, while much state is being moved. Whoever serves is not held up, and
//! nothing is lost but with the process that owns it.

use std::{
    net::SocketAddr,
    process::Child,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{
    client::{Client, Habit},
    number, reload_to,
    writers::{Stop, answers_come, while_writing},
};
use crate::harness::{Events, Setup, Supervisor};
use crate::native_handovers::NATIVE;

/// State that takes a while to move: 100 MiB, which is a hundred times what a pipe holds.
pub(super) const MUCH: &str = "/fill?entries=6400&bytes=16384";

/// State that takes a moment to move: 32 MiB.
const SOME: &str = "/fill?entries=2048&bytes=16384";

/// How often a process is killed in one test.
const KILLS: u32 = 10;

/// So long an answer may take on two cores that do other things too. Whoever is held up by a new process
/// that does not read is held up for seconds.
const LATENCY_LIMIT: Duration = Duration::from_millis(1500);

/// A client that counts, and how long it waited for an answer at most.
fn count_while(address: SocketAddr, key: &str, work: impl FnOnce()) -> (u64, Duration) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let mut client = Client::new(address, Habit::Keeps);
            let target = format!("/counters/{key}");
            let (mut count, mut longest) = (0, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let value: u64 = client.post(&target, "").parse().unwrap();
                longest = longest.max(asked.elapsed());
                count += 1;
                assert_eq!(value, count);
                thread::sleep(Duration::from_millis(1));
            }
            (count, longest)
        });
        let stopping = Stop(&stop);
        work();
        drop(stopping);
        counting.join().unwrap()
    })
}

/// A new program dies at once, or never reads, while 100 MiB are being written to it.
fn fails_to_read(deed: &str, reason: &str) {
    let setup = Setup::demo().args(["--ready-timeout", "6s"]);
    let program = setup.script("native", NATIVE);
    let program = program.to_str().unwrap().to_owned();
    let mut supervisor = setup.start();
    let address = supervisor.address("http");
    Client::new(address, Habit::Fresh).post(MUCH, "");
    let serving = supervisor.serving();
    let (count, longest) = count_while(address, "a", || {
        let said = supervisor.expect(1, ["reload", "--", &program, "--do", deed]);
        assert!(said.contains(reason), "{said}");
        answers_come(address, "a");
    });
    assert!(longest < LATENCY_LIMIT, "an answer took {longest:?}");
    supervisor.settle();
    assert_eq!(supervisor.serving(), serving);
    reload_to(&supervisor, 1);
    let client = &mut Client::new(address, Habit::Fresh);
    assert_eq!(client.get("/counters/a"), count.to_string());
    assert_eq!(number(&client.get("/version"), "generation"), 3);
    supervisor.stop();
}

#[test]
fn a_new_program_that_dies_at_once_holds_nobody_up() {
    fails_to_read("new:receive=die", "killed by SIGKILL");
}

#[test]
fn a_new_program_that_never_reads_holds_nobody_up() {
    fails_to_read("new:receive=hang", "was not taken over within 6s");
}

/// A handover under way.
struct Begun {
    reload: Child,
    events: Events,
    generation: u64,
    /// The new process.
    pid: i32,
}

impl Begun {
    /// Begins one and waits until the new process has been started.
    fn begin(supervisor: &Supervisor) -> Self {
        let generation = last_started(supervisor) + 1;
        let mut events = supervisor.events();
        let reload = supervisor.begin(["reload"]);
        let started = events.wait_for_generation("started", generation);
        // Asking for the status would take as long as some handovers.
        let pid = started["text"].as_str().unwrap().rsplit_once(' ').unwrap();
        Self {
            reload,
            events,
            generation,
            pid: pid.1.parse().unwrap(),
        }
    }

    /// Waits until the state is being copied to it.
    fn is_copying(&mut self) {
        let told = format!("generation {} takes its state over", self.generation);
        loop {
            if self.events.wait_for("copying")["text"] == told {
                return;
            }
        }
    }
}

fn kill_now(pid: i32) {
    // Whoever has ended already is as dead as wanted.
    let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

#[test]
fn a_new_process_that_is_killed_while_it_takes_the_state_costs_nothing() {
    let mut supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    Client::new(address, Habit::Fresh).post(MUCH, "");
    let serving = supervisor.serving();
    while_writing(&supervisor, || {
        for _ in 0..KILLS {
            let mut begun = Begun::begin(&supervisor);
            begun.is_copying();
            kill_now(begun.pid);
            let (status, said) = supervisor.finish(begun.reload);
            assert_eq!(status, Some(1), "{said}\n{}", supervisor.log());
            answers_come(address, "slow");
        }
    });
    supervisor.settle();
    assert_eq!(supervisor.serving(), serving);
    supervisor.reload();
    supervisor.stop();
}

#[test]
fn a_new_process_that_is_killed_at_any_moment_leaves_a_service_that_works() {
    let mut supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    let mut client = Client::new(address, Habit::Fresh);
    client.post(SOME, "");
    let began = Instant::now();
    supervisor.reload();
    let whole = began.elapsed();
    supervisor.settle();
    let mut value = 0;
    let (mut aborted, mut too_late) = (0, 0);
    for attempt in 0..KILLS {
        let (former, former_pid) = supervisor.serving();
        value += 1;
        assert_eq!(client.post("/counters/a", ""), value.to_string());
        let begun = Begun::begin(&supervisor);
        // Nothing is waited for here: any moment of the handover will do, each time another one.
        thread::sleep(whole * attempt / (KILLS + 3));
        kill_now(begun.pid);
        let (status, said) = supervisor.finish(begun.reload);
        supervisor.wait_until("it serves again", |status| {
            status["services"][0]["state"] == "serving"
        });
        supervisor.settle();
        if supervisor.serving() == (former, former_pid) {
            // It may have taken over before it was dead; then the state has come back.
            let back = &supervisor.service()["last_handover"]["outcome"];
            let told = match status {
                Some(1) => true,
                Some(0 | 5) => back == "rolled-back",
                _other => false,
            };
            assert!(told, "{status:?} {back}\n{said}");
            assert_eq!(client.get("/counters/a"), value.to_string(), "{said}");
            aborted += 1;
        } else {
            // It owned the state when it was killed, and a process takes what it holds with it.
            value = client.get("/counters/a").parse().unwrap();
            client.post(SOME, "");
            too_late += 1;
        }
    }
    assert!(aborted > 2, "{aborted} were aborted, {too_late} too late");
    supervisor.reload();
    assert_eq!(client.get("/counters/a"), value.to_string());
    supervisor.stop();
}

#[test]
fn an_old_process_that_is_killed_in_mid_copy_takes_its_state_along_and_the_service_comes_back() {
    let mut supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    let mut client = Client::new(address, Habit::Fresh);
    for _ in 0..3 {
        client.post(MUCH, "");
        client.post("/counters/a", "");
        let (former, pid) = supervisor.serving();
        let mut begun = Begun::begin(&supervisor);
        begun.is_copying();
        kill_now(pid);
        let (status, said) = supervisor.finish(begun.reload);
        assert_ne!(status, Some(0), "{said}");
        supervisor.wait_until("another generation serves", |status| {
            let service = &status["services"][0];
            let generations = service["generations"].as_array().unwrap();
            service["state"] == "serving"
                && generations
                    .iter()
                    .any(|one| one["phase"] == "serving" && one["generation"] != former)
        });
        assert_eq!(client.post("/counters/a", ""), "1");
        supervisor.settle();
        supervisor.reload();
        assert_eq!(client.post("/counters/a", ""), "2");
        supervisor.settle();
    }
    supervisor.stop();
}

/// The number of the generation that was started last.
fn last_started(supervisor: &Supervisor) -> u64 {
    let history = supervisor.history();
    let started = history.iter().filter(|event| event["event"] == "started");
    started
        .filter_map(|event| event["generation"].as_u64())
        .max()
        .unwrap()
}
