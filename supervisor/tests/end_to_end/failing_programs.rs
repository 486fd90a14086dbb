//! New programs that fail, each in its own way, and old ones that die: what served before serves
//! on, nobody's request is lost, and the next handover works.

use std::io::Read;
use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Setup, Supervisor, answer, ask, begun, built, eventually, get, is_alive};
use crate::load;

/// Under load, hands over to a program that must fail for this reason; checks that the very same
/// process serves, and that the next handover works.
fn fails(setup: Setup, command: &[&str], reason: &str) -> Supervisor {
    let mut supervisor = setup.start();
    load::under_load(&supervisor, || {
        let before = supervisor.serving();
        let said = supervisor.expect(1, [&["reload", "--"], command].concat());
        assert!(said.contains(reason), "{said}");
        assert!(said.contains("generation 1 serves on"), "{said}");
        assert_eq!(supervisor.serving(), before);
        let last = supervisor.service()["last_handover"].clone();
        assert_eq!(last["outcome"], "aborted");
        assert!(last["reason"].as_str().unwrap().contains(reason), "{last}");
        supervisor.reload();
    });
    supervisor.settle();
    supervisor
}

#[test]
fn a_new_program_that_exits() {
    let command = ["sh", "-c", "exit 42"];
    fails(Setup::demo(), &command, "exited with status 42").stop();
}

#[test]
fn a_new_program_that_crashes() {
    let command = ["sh", "-c", "kill -SEGV $$"];
    fails(Setup::demo(), &command, "killed by SIGSEGV").stop();
}

#[test]
fn a_new_program_that_hangs() {
    let setup = Setup::demo().args(["--ready-timeout", "1s"]);
    fails(setup, &["sleep", "600"], "not ready within 1s").stop();
}

#[test]
fn a_new_program_that_hangs_and_passes_the_stop_signal_over() {
    let setup = Setup::demo().args(["--ready-timeout", "1s", "--drain-timeout", "300ms"]);
    let stubborn = ["sh", "-c", "trap '' TERM; sleep 600 & wait; sleep 600"];
    let supervisor = fails(setup, &stubborn, "not ready within 1s");
    let killed = |event: &serde_json::Value| event["event"] == "killed" && event["generation"] == 2;
    assert!(supervisor.history().iter().any(killed));
    supervisor.stop();
}

#[test]
fn a_new_program_that_closes_its_listeners() {
    let command = ["sh", "-c", "exec 3<&-; exec sleep 600"];
    fails(Setup::demo(), &command, "closed every listener").stop();
}

#[test]
fn a_new_program_that_reports_an_error() {
    let setup = Setup::demo();
    let program = "#!/usr/bin/env python3
import os, socket, time
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.sendto(b'ERRNO=13', os.environ['NOTIFY_SOCKET'].replace('@', '\\0', 1))
time.sleep(600)
";
    let program = setup.script("reports", program);
    let program = program.to_str().unwrap().to_owned();
    fails(setup, &[&program], "reported an error: Permission denied").stop();
}

#[test]
fn a_new_program_that_goes_into_the_background() {
    let supervisor = fails(
        Setup::demo(),
        &["sh", "-c", "setsid sleep 612 & exit 0"],
        "it must stay in the foreground",
    );
    // What it left in the background is gone, too.
    let left = |event: &serde_json::Value| event["event"] == "gone" && event["generation"] == 2;
    assert!(supervisor.history().iter().any(left));
    supervisor.stop();
}

#[test]
fn a_new_program_that_makes_the_listener_block_and_fails() {
    // The flag belongs to the socket, which the old program shares.
    let script = "import fcntl, os, sys
fcntl.fcntl(3, fcntl.F_SETFL, fcntl.fcntl(3, fcntl.F_GETFL) & ~os.O_NONBLOCK)
sys.exit(11)";
    let command = ["python3", "-c", script];
    let supervisor = Setup::demo().start();
    let said = supervisor.expect(1, [&["reload", "--"], &command[..]].concat());
    assert!(said.contains("exited with status 11"), "{said}");
    // One client at a time: no later one frees what an earlier one would hang in.
    for _ in 0..5 {
        get(supervisor.address("http"), "/hello");
    }
    let waiting = "import fcntl, os, socket
fcntl.fcntl(3, fcntl.F_SETFL, fcntl.fcntl(3, fcntl.F_GETFL) & ~os.O_NONBLOCK)
socket.socket(fileno=3).accept()";
    supervisor.expect(0, ["reload", "--dry-run", "--", "python3", "-c", waiting]);
    supervisor.events().wait_for("rehearsed");
    supervisor.events().wait_for_generation("gone", 3);
    for _ in 0..5 {
        get(supervisor.address("http"), "/hello");
    }
    supervisor.stop();
}

