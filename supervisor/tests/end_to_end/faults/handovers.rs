//! One of the two programs of a handover dies, stops or is slow at one of its steps.

use std::{
    process::Child,
    time::{Duration, Instant},
};

use heirloom_handover::fault::{Point, Role};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{
    Deed,
    load::{self, Mark, Place},
    part, stands_still, steps,
    verdict::{self, TAKING_BACK},
};
use crate::harness::{
    Setup, Supervisor, built, children_of, eventually, is_alive, open_descriptors,
};

/// How long others wait for a program that stands still.
const READY_TIMEOUT: &str = "5s";
const FREEZE_TIMEOUT: &str = "2s";

/// Longer than a freeze may last.
const BEYOND_THE_FREEZE_MS: u64 = 3000;

/// A program that is stopped goes on after so long at the latest: all deadlines above have passed.
const LONGEST_STOP: Duration = Duration::from_secs(8);

#[test]
fn an_old_program_that_dies_at_a_step_first_third() {
    each(&part(&steps(Role::Old), 0, 3));
}

#[test]
fn an_old_program_that_dies_at_a_step_second_third() {
    each(&part(&steps(Role::Old), 1, 3));
}

#[test]
fn an_old_program_that_dies_at_a_step_last_third() {
    each(&part(&steps(Role::Old), 2, 3));
}

#[test]
fn a_new_program_that_dies_at_a_step_first_half() {
    each(&part(&steps(Role::New), 0, 2));
}

#[test]
fn a_new_program_that_dies_at_a_step_second_half() {
    each(&part(&steps(Role::New), 1, 2));
}

/// All of it, each with all that is to be done in this run.
fn each(points: &[Point]) {
    let mut stage = Stage::set();
    let mut cases = 0;
    for deed in Deed::wanted() {
        for point in points {
            eprintln!("{} {}", deed.word(), point.name());
            stage.play(*point, *deed);
            cases += 1;
        }
    }
    stage.end();
    println!("{cases} cases");
}

struct Stage {
    supervisor: Supervisor,
    place: Place,
    descriptors: usize,
}

impl Stage {
    fn set() -> Self {
        let setup = Setup::demo().args([
            "--listen",
            "chat=tcp:127.0.0.1:0",
            "--ready-timeout",
            READY_TIMEOUT,
            "--freeze-timeout",
            FREEZE_TIMEOUT,
            "--probation",
            "1s",
        ]);
        let mut supervisor = setup.start();
        let place = Place {
            http: supervisor.address("http"),
            chat: supervisor.address("chat"),
        };
        // Two programs that are proven are kept open besides.
        for version in [1, 2, 1] {
            reload(&supervisor, version, None);
        }
        supervisor.settle();
        let descriptors = open_descriptors(supervisor.pid());
        Self {
            supervisor,
            place,
            descriptors,
        }
    }

