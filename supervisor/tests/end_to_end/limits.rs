//! Little room, many of everything, and what was open before the supervisor began.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{HEIRLOOM, PATIENCE, Setup, children_of, eventually, get, open_descriptors};
use crate::load;

/// The numbers of the descriptors a process has open.
pub(crate) fn descriptors(pid: i32) -> BTreeSet<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect()
}

/// A program that opens nothing of its own.
fn sleeping() -> Setup {
    Setup::program(["sleep", "610"]).args(["--ready", "after:1ms"])
}

#[test]
fn eighty_descriptors_are_enough() {
    let mut supervisor = Setup::demo()
        .launcher(["prlimit", "--nofile=80:80"])
        .start();
    load::under_load(&supervisor, || {
        for _ in 0..10 {
            supervisor.reload();
        }
    });
    let (_, pid) = supervisor.serving();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let files: Vec<&str> = files.unwrap().split_ascii_whitespace().collect();
    assert_eq!(files[3..5], ["80", "80"]);
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn without_a_free_descriptor_a_handover_fails_and_nothing_changes() {
    let mut supervisor = Setup::demo()
        .launcher(["prlimit", "--nofile=50:50"])
        .start();
    let address = supervisor.address("http");
    let before = supervisor.serving();
    let silent: Vec<UnixStream> = (0..60)
        .map(|_| UnixStream::connect(supervisor.control()).unwrap())
        .collect();
    eventually("they hold all there are", || {
        let log = supervisor.log();
        log.contains("a client could not be accepted: Too many open files")
    });
    supervisor.signal(Signal::SIGHUP);
    eventually("the handover has failed", || {
        let log = supervisor.log();
        log.contains("the handover failed") && log.contains("Too many open files")
    });
    get(address, "/hello");
    drop(silent);
    eventually("there is room again", || {
        supervisor.heirloom(["status"]).status.success()
    });
    assert_eq!(supervisor.serving(), before);
    supervisor.settle();
    supervisor.reload();
    supervisor.stop();
}

#[test]
fn five_thousand_descriptors_from_before_reach_no_program() {
    let open = "import os, sys
for number in range(5000):
    os.set_inheritable(os.open('/dev/null', os.O_RDONLY), True)
os.execvp(sys.argv[1], sys.argv[1:])";
    let mut supervisor = sleeping()
        .launcher(["prlimit", "--nofile=8192:8192", "python3", "-c", open])
        .start();
    assert!(open_descriptors(supervisor.pid()) > 5000);
    for _ in 0..3 {
        let (_, pid) = supervisor.serving();
        // Standard input, output and error, the listener, and the socket of the handover protocol.
        assert_eq!(descriptors(pid), BTreeSet::from([0, 1, 2, 3, 4]));
        supervisor.reload();
    }
    supervisor.settle();
    let demo = crate::harness::built("heirloom-demo");
    supervisor.expect(0, ["reload", "--", demo.to_str().unwrap()]);
    get(supervisor.address("http"), "/hello");
    supervisor.stop();
}

/// Puts a connected socket where the first listener goes.
const STRAY: &str = "import os, socket, sys
one, other = socket.socketpair()
two = os.dup(other.fileno())
os.dup2(two, 3)
if sys.argv[1] == 'passed':
    os.environ.update(LISTEN_FDS='1', LISTEN_FDNAMES='http', LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])";

#[test]
fn a_stray_connected_socket_is_not_taken_for_a_listener() {
    let supervisor = sleeping()
        .launcher(["python3", "-c", STRAY, "stray"])
        .start();
    assert!(supervisor.log().contains("http listens on"));
    let (_, pid) = supervisor.serving();
    assert_eq!(descriptors(pid), BTreeSet::from([0, 1, 2, 3, 4]));
    let demo = crate::harness::built("heirloom-demo");
    supervisor.expect(0, ["reload", "--", demo.to_str().unwrap()]);
    get(supervisor.address("http"), "/hello");
    supervisor.stop();
}

