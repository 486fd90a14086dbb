//! How generations and the supervisor itself end, and what is left of them: nothing.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};
use serde_json::Value;

use crate::harness::{
    Setup, Supervisor, answer, ask, begun, children_of, eventually, get, is_alive,
};

/// Whether something happened to a generation.
fn happened(supervisor: &Supervisor, kind: &str, generation: u64) -> bool {
    let is = |event: &Value| event["event"] == kind && event["generation"] == generation;
    supervisor.history().iter().any(is)
}

/// The pids that a program of the test has written into a file, a line each, once there are so many.
fn pids(supervisor: &Supervisor, name: &str, count: usize) -> Vec<i32> {
    let mut text = String::new();
    eventually("the program has written its pids", || {
        text = fs::read_to_string(supervisor.path(name)).unwrap_or_default();
        text.ends_with('\n') && text.lines().count() == count
    });
    text.lines().map(|line| line.parse().unwrap()).collect()
}

fn phases(service: &Value, wanted: &str) -> usize {
    let generations = service["generations"].as_array().unwrap().iter();
    generations.filter(|one| one["phase"] == wanted).count()
}

// Draining.

#[test]
fn what_does_not_end_in_time_is_killed_with_all_it_started() {
    let setup = Setup::server(["--stubborn"]).args(["--drain-timeout", "400ms"]);
    // One in its group, one in a group of its own, one whose parent has ended.
    let program = "#!/bin/sh
trap '' TERM
sleep 601 & echo $! >>{dir}/pids
setsid sleep 602 & echo $! >>{dir}/pids
setsid --fork sh -c 'echo $$ >>{dir}/pids; exec sleep 603'
exec {dir}/server --stubborn
";
    let program = setup.script("program", program);
    let mut supervisor = setup.start();
    supervisor.expect(0, ["reload", "--", program.to_str().unwrap()]);
    let started = pids(&supervisor, "pids", 3);
    let (_, pid) = supervisor.serving();
    let server = supervisor.server();
    supervisor.expect(0, ["reload", "--", &server]);
    supervisor.settle();
    assert!(happened(&supervisor, "killed", 2), "{}", supervisor.log());
    for pid in [pid].iter().chain(&started) {
        assert!(!is_alive(*pid), "{pid} of {started:?}");
    }
    get(supervisor.address("http"), "/");
    supervisor.stop();
}

#[test]
fn a_request_that_is_longer_than_the_deadline_ends_with_it() {
    let mut supervisor = Setup::server([]).args(["--drain-timeout", "300ms"]).start();
    let held = ask(supervisor.address("http"), "/until/never");
    begun(&held);
    supervisor.reload();
    supervisor.settle();
    assert!(happened(&supervisor, "killed", 1));
    supervisor.stop();
}

#[test]
fn an_old_program_that_is_stopped_is_killed_at_its_deadline() {
    let mut supervisor = Setup::server([]).args(["--drain-timeout", "300ms"]).start();
    let (_, pid) = supervisor.serving();
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    supervisor.reload();
    assert!(get(supervisor.address("http"), "/").contains("generation=2"));
    supervisor.settle();
    assert!(!is_alive(pid));
    supervisor.stop();
}

#[test]
fn a_hundred_generations_that_do_not_end_are_all_known_and_ended() {
    // Ignored signals stay ignored over an exec.
    let stubborn = ["sh", "-c", "trap '' TERM; exec sleep 612"];
    let mut supervisor = Setup::program(stubborn)
        .args(["--ready", "after:1ms", "--most-draining", "200"])
        .start();
    for _ in 0..100 {
        supervisor.reload();
    }
    let service = supervisor.service();
    assert_eq!(phases(&service, "draining"), 100);
    let children = children_of(supervisor.pid());
    assert_eq!(children.len(), 101);
    supervisor.expect(0, ["stop", "--timeout", "0s"]);
    assert_eq!(supervisor.wait(), Some(0));
    assert!(children.iter().all(|child| !is_alive(child.as_raw())));
}

