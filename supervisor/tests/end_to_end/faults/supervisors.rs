//! The supervisor dies, stops or is slow at one of its steps. Its programs serve on: one of them owns the
//! state, and nobody notices.

use std::{
    fs,
    net::SocketAddr,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use heirloom_handover::fault::{Point, Role};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{
    Deed,
    load::{self, Mark, Place},
    part, stands_still, steps,
};
use crate::harness::{HEIRLOOM, Setup, Supervisor, built, eventually, is_alive};

/// By this variable, which they inherit, programs are found that have outlived their supervisor.
const MARK: &str = "HEIRLOOM_TEST_OF";

/// How long a supervisor stands still: longer than a freeze may last, so that the programs do without it.
const FREEZE_TIMEOUT: &str = "500ms";
const STOP: Duration = Duration::from_secs(1);

/// What the supervisor is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Handover,
    /// A handover to a program that does not say in time that it has verified the copy: it is called off.
    FailedHandover,
    Snapshot,
    /// To take up what was saved, when it starts.
    Start,
}

/// A step, which time it is reached, and on which occasion.
type Case = (Point, u32, Wish);

/// All cases: each step, and those that come several times in a handover so often.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for point in steps(Role::Supervisor) {
        let (times, wish) = match point {
            // The first time is that of the first generation.
            Point::Starting | Point::Started | Point::Greeted => (2..=2, Wish::Handover),
            // CONVERGED, FROZEN and READY, COMMITTED; what comes then is of a migration that is over.
            Point::Heard => (1..=4, Wish::Handover),
            // FREEZE, the time for it, COMMIT, the time for it.
            Point::Ordered => (1..=4, Wish::Handover),
            Point::Abort => (1..=1, Wish::FailedHandover),
            Point::Connecting
            | Point::HalfConnected
            | Point::Connected
            | Point::Freeze
            | Point::Commit
            | Point::Verdict
            | Point::Retire
            | Point::Retired
            | Point::Finished
            | Point::Answer => (1..=1, Wish::Handover),
            Point::Drafted | Point::Written | Point::Kept => (1..=1, Wish::Snapshot),
            Point::Restore | Point::Restored => (1..=1, Wish::Start),
            other => unreachable!("{other:?} is a program's"),
        };
        all.extend(times.map(|time| (point, time, wish)));
    }
    all
}

#[test]
fn a_supervisor_that_dies_at_a_step_first_third() {
    each(&part(&cases(), 0, 3));
}

#[test]
fn a_supervisor_that_dies_at_a_step_second_third() {
    each(&part(&cases(), 1, 3));
}

#[test]
fn a_supervisor_that_dies_at_a_step_last_third() {
    each(&part(&cases(), 2, 3));
}

fn each(cases: &[Case]) {
    let mut played = 0;
    for deed in Deed::wanted() {
        for case in cases {
            let (point, time, wish) = *case;
            eprintln!(
                "{} {} the {time}. time: {wish:?}",
                deed.word(),
                point.name()
            );
            match wish {
                Wish::Start => start(point, *deed),
                Wish::Handover | Wish::FailedHandover | Wish::Snapshot => {
                    play(point, time, wish, *deed);
                }
            }
            played += 1;
        }
    }
    println!("{played} cases");
}

fn setup(point: Point, time: u32, deed: Deed, mark: &str) -> Setup {
    // One in reserve waits for a supervisor for seconds, so it is there where that matters.
    let probation = match point {
        Point::Verdict | Point::Finished | Point::Answer => "300ms",
        _other => "0s",
    };
    Setup::demo()
        .args([
            "--listen",
            "chat=tcp:127.0.0.1:0",
            "--freeze-timeout",
            FREEZE_TIMEOUT,
            "--probation",
            probation,
        ])
        .env(MARK, mark)
        .env(
            "HEIRLOOM_FAULT",
            &format!("{}:{}:{time}", point.name(), deed.word()),
        )
}

fn play(point: Point, time: u32, wish: Wish, deed: Deed) {
    let name = format!("{}-{time}-{deed:?}-{}", point.name(), std::process::id());
    let survivors = Survivors(name.clone());
    let mut supervisor = setup(point, time, deed, &name).start();
    let place = Place {
        http: supervisor.address("http"),
        chat: supervisor.address("chat"),
    };
    let mark = Mark::leave(place.http, "count");
    let file = supervisor.path("snapshot");
    let words = words(wish, file.to_str().unwrap());
    let mut status = None;
    let mut said = String::new();
    let tally = load::beside(place, "count", |some_more| {
        let begun = supervisor.begin(words.iter().map(String::as_str));
        eventually("the step is reached", || {
            supervisor.log().contains(&deed.line(point))
        });
        match deed {
            Deed::Kill => {
                supervisor.wait();
                survivors.settle(place.http);
            }
            Deed::Stop => go_on_later(&supervisor, some_more),
            Deed::Slow => {}
        }
        (status, said) = supervisor.finish(begun);
        some_more();
    });
    let log = || format!("{point:?} {status:?} {said}\n{}", supervisor.log());
    // Nobody has noticed, and nothing is lost.
    assert!(tally.troubles.is_empty(), "{:?}\n{}", tally.troubles, log());
    assert!(mark.is_kept(place.http, &tally, u64::MAX), "{}", log());
    if wish == Wish::Snapshot && file.exists() {
        let inspected = std::process::Command::new(HEIRLOOM)
            .arg("inspect")
            .arg(&file)
            .output()
            .unwrap();
        assert!(inspected.status.success(), "{inspected:?}");
    }
    match deed {
        Deed::Kill => {
            // It was asked; what came of it nobody can tell, unless that was told before.
            let told = matches!(point, Point::Retire | Point::Retired) && status == Some(0);
            assert!(told || status == Some(4), "{}", log());
            let next = after_its_death(&supervisor, &survivors);
            assert!(mark.is_kept(place.http, &tally, u64::MAX), "{}", log());
            next.stop();
        }
        Deed::Stop | Deed::Slow => {
            let fine = match wish {
                Wish::FailedHandover => status == Some(1),
                Wish::Handover if deed == Deed::Stop => matches!(status, Some(0 | 1)),
                Wish::Handover | Wish::Snapshot | Wish::Start => status == Some(0),
            };
            assert!(fine, "{}", log());
            supervisor.reload();
            supervisor.settle();
            supervisor.stop();
        }
    }
}

