//! The supervisor is killed. Its programs serve on, and the next one of the same name takes them over.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Setup, Supervisor, answer, ask, begun, built, eventually, get, is_alive};
use crate::load::{fresh_plan, under, under_load};

/// Kills a supervisor and starts the next one, which must find things as they were.
fn next(supervisor: &Supervisor) -> Supervisor {
    let serving = supervisor.serving();
    supervisor.kill();
    let next = supervisor.start_again();
    assert_eq!(next.serving(), serving, "{}", next.log());
    assert!(supervisor.path("control.record").exists());
    next
}

#[test]
fn under_load_nothing_is_refused_and_the_next_supervisor_goes_on() {
    let first = Setup::demo().start();
    let mut last = None;
    under_load(&first, || {
        first.reload();
        let second = next(&first);
        assert_eq!(second.status()["supervisor_generation"], 2);
        assert_eq!(second.reload()["from"], 2);
        let third = next(&second);
        assert_eq!(third.reload()["outcome"], "committed");
        last = Some(third);
    });
    let mut third = last.unwrap();
    third.settle();
    let (_, pid) = third.serving();
    third.stop();
    assert!(!is_alive(pid));
    assert!(!first.path("control.record").exists());
}

#[test]
fn a_supervisor_that_is_told_to_leaves_all_it_runs_to_the_next_one() {
    let mut first = Setup::demo().start();
    let mut last = None;
    under_load(&first, || {
        let serving = first.serving();
        first.leave_running();
        assert!(is_alive(serving.1), "{}", first.log());
        first.expect(3, ["status"]);
        let second = first.start_again();
        assert_eq!(second.serving(), serving);
        second.reload();
        last = Some(second);
    });
    assert_eq!(first.wait(), Some(6));
    let mut second = last.unwrap();
    second.settle();
    second.stop();
}

#[test]
fn a_supervisor_that_is_to_leave_finishes_a_handover_and_does_not_leave_a_reload_to_be_forgotten() {
    let mut supervisor = Setup::server(["--boot-until", "{dir}/go"]).start_with("go");
    fs::remove_file(supervisor.path("go")).unwrap();
    let mut events = supervisor.events();
    let reload = supervisor.begin(["reload"]);
    events.wait_for_generation("started", 2);
    let said = supervisor.expect(1, ["stop", "--leave-running", "--timeout", "100ms"]);
    assert!(said.contains("did not end within 100ms"), "{said}");
    let leaves = supervisor.begin(["stop", "--leave-running"]);
    eventually("it waits", || {
        supervisor.log().matches("about to be followed").count() == 2
    });
    supervisor.signal(Signal::SIGHUP);
    eventually("the signal has come", || {
        supervisor.log().contains("told to reload by a signal")
    });
    fs::write(supervisor.path("go"), "").unwrap();
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    let (status, said) = supervisor.finish(leaves);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("a reload was asked for"), "{said}");
    events.wait_for_generation("committed", 3);
    supervisor.settle();
    supervisor.leave_running();
    let mut next = supervisor.start_again();
    assert_eq!(next.serving().0, 3);
    next.settle();
    next.stop();
}

#[test]
fn what_the_next_one_could_not_take_over_is_not_left() {
    let mut supervisor = Setup::server([]).start();
    let go = supervisor.path("go");
    let slow = ask(
        supervisor.address("http"),
        &format!("/until/{}", go.display()),
    );
    begun(&slow);
    let stop = supervisor.begin(["stop"]);
    supervisor.events().wait_for("draining");
    let said = supervisor.expect(1, ["stop", "--leave-running"]);
    assert!(said.contains("the supervisor is being stopped"), "{said}");
    fs::write(go, "").unwrap();
    assert!(answer(slow).contains("generation=1"));
    let (status, said) = supervisor.finish(stop);
    assert_eq!(status, Some(0), "{said}");
    supervisor.wait();

    let demo = built("heirloom-demo");
    let listen = "listen = [\"http=tcp:127.0.0.1:0\"]";
    let text = format!("[service.web]\ncommand = [{demo:?}]\n{listen}\n");
    let supervisor = Setup::configuration(&text).start();
    supervisor.write("heirloom.toml", "[service.web\n");
    let serving = supervisor.serving();
    let said = supervisor.expect(1, ["stop", "--leave-running"]);
    assert!(said.contains("no other could start"), "{said}");
    assert_eq!(supervisor.serving(), serving);
    supervisor.stop();
}

#[test]
fn a_plain_program_is_taken_over_as_well_and_started_again_when_it_dies() {
    let first = Setup::server([]).start();
    let load = fresh_plan(&first);
    let mut last = None;
    under(load, &first, || {
        let second = next(&first);
        second.reload();
        last = Some(second);
    });
    let mut second = last.unwrap();
    second.settle();
    let third = next(&second);
    let (generation, pid) = third.serving();
    let mut events = third.events();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    events.wait_for_generation("died", generation);
    events.wait_for_generation("ready", generation + 1);
    assert!(get(third.address("http"), "/").contains("generation=3"));
    let mut third = third;
    third.settle();
    third.stop();
}

#[test]
fn what_a_program_writes_meanwhile_neither_kills_it_nor_is_lost() {
    let script = "#!/bin/sh\nwhile :; do echo line; sleep 0.01; done\n";
    let setup = Setup::program([]).args(["--ready", "after:1ms"]);
    let writer = setup.script("writer", script);
    let first = setup
        .with_program(&[writer.to_str().unwrap().to_owned()])
        .start();
    let (_, pid) = first.serving();
    let lines = |supervisor: &Supervisor| supervisor.log().matches("stdout| line").count();
    eventually("it has written", || lines(&first) > 3);
    first.kill();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(is_alive(pid), "SIGPIPE");
    let before = lines(&first);
    let second = first.start_again();
    assert_eq!(second.serving().1, pid);
    eventually("its output is read again", || lines(&second) > before + 10);
    second.stop();
}