#[test]
fn a_storm_of_reloads_with_requests_that_do_not_end_piles_nothing_up() {
    let mut supervisor = Setup::server([])
        .args(["--most-draining", "2", "--drain-timeout", "200ms"])
        .start();
    let address = supervisor.address("http");
    let mut held = Vec::new();
    let mut most = 0;
    for _ in 0..40 {
        held.push(ask(address, "/until/never"));
        supervisor.signal(Signal::SIGHUP);
        most = most.max(children_of(supervisor.pid()).len());
        std::thread::sleep(Duration::from_millis(25));
    }
    // Two that drain, one that serves, one that boots.
    assert!(most <= 4, "{most} processes at once");
    supervisor.reload();
    supervisor.settle();
    assert_eq!(children_of(supervisor.pid()).len(), 1);
    supervisor.stop();
}

#[test]
fn every_line_of_output_names_its_generation() {
    let says = "echo \"says $HEIRLOOM_GENERATION\"; echo \"errs $HEIRLOOM_GENERATION\" >&2; exec sleep 613";
    let supervisor = Setup::program(["sh", "-c", says])
        .args(["--ready", "after:1ms", "--name", "talker"])
        .start();
    supervisor.reload();
    for generation in 1..=2 {
        eventually("both lines are in the log", || {
            let log = supervisor.log();
            log.contains(&format!("talker/{generation}: stdout| says {generation}"))
                && log.contains(&format!("talker/{generation}: stderr| errs {generation}"))
        });
    }
    supervisor.stop();
}

#[test]
fn five_generations_drain_at_once_and_each_finishes_its_request() {
    let mut supervisor = Setup::server([]).start();
    let address = supervisor.address("http");
    let mut held = Vec::new();
    for number in 1..=5 {
        let stream = ask(address, &format!("/until/go-{number}"));
        begun(&stream);
        held.push((number, stream));
        supervisor.reload();
    }
    let service = supervisor.service();
    assert_eq!(phases(&service, "draining"), 5, "{service}");
    assert_eq!(phases(&service, "serving"), 1, "{service}");
    // Not in the order in which they began.
    held.swap(0, 3);
    held.swap(1, 4);
    for (number, stream) in held {
        supervisor.write(&format!("go-{number}"), "");
        let said = answer(stream);
        assert!(said.contains(&format!("generation={number}\n")), "{said}");
        supervisor.events().wait_for_generation("gone", number);
    }
    supervisor.settle();
    assert!((1..=5).all(|number| !happened(&supervisor, "killed", number)));
    supervisor.stop();
}

#[test]
fn a_handover_waits_while_as_many_drain_as_may() {
    let mut supervisor = Setup::server([]).args(["--most-draining", "1"]).start();
    let address = supervisor.address("http");
    let held = ask(address, "/until/go");
    begun(&held);
    supervisor.reload();
    let reload = supervisor.begin(["reload"]);
    supervisor.events().wait_for("waiting");
    let service = supervisor.service();
    assert_eq!(service["state"], "handing-over");
    assert_eq!(service["generations"].as_array().unwrap().len(), 2);
    // Others that come meanwhile are one more, not many.
    for _ in 0..20 {
        supervisor.signal(Signal::SIGHUP);
    }
    assert!(get(address, "/").contains("generation=2"));
    supervisor.write("go", "");
    assert!(answer(held).contains("generation=1"));
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    supervisor.events().wait_for_generation("committed", 4);
    supervisor.settle();
    assert_eq!(supervisor.serving().0, 4);
    supervisor.stop();
}

// The end of the supervisor.

#[test]
fn nothing_holds_the_port_after_a_stop() {
    let setup = Setup::server([]);
    let program = "#!/bin/sh
sleep 604 & echo $! >>{dir}/pids
setsid --fork sh -c 'echo $$ >>{dir}/pids; exec sleep 605'
exec {dir}/server
";
    let program = setup.script("program", program);
    let mut supervisor = setup.start();
    supervisor.expect(0, ["reload", "--", program.to_str().unwrap()]);
    let left = pids(&supervisor, "pids", 2);
    let address = supervisor.address("http");
    supervisor.expect(0, ["stop"]);
    assert_eq!(supervisor.wait(), Some(0));
    TcpListener::bind(address).unwrap();
    for pid in left {
        assert!(!is_alive(pid), "{pid}");
    }
}

