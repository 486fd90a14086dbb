//! When a new generation counts as ready, and who serves until then.

use std::time::Duration;

use crate::harness::{Setup, Supervisor, ask, eventually, get, is_alive};
use crate::load;

/// Asserts that the last handover took at least so long.
fn took_at_least(supervisor: &Supervisor, wanted_ms: f64) {
    let took = supervisor.service()["last_handover"]["total_ms"]
        .as_f64()
        .unwrap();
    assert!(took >= wanted_ms, "{took} ms\n{}", supervisor.log());
}

/// The phase of a generation, if it is there.
fn phase(supervisor: &Supervisor, generation: u64) -> Option<String> {
    let service = supervisor.service();
    let generations = service["generations"].as_array().unwrap();
    let one = generations
        .iter()
        .find(|one| one["generation"] == generation)?;
    Some(one["phase"].as_str().unwrap().to_owned())
}

#[test]
fn a_boot_of_two_seconds_is_waited_for_with_no_setting_and_nobody_stalls() {
    let supervisor = Setup::server(["--release", "old"]).start();
    let server = supervisor.server();
    let plan = load::fresh_plan(&supervisor);
    let report = load::under(plan, &supervisor, || {
        let new = ["reload", "--", &server, "--release", "new", "--boot", "2"];
        supervisor.expect(0, new);
        assert!(get(supervisor.address("http"), "/").contains("release=new"));
    });
    took_at_least(&supervisor, 2000.0);
    let longest = report.latency.max();
    assert!(longest < Duration::from_secs(1), "{report}");
    supervisor.stop();
}

#[test]
fn a_slow_boot_that_ends_with_a_notification_loses_nothing() {
    let supervisor = Setup::demo().args(["--ready", "notify"]).start();
    let demo = supervisor.service()["generations"][0]["program"].clone();
    let report = load::under_load(&supervisor, || {
        let slow = [
            "reload",
            "--",
            demo.as_str().unwrap(),
            "--slow-start",
            "700ms",
        ];
        supervisor.expect(0, slow);
    });
    took_at_least(&supervisor, 700.0);
    let longest = report.latency.max();
    assert!(longest < Duration::from_millis(600), "{report}");
    supervisor.stop();
}

#[test]
fn a_program_that_is_to_notify_is_not_ready_because_it_listens() {
    let setup = Setup::server(["--ready-when", "{dir}/go"]).args(["--ready", "notify"]);
    let supervisor = setup.start_with("go");
    std::fs::remove_file(supervisor.path("go")).unwrap();
    let reload = supervisor.begin(["reload"]);
    eventually("the new one answers", || {
        get(supervisor.address("http"), "/").contains("generation=2")
    });
    assert_eq!(phase(&supervisor, 1).as_deref(), Some("serving"));
    assert_eq!(phase(&supervisor, 2).as_deref(), Some("starting"));
    supervisor.write("go", "");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(supervisor.serving().0, 2);
    supervisor.stop();
}

#[test]
fn a_program_that_never_notifies_is_given_up_in_time() {
    let setup = Setup::server(["--ready-when", "{dir}/go"]).args([
        "--ready",
        "notify",
        "--ready-timeout",
        "2s",
    ]);
    let mut supervisor = setup.start_with("go");
    let before = supervisor.serving();
    std::fs::remove_file(supervisor.path("go")).unwrap();
    let said = supervisor.expect(1, ["reload"]);
    assert!(
        said.contains("not ready within 2s") && said.contains("READY=1"),
        "{said}"
    );
    assert_eq!(supervisor.serving(), before);
    supervisor.settle();
    supervisor.write("go", "");
    supervisor.reload();
    supervisor.stop();
}

#[test]
fn a_program_may_ask_for_more_time_to_become_ready() {
    let supervisor = Setup::server([]).args(["--ready-timeout", "2s"]).start();
    let server = supervisor.server();
    let slow = ["reload", "--", &server, "--boot", "2.3", "--extend", "30"];
    supervisor.expect(0, slow);
    took_at_least(&supervisor, 2300.0);
    supervisor.stop();
}

