//! Several processes of one service, replaced one at a time; and programs that can run only once.

use std::net::TcpStream;

use serde_json::Value;

use crate::harness::{Setup, Supervisor, answer, ask, begun, eventually, get, is_alive};
use crate::load;

/// The pids of the processes that serve, by their generation.
fn serving(supervisor: &Supervisor) -> Vec<(u64, i64)> {
    let service = supervisor.service();
    let generations = service["generations"].as_array().unwrap().iter();
    let mut serving: Vec<(u64, i64)> = generations
        .filter(|one| one["phase"] == "serving")
        .map(|one| {
            let generation = one["generation"].as_u64().unwrap();
            (generation, one["pid"].as_i64().unwrap())
        })
        .collect();
    serving.sort_unstable();
    serving
}

/// The least number of processes that served at once, once so many did.
fn fewest(history: &[Value], instances: i32) -> i32 {
    let mut now = 0;
    let mut fewest = i32::MAX;
    for event in history {
        match event["event"].as_str().unwrap() {
            "ready" => now += 1,
            "draining" | "died" => {
                now -= 1;
                fewest = fewest.min(now);
            }
            _other => {}
        }
        if now < instances && fewest == i32::MAX {
            continue;
        }
        fewest = fewest.min(now);
    }
    fewest
}

const THREE: [&str; 2] = ["--instances", "3"];

#[test]
fn instances_are_replaced_one_at_a_time() {
    let mut supervisor = Setup::demo().args(THREE).start();
    load::under_load(&supervisor, || {
        for round in 1..=3 {
            let before = serving(&supervisor);
            assert_eq!(before.len(), 3);
            let report = supervisor.reload();
            assert_eq!(report["to"], round + 1);
            let after = serving(&supervisor);
            assert_eq!(after.len(), 3);
            assert!(after.iter().all(|one| !before.contains(one)));
        }
    });
    supervisor.settle();
    let history = supervisor.history();
    assert_eq!(fewest(&history, 3), 3, "{history:#?}");
    // The next one is started when the one before it is ready, not sooner.
    let ours = history.iter().filter(|event| event["generation"] == 4);
    let order: Vec<&str> = ours
        .map(|event| event["event"].as_str().unwrap())
        .filter(|event| ["started", "ready"].contains(event))
        .collect();
    assert_eq!(order, ["started", "ready"].repeat(3));
    supervisor.stop();
}

#[test]
fn an_instance_that_drains_leaves_the_others_of_its_generation_alone() {
    let mut supervisor = Setup::server([]).args(THREE).start();
    let address = supervisor.address("http");
    // A request in each of the old ones would end with it.
    let mut held = Vec::new();
    let mut pids = std::collections::BTreeSet::new();
    while pids.len() < 3 {
        let stream = ask(address, "/until/go");
        begun(&stream);
        held.push(stream);
        pids = serving(&supervisor)
            .iter()
            .filter(|(_, pid)| connections_of(&supervisor, *pid) > 0)
            .map(|(_, pid)| *pid)
            .collect();
        assert!(held.len() < 200, "one of them never accepts");
    }
    supervisor.reload();
    supervisor.write("go", "");
    for stream in held {
        assert!(answer(stream).contains("generation=1"));
    }
    supervisor.settle();
    let killed = |event: &Value| event["event"] == "killed" || event["event"] == "died";
    assert!(!supervisor.history().iter().any(killed));
    supervisor.stop();
}

fn connections_of(supervisor: &Supervisor, pid: i64) -> u64 {
    let service = supervisor.service();
    let mut generations = service["generations"].as_array().unwrap().iter();
    let one = generations.find(|one| one["pid"] == pid).unwrap();
    one["connections"].as_u64().unwrap()
}

#[test]
fn one_instance_that_crashes_is_respawned_and_the_others_serve_on() {
    let mut supervisor = Setup::demo().args(THREE).start();
    let before = serving(&supervisor);
    let (_, pid) = before[1];
    let pid = i32::try_from(pid).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    supervisor.events().wait_for("died");
    supervisor.settle();
    let after = serving(&supervisor);
    assert_eq!(after.len(), 3);
    let still = before.iter().filter(|one| after.contains(one)).count();
    assert_eq!(still, 2, "{before:?} {after:?}");
    supervisor.stop();
}

