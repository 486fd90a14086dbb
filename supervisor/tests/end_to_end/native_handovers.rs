//! Handovers between programs that speak the protocol: the state moves, once, and what serves is told.

use serde_json::Value;

use crate::harness::{
    Setup, Supervisor, answer, ask, begun, eventually, get, is_alive, open_descriptors,
};

/// A program that speaks the protocol; see the file.
pub(crate) const NATIVE: &str = include_str!("native.py");

/// What it saves.
pub(crate) const SAVED: &[u8] = include_bytes!("../../../state-codec/tests/golden/format-1.0.hls");

/// A supervisor of the native program with these options.
pub(crate) fn native<'a>(options: impl IntoIterator<Item = &'a str>) -> Setup {
    let setup = Setup::program([]);
    let program = setup.script("native", NATIVE);
    std::fs::write(setup.path("saved"), SAVED).unwrap();
    let directory = setup
        .path("")
        .to_str()
        .unwrap()
        .trim_end_matches('/')
        .to_owned();
    let options = options
        .into_iter()
        .map(|one| one.replace("{dir}", &directory));
    let command: Vec<String> = [program.to_str().unwrap().to_owned()]
        .into_iter()
        .chain(options)
        .collect();
    setup.with_program(&command)
}

/// The command line of the native program with these options, for a reload.
pub(crate) fn with<'a>(supervisor: &Supervisor, options: &'a [&'a str]) -> Vec<String> {
    let program = supervisor.path("native").to_str().unwrap().to_owned();
    let directory = supervisor
        .path("")
        .to_str()
        .unwrap()
        .trim_end_matches('/')
        .to_owned();
    let options = options.iter().map(|one| one.replace("{dir}", &directory));
    [program].into_iter().chain(options).collect()
}