#[test]
fn a_time_is_all_that_is_waited_for_if_that_is_wanted() {
    // It never waits on a listener and says nothing.
    let supervisor = Setup::program(["sleep", "600"])
        .args(["--ready", "after:300ms"])
        .start();
    supervisor.reload();
    took_at_least(&supervisor, 300.0);
    supervisor.stop();
}

#[test]
fn a_program_without_listeners_is_ready_when_it_has_lived_a_second() {
    let supervisor = Setup::program(["sleep", "600"])
        .no_default_listener()
        .start();
    supervisor.reload();
    took_at_least(&supervisor, 1000.0);
    supervisor.stop();
}

#[test]
fn a_command_decides_by_its_exit_status() {
    let setup = Setup::server([]).args(["--ready", "exec:test -e {dir}/healthy"]);
    let supervisor = setup.start_with("healthy");
    std::fs::remove_file(supervisor.path("healthy")).unwrap();
    let reload = supervisor.begin(["reload"]);
    // It listens, and answers; that does not count here.
    eventually("the new one answers", || {
        get(supervisor.address("http"), "/").contains("generation=2")
    });
    assert_eq!(phase(&supervisor, 2).as_deref(), Some("starting"));
    supervisor.write("healthy", "");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    supervisor.stop();
}

const TESTED: &str = r#"
[service.web]
command = ["{dir}/server"]
listen = ["http=tcp:127.0.0.1:0"]
"#;

#[test]
fn a_command_that_fails_hangs_or_does_not_exist_changes_nothing_and_leaves_nothing() {
    let setup = Setup::configuration(TESTED);
    setup.script("server", crate::harness::SERVER);
    setup.script(
        "hang",
        "#!/bin/sh\necho $$ >>{dir}/hanging\nexec sleep 600\n",
    );
    let mut supervisor = setup.start();
    let before = supervisor.serving();
    let cases = [
        ("false", "did not succeed"),
        ("{dir}/hang", "did not succeed"),
        ("{dir}/no-such-command", "No such file"),
    ];
    for (command, reason) in cases {
        let text = format!("{TESTED}ready = \"exec:{command}\"\nready_timeout = \"1s\"\n");
        supervisor.write("heirloom.toml", &text);
        let said = supervisor.expect(1, ["reload"]);
        assert!(said.contains(reason), "{command}: {said}");
        assert_eq!(supervisor.serving(), before, "{command}");
    }
    supervisor.settle();
    let hung = std::fs::read_to_string(supervisor.path("hanging")).unwrap();
    for pid in hung.lines() {
        assert!(!is_alive(pid.parse().unwrap()), "the command that hung");
    }
    supervisor.write("heirloom.toml", TESTED);
    supervisor.reload();
    supervisor.stop();
}

#[test]
fn a_command_that_hangs_does_not_outlive_the_supervisor() {
    let setup = Setup::configuration(TESTED);
    setup.script("server", crate::harness::SERVER);
    setup.script(
        "hang",
        "#!/bin/sh\necho $$ >>{dir}/hanging\nexec sleep 600\n",
    );
    let supervisor = setup.start();
    let text = format!("{TESTED}ready = \"exec:{{dir}}/hang\"\n");
    supervisor.write("heirloom.toml", &text);
    let reload = supervisor.begin(["reload"]);
    let mut hanging = String::new();
    eventually("the command runs", || {
        hanging = std::fs::read_to_string(supervisor.path("hanging")).unwrap_or_default();
        hanging.ends_with('\n')
    });
    supervisor.expect(0, ["stop"]);
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(1), "{said}");
    let pid = hanging.lines().next().unwrap().parse().unwrap();
    eventually("the command is gone", || !is_alive(pid));
}

#[test]
fn clients_that_come_while_the_first_generation_boots_wait_in_the_listener() {
    let setup = Setup::server(["--boot-until", "{dir}/go"]);
    let supervisor = setup.start_unwaited();
    let waiting: Vec<_> = (0..20)
        .map(|_| ask(supervisor.address("http"), "/"))
        .collect();
    assert_eq!(supervisor.service()["state"], "starting");
    assert_eq!(supervisor.service()["listeners"][0]["queued"], 20);
    supervisor.write("go", "");
    for stream in waiting {
        assert!(crate::harness::answer(stream).contains("generation=1"));
    }
    supervisor.stop();
}
