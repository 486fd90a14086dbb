//! The commands and their exit statuses, one supervisor and several.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::Value;

use crate::harness::{HEIRLOOM, PATIENCE, Setup, built, eventually, get};

#[test]
fn a_reload_reports_its_outcome_as_text_and_as_json() {
    let supervisor = Setup::demo().start();
    let text = supervisor.heirloom(["reload"]);
    assert_eq!(text.status.code(), Some(0));
    let said = String::from_utf8(text.stdout).unwrap();
    assert!(said.contains("generation 2 serves (before: 1"), "{said}");
    let progress = String::from_utf8(text.stderr).unwrap();
    assert!(
        progress.contains("ready after") && progress.contains(" ms "),
        "{progress}"
    );
    let json = supervisor.heirloom(["reload", "--json"]);
    assert!(json.stderr.is_empty(), "{json:?}");
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["from"], 2);
    assert_eq!(report["to"], 3);
    assert_eq!(report["outcome"], "committed");
    assert_eq!(report["strategy"], "handover");
    assert!(report["reason"].is_null());
    assert_eq!(supervisor.service()["last_handover"], report);
    supervisor.stop();
}

#[test]
fn a_failed_reload_says_why_and_shows_the_programs_last_words() {
    let mut supervisor = Setup::demo().start();
    let said = supervisor.expect(1, ["reload", "--", "sh", "-c", "echo no luck >&2; exit 7"]);
    let last: Vec<&str> = said.lines().rev().take(2).collect();
    assert_eq!(last[0], "  | no luck");
    assert!(
        last[1].contains("generation 1 serves on") && last[1].contains("status 7"),
        "{said}"
    );
    assert_eq!(supervisor.serving().0, 1);
    supervisor.settle();
    // The command that failed is not the one from now on.
    let report = supervisor.reload();
    assert_eq!(report["outcome"], "committed");
    assert!(get(supervisor.address("http"), "/version").contains("1.0.0"));
    supervisor.stop();
}

#[test]
fn a_new_command_holds_from_now_on_and_rollback_brings_the_old_one_back() {
    let supervisor = Setup::demo().start();
    let version = |wanted: &str| {
        let answer = get(supervisor.address("http"), "/version");
        assert!(answer.contains(wanted), "{answer}");
    };
    let second = built("heirloom-demo-v2");
    supervisor.expect(0, ["reload", "--", second.to_str().unwrap()]);
    version("2.0.0");
    supervisor.reload();
    version("2.0.0");
    supervisor.expect(0, ["rollback"]);
    version("1.0.0");
    supervisor.reload();
    version("1.0.0");
    supervisor.stop();
}

#[test]
fn there_is_nothing_to_roll_back_to_at_first() {
    let supervisor = Setup::demo().start();
    let said = supervisor.expect(1, ["rollback"]);
    assert!(said.contains("nothing to roll back to"), "{said}");
    supervisor.stop();
}

#[test]
fn a_wait_that_is_over_leaves_the_outcome_open() {
    let supervisor = Setup::server([]).args(["--ready", "after:300ms"]).start();
    supervisor.expect(4, ["reload", "--timeout", "50ms"]);
    // The next one waits for the one that runs, and for its own.
    assert_eq!(supervisor.reload()["from"], 2);
    supervisor.stop();
}

