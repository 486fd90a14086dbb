//! The probation of a state: a generation that fails in it is replaced by the one before, which has every change
//! that was acknowledged.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{
    client::{Client, Habit},
    demo, number, reload_to,
    witnesses::while_witnessed,
    writers::{answers_come, while_writing},
};
use crate::harness::{Setup, Supervisor, eventually, is_alive};
use crate::native_handovers::{happened, native};

/// Longer than any test.
const LONG: [&str; 2] = ["--probation", "5m"];

/// Handovers that fail in one test.
const FAILURES: u32 = 8;

/// What comes of it once the state has gone back.
fn returned(supervisor: &mut Supervisor, generation: u64) -> Value {
    let status = supervisor.wait_until("the one in reserve serves again", |status| {
        let service = &status["services"][0];
        let generations = service["generations"].as_array().unwrap();
        service["state"] == "serving"
            && generations.len() == 1
            && generations[0]["phase"] == "serving"
            && generations[0]["generation"] == generation
    });
    status["services"][0].clone()
}

fn phase_of(supervisor: &Supervisor, generation: u64) -> Value {
    let service = supervisor.service();
    let mut all = service["generations"].as_array().unwrap().iter();
    let one = all.find(|one| one["generation"] == generation);
    one.map_or(Value::Null, |one| one["phase"].clone())
}

fn pid_of(supervisor: &Supervisor, generation: u64) -> Pid {
    let service = supervisor.service();
    let mut all = service["generations"].as_array().unwrap().iter();
    let one = all.find(|one| one["generation"] == generation).unwrap();
    Pid::from_raw(i32::try_from(one["pid"].as_i64().unwrap()).unwrap())
}

fn more_answers(answers: &AtomicU64) {
    let wanted = answers.load(Ordering::Relaxed) + 60;
    eventually("clients get answers", || {
        answers.load(Ordering::Relaxed) >= wanted
    });
}

/// Generation 1 is of one version, and all that follow are of the other and killed.
fn killed_in_probation(first: u32, then: u32) {
    let mut supervisor = Setup::demo()
        .with_program(&[demo(first)])
        .args(LONG)
        .start();
    let (generation, pid) = supervisor.serving();
    let lost = while_witnessed(&supervisor, |answers| {
        for _ in 0..FAILURES {
            more_answers(answers);
            let said = supervisor.heirloom(["reload", "--", &demo(then)]);
            assert!(said.status.success(), "{said:?}\n{}", supervisor.log());
            more_answers(answers);
            let serving = supervisor.serving();
            assert_ne!(serving.0, generation);
            kill(Pid::from_raw(serving.1), Signal::SIGKILL).unwrap();
            more_answers(answers);
            eventually("it serves again", || {
                phase_of(&supervisor, generation) == "serving"
            });
        }
    });
    assert!(lost > 0, "nobody noticed, so nothing was tested");
    let service = returned(&mut supervisor, generation);
    assert_eq!(supervisor.serving(), (generation, pid), "it never ended");
    let last = &service["last_handover"];
    assert_eq!(last["outcome"], "rolled-back", "{last}");
    assert!(
        last["reason"].as_str().unwrap().contains("SIGKILL"),
        "{last}"
    );
    assert_eq!(
        happened(&supervisor, "returned").len(),
        usize::try_from(FAILURES).unwrap()
    );
    // And it is a generation as any other.
    reload_to(&supervisor, then);
    supervisor.stop();
}

#[test]
fn a_newer_program_that_is_killed_in_its_probation_loses_nothing_that_was_acknowledged() {
    killed_in_probation(1, 2);
}

#[test]
fn an_older_program_that_is_killed_in_its_probation_loses_nothing_that_was_acknowledged() {
    killed_in_probation(2, 1);
}

#[test]
fn a_program_that_misses_its_watchdog_in_its_probation_is_replaced_and_the_reload_ends_with_5() {
    let mut supervisor = Setup::demo().args(LONG).args(["--watchdog", "2s"]).start();
    let serving = supervisor.serving();
    while_witnessed(&supervisor, |answers| {
        more_answers(answers);
        let reload = supervisor.begin(["reload", "--until-proven", "--", &demo(2)]);
        supervisor.events().wait_for_generation("committed", 2);
        more_answers(answers);
        kill(pid_of(&supervisor, 2), Signal::SIGSTOP).unwrap();
        let (status, said) = supervisor.finish(reload);
        assert_eq!(status, Some(5), "{said}");
        assert!(said.contains("watchdog"), "{said}");
        more_answers(answers);
    });
    returned(&mut supervisor, 1);
    assert_eq!(supervisor.serving(), serving);
    supervisor.stop();
}

