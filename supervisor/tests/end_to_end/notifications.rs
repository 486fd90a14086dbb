//! `sd_notify` as programs use it: status, watchdog, descriptors that are kept, barriers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::harness::{PATIENCE, Setup, Supervisor, eventually, get};

/// A program's way to send notifications, with descriptors.
const NOTIFY: &str = r#"
import array, json, os, select, signal, socket, sys, time
def notify(text, *fds):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect("\0" + os.environ["NOTIFY_SOCKET"][1:])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    s.sendmsg([text.encode()], rights)
    s.close()
names = os.environ.get("LISTEN_FDNAMES", "").split(":")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
"#;

fn python(body: &str, arguments: &[&str]) -> Supervisor {
    let setup = Setup::program(["python3", "program.py"]).args(arguments.iter().copied());
    setup.write("program.py", &format!("{NOTIFY}{body}"));
    setup.start()
}

#[test]
fn status_text_is_shown_and_bad_messages_change_nothing() {
    let mut supervisor = python(
        r#"
notify("nonsense")
notify("READY=1\nERRNO=many")
notify("STATUS=warming up")
notify("READY=1\nSTATUS=42 things done\nMAINPID=1\nX_UNKNOWN=1")
signal.pause()
"#,
        &["--ready", "notify"],
    );
    let status = supervisor.wait_until("the status text", |status| {
        status["services"][0]["generations"][0]["status"] == "42 things done"
    });
    assert_eq!(status["services"][0]["state"], "serving");
    assert!(
        supervisor.log().contains("ERRNO=many"),
        "{}",
        supervisor.log()
    );
    supervisor.stop();
}

#[test]
fn stored_descriptors_come_back_by_name_until_they_are_removed() {
    // The first generation stores a connection and a memfd; later ones find and use them.
    let body = r#"
generation = int(os.environ["HEIRLOOM_GENERATION"])
stored = {name: 3 + n for n, name in enumerate(names) if name.startswith("my-")}
if generation == 1:
    client = socket.socket(socket.AF_UNIX)
    client.connect("{dir}/peer.sock")
    memory = os.memfd_create("state")
    os.write(memory, b"remembered")
    notify("FDSTORE=1\nFDNAME=my-peer", client.fileno())
    notify("FDSTORE=1\nFDNAME=my-memory\nFDPOLL=0", memory)
    notify("FDSTORE=1\nFDNAME=my-memory\nFDPOLL=0", memory)
    read, write = os.pipe()
    notify("BARRIER=1", write)
    os.close(write)
    os.read(read, 1)
if generation == 2:
    peer = socket.socket(fileno=stored["my-peer"])
    peer.send(os.pread(stored["my-memory"], 100, 0))
    notify("FDSTOREREMOVE=1\nFDNAME=my-peer")
if generation == 3:
    assert sorted(stored) == ["my-memory"], stored
notify("READY=1\nSTATUS=" + ",".join(sorted(stored)))
signal.pause()
"#;
    let setup = Setup::program(["python3", "program.py"]).args(["--ready", "notify"]);
    setup.write("program.py", &format!("{NOTIFY}{body}"));
    let peer = std::os::unix::net::UnixListener::bind(setup.path("peer.sock")).unwrap();
    let mut supervisor = setup.start();
    let (mut connection, _) = peer.accept().unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(
        supervisor.service()["stored"],
        serde_json::json!(["my-peer", "my-memory"])
    );
    // No generation is there between two sequential ones: the supervisor alone keeps them.
    supervisor.reload();
    let mut word = [0; 10];
    connection.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"remembered");
    supervisor.wait_until("the connection is given up", |status| {
        status["services"][0]["stored"] == serde_json::json!(["my-memory"])
    });
    supervisor.reload();
    supervisor.stop();
}

