//! The state moves, again and again, while clients change it.

use super::{
    client::{Client, Habit},
    demo, number, refused_by, reload_to, text,
    writers::{answers_come, while_writing},
};
use crate::harness::{Setup, Supervisor, answer, ask, get};

/// Handovers of one test.
const HANDOVERS: u64 = 30;

fn client(supervisor: &Supervisor) -> Client {
    Client::new(supervisor.address("http"), Habit::Keeps)
}

#[test]
fn thirty_handovers_lose_nothing_that_was_acknowledged() {
    let mut supervisor = Setup::demo().start();
    let straddled = while_writing(&supervisor, || {
        for _ in 0..HANDOVERS {
            supervisor.reload();
            answers_come(supervisor.address("http"), "slow");
        }
    });
    assert!(straddled > HANDOVERS / 3, "{straddled}");
    assert_eq!(supervisor.serving().0, HANDOVERS + 1);
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn thirty_handovers_between_two_versions_lose_nothing() {
    let mut supervisor = Setup::demo().start();
    // What version 1 has no room for is kept for version 2.
    reload_to(&supervisor, 2);
    let token = text(
        &client(&supervisor).post("/sessions", r#"{"user":"ann"}"#),
        "token",
    );
    let straddled = while_writing(&supervisor, || {
        for handover in 0..HANDOVERS {
            reload_to(&supervisor, if handover % 2 == 0 { 1 } else { 2 });
            answers_come(supervisor.address("http"), "slow");
        }
    });
    assert!(straddled > HANDOVERS / 3, "{straddled}");
    assert_eq!(supervisor.serving().0, HANDOVERS + 2);
    let session = client(&supervisor).get(&format!("/sessions/{token}"));
    assert_eq!(number(&session, "opened_in"), 2, "{session}");
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_request_that_straddles_a_handover_writes_after_it() {
    let mut supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    get(address, "/slow?ms=0&key=s");
    let slow: Vec<_> = ["s", "new"]
        .into_iter()
        .map(|key| ask(address, &format!("/slow?ms=1500&key={key}")))
        .collect();
    // They were accepted before what came later was answered.
    supervisor.reload();
    assert_eq!(supervisor.serving().0, 2);
    assert_eq!(get(address, "/counters/s"), "1");
    for (slow, value) in slow.into_iter().zip(["value=2", "value=1"]) {
        assert_eq!(answer(slow), format!("{value} generation=1"));
    }
    assert_eq!(get(address, "/counters/s"), "2");
    assert_eq!(get(address, "/counters/new"), "1");
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_dry_run_on_live_state_changes_nothing() {
    let mut supervisor = Setup::demo().start();
    let serving = supervisor.serving();
    while_writing(&supervisor, || {
        for version in [1, 2, 1, 2, 1, 2] {
            let said = supervisor.heirloom(["reload", "--dry-run", "--", &demo(version)]);
            assert!(said.status.success(), "{said:?}\n{}", supervisor.log());
            answers_come(supervisor.address("http"), "slow");
        }
    });
    supervisor.settle();
    assert_eq!(supervisor.serving(), serving);
    // And it is as true as a rehearsal can be.
    let value = get(supervisor.address("http"), "/counters/slow");
    reload_to(&supervisor, 2);
    assert_eq!(get(supervisor.address("http"), "/counters/slow"), value);
    supervisor.stop();
}

#[test]
fn a_state_that_the_older_version_cannot_hold_is_refused_with_the_reason() {
    let mut supervisor = Setup::demo()
        .with_program(&[demo(2)])
        .args(["--probation", "0s"])
        .start();
    let serving = supervisor.serving();
    let mut client = client(&supervisor);
    let id = text(&client.post("/transactions", ""), "id");
    for _ in 0..5 {
        let add = format!("/transactions/{id}/add");
        client.post(&add, r#"{"key":"high","n":1000000000}"#);
    }
    client.post(&format!("/transactions/{id}/commit"), "");
    let said = refused_by(&supervisor, 1);
    assert!(
        said.contains("a counter stands at 5000000000, and version 1 counts to 4294967295 only"),
        "{said}"
    );
    supervisor.settle();
    assert_eq!(supervisor.serving(), serving);
    assert_eq!(client.post("/counters/high", ""), "5000000001");
    reload_to(&supervisor, 2);
    assert_eq!(client.get("/counters/high"), "5000000001");
    supervisor.stop();
}
