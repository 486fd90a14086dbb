//! Secrets stay where they were put: in a program's environment, in files that others cannot read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{HEIRLOOM, SERVER, Setup, Supervisor};

const IN_THE_CONFIGURATION: &str = "swordfish-one";
const IN_THE_FILE: &str = "swordfish-two";
const INHERITED: &str = "swordfish-three";
const AN_ARGUMENT: &str = "swordfish-four";

const CONFIGURATION: &str = r#"
[service.shop]
command = ["{dir}/server", "--release", "swordfish-four"]
listen = ["http=tcp:127.0.0.1:0"]
env_file = "{dir}/env"
environment = { KEY_ONE = "swordfish-one" }
"#;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The variables a process was started with.
fn environment(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn said(supervisor: &Supervisor, words: &[&str]) -> String {
    let output = supervisor.heirloom(words.iter().copied());
    [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8(bytes).unwrap())
        .concat()
}

#[test]
fn a_secret_is_told_to_the_program_and_to_nobody_else() {
    let setup = Setup::configuration(CONFIGURATION).env("KEY_THREE", INHERITED);
    setup.script("server", SERVER);
    setup.write("env", &format!("KEY_TWO={IN_THE_FILE}\n"));
    let mut supervisor = setup.start();
    let (_, pid) = supervisor.serving();
    let environment = environment(pid);
    for secret in [IN_THE_CONFIGURATION, IN_THE_FILE, INHERITED] {
        assert!(environment.contains(secret), "{environment}");
    }
    let mut all = said(&supervisor, &["reload"]);
    // What fails is explained, at each of the places where that may be.
    let text = fs::read_to_string(supervisor.path("heirloom.toml")).unwrap();
    for (broken, status) in [
        (text.replace("\"swordfish-one\"", "\"swordfish-one"), 2),
        (text.replace("\"swordfish-one\"", "[\"swordfish-one\"]"), 2),
        (text.replace("KEY_ONE", "\"=\""), 2),
        (text.replace("/server", "/nowhere"), 1),
    ] {
        assert_ne!(broken, text);
        fs::write(supervisor.path("heirloom.toml"), broken).unwrap();
        all += &supervisor.expect(status, ["reload"]);
    }
    fs::write(supervisor.path("heirloom.toml"), &text).unwrap();
    for broken in [
        format!("KEY_TWO={IN_THE_FILE}\n{IN_THE_FILE}\n"),
        format!("KEY_TWO={IN_THE_FILE}\0\n"),
        format!("2={IN_THE_FILE}\n"),
    ] {
        fs::write(supervisor.path("env"), broken).unwrap();
        all += &supervisor.expect(1, ["reload"]);
    }
    supervisor.settle();
    for words in [
        &["status"][..],
        &["status", "--json"],
        &["events"],
        &["events", "--json"],
    ] {
        all += &said(&supervisor, words);
    }
    all += &supervisor.log();
    for pid in [supervisor.pid().as_raw(), supervisor.serving().1] {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        // What is given as an argument every user of the machine can read anyway.
        all += &String::from_utf8_lossy(&line).replace(AN_ARGUMENT, "");
    }
    assert!(all.contains("generation"), "{all}");
    assert!(!all.contains("swordfish"), "{all}");
    supervisor.stop();
}

#[test]
fn what_others_can_write_or_read_is_told_and_refuses_nothing() {
    let setup = Setup::configuration(CONFIGURATION);
    setup.script("server", SERVER);
    setup.write("env", "A=1\n");
    set_mode(&setup.path("env"), 0o600);
    let supervisor = setup.start();
    assert!(!supervisor.log().contains("chmod"), "{}", supervisor.log());
    set_mode(&supervisor.path("server"), 0o757);
    set_mode(&supervisor.path("env"), 0o604);
    set_mode(&supervisor.path("heirloom.toml"), 0o646);
    supervisor.reload();
    let log = supervisor.log();
    for (file, told) in [
        ("server", "chmod o-w"),
        ("env", "chmod o-r"),
        ("heirloom.toml", "chmod o-w"),
    ] {
        let path = fs::canonicalize(supervisor.path(file)).unwrap();
        let line = log
            .lines()
            .find(|line| line.contains(told) && line.contains(path.to_str().unwrap()));
        assert!(line.is_some(), "{file}\n{log}");
    }
    // `check` says the same of a file that nobody runs yet.
    let checked = std::process::Command::new(HEIRLOOM)
        .arg("check")
        .arg(supervisor.path("heirloom.toml"))
        .output()
        .unwrap();
    assert!(checked.status.success());
    let told = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(
        told.matches("every user of this machine").count(),
        3,
        "{told}"
    );
    supervisor.stop();
}

#[test]
fn sockets_and_files_are_made_for_their_owner_alone() {
    // With the widest umask there is: no mode may depend on it.
    let setup = Setup::demo()
        .launcher(["sh", "-c", "umask 0 && exec \"$0\" \"$@\""])
        .args(["--state-file", "{dir}/state", "--log-file", "{dir}/own.log"]);
    let mut supervisor = setup.start();
    let snapshot = supervisor.path("snapshot");
    assert_eq!(mode(&supervisor.control()), 0o600);
    supervisor.expect(0, ["snapshot", "-o", snapshot.to_str().unwrap()]);
    assert_eq!(mode(&snapshot), 0o600);
    assert_eq!(mode(&supervisor.path("own.log")), 0o640);
    supervisor.expect(0, ["stop"]);
    assert_eq!(supervisor.wait(), Some(0));
    assert_eq!(mode(&supervisor.path("state")), 0o600);
}

#[test]
fn what_a_program_says_cannot_command_a_terminal() {
    let setup = Setup::configuration(
        "[service.shop]\ncommand = [\"{dir}/server\"]\nlisten = [\"http=tcp:127.0.0.1:0\"]\n",
    );
    let odd = "#!/usr/bin/python3\nimport os, socket, sys\n\
        sys.stderr.write('\\x1b]0;owned\\x07 said\\n'); sys.stderr.flush()\n\
        if os.path.exists('{dir}/fail'): sys.exit(3)\n\
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
        s.sendto(b'STATUS=\\x1b[2J cleared', os.environ['NOTIFY_SOCKET'].replace('@', '\\0', 1))\n\
        s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'].replace('@', '\\0', 1))\n\
        socket.socket(fileno=3).accept()\n";
    setup.script("server", odd);
    let mut supervisor = setup.start();
    supervisor.wait_until("its status is known", |status| {
        status["services"][0]["generations"][0]["status"].is_string()
    });
    let mut shown = said(&supervisor, &["status"]);
    assert!(shown.contains("\\u001b[2J cleared"), "{shown}");
    supervisor.write("fail", "");
    shown += &supervisor.expect(1, ["reload"]);
    assert!(shown.contains("\\u001b]0;owned\\u0007 said"), "{shown}");
    shown += &said(&supervisor, &["events"]);
    shown += &said(&supervisor, &["status", "--json"]);
    shown += &supervisor.log();
    assert!(!shown.contains(['\x1b', '\x07']), "{shown:?}");
    supervisor.stop();
}