#[test]
fn a_connected_socket_passed_as_a_listener_is_refused() {
    let mut supervisor = sleeping()
        .launcher(["python3", "-c", STRAY, "passed"])
        .spawn();
    assert_eq!(supervisor.wait(), Some(1));
    let log = supervisor.log();
    assert!(
        log.contains("passed as http is a socket that does not listen"),
        "{log}"
    );
}

#[test]
fn a_file_or_nothing_passed_as_a_listener_is_refused() {
    let pass = "import os, sys
null = os.open('/dev/null', os.O_RDONLY)
os.dup2(os.dup(null), 3, True)
if sys.argv[1] == 'nothing':
    os.close(3)
else:
    os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_FDNAMES='http', LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])";
    for what in ["file", "nothing"] {
        let setup = sleeping().launcher(["python3", "-c", pass, what]);
        let mut supervisor = setup.spawn();
        assert_eq!(supervisor.wait(), Some(1), "{what}: {}", supervisor.log());
        let log = supervisor.log();
        assert!(log.contains("descriptor 3 is not a socket"), "{log}");
    }
}

#[test]
fn two_hundred_silent_clients_stop_no_handover_and_leave_room_when_they_go() {
    let mut supervisor = Setup::demo().start();
    let silent: Vec<UnixStream> = (0..200)
        .map(|_| UnixStream::connect(supervisor.control()).unwrap())
        .collect();
    eventually("those without a place are turned away", || {
        supervisor.log().matches("one was turned away").count() >= 200 - 64
    });
    // They are told, and can try again.
    let mut last = silent.last().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut told = String::new();
    last.read_to_string(&mut told).unwrap();
    assert!(told.contains("try again"), "{told}");
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains("64 clients are being answered"), "{said}");
    supervisor.signal(Signal::SIGHUP);
    eventually("the signal is followed", || {
        supervisor.log().contains("generation 2 has taken over")
    });
    drop(silent);
    eventually("there is room again", || {
        supervisor.heirloom(["status"]).status.success()
    });
    supervisor.settle();
    supervisor.reload();
    supervisor.stop();
}

#[test]
fn clients_that_follow_for_ever_leave_room_for_those_who_ask() {
    let supervisor = Setup::demo().start();
    let mut followers = Vec::new();
    let mut refused = 0;
    for _ in 0..100 {
        let mut stream = UnixStream::connect(supervisor.control()).unwrap();
        stream
            .write_all(b"{\"command\":\"events\",\"follow\":true}\n")
            .unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut first = [0; 4096];
        let length = stream.read(&mut first).unwrap();
        let said = String::from_utf8_lossy(&first[..length]).into_owned();
        refused += usize::from(said.contains("follow the events already"));
        followers.push(stream);
    }
    assert_eq!(refused, 100 - 32);
    supervisor.reload();
    assert_eq!(supervisor.serving().0, 2);
    supervisor.stop();
}