#[test]
fn no_supervisor_is_told_from_a_wrong_command_line() {
    let status = |words: &[&str]| {
        let output = Command::new(HEIRLOOM).args(words).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, said) = status(&["reload", "--control", "/nonexistent/heirloom.sock"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("/nonexistent/heirloom.sock"), "{said}");
    assert_eq!(status(&["reload", "--nonsense"]).0, Some(2));
    assert_eq!(
        status(&["run", "--listen", "::1:80", "--", "true"]).0,
        Some(2)
    );
    assert_eq!(status(&["run"]).0, Some(2));
    assert_eq!(status(&["run", "--config", "/nonexistent.toml"]).0, Some(2));
}

#[test]
fn a_program_that_never_comes_up_ends_the_supervisor_with_its_reason() {
    let mut supervisor = Setup::program(["sh", "-c", "echo broken >&2; exit 3"]).spawn();
    assert_eq!(supervisor.wait(), Some(1));
    let log = supervisor.log();
    assert!(
        log.contains("status 3") && log.contains("its error output: broken"),
        "{log}"
    );
    let mut supervisor = Setup::program(["/nonexistent/program"]).spawn();
    assert_eq!(supervisor.wait(), Some(1));
    assert!(
        supervisor.log().contains("No such file"),
        "{}",
        supervisor.log()
    );
}

#[test]
fn a_dry_run_changes_nothing() {
    let mut supervisor = Setup::demo().start();
    let (generation, pid) = supervisor.serving();
    let second = built("heirloom-demo-v2");
    supervisor.expect(0, ["reload", "--dry-run", "--", second.to_str().unwrap()]);
    supervisor.settle();
    assert_eq!(supervisor.serving(), (generation, pid));
    assert!(get(supervisor.address("http"), "/version").contains("1.0.0"));
    let said = supervisor.expect(1, ["reload", "--dry-run", "--", "false"]);
    assert!(said.contains("status 1"), "{said}");
    supervisor.settle();
    assert_eq!(supervisor.serving(), (generation, pid));
    assert!(supervisor.service()["last_handover"].is_null());
    supervisor.stop();
}

#[test]
fn a_second_supervisor_of_the_same_name_leaves_the_first_alone() {
    let supervisor = Setup::demo().start();
    let output = Command::new(HEIRLOOM)
        .args([
            "run",
            "--control",
            supervisor.control().to_str().unwrap(),
            "--",
            "sleep",
            "60",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("running already") && said.contains("left alone"),
        "{said}"
    );
    assert_eq!(supervisor.serving().0, 1);
    get(supervisor.address("http"), "/hello");
    supervisor.stop();
}

#[test]
fn a_supervisor_of_another_user_is_not_taken_for_ones_own() {
    let directory = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path, mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(directory.path(), 0o755);
    // Where a client without a runtime directory looks, made by somebody else beforehand.
    let trap = directory.path().join("heirloom-65534");
    std::fs::create_dir(&trap).unwrap();
    std::os::unix::fs::chown(&trap, Some(1), Some(1)).unwrap();
    let path = trap.join("shop.sock");
    let serve = format!(
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('{0}')\ns.listen()\n\
         import os; os.chmod('{0}', 0o666)\nwhile True: s.accept()[0].close()\n",
        path.display()
    );
    let mut other = Command::new("setpriv")
        .args(["--reuid=1", "--clear-groups", "--pdeathsig=KILL"])
        .args(["/usr/bin/python3", "-c", &serve])
        .spawn()
        .unwrap();
    let asked = |more: &[&str]| {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--clear-groups", HEIRLOOM, "status"])
            .args(more)
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("RUNTIME_DIRECTORY")
            .env("TMPDIR", directory.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    // It is there when it has its mode, which root does not need.
    eventually("it listens", || {
        use std::os::unix::fs::PermissionsExt;
        path.metadata()
            .is_ok_and(|metadata| metadata.permissions().mode() & 0o777 == 0o666)
    });
    let named = asked(&["--control", path.to_str().unwrap()]);
    let found = asked(&[]);
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(named.0, Some(3), "{}", named.1);
    assert!(named.1.contains("belongs to user 1"), "{}", named.1);
    assert_eq!(found.0, Some(3), "{}", found.1);
    assert!(found.1.contains("no supervisor is running"), "{}", found.1);
}

#[test]
fn clients_that_stall_or_talk_nonsense_harm_nobody() {
    let supervisor = Setup::demo().start();
    let silent: Vec<UnixStream> = (0..20)
        .map(|_| UnixStream::connect(supervisor.control()).unwrap())
        .collect();
    let mut followers: Vec<_> = (0..20).map(|_| supervisor.events()).collect();
    let mut endless = UnixStream::connect(supervisor.control()).unwrap();
    let flood = endless.write_all(&vec![b'x'; 200_000]);
    drop(flood);
    let mut nonsense = UnixStream::connect(supervisor.control()).unwrap();
    nonsense.write_all(b"{\"command\":\"dance\"}\n").unwrap();
    let mut answer = String::new();
    nonsense.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::Read::read_to_string(&mut nonsense, &mut answer).unwrap();
    assert!(
        answer.contains("refused") && answer.contains("usage"),
        "{answer}"
    );
    for _ in 0..3 {
        supervisor.reload();
    }
    assert_eq!(supervisor.serving().0, 4);
    followers[0].wait_for("committed");
    drop(silent);
    supervisor.stop();
}

#[test]
fn several_clients_at_once_each_get_an_answer() {
    let supervisor = Setup::demo().start();
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| supervisor.reload()))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    assert!(
        answers
            .iter()
            .all(|answer| answer["outcome"] == "committed")
    );
    // Those that came while one ran share the next.
    let (last, _) = supervisor.serving();
    assert!((2..=9).contains(&last), "generation {last}");
    supervisor.stop();
}

#[test]
fn the_status_is_the_documented_json() {
    let supervisor = Setup::demo().args(["--name", "shop"]).start();
    let status = supervisor.status();
    assert_eq!(status["name"], "shop");
    assert_eq!(status["pid"], supervisor.pid().as_raw());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["supervisor_generation"], 1);
    let service = &status["services"][0];
    assert_eq!(service["name"], "shop");
    assert_eq!(service["state"], "serving");
    assert_eq!(service["listeners"][0]["name"], "http");
    assert_eq!(service["listeners"][0]["queued"], 0);
    let generation = &service["generations"][0];
    assert_eq!(generation["generation"], 1);
    assert_eq!(generation["phase"], "serving");
    assert!(generation["rss_bytes"].as_u64().unwrap() > 100_000);
    assert!(generation["since"].as_str().unwrap().ends_with('Z'));
    assert!(service["last_handover"].is_null());
    let people = supervisor.heirloom(["status"]);
    assert!(
        String::from_utf8(people.stdout)
            .unwrap()
            .contains("generation 1")
    );
    supervisor.stop();
}

#[test]
fn a_configuration_is_checked_and_printed_in_full() {
    let setup = Setup::program([]);
    let good = setup.write(
        "good.toml",
        "[service.web]\ncommand = [\"sh\"]\nlisten = [\"80\"]\n",
    );
    let bad = setup.write(
        "bad.toml",
        "[service.web]\ncommand = [\"sh\"]\nlisten = [\"x\"]\n",
    );
    let check = |path: &std::path::Path| Command::new(HEIRLOOM).arg("check").arg(path).output();
    let output = check(&good).unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("drain_timeout = \"30s\"") && text.contains("tcp-80=tcp:0.0.0.0:80"));
    let output = check(&bad).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("line 3"));
}