#[test]
fn a_low_limit_on_open_files_costs_no_program_its_life() {
    let setup = Setup::program([])
        .launcher(["prlimit", "--nofile=24:4096"])
        .args(["--ready", "after:1ms", "--instances", "9"]);
    let sleeper = setup.script("sleeper", "#!/bin/sh\nexec tail -f /dev/null\n");
    let mut first = setup
        .with_program(&[sleeper.to_str().unwrap().to_owned()])
        .start();
    first.settle();
    let pids = |supervisor: &Supervisor| -> Vec<i64> {
        let service = supervisor.service();
        let generations = service["generations"].as_array().unwrap().iter();
        generations.filter_map(|one| one["pid"].as_i64()).collect()
    };
    let before = pids(&first);
    assert_eq!(before.len(), 9);
    first.kill();
    let second = first.start_again();
    assert_eq!(pids(&second), before, "{}", second.log());
    second.stop();
}

#[test]
fn what_drains_goes_on_draining_and_ends_in_its_time() {
    let first = Setup::server([]).start();
    let go = first.path("go");
    let slow = ask(first.address("http"), &format!("/until/{}", go.display()));
    begun(&slow);
    let (_, old) = first.serving();
    // So often that nothing returns to what it runs.
    for _ in 0..4 {
        first.reload();
    }
    let mut second = next(&first);
    assert!(is_alive(old));
    fs::write(go, "").unwrap();
    assert!(answer(slow).contains("generation=1"));
    second.settle();
    assert!(!is_alive(old));
    second.stop();
}

#[test]
fn a_changed_configuration_follows_as_a_handover() {
    let text = "name = \"shop\"\n[service.shop]\ncommand = [\"{dir}/server\", \"--release\", \"1\"]\nlisten = [\"http=tcp:127.0.0.1:0\"]\n";
    let setup = Setup::configuration(text);
    setup.script("server", crate::harness::SERVER);
    let first = setup.start();
    let address = first.address("http");
    assert!(get(address, "/").contains("release=1"));
    first.kill();
    first.write("heirloom.toml", &text.replace("\"1\"", "\"2\""));
    let mut second = first.start_again();
    second.events().wait_for_generation("committed", 2);
    second.settle();
    assert!(get(address, "/").contains("release=2"));
    second.stop();
}

#[test]
fn another_living_supervisor_of_the_name_is_refused_and_one_that_upgraded_is_followed() {
    let first = Setup::demo().start();
    first.expect(0, ["upgrade"]);
    let mut refused = first.spawn_again();
    assert_eq!(refused.wait(), Some(1));
    assert!(first.log().contains("is running already"));
    let second = next(&first);
    assert_eq!(second.status()["supervisor_generation"], 3);
    second.stop();
}

#[test]
fn one_that_lives_is_not_followed_though_its_control_socket_was_removed() {
    let first = Setup::demo().start();
    let (_, pid) = first.serving();
    fs::remove_file(first.control()).unwrap();
    let mut refused = first.spawn_again();
    assert_eq!(refused.wait(), Some(1));
    assert!(
        first.log().contains("its control socket was removed"),
        "{}",
        first.log()
    );
    assert!(is_alive(pid) && is_alive(first.pid().as_raw()));
    // Once it is gone, it is.
    let second = {
        first.kill();
        first.start_again()
    };
    assert_eq!(second.serving().1, pid);
    second.stop();
}

#[test]
fn a_program_whose_release_was_removed_goes_on_and_a_reload_replaces_it() {
    let text = "name = \"shop\"\n[service.shop]\ncommand = [\"./server\"]\ndirectory = \"{dir}/current\"\nlisten = [\"http=tcp:127.0.0.1:0\"]\n";
    let setup = Setup::configuration(text);
    for release in ["first", "second"] {
        fs::create_dir(setup.path(release)).unwrap();
        setup.script(&format!("{release}/server"), crate::harness::SERVER);
    }
    std::os::unix::fs::symlink(setup.path("first"), setup.path("current")).unwrap();
    let first = setup.start();
    let (_, pid) = first.serving();
    fs::remove_file(first.path("current")).unwrap();
    std::os::unix::fs::symlink(first.path("second"), first.path("current")).unwrap();
    fs::remove_dir_all(first.path("first")).unwrap();
    let mut second = next(&first);
    assert!(is_alive(pid), "{}", second.log());
    assert!(
        second.log().contains("cannot be started again"),
        "{}",
        second.log()
    );
    assert_eq!(second.reload()["outcome"], "committed");
    second.settle();
    second.stop();
}

#[test]
fn programs_that_died_meanwhile_are_started_again_and_nonsense_is_not_believed() {
    let first = Setup::demo().start();
    let (_, pid) = first.serving();
    first.kill();
    // The record is that of a supervisor whose only program has died meanwhile.
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    eventually("it is gone", || !is_alive(pid));
    let mut second = first.start_again();
    second.settle();
    let (_, pid) = second.serving();
    second.kill();
    // A record that nobody could have written, or can read, is not believed.
    fs::write(second.path("control.record"), "nonsense").unwrap();
    assert!(is_alive(pid));
    let mut third = second.start_again();
    third.settle();
    assert_ne!(third.serving().1, pid);
    third.stop();
}