#[test]
fn a_stored_connection_whose_peer_is_gone_is_given_up() {
    let body = r#"
client = socket.socket(socket.AF_UNIX)
client.connect("{dir}/peer.sock")
notify("FDSTORE=1\nFDNAME=peer", client.fileno())
notify("READY=1")
client.close()
signal.pause()
"#;
    let setup = Setup::program(["python3", "program.py"]).args(["--ready", "notify"]);
    setup.write("program.py", &format!("{NOTIFY}{body}"));
    let peer = std::os::unix::net::UnixListener::bind(setup.path("peer.sock")).unwrap();
    let mut supervisor = setup.start();
    let (connection, _) = peer.accept().unwrap();
    assert_eq!(supervisor.service()["stored"], serde_json::json!(["peer"]));
    drop(connection);
    supervisor.wait_until("the connection is given up", |status| {
        status["services"][0]["stored"] == serde_json::json!([])
    });
    supervisor.stop();
}

#[test]
fn a_missed_watchdog_is_a_death_and_the_program_is_started_again() {
    let mut supervisor = python(
        r#"
notify("READY=1")
if os.environ["HEIRLOOM_GENERATION"] == "1":
    for _ in range(5):
        notify("WATCHDOG=1")
        time.sleep(0.05)
    signal.pause()
while True:
    notify("WATCHDOG=1")
    time.sleep(0.05)
"#,
        &["--ready", "notify", "--watchdog", "400ms"],
    );
    let died = supervisor.events().wait_for("died");
    assert!(
        died["text"].as_str().unwrap().contains("watchdog"),
        "{died}"
    );
    supervisor.wait_until("its successor serves", |status| {
        let service = &status["services"][0];
        let last = service["generations"].as_array().unwrap().last();
        service["state"] == "serving" && last.is_some_and(|one| one["generation"] == 2)
    });
    supervisor.stop();
}

#[test]
fn a_program_may_trigger_its_own_watchdog() {
    let mut supervisor = python(
        r#"
notify("READY=1")
if os.environ["HEIRLOOM_GENERATION"] == "1":
    notify("WATCHDOG=trigger")
signal.pause()
"#,
        &["--ready", "notify"],
    );
    supervisor.wait_until("its successor serves", |status| {
        let service = &status["services"][0];
        let last = service["generations"].as_array().unwrap().last();
        service["state"] == "serving" && last.is_some_and(|one| one["generation"] == 2)
    });
    supervisor.stop();
}

#[test]
fn a_reported_error_fails_the_handover_and_nothing_else() {
    let setup = Setup::program(["python3", "program.py"]).args(["--ready", "notify"]);
    setup.write(
        "program.py",
        &format!(
            "{NOTIFY}\nif os.path.exists('{{dir}}/broken'):\n    notify('ERRNO=13\\nSTATUS=no key')\nelse:\n    notify('READY=1')\nsignal.pause()\n"
        ),
    );
    let supervisor = setup.start();
    supervisor.write("broken", "");
    let said = supervisor.expect(1, ["reload"]);
    assert!(
        said.contains("Permission denied") && said.contains("generation 1 serves on"),
        "{said}"
    );
    std::fs::remove_file(supervisor.path("broken")).unwrap();
    assert_eq!(supervisor.reload()["from"], 1);
    supervisor.stop();
}