/// Adding listeners later needs what the program no longer has: only the supervisor stays root.
#[test]
fn a_program_of_another_user_gets_a_privileged_listener_at_a_reload() {
    let one = "[service.web]
command = [\"sleep\", \"614\"]
listen = [\"http=tcp:127.0.0.1:0\"]
ready = \"after:1ms\"
";
    let setup = Setup::configuration(one);
    let supervisor = setup.start();
    let privileged = (600..1024)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap_or(1023);
    let two = one.replace(":0\"", &format!(":0\", \"low=tcp:127.0.0.1:{privileged}\""));
    supervisor.write("heirloom.toml", &format!("{two}user = \"nobody\"\n"));
    if nix::unistd::geteuid().is_root() {
        supervisor.reload();
        let (_, pid) = supervisor.serving();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let user = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .unwrap();
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
        let wanted = format!("\t{}", nobody.uid).repeat(4);
        assert_eq!(user.trim_start_matches("Uid:"), wanted);
        assert_eq!(descriptors(pid), BTreeSet::from([0, 1, 2, 3, 4, 5]));
        assert_eq!(supervisor.bound("low"), format!("127.0.0.1:{privileged}"));
    } else {
        let said = supervisor.expect(1, ["reload"]);
        assert!(
            said.contains("only root can run a service as nobody"),
            "{said}"
        );
    }
    supervisor.stop();
}

const MANY: usize = 50;

/// So many services; the one numbered `failing` cannot start, the one numbered `slow` is slow.
fn many(failing: Option<usize>, slow: Option<usize>) -> String {
    let service = |number: usize| {
        let (program, ready) = if failing == Some(number) {
            ("false", "after:30s")
        } else if slow == Some(number) {
            ("sleep", "exec:test -e {dir}/go")
        } else {
            ("sleep", "after:1ms")
        };
        format!(
            "[service.s{number:02}]
command = [\"{program}\", \"611\"]
listen = [\"http-{number:02}=tcp:127.0.0.1:0\"]
ready = \"{ready}\"
"
        )
    };
    (0..MANY).map(service).collect()
}

#[test]
fn fifty_services_are_handed_over_each_by_itself() {
    let mut supervisor = Setup::configuration(&many(None, None)).start();
    let pids = |status: &Value| -> Vec<i64> {
        let services = status["services"].as_array().unwrap().iter();
        services
            .map(|service| {
                let mut generations = service["generations"].as_array().unwrap().iter();
                let serving = generations.find(|one| one["phase"] == "serving").unwrap();
                serving["pid"].as_i64().unwrap()
            })
            .collect()
    };
    let before = pids(&supervisor.status());
    assert_eq!(children_of(supervisor.pid()).len(), MANY);

    // One that fails does not touch the others; one that is slow does not hold them up.
    supervisor.write("heirloom.toml", &many(Some(7), Some(9)));
    let reload = supervisor.begin(["reload", "--json"]);
    let others = |status: &Value, outcome: &str| {
        let services = status["services"].as_array().unwrap().iter();
        services
            .filter(|service| service["last_handover"]["outcome"] == outcome)
            .count()
    };
    let status = supervisor.wait_until("all but the slow one are through", |status| {
        others(status, "committed") == MANY - 2 && others(status, "aborted") == 1
    });
    assert_eq!(status["services"][9]["state"], "handing-over");
    supervisor.write("go", "");
    let output = reload.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let reports = String::from_utf8(output.stdout).unwrap();
    assert_eq!(reports.lines().count(), MANY);
    let aborted: Vec<&str> = reports
        .lines()
        .filter(|line| line.contains("\"aborted\""))
        .collect();
    assert_eq!(aborted.len(), 1, "{aborted:?}");
    assert!(aborted[0].contains("\"s07\""), "{aborted:?}");
    let after = pids(&supervisor.settle());
    for number in 0..MANY {
        let same = before[number] == after[number];
        assert_eq!(same, number == 7, "service {number}");
    }
    // One alone, by its name.
    supervisor.expect(0, ["reload", "s03"]);
    let last = pids(&supervisor.settle());
    for number in 0..MANY {
        assert_eq!(
            last[number] == after[number],
            number != 3,
            "service {number}"
        );
    }
    let of_nobody = supervisor.expect(2, ["reload", "s99"]);
    assert!(of_nobody.contains("no service s99"), "{of_nobody}");
    supervisor.stop();
}

#[test]
fn a_service_that_cannot_be_handed_over_does_not_keep_the_supervisor_from_stopping() {
    let mut supervisor = Setup::configuration(&many(None, Some(9))).spawn();
    eventually("it answers", || supervisor.control().exists());
    supervisor.wait_until("all but one serve", |status| {
        let services = status["services"].as_array().unwrap().iter();
        services.filter(|one| one["state"] == "serving").count() == MANY - 1
    });
    let output = std::process::Command::new(HEIRLOOM)
        .args(["stop", "--control", supervisor.control().to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(supervisor.wait(), Some(0));
}