#[test]
fn a_program_whose_health_command_keeps_failing_is_replaced_and_one_that_fails_once_is_not() {
    let setup = Setup::demo().args(LONG);
    // It fails as often as is written there.
    setup.write("failures", "1");
    let check = setup.script(
        "check",
        "#!/bin/sh\nread left < {dir}/failures\n[ \"$left\" = 0 ] && { echo >> {dir}/well; exit 0; }\n\
         echo $((left - 1)) > {dir}/failures.new && mv {dir}/failures.new {dir}/failures; exit 1\n",
    );
    let health = format!("exec:{}", check.to_str().unwrap());
    let mut supervisor = setup
        .args(["--health", &health, "--health-every", "50ms"])
        .start();
    let serving = supervisor.serving();
    let well = || fs::read(supervisor.path("well")).map_or(0, |lines| lines.len());
    // The first generation has a probation too.
    eventually("the command has succeeded", || well() > 1);
    let reload = supervisor.begin(["reload", "--until-proven"]);
    supervisor.events().wait_for_generation("committed", 2);
    let before = well();
    eventually("the command has succeeded", || well() > before + 1);
    assert_eq!(phase_of(&supervisor, 1), "reserve");
    supervisor.write("failures", "1000");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(5), "{said}");
    assert!(said.contains("3 times in a row"), "{said}");
    supervisor.write("failures", "0");
    returned(&mut supervisor, 1);
    assert_eq!(supervisor.serving(), serving);
    supervisor.stop();
}

#[test]
fn a_rollback_in_the_probation_starts_nothing_and_no_request_fails() {
    let mut supervisor = Setup::demo().args(LONG).start();
    let serving = supervisor.serving();
    let address = supervisor.address("http");
    while_writing(&supervisor, || {
        for _ in 0..FAILURES {
            reload_to(&supervisor, 2);
            answers_come(address, "slow");
            let said = supervisor.heirloom(["rollback"]);
            assert!(said.status.success(), "{said:?}\n{}", supervisor.log());
            answers_come(address, "slow");
            assert_eq!(supervisor.serving(), serving);
        }
    });
    let service = returned(&mut supervisor, 1);
    let last = &service["last_handover"];
    assert_eq!(last["outcome"], "committed", "{last}");
    assert_eq!(last["to"], 1, "{last}");
    supervisor.stop();
}

#[test]
fn a_reload_in_the_probation_ends_it_and_whoever_died_after_it_has_no_way_back() {
    let mut supervisor = Setup::demo().args(LONG).start();
    let address = supervisor.address("http");
    let mut client = Client::new(address, Habit::Fresh);
    reload_to(&supervisor, 2);
    assert_eq!(phase_of(&supervisor, 1), "reserve");
    assert_eq!(client.post("/counters/a", ""), "1");
    reload_to(&supervisor, 1);
    assert_eq!(phase_of(&supervisor, 2), "reserve");
    assert_eq!(happened(&supervisor, "stood-down").len(), 1);
    supervisor.events().wait_for_generation("gone", 1);
    assert_eq!(client.post("/counters/a", ""), "2");
    // It is the second that comes back.
    kill(pid_of(&supervisor, 3), Signal::SIGKILL).unwrap();
    returned(&mut supervisor, 2);
    assert_eq!(client.post("/counters/a", ""), "3");
    supervisor.stop();
}

#[test]
fn a_dry_run_in_the_probation_changes_nothing_of_it() {
    let mut supervisor = Setup::demo().args(LONG).start();
    let address = supervisor.address("http");
    let mut client = Client::new(address, Habit::Fresh);
    reload_to(&supervisor, 2);
    while_writing(&supervisor, || {
        for version in [2, 1, 2, 1, 2, 1] {
            supervisor.expect(0, ["reload", "--dry-run", "--", &demo(version)]);
            answers_come(address, "slow");
        }
    });
    assert_eq!(phase_of(&supervisor, 1), "reserve");
    let value = client.post("/counters/a", "");
    kill(pid_of(&supervisor, 2), Signal::SIGKILL).unwrap();
    returned(&mut supervisor, 1);
    assert_eq!(client.get("/counters/a"), value);
    supervisor.stop();
}

