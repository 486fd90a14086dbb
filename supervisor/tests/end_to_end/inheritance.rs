//! What a program inherits: descriptors, variables, signals; and nothing else.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{MARK, Setup, Supervisor, eventually};

/// A program that writes down what it got, as JSON, and then waits on its first listener.
const WITNESS: &str = r#"
import json, os, select, signal, socket, sys
report = {"env": dict(os.environ), "pid": os.getpid(), "pgid": os.getpgid(0), "cwd": os.getcwd()}
# The directory that is being listed has a descriptor of its own, gone by now.
listed = {int(n) for n in os.listdir("/proc/self/fd")}
report["fds"] = {}
for fd in sorted(listed):
    try:
        report["fds"][fd] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass
lines = open("/proc/self/status").read().splitlines()
report["signals"] = {l.split(":")[0]: l.split()[1] for l in lines if l.startswith("Sig")}
path = "{dir}/witness-" + os.environ["HEIRLOOM_GENERATION"]
with open(path + ".new", "w") as out:
    json.dump(report, out)
os.rename(path + ".new", path)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if int(os.environ.get("LISTEN_FDS", "0")):
    socket.socket(fileno=3).accept()
signal.pause()
"#;

fn report(supervisor: &Supervisor, generation: u64) -> Value {
    let path = supervisor.path(&format!("witness-{generation}"));
    eventually("the witness has reported", || path.exists());
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A service that runs the witness with these settings.
fn witness(settings: &str) -> Setup {
    let service = "[service.shop]\ncommand = [\"/usr/bin/python3\", \"{dir}/witness.py\"]\n";
    let setup = Setup::configuration(&format!("{service}{settings}"));
    setup.write("witness.py", WITNESS);
    setup
}

const HTTP: &str = "listen = [\"http=tcp:127.0.0.1:0\"]\n";

/// The variables of a report that Heirloom sets; not the mark by which the harness knows a test's programs.
fn heirlooms(report: &Value) -> BTreeMap<&str, &str> {
    let env = report["env"].as_object().unwrap().iter();
    env.filter(|(name, _)| *name != MARK)
        .filter(|(name, _)| {
            [
                "LISTEN_",
                "SERVER_STARTER_",
                "HEIRLOOM_",
                "NOTIFY_",
                "WATCHDOG_",
                "FDSTORE",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        })
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
        .collect()
}

#[test]
fn exactly_the_designed_variables_and_descriptors() {
    let settings = "listen = [\"http=tcp:127.0.0.1:0\", \"admin=unix:{dir}/admin.sock\"]\n\
        watchdog = \"20s\"\nenvironment = { COLOUR = \"blue\" }\n";
    let supervisor = witness(settings)
        // What speaks of the supervisor alone must not reach the program.
        .env("LISTEN_PIDFDID", "12345")
        .env("FDSTORE", "7")
        .env("WATCHDOG_PID", "1")
        .env("LISTEN_FDNAMES", "stale")
        .start();
    let report = report(&supervisor, 1);
    let http = supervisor.bound("http");
    let pid = report["pid"].to_string();
    let ports = format!("{http}=3;{}=4", supervisor.path("admin.sock").display());
    let notify = report["env"]["NOTIFY_SOCKET"].as_str().unwrap();
    assert!(notify.starts_with('@'), "{notify}");
    let rendezvous = report["env"]["HEIRLOOM_RENDEZVOUS"].as_str().unwrap();
    assert!(rendezvous.starts_with("@heirloom-"), "{rendezvous}");
    let expected = BTreeMap::from([
        ("LISTEN_FDS", "2"),
        ("LISTEN_FDNAMES", "http:admin"),
        ("LISTEN_PID", pid.as_str()),
        ("SERVER_STARTER_PORT", ports.as_str()),
        ("SERVER_STARTER_GENERATION", "1"),
        ("HEIRLOOM_GENERATION", "1"),
        ("HEIRLOOM_INSTANCE", "0"),
        ("HEIRLOOM_SERVICE", "shop"),
        ("NOTIFY_SOCKET", notify),
        ("WATCHDOG_USEC", "20000000"),
        ("WATCHDOG_PID", pid.as_str()),
        ("HEIRLOOM_FD", "5"),
        ("HEIRLOOM_RENDEZVOUS", rendezvous),
    ]);
    assert_eq!(heirlooms(&report), expected);
    assert_eq!(report["env"]["COLOUR"], "blue");
    let fds: Vec<&String> = report["fds"].as_object().unwrap().keys().collect();
    assert_eq!(fds, ["0", "1", "2", "3", "4", "5"], "{}", report["fds"]);
    assert_eq!(report["fds"]["0"], "/dev/null");
    supervisor.stop();
}

#[test]
fn signals_are_at_their_defaults_and_the_group_is_its_own() {
    // The supervisor itself is started with signals ignored, as nohup does.
    let launcher = ["env", "--ignore-signal=HUP", "--ignore-signal=USR1"];
    let supervisor = witness(HTTP).launcher(launcher).start();
    let report = report(&supervisor, 1);
    let mask = |name: &str| u64::from_str_radix(report["signals"][name].as_str().unwrap(), 16);
    // Python itself ignores PIPE (13) and XFSZ (25).
    let ignored = mask("SigIgn").unwrap() & !(1 << 12 | 1 << 24);
    assert_eq!(ignored, 0, "{report}");
    assert_eq!(mask("SigBlk").unwrap(), 0);
    assert_eq!(report["pgid"], report["pid"]);
    supervisor.stop();
}

#[test]
fn no_listeners_means_no_listen_variables_and_an_empty_port_list() {
    let supervisor = witness("ready = \"after:300ms\"\n").start();
    let report = report(&supervisor, 1);
    let env = heirlooms(&report);
    assert_eq!(env["SERVER_STARTER_PORT"], "");
    assert!(
        !env.keys().any(|name| name.starts_with("LISTEN_")),
        "{env:?}"
    );
    supervisor.stop();
}

#[test]
fn stray_descriptors_of_the_supervisor_do_not_reach_the_program() {
    let launcher = [
        "bash",
        "-c",
        "exec 3</dev/zero 7</dev/zero 40</dev/zero; exec \"$@\"",
        "-",
    ];
    let supervisor = witness(HTTP).launcher(launcher).start();
    let fds = &report(&supervisor, 1)["fds"];
    let numbers: Vec<&String> = fds.as_object().unwrap().keys().collect();
    assert_eq!(numbers, ["0", "1", "2", "3", "4"], "{fds}");
    assert!(fds["3"].as_str().unwrap().starts_with("socket:"), "{fds}");
    supervisor.stop();
}

#[test]
fn the_environment_file_is_read_for_each_generation() {
    let setup = witness(&format!("{HTTP}env_file = \"{{dir}}/env\"\n"));
    setup.write("env", "COLOUR=red\nGONE=soon\n");
    let supervisor = setup.start();
    assert_eq!(report(&supervisor, 1)["env"]["COLOUR"], "red");
    supervisor.write("env", "COLOUR=\"dark red\"\n");
    supervisor.reload();
    let second = report(&supervisor, 2);
    assert_eq!(second["env"]["COLOUR"], "dark red");
    assert!(second["env"]["GONE"].is_null());
    supervisor.write("env", "nonsense\n");
    let said = supervisor.expect(1, ["reload"]);
    assert!(
        said.contains("line 1") && said.contains("serves on"),
        "{said}"
    );
    supervisor.stop();
}

#[test]
fn a_service_runs_as_its_user_and_only_it() {
    let setup = witness(&format!("{HTTP}user = \"nobody\"\n"));
    // The program runs as nobody: the way to its files must be open to it.
    let text = WITNESS.replace("{dir}/witness-", "{dir}/open/witness-");
    setup.write("witness.py", &text);
    let open = |path: &std::path::Path, mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    std::fs::create_dir(setup.path("open")).unwrap();
    open(&setup.path("open"), 0o777);
    open(setup.path("open").parent().unwrap(), 0o755);
    let supervisor = setup.start();
    let (_, pid) = supervisor.serving();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = |name: &str| {
        status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert!(
        line("Uid:").contains("65534\t65534\t65534\t65534"),
        "{status}"
    );
    assert!(
        line("Gid:").contains("65534\t65534\t65534\t65534"),
        "{status}"
    );
    assert!(
        !line("Groups:")
            .split_ascii_whitespace()
            .any(|group| group == "0"),
        "{status}"
    );
    supervisor.stop();
}