#[test]
fn stopping_and_mainpid_of_a_program_never_reach_systemd() {
    // A stand-in for systemd's socket: everything the supervisor says of itself arrives here.
    let setup = Setup::program(["python3", "program.py"]).args(["--ready", "notify"]);
    setup.write(
        "program.py",
        &format!(
            "{NOTIFY}\nnotify('READY=1\\nSTATUS=from the program\\nMAINPID=1')\n\
             signal.signal(signal.SIGTERM, lambda *_: (notify('STOPPING=1'), sys.exit(0)))\nsignal.pause()\n"
        ),
    );
    let path = setup.path("systemd.sock");
    let systemd = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    systemd
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut said = Vec::new();
    let mut listen = || {
        let mut buffer = [0; 4096];
        while let Ok(length) = systemd.recv(&mut buffer) {
            said.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        said.clone()
    };
    // The harness removes NOTIFY_SOCKET; `env` puts it back for the supervisor alone.
    let notify = format!("NOTIFY_SOCKET={}", path.display());
    let supervisor = setup.launcher(["env", notify.as_str()]).start();
    let pid = supervisor.pid();
    for _ in 0..3 {
        supervisor.reload();
    }
    supervisor.expect(1, ["reload", "--", "false"]);
    let said = listen();
    let all = said.join("\n");
    assert!(
        !all.contains("STOPPING") && !all.contains("from the program"),
        "{all}"
    );
    assert!(!all.contains("MAINPID=1\n"), "{all}");
    let reloading = said
        .iter()
        .filter(|one| one.contains("RELOADING=1\nMONOTONIC_USEC="))
        .count();
    let ready = said.iter().filter(|one| one.contains("READY=1")).count();
    assert_eq!((reloading, ready), (4, 5), "{all}");
    assert!(all.contains(&format!("MAINPID={pid}")), "{all}");
    // What is kept in systemd's store is told in between.
    let last = said.iter().rfind(|one| one.contains("STATUS=")).unwrap();
    assert!(last.contains("the last reload failed"), "{all}");
    supervisor.stop();
}

#[test]
fn a_strangers_message_is_dropped() {
    let setup = Setup::demo().args(["--ready", "notify"]);
    let supervisor = setup.start();
    let (_, pid) = supervisor.serving();
    let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environ = String::from_utf8(environ).unwrap();
    let address = environ
        .split('\0')
        .find_map(|one| one.strip_prefix("NOTIFY_SOCKET=@"))
        .unwrap();
    let forged = format!(
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); \
         s.connect('\\x00{address}'); s.send(b'WATCHDOG=trigger')"
    );
    let sent = std::process::Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            &forged,
        ])
        .status()
        .unwrap();
    assert!(sent.success());
    eventually("the message is seen", || {
        supervisor.log().contains("stranger")
    });
    assert_eq!(supervisor.serving(), (1, pid));
    get(supervisor.address("http"), "/hello");
    supervisor.stop();
}

#[test]
fn a_control_client_of_another_user_is_refused() {
    let supervisor = Setup::demo().start();
    // Mode 0600 keeps others out; should somebody widen it, the peer's uid still counts.
    use std::os::unix::fs::PermissionsExt;
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    assert_eq!(
        std::fs::metadata(supervisor.control())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    open(&supervisor.control(), 0o666);
    open(supervisor.control().parent().unwrap(), 0o755);
    let ask = format!(
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('{}'); \
         s.settimeout(60); print(s.recv(1000))",
        supervisor.control().display()
    );
    let asked = std::process::Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            &ask,
        ])
        .output()
        .unwrap();
    let answer = String::from_utf8(asked.stdout).unwrap();
    assert!(
        answer.contains("another user"),
        "{answer} {:?}",
        asked.stderr
    );
    let mut own = UnixStream::connect(supervisor.control()).unwrap();
    own.write_all(b"{\"command\":\"status\"}\n").unwrap();
    assert_eq!(supervisor.serving().0, 1);
    supervisor.stop();
}

#[test]
fn a_generation_that_fails_or_is_only_tried_leaves_the_store_alone() {
    let body = r#"
generation = int(os.environ["HEIRLOOM_GENERATION"])
if generation == 1:
    notify("FDSTORE=1\nFDNAME=mine\nFDPOLL=0", os.memfd_create("state"))
    notify("READY=1")
    signal.pause()
assert "mine" in names, names
notify("FDSTOREREMOVE=1\nFDNAME=mine")
notify("FDSTORE=1\nFDNAME=other\nFDPOLL=0", os.memfd_create("other"))
if os.path.exists("{dir}/broken"):
    sys.exit(1)
notify("READY=1")
signal.pause()
"#;
    let setup = Setup::program(["python3", "program.py"]).args(["--ready", "notify"]);
    setup.write("program.py", &format!("{NOTIFY}{body}"));
    let supervisor = setup.start();
    let stored = |names: serde_json::Value| assert_eq!(supervisor.service()["stored"], names);
    stored(serde_json::json!(["mine"]));
    supervisor.expect(0, ["reload", "--dry-run"]);
    stored(serde_json::json!(["mine"]));
    supervisor.write("broken", "");
    supervisor.expect(1, ["reload"]);
    stored(serde_json::json!(["mine"]));
    std::fs::remove_file(supervisor.path("broken")).unwrap();
    supervisor.reload();
    stored(serde_json::json!(["other"]));
    supervisor.stop();
}