#[test]
fn a_stop_in_the_probation_saves_what_the_new_generation_has() {
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("state");
    let file = ["--state-file", file.to_str().unwrap()];
    let supervisor = Setup::demo().args(LONG).args(file).start();
    reload_to(&supervisor, 2);
    let mut client = Client::new(supervisor.address("http"), Habit::Fresh);
    for value in 1..=3 {
        assert_eq!(client.post("/counters/a", ""), value.to_string());
    }
    supervisor.stop();
    let supervisor = Setup::demo().with_program(&[demo(2)]).args(file).start();
    let mut client = Client::new(supervisor.address("http"), Habit::Fresh);
    assert_eq!(client.get("/counters/a"), "3");
    supervisor.stop();
}

#[test]
fn one_that_is_killed_in_reserve_is_no_loss_and_that_there_is_no_way_back_is_told() {
    let mut supervisor = Setup::demo().args(LONG).start();
    let address = supervisor.address("http");
    reload_to(&supervisor, 2);
    while_writing(&supervisor, || {
        answers_come(address, "slow");
        kill(pid_of(&supervisor, 1), Signal::SIGKILL).unwrap();
        let told = supervisor.events().wait_for_generation("stood-down", 1);
        assert!(told["text"].as_str().unwrap().contains("no way back"));
        for _ in 0..10 {
            answers_come(address, "slow");
        }
    });
    supervisor.settle();
    assert_eq!(supervisor.serving().0, 2);
    // From now on a death is as any other.
    kill(pid_of(&supervisor, 2), Signal::SIGKILL).unwrap();
    supervisor.events().wait_for("rolled-back");
    supervisor.settle();
    let mut client = Client::new(address, Habit::Fresh);
    assert_eq!(client.get("/counters/slow"), "0");
    supervisor.stop();
}