    fn play(&mut self, point: Point, deed: Deed) {
        let supervisor = &mut self.supervisor;
        let http = self.place.http;
        let allowed = verdict::of_program(point, deed);
        let case = format!("{}:{}", point.name(), deed.word());
        // This handover is also what shows that the one before has broken nothing.
        let armed = Some(case.clone()).filter(|_| point.role() == Role::Old);
        reload(supervisor, 1, armed.as_deref());
        supervisor.settle();
        let (former, former_pid) = supervisor.serving();
        let key = case.replace([':', '.', '='], "-");
        let mark = Mark::leave(http, &key);
        let new = last_started(supervisor) + 1;
        let armed = if TAKING_BACK.contains(&point) {
            Some("new.verified:kill".to_owned())
        } else if point == Point::NewRefused {
            // The old one does not wait for it so long.
            let late = format!("new.committing:slow={BEYOND_THE_FREEZE_MS}@{new}");
            Some(format!("{late},{case}"))
        } else {
            Some(case.clone()).filter(|_| point.role() == Role::New)
        };
        let command = command(2, armed.as_deref(), new);
        let mut status = None;
        let mut said = String::new();
        let tally = load::beside(self.place, &key, |some_more| {
            let words = ["reload", "--"].into_iter();
            let mut begun = supervisor.begin(words.chain(command.iter().map(String::as_str)));
            eventually("the step is reached", || {
                supervisor.log().contains(&deed.line(point)) || has_ended(&mut begun)
            });
            if deed == Deed::Stop {
                let stopped = wait_for_stopped(supervisor);
                wait_for_end(&mut begun);
                // Who did not wait so long has killed it.
                let _gone = kill(stopped, Signal::SIGCONT);
            }
            (status, said) = supervisor.finish(begun);
            // Some steps come behind the report.
            eventually("the step is reached", || {
                supervisor.log().contains(&deed.line(point))
            });
            supervisor.wait_until("it serves", |status| {
                status["services"][0]["state"] == "serving"
            });
            some_more();
        });
        supervisor.settle();
        let log = || format!("{case}: {status:?} {said}\n{}", supervisor.log());
        let ended = status.unwrap_or(-1);
        assert!(allowed.reload.contains(&ended), "{}", log());
        let told = [
            "the new program",
            "the old program",
            "the program",
            // Which of the two was slow with the copy cannot be seen.
            "the state was not taken over",
        ];
        let told = told.iter().any(|reason| said.contains(reason));
        assert!(told || ended == 0, "{}", log());
        let troubles = &tally.troubles;
        assert!(
            allowed.cuts || troubles.is_empty(),
            "{troubles:?}\n{}",
            log()
        );
        if allowed.spares_old {
            assert_eq!(supervisor.serving(), (former, former_pid), "{}", log());
            assert!(is_alive(former_pid), "{}", log());
        }
        // Whoever had the state last of all that had this one.
        let owner = if ended == 1 { former } else { new };
        let kept = mark.is_kept(http, &tally, owner);
        assert!(kept || allowed.loses, "the state is lost\n{}", log());
        assert_eq!(children_of(supervisor.pid()).len(), 1, "{}", log());
    }

    fn end(mut self) {
        reload(&self.supervisor, 1, None);
        self.supervisor.settle();
        // What a proven program is kept by, and the pipes of one that has just ended, take their time to go.
        eventually("every descriptor is given back", || {
            open_descriptors(self.supervisor.pid()) <= self.descriptors
        });
        self.supervisor.stop();
    }
}

/// Hands over to this version, which must work. If something is armed, it is in the next generation.
fn reload(supervisor: &Supervisor, version: u32, armed: Option<&str>) {
    let command = command(version, armed, last_started(supervisor) + 1);
    let words = ["reload", "--"].into_iter();
    let said = supervisor.heirloom(words.chain(command.iter().map(String::as_str)));
    assert!(said.status.success(), "{said:?}\n{}", supervisor.log());
}

/// The demo of a version, in which something is armed if it is this generation.
fn command(version: u32, armed: Option<&str>, generation: u64) -> Vec<String> {
    let name = match version {
        1 => "heirloom-demo",
        _ => "heirloom-demo-v2",
    };
    let program = built(name).to_str().unwrap().to_owned();
    match armed {
        None => vec![program],
        Some(armed) => vec![
            "/usr/bin/env".to_owned(),
            format!("HEIRLOOM_FAULT={armed}@{generation}"),
            program,
        ],
    }
}

/// The number of the generation that was started last.
fn last_started(supervisor: &Supervisor) -> u64 {
    let history = supervisor.history();
    let started = history.iter().filter(|event| event["event"] == "started");
    let numbers = started.filter_map(|event| event["generation"].as_u64());
    numbers.max().unwrap()
}

/// The program that stands still.
fn wait_for_stopped(supervisor: &Supervisor) -> Pid {
    let mut stopped = None;
    eventually("a program stands still", || {
        let all = children_of(supervisor.pid());
        stopped = all.into_iter().find(|pid| stands_still(*pid));
        stopped.is_some()
    });
    stopped.unwrap()
}

/// Waits for the end of a command, unless it waits for the program that stands still.
fn wait_for_end(begun: &mut Child) {
    let end = Instant::now() + LONGEST_STOP;
    while Instant::now() < end && !has_ended(begun) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn has_ended(begun: &mut Child) -> bool {
    begun.try_wait().unwrap().is_some()
}