#[test]
fn a_failure_at_the_second_instance_brings_the_first_back() {
    let setup = Setup::server(["--release", "old"]).args(THREE);
    // It runs twice and not a third time.
    let second = "#!/bin/sh
echo once >>{dir}/runs
[ $(wc -l <{dir}/runs) -le 1 ] || exit 4
exec {dir}/server --release new
";
    setup.script("second", second);
    let mut supervisor = setup.start();
    let before = serving(&supervisor);
    let path = supervisor.path("second");
    load::under(load::fresh_plan(&supervisor), &supervisor, || {
        let said = supervisor.expect(5, ["reload", "--", path.to_str().unwrap()]);
        assert!(said.contains("status 4"), "{said}");
        for _ in 0..10 {
            assert!(get(supervisor.address("http"), "/").contains("release=old"));
        }
    });
    supervisor.settle();
    let after = serving(&supervisor);
    assert_eq!(after.len(), 3);
    // Those whose turn had not come are as they were.
    let still = before.iter().filter(|one| after.contains(one)).count();
    assert_eq!(still, 2, "{before:?} {after:?}");
    assert_eq!(fewest(&supervisor.history(), 3), 3);
    assert_eq!(
        supervisor.service()["last_handover"]["outcome"],
        "rolled-back"
    );
    supervisor.reload();
    assert_eq!(serving(&supervisor).len(), 3);
    supervisor.stop();
}

#[test]
fn a_replaced_instance_that_dies_while_the_next_one_boots_brings_all_back() {
    let setup = Setup::server(["--release", "old"]).args(THREE);
    let second = "#!/bin/sh
echo once >>{dir}/runs
[ $(wc -l <{dir}/runs) -le 1 ] || exec {dir}/server --boot-until {dir}/never
exec {dir}/server --release new
";
    let second = setup.script("second", second);
    let mut supervisor = setup.start();
    let before = serving(&supervisor);
    let reload = supervisor.begin(["reload", "--", second.to_str().unwrap()]);
    let mut events = supervisor.events();
    events.wait_for_generation("ready", 2);
    events.wait_for_generation("started", 2);
    let (_, pid) = *serving(&supervisor).last().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(5), "{said}");
    supervisor.settle();
    let after = serving(&supervisor);
    assert_eq!(after.len(), 3);
    assert_eq!(before.iter().filter(|one| after.contains(one)).count(), 2);
    for _ in 0..10 {
        assert!(get(supervisor.address("http"), "/").contains("release=old"));
    }
    supervisor.stop();
}

const NUMBERED: &str = r#"
[service.web]
command = ["{dir}/server"]
listen = ["http=tcp:127.0.0.1:0"]
instances = NUMBER
"#;

#[test]
fn the_number_of_instances_changes_with_the_configuration() {
    let setup = Setup::configuration(&NUMBERED.replace("NUMBER", "1"));
    setup.script("server", crate::harness::SERVER);
    let mut supervisor = setup.start();
    for number in [3, 2, 4, 1] {
        supervisor.write(
            "heirloom.toml",
            &NUMBERED.replace("NUMBER", &number.to_string()),
        );
        load::under(load::fresh_plan(&supervisor), &supervisor, || {
            supervisor.reload();
            assert_eq!(serving(&supervisor).len(), number);
        });
        supervisor.settle();
    }
    supervisor.stop();
}

#[test]
fn more_instances_that_fail_leave_those_there_were() {
    let setup = Setup::configuration(&NUMBERED.replace("NUMBER", "2"));
    setup.script("server", crate::harness::SERVER);
    let mut supervisor = setup.start();
    let before = serving(&supervisor);
    let text = NUMBERED
        .replace("NUMBER", "4")
        .replace("{dir}/server", "false");
    supervisor.write("heirloom.toml", &text);
    supervisor.expect(1, ["reload"]);
    supervisor.settle();
    assert_eq!(serving(&supervisor), before);
    supervisor.stop();
}

// One at a time.

/// A program that holds a lock for as long as it lives: a second one cannot run beside it.
fn exclusive() -> Setup {
    Setup::server(["--release", "old", "--lock", "{dir}/lock"]).args(["--strategy", "sequential"])
}