#[test]
fn a_new_program_that_is_killed_at_any_moment_of_its_boot() {
    let mut supervisor = Setup::server(["--boot-until", "{dir}/go"])
        .args(["--probation", "0s"])
        .start_with("go");
    std::fs::remove_file(supervisor.path("go")).unwrap();
    let before = supervisor.serving();
    load::under(load::fresh_plan(&supervisor), &supervisor, || {
        for generation in 2..8 {
            let reload = supervisor.begin(["reload"]);
            let started = supervisor
                .events()
                .wait_for_generation("started", generation);
            let text = started["text"].as_str().unwrap();
            let pid: i32 = text.rsplit(' ').next().unwrap().parse().unwrap();
            // Each time a little later: before its exec is over, while it loads, while it waits.
            std::thread::sleep(std::time::Duration::from_millis((generation - 2) * 15));
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            let (status, said) = supervisor.finish(reload);
            assert_eq!(status, Some(1), "{said}");
            assert!(said.contains("killed by SIGKILL"), "{said}");
            assert_eq!(supervisor.serving(), before);
        }
        supervisor.write("go", "");
        supervisor.reload();
    });
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn many_failures_in_a_row_then_success() {
    let mut supervisor = Setup::demo().args(["--probation", "0s"]).start();
    load::under_load(&supervisor, || {
        let before = supervisor.serving();
        for _ in 0..12 {
            supervisor.expect(1, ["reload", "--", "false"]);
        }
        assert_eq!(supervisor.serving(), before);
        let report = supervisor.reload();
        assert_eq!(report["from"], 1);
        assert_eq!(report["to"], 14);
    });
    let status = supervisor.settle();
    assert_eq!(
        status["services"][0]["generations"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    supervisor.stop();
}

#[test]
fn a_new_program_that_dies_within_its_probation_is_rolled_back() {
    let mut supervisor = Setup::server(["--release", "proven"]).start();
    let server = supervisor.server();
    let mut events = supervisor.events();
    let words = [
        "reload",
        "--until-proven",
        "--",
        &server,
        "--release",
        "bad",
    ];
    let reload = supervisor.begin(words);
    events.wait_for_generation("committed", 2);
    assert!(get(supervisor.address("http"), "/").contains("release=bad"));
    let (_, pid) = supervisor.serving();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(5), "{said}");
    assert!(said.contains("killed by SIGKILL"), "{said}");
    // From the instant of the death on, clients waited.
    assert!(get(supervisor.address("http"), "/").contains("release=proven"));
    let last = supervisor.service()["last_handover"].clone();
    assert_eq!(last["outcome"], "rolled-back", "{last}");
    assert_eq!((&last["from"], &last["to"]), (&1.into(), &2.into()));
    assert_eq!(supervisor.serving().0, 3);
    supervisor.settle();
    // What was rolled back can be tried again, in a better version.
    supervisor.expect(0, ["reload", "--", &server, "--release", "good"]);
    assert!(get(supervisor.address("http"), "/").contains("release=good"));
    supervisor.stop();
}

#[test]
fn a_new_program_that_has_lived_through_its_probation_is_proven() {
    let supervisor = Setup::server(["--release", "old"])
        .args(["--probation", "200ms"])
        .start();
    let server = supervisor.server();
    supervisor.expect(
        0,
        [
            "reload",
            "--until-proven",
            "--",
            &server,
            "--release",
            "new",
        ],
    );
    let (_, pid) = supervisor.serving();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    // It is respawned, not undone.
    assert!(get(supervisor.address("http"), "/").contains("release=new"));
    assert_eq!(
        supervisor.service()["last_handover"]["outcome"],
        "committed"
    );
    supervisor.stop();
}

#[test]
fn a_rollback_to_a_program_that_does_not_come_up_either() {
    let mut supervisor = Setup::server(["--release", "old", "--fail-if", "{dir}/broken"]).start();
    let server = supervisor.server();
    let words = [
        "reload",
        "--until-proven",
        "--",
        &server,
        "--release",
        "bad",
    ];
    let reload = supervisor.begin(words);
    supervisor.events().wait_for_generation("committed", 2);
    supervisor.write("broken", "");
    let (_, pid) = supervisor.serving();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(5), "{said}");
    assert!(said.contains("did not come up either"), "{said}");
    // It is tried again and again; clients wait, and a good program ends it.
    let client = ask(supervisor.address("http"), "/");
    assert_eq!(supervisor.service()["state"], "backing-off");
    supervisor.expect(0, ["reload", "--", &server, "--release", "good"]);
    assert!(answer(client).contains("release=good"));
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_serving_program_that_crashes_is_respawned_and_clients_wait_meanwhile() {
    let mut supervisor = Setup::server(["--boot", "0.5"]).start();
    let address = supervisor.address("http");
    let (_, pid) = supervisor.serving();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    eventually("it is dead", || !is_alive(pid));
    // The new one boots for half a second; nobody is refused.
    let clients: Vec<TcpStream> = (0..50).map(|_| ask(address, "/")).collect();
    for client in clients {
        assert!(answer(client).contains("generation=2"));
    }
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_crash_loop_backs_off_and_a_good_program_ends_it_at_once() {
    let mut supervisor = Setup::server(["--release", "old", "--fail-if", "{dir}/broken"]).start();
    let (_, pid) = supervisor.serving();
    supervisor.write("broken", "");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    supervisor.wait_until("it backs off", |status| {
        status["services"][0]["state"] == "backing-off"
    });
    let address = supervisor.address("http");
    let waiting = ask(address, "/");
    let server = supervisor.server();
    supervisor.expect(0, ["reload", "--", &server, "--release", "good"]);
    assert!(answer(waiting).contains("release=good"));
    let happened = supervisor.history();
    let mut events = happened
        .iter()
        .map(|event| event["event"].as_str().unwrap());
    assert!(events.any(|event| event == "backing-off"));
    // The next that was started was the good one: nothing waited for the attempt to come.
    let started: Vec<&str> = events.filter(|event| *event == "started").collect();
    assert_eq!(started.len(), 1, "{happened:?}");
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_crash_loop_ends_by_itself_when_its_cause_is_gone() {
    let mut supervisor = Setup::server(["--fail-if", "{dir}/broken"]).start();
    let (_, pid) = supervisor.serving();
    supervisor.write("broken", "");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let mut events = supervisor.events();
    let waits = events.wait_for("backing-off");
    assert!(waits["text"].as_str().unwrap().contains("1s 500ms"));
    std::fs::remove_file(supervisor.path("broken")).unwrap();
    supervisor.settle();
    get(supervisor.address("http"), "/");
    supervisor.stop();
}

#[test]
fn the_old_program_dies_while_the_new_one_boots() {
    let supervisor = Setup::server([]).start();
    let server = supervisor.server();
    let go = supervisor.path("go");
    let (_, pid) = supervisor.serving();
    let reload = supervisor.begin([
        "reload",
        "--",
        &server,
        "--boot-until",
        go.to_str().unwrap(),
    ]);
    let mut events = supervisor.events();
    events.wait_for_generation("started", 2);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    events.wait_for_generation("died", 1);
    let client = ask(supervisor.address("http"), "/");
    supervisor.write("go", "");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    assert!(answer(client).contains("generation=2"));
    supervisor.stop();
}

#[test]
fn a_bad_new_program_does_not_stop_the_respawn_of_the_old_one() {
    let mut supervisor = Setup::server(["--boot-until", "{dir}/go"]).start_with("go");
    std::fs::remove_file(supervisor.path("go")).unwrap();
    let (_, pid) = supervisor.serving();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let mut events = supervisor.events();
    events.wait_for_generation("started", 2);
    let client = ask(supervisor.address("http"), "/");
    let said = supervisor.expect(1, ["reload", "--", "false"]);
    assert!(said.contains("status 1"), "{said}");
    supervisor.write("go", "");
    assert!(answer(client).contains("generation=2"));
    supervisor.settle();
    assert_eq!(supervisor.serving().0, 2);
    supervisor.stop();
}

#[test]
fn a_good_new_program_overtakes_the_respawn_of_the_old_one() {
    let mut supervisor = Setup::server(["--boot-until", "{dir}/go"]).start_with("go");
    std::fs::remove_file(supervisor.path("go")).unwrap();
    let (_, pid) = supervisor.serving();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    supervisor.events().wait_for_generation("started", 2);
    let client = ask(supervisor.address("http"), "/");
    let server = supervisor.server();
    supervisor.expect(0, ["reload", "--", &server, "--release", "good"]);
    assert!(answer(client).contains("release=good"));
    supervisor.settle();
    assert_eq!(supervisor.serving().0, 3);
    supervisor.stop();
}

#[test]
fn the_old_program_dies_while_the_new_one_boots_and_that_fails() {
    let supervisor = Setup::server(["--release", "old"]).start();
    let (_, pid) = supervisor.serving();
    let until = supervisor.path("go");
    let script = format!(
        "until [ -e {} ]; do sleep 0.01; done; exit 3",
        until.display()
    );
    let reload = supervisor.begin(["reload", "--", "sh", "-c", &script]);
    let mut events = supervisor.events();
    events.wait_for_generation("started", 2);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    events.wait_for_generation("died", 1);
    let client = ask(supervisor.address("http"), "/");
    supervisor.write("go", "");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("status 3"), "{said}");
    // The program of before was started again, and takes those who waited.
    assert!(answer(client).contains("release=old"));
    supervisor.stop();
}

#[test]
fn a_request_in_a_dying_program_is_all_that_a_crash_costs() {
    let supervisor = Setup::server([]).start();
    let address = supervisor.address("http");
    let mut within = ask(address, "/until/never");
    begun(&within);
    let (_, pid) = supervisor.serving();
    // Stopped, it accepts nobody; these wait in the listener, which outlives it.
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let queued: Vec<TcpStream> = (0..10).map(|_| ask(address, "/")).collect();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let mut rest = String::new();
    // The request that was being answered ends early, by a close or a reset.
    let ended = within.read_to_string(&mut rest);
    assert!(ended.is_err() || !rest.contains("generation="), "{rest}");
    for stream in queued {
        assert!(answer(stream).contains("generation=2"));
    }
    supervisor.stop();
}

#[test]
fn a_program_that_cannot_be_executed_on_the_command_line_changes_nothing() {
    let said = "No such file";
    fails(Setup::demo(), &["/nonexistent/program"], said).stop();
}

#[test]
fn a_rollback_to_a_program_that_has_stopped_working_changes_nothing() {
    let mut supervisor = Setup::server(["--release", "old", "--fail-if", "{dir}/broken"]).start();
    let demo = built("heirloom-demo");
    supervisor.expect(0, ["reload", "--", demo.to_str().unwrap()]);
    supervisor.write("broken", "");
    let before = supervisor.serving();
    let said = supervisor.expect(1, ["rollback"]);
    assert!(
        said.contains("status 1") && said.contains("told to fail"),
        "{said}"
    );
    assert_eq!(supervisor.serving(), before);
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_death_while_the_report_is_held_back_is_reported_as_a_rollback() {
    // The old program goes on polling its listener after it was told to stop, so the report of the
    // handover waits; the new one dies in that time.
    let setup = Setup::program(["python3", "program.py"]).args(["--drain-timeout", "2s"]);
    setup.write(
        "program.py",
        "import os, select, signal, socket, sys, time\n\
         s = socket.socket(fileno=3)\n\
         if os.path.exists('bad'):\n    select.select([s], [], [], 0.15)\n    sys.exit(9)\n\
         end = []\nsignal.signal(signal.SIGTERM, lambda *_: end.append(time.time() + 1))\n\
         while not end or time.time() < end[0]:\n    select.select([s], [], [], 0.05)\n",
    );
    let supervisor = setup.start();
    supervisor.write("bad", "");
    let begun = supervisor.begin(["reload", "--until-proven"]);
    let mut events = supervisor.events();
    events.wait_for("died");
    // The proven program is brought back from the same file, which is good again by then.
    std::fs::remove_file(supervisor.path("bad")).unwrap();
    let (status, said) = supervisor.finish(begun);
    assert_eq!(status, Some(5), "{said}\n{}", supervisor.log());
    assert!(said.contains("status 9"), "{said}");
    supervisor.stop();
}