/// What is asked for, for a command line.
fn words(wish: Wish, file: &str) -> Vec<String> {
    let program = built("heirloom-demo-v2").to_str().unwrap().to_owned();
    let words: &[&str] = match wish {
        Wish::Handover => &["reload", "--", &program],
        Wish::FailedHandover => &[
            "reload",
            "--",
            "/usr/bin/env",
            "HEIRLOOM_FAULT=new.verified:slow=2000",
            &program,
        ],
        Wish::Snapshot | Wish::Start => &["snapshot", "-o", file],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The supervisor stands still for a while, and the clients are served all that time.
fn go_on_later(supervisor: &Supervisor, some_more: &dyn Fn()) {
    eventually("it stands still", || stands_still(supervisor.pid()));
    let end = Instant::now() + STOP;
    while Instant::now() < end {
        some_more();
    }
    supervisor.signal(Signal::SIGCONT);
}

/// The next supervisor takes over the program that is left of one that has died, finishes the handover that
/// was asked for, or calls it off, and hands over as ever.
fn after_its_death(dead: &Supervisor, survivors: &Survivors) -> Supervisor {
    let left = survivors.pids();
    assert_eq!(left.len(), 1);
    let mut next = dead.start_again_without("HEIRLOOM_FAULT");
    next.settle();
    let log = next.log();
    let started = format!(" as process {}\n", left[0]);
    let before = log.split(&started).next().unwrap();
    let before = before.lines().next_back().unwrap();
    let (generation, _) = before.split_once(": started ").unwrap();
    let (_, generation) = generation.rsplit_once('/').unwrap();
    let adopted = format!("/{generation}: it was taken over from a supervisor that is gone");
    assert!(log.contains(&adopted), "{adopted}\n{log}");
    let (_, pid) = next.serving();
    let own = next.pid().as_raw();
    eventually("only what serves is left", || {
        survivors.pids().iter().all(|one| [own, pid].contains(one))
    });
    assert_eq!(next.reload()["outcome"], "committed", "{}", next.log());
    next.settle();
    next
}

/// A supervisor dies while a state that was saved is taken up: the next one takes it up.
fn start(point: Point, deed: Deed) {
    let name = format!("{}-{deed:?}-{}", point.name(), std::process::id());
    let survivors = Survivors(name.clone());
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let keep = ["--state-file", state.to_str().unwrap()];
    let supervisor = Setup::demo().args(keep).start();
    let counted = "/counters/kept";
    let mut client = crate::state::client::Client::new(
        supervisor.address("http"),
        crate::state::client::Habit::Fresh,
    );
    assert_eq!(client.post(counted, ""), "1");
    supervisor.stop();
    assert!(state.exists());

    let setup = setup(point, 1, deed, &name).args(keep);
    let supervisor = match deed {
        Deed::Kill => {
            let mut dying = setup.spawn();
            dying.wait();
            assert!(dying.log().contains(&deed.line(point)), "{}", dying.log());
            // Whoever has taken it up ends here: the port is its own, and nobody is to have it twice.
            survivors.end();
            assert!(state.exists());
            Setup::demo().args(keep).start()
        }
        Deed::Stop => {
            let mut supervisor = setup.spawn();
            eventually("it stands still", || stands_still(supervisor.pid()));
            assert!(supervisor.log().contains(&deed.line(point)));
            supervisor.signal(Signal::SIGCONT);
            eventually("it answers", || {
                UnixStream::connect(supervisor.control()).is_ok()
            });
            supervisor.settle();
            supervisor
        }
        Deed::Slow => setup.start(),
    };
    let mut client = crate::state::client::Client::new(
        supervisor.address("http"),
        crate::state::client::Habit::Fresh,
    );
    assert_eq!(client.get(counted), "1", "{}", supervisor.log());
    supervisor.stop();
}

/// The programs of one supervisor, whether it lives or not. They end with this.
struct Survivors(String);

impl Survivors {
    fn pids(&self) -> Vec<i32> {
        let wanted = format!("{MARK}={}", self.0);
        let entries = fs::read_dir("/proc").unwrap();
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let all = numbers.filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut variables = environment.split(|byte| *byte == 0);
            variables.any(|variable| variable == wanted.as_bytes()) && is_alive(*pid)
        });
        all.collect()
    }

    /// Waits until one of them is left, which answers.
    fn settle(&self, http: SocketAddr) {
        eventually("one program is left", || self.pids().len() == 1);
        crate::harness::get(http, "/version");
    }

    fn end(&self) {
        for pid in self.pids() {
            // Whoever has ended already is as dead as wanted.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        eventually("all programs have ended", || self.pids().is_empty());
    }
}

impl Drop for Survivors {
    fn drop(&mut self) {
        // The supervisor, if it lives, has been ended before.
        if !std::thread::panicking() {
            return self.end();
        }
        for pid in self.pids() {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