#[test]
fn a_program_that_runs_only_once_is_restarted_while_clients_wait() {
    let supervisor = exclusive().start();
    let plan = load::fresh_plan(&supervisor);
    load::under(plan, &supervisor, || {
        for _ in 0..3 {
            let report = supervisor.reload();
            assert_eq!(report["strategy"], "sequential");
            assert!(report["pause_ms"].as_f64().unwrap() > 0.0);
        }
    });
    // Side by side it could not have come up.
    supervisor.stop();
    let overlap = Setup::server(["--lock", "{dir}/lock"]).start();
    let said = overlap.expect(1, ["reload"]);
    assert!(said.contains("another one runs"), "{said}");
    overlap.stop();
}

#[test]
fn clients_wait_in_the_listener_between_the_old_program_and_the_new_one() {
    let setup = exclusive();
    let program = setup.path("server").to_str().unwrap().to_owned();
    let lock = setup.path("lock").to_str().unwrap().to_owned();
    let go = setup.path("go").to_str().unwrap().to_owned();
    let supervisor = setup.start();
    let (_, old) = supervisor.serving();
    let address = supervisor.address("http");
    let reload = supervisor.begin([
        "reload",
        "--",
        &program,
        "--lock",
        &lock,
        "--boot-until",
        &go,
    ]);
    supervisor.events().wait_for_generation("started", 2);
    assert!(!is_alive(old));
    let waiting: Vec<TcpStream> = (0..50).map(|_| ask(address, "/")).collect();
    assert_eq!(supervisor.service()["listeners"][0]["queued"], 50);
    supervisor.write("go", "");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    for stream in waiting {
        assert!(answer(stream).contains("generation=2"));
    }
    supervisor.stop();
}

#[test]
fn a_sequential_handover_that_fails_brings_the_old_program_back() {
    let mut supervisor = exclusive().start();
    load::under(load::fresh_plan(&supervisor), &supervisor, || {
        let said = supervisor.expect(5, ["reload", "--", "sh", "-c", "exit 6"]);
        assert!(said.contains("status 6"), "{said}");
        assert!(get(supervisor.address("http"), "/").contains("release=old"));
    });
    let last = supervisor.service()["last_handover"].clone();
    assert_eq!(last["outcome"], "rolled-back");
    assert_eq!(last["strategy"], "sequential");
    supervisor.settle();
    supervisor.reload();
    supervisor.stop();
}

#[test]
fn a_sequential_handover_waits_for_a_respawn_that_it_ends() {
    // The lock is taken before the boot, so the one that boots is in the way.
    let setup = Setup::server(["--lock", "{dir}/lock", "--boot-until", "{dir}/go"])
        .args(["--strategy", "sequential"]);
    let mut supervisor = setup.start_with("go");
    std::fs::remove_file(supervisor.path("go")).unwrap();
    let (_, pid) = supervisor.serving();
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    supervisor.events().wait_for_generation("started", 2);
    let lock = supervisor.path("lock");
    eventually("it has the lock", || {
        let taken = std::process::Command::new("flock")
            .args(["--nonblock", lock.to_str().unwrap(), "true"])
            .status()
            .unwrap();
        !taken.success()
    });
    let client = ask(supervisor.address("http"), "/");
    let server = supervisor.server();
    let words = ["reload", "--", &server, "--release", "good", "--lock"];
    supervisor.expect(0, [&words[..], &[lock.to_str().unwrap()]].concat());
    assert!(answer(client).contains("release=good"));
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_sequential_program_that_cannot_even_be_found_does_not_stop_the_old_one() {
    let supervisor = exclusive().start();
    let before = supervisor.serving();
    let said = supervisor.expect(1, ["reload", "--", "/nonexistent/program"]);
    assert!(said.contains("No such file"), "{said}");
    assert_eq!(supervisor.serving(), before);
    supervisor.stop();
}

#[test]
fn a_sequential_handover_waits_for_processes_the_old_program_left() {
    // What the program leaves behind holds the lock as well: it must be gone before the new one.
    let setup = exclusive();
    let leaving = "#!/bin/sh
exec 9>{dir}/lock
flock --nonblock 9 || exit 8
setsid --fork sleep 613
exec {dir}/server
";
    let leaving = setup.script("leaving", leaving);
    let supervisor = setup.start();
    let leaving = leaving.to_str().unwrap();
    supervisor.expect(0, ["reload", "--", leaving]);
    for _ in 0..2 {
        supervisor.reload();
    }
    eventually("it serves", || {
        get(supervisor.address("http"), "/").contains("generation=4")
    });
    supervisor.stop();
}