#[test]
fn what_hides_from_its_generation_is_gone_after_a_stop() {
    // A group of its own, an environment of its own, a parent that has ended: nothing tells whose
    // it is but that it was handed to the supervisor.
    let setup = Setup::server([]);
    let program = "#!/bin/sh
setsid --fork env --ignore-environment sh -c 'echo $$ >>{dir}/pids; exec sleep 606'
exec {dir}/server
";
    let program = setup.script("program", program);
    let mut supervisor = setup.start();
    supervisor.expect(0, ["reload", "--", program.to_str().unwrap()]);
    let left = pids(&supervisor, "pids", 1);
    let address = supervisor.address("http");
    supervisor.expect(0, ["stop"]);
    assert_eq!(supervisor.wait(), Some(0));
    let hidden = is_alive(left[0]);
    if hidden {
        kill(Pid::from_raw(left[0]), Signal::SIGKILL).unwrap();
    }
    assert!(!hidden, "{}", supervisor.log());
    TcpListener::bind(address).unwrap();
}

#[test]
fn a_stop_lets_requests_finish_and_refuses_new_handovers() {
    let mut supervisor = Setup::server([]).start();
    let held = ask(supervisor.address("http"), "/until/go");
    begun(&held);
    let stop = supervisor.begin(["stop"]);
    supervisor.events().wait_for("draining");
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains("being stopped"), "{said}");
    assert_eq!(supervisor.service()["state"], "draining");
    supervisor.write("go", "");
    assert!(answer(held).contains("generation=1"));
    assert_eq!(supervisor.finish(stop).0, Some(0));
    assert_eq!(supervisor.wait(), Some(0));
}

#[test]
fn a_stop_with_a_limit_ends_what_is_not_over_by_then() {
    let mut supervisor = Setup::server([]).start();
    let held = ask(supervisor.address("http"), "/until/never");
    begun(&held);
    let (_, pid) = supervisor.serving();
    supervisor.expect(0, ["stop", "--timeout", "300ms"]);
    assert_eq!(supervisor.wait(), Some(0));
    assert!(!is_alive(pid));
}

#[test]
fn the_second_signal_to_stop_ends_everything_at_once() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut supervisor = Setup::server(["--stubborn"]).start();
        let (_, pid) = supervisor.serving();
        supervisor.signal(signal);
        supervisor.events().wait_for("draining");
        assert_eq!(supervisor.service()["state"], "draining");
        assert!(is_alive(pid));
        supervisor.signal(signal);
        assert_eq!(supervisor.wait(), Some(0));
        assert!(!is_alive(pid));
    }
}

#[test]
fn a_stop_while_a_generation_boots_ends_both() {
    let mut supervisor = Setup::server([]).start();
    let server = supervisor.server();
    let reload = supervisor.begin(["reload", "--", &server, "--boot-until", "never"]);
    supervisor.events().wait_for_generation("started", 2);
    supervisor.expect(0, ["stop"]);
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("being stopped"), "{said}");
    assert_eq!(supervisor.wait(), Some(0));
}

// Signals.

#[test]
fn a_reload_signal_in_the_first_moments_harms_nothing() {
    for delay_ms in [0, 1, 3, 10, 200] {
        // Until its handler is there a HUP would end it; whoever sends one so early starts it so.
        let setup = Setup::demo().launcher(["env", "--ignore-signal=HUP"]);
        let mut supervisor = setup.spawn();
        let own = format!("/proc/{}/comm", supervisor.pid());
        eventually("it is executed", || {
            fs::read_to_string(&own).is_ok_and(|name| name == "heirloom\n")
        });
        std::thread::sleep(Duration::from_millis(delay_ms));
        supervisor.signal(Signal::SIGHUP);
        eventually("it answers", || supervisor.control().exists());
        supervisor.settle();
        let report = supervisor.reload();
        assert_eq!(report["outcome"], "committed", "{delay_ms} ms: {report}");
        supervisor.stop();
    }
}

#[test]
fn a_reload_signal_during_the_first_boot_becomes_a_handover_behind_it() {
    let setup = Setup::server(["--boot-until", "{dir}/go"]);
    let mut supervisor = setup.start_unwaited();
    let mut events = supervisor.events();
    events.wait_for_generation("started", 1);
    for _ in 0..10 {
        supervisor.signal(Signal::SIGHUP);
    }
    events.wait_for("asked");
    supervisor.write("go", "");
    events.wait_for("committed");
    supervisor.settle();
    get(supervisor.address("http"), "/");
    supervisor.stop();
}