#[test]
fn log_files_are_opened_anew_when_told() {
    let setup = Setup::demo();
    let log = setup.path("heirloom.log");
    let supervisor = setup.args(["--log-file", log.to_str().unwrap()]).start();
    let rotated = supervisor.path("heirloom.log.1");
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    eventually("the start is in the log", || {
        lines(&log).contains("generation 1 serves")
    });
    std::fs::rename(&log, &rotated).unwrap();
    supervisor.signal(nix::sys::signal::Signal::SIGUSR1);
    supervisor.reload();
    eventually("the reload is in the new file", || {
        lines(&log).contains("generation 2 has taken over")
    });
    assert!(!lines(&rotated).contains("generation 2 has taken over"));
    // A line of the program's own carries its service and generation.
    eventually("the program's own lines are there", || {
        lines(&log).contains("heirloom-demo/2: stderr| ")
    });
    supervisor.stop();
}

#[test]
fn man_pages_and_completions_come_from_the_one_definition() {
    let setup = Setup::program([]);
    let directory = setup.path("man");
    let generate = |words: &[&str]| {
        let output = Command::new(HEIRLOOM)
            .arg("generate")
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    generate(&["man", directory.to_str().unwrap()]);
    let reload = std::fs::read_to_string(directory.join("heirloom-reload.1")).unwrap();
    assert!(reload.contains("committed, then rolled back"), "{reload}");
    assert!(
        std::fs::read_to_string(directory.join("heirloom.1"))
            .unwrap()
            .contains("rollback")
    );
    for shell in ["bash", "fish", "zsh"] {
        assert!(
            generate(&["completions", shell]).contains("until-proven"),
            "{shell}"
        );
    }
}