/// Reloads to the native program with these options; the status and what was said.
pub(crate) fn reload_to(supervisor: &Supervisor, options: &[&str]) -> (Option<i32>, String) {
    let command = with(supervisor, options);
    let words = ["reload", "--"]
        .into_iter()
        .chain(command.iter().map(String::as_str));
    let output = supervisor.heirloom(words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// Raises the number that is the state and returns it with who answered.
pub(crate) fn raise(supervisor: &Supervisor) -> (u64, i32) {
    let body = get(supervisor.address("http"), "/");
    (
        field(&body, "value").parse().unwrap(),
        field(&body, "pid").parse().unwrap(),
    )
}

pub(crate) fn field(body: &str, name: &str) -> String {
    let line = body
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}=")));
    line.unwrap_or_else(|| panic!("no {name} in {body}"))
        .to_owned()
}

pub(crate) fn happened(supervisor: &Supervisor, kind: &str) -> Vec<Value> {
    let history = supervisor.history();
    history
        .into_iter()
        .filter(|event| event["event"] == kind)
        .collect()
}

#[test]
fn the_state_moves_and_the_report_tells() {
    let mut supervisor = native([]).start();
    assert_eq!(raise(&supervisor).0, 1);
    assert_eq!(raise(&supervisor).0, 2);
    let report = supervisor.reload();
    assert_eq!(report["strategy"], "handover", "{report}");
    assert_eq!(report["entries"], 1);
    assert_eq!(report["delta_rounds"], 2);
    assert!(report["snapshot_bytes"].as_u64().unwrap() > 0);
    assert!(report["pause_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(report["stall_ms"], 0.3);
    let body = get(supervisor.address("http"), "/");
    assert_eq!(field(&body, "value"), "3");
    assert_eq!(field(&body, "generation"), "2");
    assert_eq!(field(&body, "origin"), "generation 1");
    supervisor.settle();
    for kind in [
        "copying",
        "converged",
        "frozen",
        "taken-over",
        "yielded",
        "committed",
    ] {
        assert_eq!(
            happened(&supervisor, kind).len(),
            1,
            "{kind}\n{}",
            supervisor.log()
        );
    }
    let told = happened(&supervisor, "draining");
    assert!(
        told[0]["text"].as_str().unwrap().contains("RETIRE"),
        "{told:?}"
    );
    let status = supervisor.service();
    assert_eq!(status["generations"][0]["native"], true);
    assert_eq!(status["generations"][0]["version"], "1");
    assert_eq!(status["last_handover"]["strategy"], "handover");
    supervisor.stop();
}

#[test]
fn the_line_for_people_tells_the_pause() {
    let supervisor = native(["--padding", "1048576"]).start();
    let output = supervisor.heirloom(["reload"]);
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.contains("generation 2 serves (before: 1; "), "{line}");
    assert!(line.contains(" ms, paused "), "{line}");
    assert!(
        line.contains(" ms, 1.0 MiB of state in 2 rounds)"),
        "{line}"
    );
    supervisor.stop();
}

#[test]
fn twenty_handovers_in_a_row_lose_nothing_and_leave_nothing() {
    let mut supervisor = native([]).args(["--probation", "0s"]).start();
    supervisor.reload();
    supervisor.settle();
    let before = open_descriptors(supervisor.pid());
    for turn in 0..20 {
        assert_eq!(raise(&supervisor).0, turn + 1);
        supervisor.reload();
    }
    supervisor.settle();
    assert_eq!(raise(&supervisor).0, 21);
    eventually("nothing of it is left open", || {
        open_descriptors(supervisor.pid()) <= before
    });
    supervisor.stop();
}

#[test]
fn a_request_that_comes_while_the_state_stands_still_is_answered_once() {
    let supervisor = native(["--commit-until", "{dir}/go"]).start();
    raise(&supervisor);
    let reload = supervisor.begin(["reload"]);
    supervisor.events().wait_for("frozen");
    let waiting: Vec<_> = (0..5)
        .map(|_| ask(supervisor.address("http"), "/"))
        .collect();
    supervisor.write("go", "");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}\n{}", supervisor.log());
    let values: Vec<String> = waiting
        .into_iter()
        .map(|stream| {
            let body = answer(stream);
            assert_eq!(field(&body, "generation"), "2", "{body}");
            field(&body, "value")
        })
        .collect();
    let mut sorted = values.clone();
    sorted.sort();
    assert_eq!(sorted, ["2", "3", "4", "5", "6"]);
    supervisor.stop();
}

#[test]
fn a_dry_run_shows_that_it_would_work_and_changes_nothing() {
    let mut supervisor = native([]).start();
    let (_, pid) = raise(&supervisor);
    let output = supervisor.heirloom(["reload", "--dry-run", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["outcome"], "rehearsed");
    assert_eq!(report["strategy"], "handover");
    assert_eq!(report["entries"], 1);
    supervisor.settle();
    assert_eq!(raise(&supervisor), (2, pid));
    let (status, said) = {
        let command = with(&supervisor, &["--do", "new:verify=exit"]);
        let words = ["reload", "--dry-run", "--"].into_iter();
        let output = supervisor.heirloom(words.chain(command.iter().map(String::as_str)));
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("exited with status 3 while it took the state over"),
        "{said}"
    );
    supervisor.settle();
    assert_eq!(raise(&supervisor), (3, pid));
    supervisor.reload();
    assert_eq!(raise(&supervisor).0, 4);
    supervisor.stop();
}

#[test]
fn readiness_seen_before_the_commit_does_not_count() {
    let options = ["--notify-when", "{dir}/never", "--commit-until", "{dir}/go"];
    let supervisor = native([]).start();
    let command = with(&supervisor, &options);
    let reload = supervisor.begin(
        ["reload", "--"]
            .into_iter()
            .chain(command.iter().map(String::as_str)),
    );
    supervisor.events().wait_for("frozen");
    // The new one is not ready, whatever it says by other ways; the commit decides.
    let (_, pid) = supervisor.serving();
    supervisor.write("go", "");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    assert_ne!(supervisor.serving().1, pid);
    supervisor.write("never", "");
    supervisor.stop();
}

#[test]
fn a_rollback_moves_the_state_back() {
    let mut supervisor = native([]).args(["--probation", "0s"]).start();
    raise(&supervisor);
    let (status, said) = reload_to(&supervisor, &["--release", "2"]);
    assert_eq!(status, Some(0), "{said}");
    raise(&supervisor);
    supervisor.settle();
    supervisor.expect(0, ["rollback"]);
    let body = get(supervisor.address("http"), "/");
    assert_eq!(field(&body, "value"), "3");
    assert_eq!(field(&body, "release"), "1");
    supervisor.stop();
}

#[test]
fn each_instance_hands_over_to_its_successor() {
    let setup = native([]).args(["--instances", "3"]);
    let mut supervisor = setup.start();
    let report = supervisor.reload();
    assert_eq!(report["strategy"], "handover");
    assert_eq!(report["entries"], 3);
    supervisor.settle();
    assert_eq!(happened(&supervisor, "taken-over").len(), 3);
    supervisor.stop();
}

#[test]
fn a_plain_program_takes_no_state_over_and_that_is_told() {
    let setup = native([]);
    let server = setup.script("server", crate::harness::SERVER);
    let server = server.to_str().unwrap().to_owned();
    let mut supervisor = setup.start();
    raise(&supervisor);
    supervisor.expect(0, ["reload", "--", &server]);
    let told = happened(&supervisor, "not-taken-over");
    let text = "the state of generation 1 is not taken over";
    assert!(
        told[0]["text"].as_str().unwrap().starts_with(text),
        "{told:?}"
    );
    assert_eq!(supervisor.service()["last_handover"]["strategy"], "overlap");
    // And the other way round there is none to take over.
    supervisor.settle();
    assert_eq!(reload_to(&supervisor, &[]).0, Some(0));
    assert_eq!(raise(&supervisor).0, 1);
    supervisor.stop();
}

#[test]
fn a_strategy_of_handover_refuses_a_plain_program() {
    let setup = native([]).args(["--strategy", "handover"]);
    let server = setup.script("server", crate::harness::SERVER);
    let server = server.to_str().unwrap().to_owned();
    let mut supervisor = setup.start();
    let (_, pid) = raise(&supervisor);
    let said = supervisor.expect(1, ["reload", "--", &server]);
    assert!(said.contains("without a HELLO"), "{said}");
    supervisor.settle();
    assert_eq!(raise(&supervisor), (2, pid));
    supervisor.reload();
    assert_eq!(raise(&supervisor).0, 3);
    supervisor.stop();
}

#[test]
fn a_strategy_of_handover_begins_anew_where_the_old_program_is_plain() {
    let setup = native([]).args(["--strategy", "handover"]);
    let server = setup.script("server", crate::harness::SERVER);
    let server = server.to_str().unwrap().to_owned();
    let supervisor = setup.with_program(&[server]).start();
    assert_eq!(reload_to(&supervisor, &[]).0, Some(0));
    assert_eq!(raise(&supervisor).0, 1);
    assert_eq!(happened(&supervisor, "not-taken-over").len(), 1);
    supervisor.stop();
}

#[test]
fn a_strategy_of_overlap_leaves_the_state_behind() {
    let supervisor = native([]).args(["--strategy", "overlap"]).start();
    raise(&supervisor);
    let report = supervisor.reload();
    assert_eq!(report["strategy"], "overlap");
    assert_eq!(raise(&supervisor).0, 1);
    assert_eq!(happened(&supervisor, "not-taken-over").len(), 1);
    supervisor.stop();
}

#[test]
fn a_crash_begins_with_nothing_and_the_next_handover_works() {
    let mut supervisor = native([]).start();
    raise(&supervisor);
    let (_, pid) = raise(&supervisor);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    supervisor.events().wait_for_generation("ready", 2);
    assert_eq!(raise(&supervisor).0, 1);
    supervisor.settle();
    supervisor.reload();
    assert_eq!(raise(&supervisor).0, 2);
    assert!(!is_alive(pid));
    supervisor.stop();
}

#[test]
fn a_stop_before_the_commit_calls_it_off() {
    let mut supervisor = native([]).start();
    let command = with(&supervisor, &["--do", "new:verify=hang"]);
    let reload = supervisor.begin(
        ["reload", "--"]
            .into_iter()
            .chain(command.iter().map(String::as_str)),
    );
    supervisor.events().wait_for("frozen");
    supervisor.expect(0, ["stop"]);
    assert_eq!(supervisor.wait(), Some(0));
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("being stopped"), "{said}");
}

#[test]
fn a_stop_at_the_commit_waits_for_what_comes_of_it() {
    let mut supervisor = native(["--commit-until", "{dir}/go"]).start();
    let reload = supervisor.begin(["reload"]);
    supervisor.events().wait_for("frozen");
    let stop = supervisor.begin(["stop"]);
    supervisor.write("go", "");
    let (status, said) = supervisor.finish(stop);
    assert_eq!(status, Some(0), "{said}\n{}", supervisor.log());
    assert_eq!(supervisor.wait(), Some(0));
    supervisor.finish(reload);
}

#[test]
fn the_other_requests_are_answered_while_a_state_moves() {
    let supervisor = native(["--do", "old:send=hang"]).start();
    let reload = supervisor.begin(["reload", "--timeout", "1s"]);
    supervisor.events().wait_for("copying");
    let held = ask(supervisor.address("http"), "/");
    begun(&held);
    assert_eq!(field(&answer(held), "value"), "1");
    assert_eq!(supervisor.service()["state"], "handing-over");
    assert_eq!(supervisor.finish(reload).0, Some(4));
    supervisor.stop();
}