#[test]
fn a_signal_to_the_whole_group_of_the_supervisor_does_not_reach_the_programs() {
    // `kill -HUP -GROUP`, a terminal's Ctrl-C: programs are in groups of their own.
    let mut supervisor = Setup::server([]).launcher(["setsid"]).start();
    let (_, pid) = supervisor.serving();
    let pid = Pid::from_raw(pid);
    assert_eq!(getpgid(Some(pid)).unwrap(), pid);
    let group = getpgid(Some(supervisor.pid())).unwrap();
    assert_eq!(group, supervisor.pid());
    nix::sys::signal::killpg(group, Signal::SIGHUP).unwrap();
    supervisor.events().wait_for_generation("committed", 2);
    let history = supervisor.history();
    let died = history.iter().any(|event| event["event"] == "died");
    assert!(!died, "{history:?}");
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_program_begins_with_every_signal_at_its_default_and_unblocked() {
    let supervisor = Setup::program(["sleep", "607"])
        .args(["--ready", "after:1ms"])
        .launcher([
            "env",
            "--ignore-signal=INT,QUIT,PIPE,USR1,CHLD",
            "--block-signal=USR2,WINCH,ALRM",
        ])
        .start();
    let (_, pid) = supervisor.serving();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    // The C library keeps 32 and 33 for its threads and lets nobody change them.
    let reserved = 0b11 << 31;
    for mask in ["SigBlk", "SigIgn", "SigCgt"] {
        let line = status.lines().find(|line| line.starts_with(mask)).unwrap();
        let set = line.split_ascii_whitespace().nth(1).unwrap();
        let set = u64::from_str_radix(set, 16).unwrap();
        assert_eq!(set & !reserved, 0, "{line}");
    }
    supervisor.stop();
}

// The supervisor itself.

#[test]
fn a_supervisor_that_is_the_first_process_reaps_orphans_and_stops_when_told() {
    let leaving = "for n in 1 2 3 4 5 6 7 8 9; do setsid --fork true; done; exec sleep 608";
    let setup = Setup::program(["sh", "-c", leaving])
        .args(["--ready", "after:1ms"])
        .launcher(["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    let mut supervisor = setup.start();
    assert_eq!(supervisor.status()["pid"], 1);
    let first = children_of(supervisor.pid())[0];
    eventually("orphans are reaped", || {
        let children = children_of(first);
        children.len() == 1 && is_alive(children[0].as_raw())
    });
    supervisor.reload();
    supervisor.settle();
    kill(first, Signal::SIGTERM).unwrap();
    assert_eq!(supervisor.wait(), Some(0));
}

#[test]
fn a_client_that_waits_while_the_supervisor_is_killed_knows_that_it_knows_nothing() {
    let mut supervisor = Setup::server([]).start();
    let server = supervisor.server();
    let (_, old) = supervisor.serving();
    let reload = supervisor.begin(["reload", "--", &server, "--boot-until", "never"]);
    let started = supervisor.events().wait_for_generation("started", 2);
    let new = started["text"].as_str().unwrap().rsplit(' ').next();
    let new: i32 = new.unwrap().parse().unwrap();
    supervisor.signal(Signal::SIGKILL);
    supervisor.wait();
    let (status, said) = supervisor.finish(reload);
    for pid in [old, new] {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    assert_eq!(status, Some(4), "{said}");
}

#[test]
fn a_supervisor_that_is_killed_leaves_its_programs_serving() {
    let mut supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    let (_, pid) = supervisor.serving();
    supervisor.signal(Signal::SIGKILL);
    assert_eq!(supervisor.wait(), None);
    // Clients go on as if nothing had happened.
    let served = get(address, "/version");
    // Its port is taken: a new supervisor says so and does not take over. Not yet.
    let control = supervisor.control();
    let listen = format!("http=tcp:{address}");
    let output = std::process::Command::new(crate::harness::HEIRLOOM)
        .args(["run", "--control", control.to_str().unwrap()])
        .args(["--listen", &listen, "--", "sleep", "609"])
        .output()
        .unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(served.contains("\"generation\":1"), "{served}");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("somebody else listens there"), "{said}");
    eventually("the program has ended", || !is_alive(pid));
}