#[test]
fn when_both_are_killed_the_service_comes_back() {
    let mut supervisor = Setup::demo().args(LONG).start();
    let address = supervisor.address("http");
    for _ in 0..3 {
        reload_to(&supervisor, 2);
        let mut client = Client::new(address, Habit::Fresh);
        assert_eq!(client.post("/counters/a", ""), "1");
        let service = supervisor.service();
        let generations = service["generations"].as_array().unwrap();
        for one in generations {
            let pid = i32::try_from(one["pid"].as_i64().unwrap()).unwrap();
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
        supervisor.wait_until("another generation serves", |status| {
            let now = status["services"][0]["generations"].as_array().unwrap();
            status["services"][0]["state"] == "serving"
                && now.len() == 1
                && generations.iter().all(|one| one["pid"] != now[0]["pid"])
        });
        assert_eq!(client.get("/counters/a"), "0");
    }
    supervisor.stop();
}

#[test]
fn one_in_reserve_that_does_not_read_holds_nobody_up_for_long() {
    let mut supervisor = Setup::demo().args(LONG).start();
    let address = supervisor.address("http");
    reload_to(&supervisor, 2);
    kill(pid_of(&supervisor, 1), Signal::SIGSTOP).unwrap();
    let mut client = Client::new(address, Habit::Keeps);
    // More than the way back holds.
    let began = Instant::now();
    client.post("/fill?entries=256&bytes=16384", "");
    assert!(began.elapsed() < Duration::from_secs(5));
    let told = supervisor.events().wait_for("no-way-back");
    assert!(told["text"].as_str().unwrap().contains("did not read"));
    assert_eq!(client.post("/counters/a", ""), "1");
    // It does not answer either, and must not take anything back later.
    supervisor.events().wait_for_generation("killed", 1);
    supervisor.settle();
    assert_eq!(client.post("/counters/a", ""), "2");
    assert_eq!(supervisor.serving().0, 2);
    supervisor.stop();
}

#[test]
fn one_in_reserve_reads_more_than_the_way_back_holds() {
    let mut supervisor = Setup::demo().args(LONG).start();
    let address = supervisor.address("http");
    reload_to(&supervisor, 2);
    let mut client = Client::new(address, Habit::Fresh);
    client.post("/fill?entries=2048&bytes=16384", "");
    assert_eq!(client.post("/counters/a", ""), "1");
    kill(pid_of(&supervisor, 2), Signal::SIGKILL).unwrap();
    returned(&mut supervisor, 1);
    assert_eq!(client.post("/counters/a", ""), "2");
    // What it has is whole: it can be handed over.
    let report = supervisor.reload();
    assert!(
        report["snapshot_bytes"].as_u64().unwrap() > 2048 * 16384,
        "{report}"
    );
    supervisor.stop();
}

/// Ends processes that have no supervisor any more, also when the test fails.
struct Orphans(Vec<i32>);

impl Drop for Orphans {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
}

#[test]
fn without_a_supervisor_the_one_in_reserve_still_takes_the_state_back() {
    let mut supervisor = Setup::demo().args(LONG).start();
    let address = supervisor.address("http");
    reload_to(&supervisor, 2);
    let pids = [1, 2].map(|generation| pid_of(&supervisor, generation).as_raw());
    let orphans = Orphans(pids.to_vec());
    let mut client = Client::new(address, Habit::Fresh);
    assert_eq!(client.post("/counters/a", ""), "1");
    supervisor.signal(Signal::SIGKILL);
    supervisor.wait();
    // Both live: the new one serves.
    for value in 2..20 {
        assert_eq!(client.post("/counters/a", ""), value.to_string());
        assert_eq!(number(&client.get("/version"), "generation"), 2);
    }
    kill(Pid::from_raw(pids[1]), Signal::SIGKILL).unwrap();
    assert_eq!(client.post("/counters/a", ""), "20");
    assert_eq!(number(&client.get("/version"), "generation"), 1);
    drop(orphans);
    eventually("they have ended", || !pids.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn a_state_that_came_back_while_there_was_no_supervisor_is_served_on_under_the_next_one() {
    let first = Setup::demo().args(LONG).start();
    let address = first.address("http");
    reload_to(&first, 2);
    let mut client = Client::new(address, Habit::Fresh);
    assert_eq!(client.post("/counters/a", ""), "1");
    let killed = pid_of(&first, 2);
    first.kill();
    kill(killed, Signal::SIGKILL).unwrap();
    assert_eq!(client.post("/counters/a", ""), "2");
    let mut second = first.start_again();
    let service = returned(&mut second, 1);
    assert_eq!(service["last_handover"]["outcome"], "rolled-back");
    assert_eq!(client.post("/counters/a", ""), "3");
    reload_to(&second, 2);
    assert_eq!(client.post("/counters/a", ""), "4");
    second.stop();
}

#[test]
fn the_next_supervisor_goes_on_with_a_probation() {
    let first = Setup::demo().args(LONG).start();
    let address = first.address("http");
    reload_to(&first, 2);
    let mut client = Client::new(address, Habit::Fresh);
    assert_eq!(client.post("/counters/a", ""), "1");
    first.kill();
    let mut second = first.start_again();
    second.events().wait_for_generation("adopted", 1);
    assert_eq!(phase_of(&second, 1), "reserve");
    second.expect(0, ["rollback"]);
    returned(&mut second, 1);
    assert_eq!(client.post("/counters/a", ""), "2");
    reload_to(&second, 2);
    second.kill();
    let mut third = second.start_again();
    third.events().wait_for_generation("adopted", 3);
    kill(pid_of(&third, 3), Signal::SIGKILL).unwrap();
    returned(&mut third, 1);
    assert_eq!(client.post("/counters/a", ""), "3");
    // One in reserve that is gone by then is known to be.
    reload_to(&third, 2);
    let reserve = pid_of(&third, 1);
    third.kill();
    kill(reserve, Signal::SIGKILL).unwrap();
    let mut fourth = third.start_again();
    fourth.events().wait_for_generation("stood-down", 1);
    fourth.settle();
    assert_eq!(fourth.serving().0, 4);
    assert_eq!(client.post("/counters/a", ""), "4");
    fourth.stop();
}

#[test]
fn an_upgrade_in_the_probation_keeps_the_reserve() {
    let mut supervisor = Setup::demo().args(LONG).start();
    reload_to(&supervisor, 2);
    let mut client = Client::new(supervisor.address("http"), Habit::Fresh);
    assert_eq!(client.post("/counters/a", ""), "1");
    supervisor.expect(0, ["upgrade"]);
    assert_eq!(phase_of(&supervisor, 1), "reserve");
    kill(pid_of(&supervisor, 2), Signal::SIGKILL).unwrap();
    returned(&mut supervisor, 1);
    assert_eq!(client.post("/counters/a", ""), "2");
    supervisor.stop();
}

#[test]
fn one_of_two_instances_that_fails_in_its_probation_brings_both_back() {
    let mut supervisor = Setup::demo().args(LONG).args(["--instances", "2"]).start();
    reload_to(&supervisor, 2);
    let service = supervisor.service();
    let generations = service["generations"].as_array().unwrap();
    let phases = |wanted: &str| {
        let all = generations.iter();
        all.filter(|one| one["phase"] == wanted).count()
    };
    assert_eq!((phases("serving"), phases("reserve")), (2, 2), "{service}");
    let one = generations.iter().find(|one| one["phase"] == "serving");
    let pid = i32::try_from(one.unwrap()["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    supervisor.events().wait_for("rolled-back");
    supervisor.wait_until("two of the former program serve", |status| {
        let service = &status["services"][0];
        let all = service["generations"].as_array().unwrap();
        let serving: Vec<&Value> = all.iter().filter(|one| one["phase"] == "serving").collect();
        service["state"] == "serving"
            && serving.len() == 2
            && serving.iter().all(|one| one["version"] == "1.0.0")
    });
    supervisor.stop();
}

#[test]
fn a_program_that_knows_no_way_back_is_told_of_or_refused_by_policy() {
    let mut supervisor = native([]).args(LONG).start();
    let command = [supervisor.path("native").to_str().unwrap().to_owned()];
    let said = supervisor.expect(0, ["reload", "--", &command[0]]);
    assert!(said.contains("warning: there is no way back"), "{said}");
    assert!(said.contains("the whole state is lost"), "{said}");
    supervisor.settle();
    supervisor.stop();

    let mut supervisor = native([])
        .args(LONG)
        .args(["--without-way-back", "refuse"])
        .start();
    let serving = supervisor.serving();
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains("see without_way_back"), "{said}");
    supervisor.settle();
    assert_eq!(supervisor.serving(), serving);
    supervisor.stop();
}

#[test]
fn a_value_that_the_former_version_cannot_hold_ends_the_way_back_and_nothing_else() {
    let mut supervisor = Setup::demo().args(LONG).start();
    reload_to(&supervisor, 2);
    let mut client = Client::new(supervisor.address("http"), Habit::Fresh);
    let id = super::text(&client.post("/transactions", ""), "id");
    for _ in 0..5 {
        let add = format!("/transactions/{id}/add");
        client.post(&add, r#"{"key":"high","n":1000000000}"#);
    }
    client.post(&format!("/transactions/{id}/commit"), "");
    let told = supervisor.events().wait_for("no-way-back");
    let text = told["text"].as_str().unwrap();
    assert!(
        text.contains("version 1 counts to 4294967295 only"),
        "{text}"
    );
    supervisor.events().wait_for_generation("gone", 1);
    supervisor.settle();
    assert_eq!(client.post("/counters/high", ""), "5000000001");
    supervisor.stop();
}

#[test]
fn the_end_of_the_probation_ends_the_reserve() {
    let mut supervisor = Setup::demo().args(["--probation", "1s"]).start();
    supervisor.reload();
    assert_eq!(phase_of(&supervisor, 1), "reserve");
    supervisor.events().wait_for_generation("gone", 1);
    supervisor.settle();
    assert_eq!(supervisor.serving().0, 2);
    let order: Vec<Value> = supervisor
        .history()
        .into_iter()
        .filter(|event| event["generation"] == 1)
        .map(|event| event["event"].clone())
        .collect();
    let at = |kind: &str| order.iter().position(|event| event == kind).unwrap();
    assert!(at("in-reserve") < at("stood-down"), "{order:?}");
    assert!(at("stood-down") < at("draining"), "{order:?}");
    supervisor.stop();
}
