//! Where connections cannot move, or not yet: what stays is served to the end of the drain, and nobody is
//! refused or reset.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
};

use super::{demo, wire::Wire};
use crate::harness::{Setup, Supervisor};

/// Connections on which a request has been answered.
fn used(supervisor: &Supervisor, count: usize) -> Vec<Wire> {
    let address = supervisor.address("http");
    let mut wires: Vec<Wire> = (0..count).map(|_| Wire::connect(address)).collect();
    for wire in &mut wires {
        assert_eq!(wire.generation(), 1);
    }
    wires
}

/// Waits for the end of what the server sends, which must be no reset.
fn ends_politely(wire: &Wire) {
    let mut rest = Vec::new();
    let read = wire.socket().read_to_end(&mut rest);
    assert_eq!(read.unwrap_or_else(|error| panic!("{error}")), 0);
}

#[test]
fn what_the_next_generation_has_no_room_for_is_served_by_the_old_one_and_ends_politely() {
    const CONNECTIONS: usize = 100;
    let patient = [demo(1), "--linger=4s".to_owned()];
    let mut supervisor = Setup::demo()
        .with_program(&patient)
        .args(["--probation", "0s"])
        .start();
    let mut wires = used(&supervisor, CONNECTIONS);
    let said = supervisor.heirloom(["reload", "--", "prlimit", "--nofile=50:50", &demo(1)]);
    assert!(said.status.success(), "{said:?}\n{}", supervisor.log());
    let (mut moved, mut stayed) = (0, 0);
    let mut silent = Vec::new();
    for (number, mut wire) in wires.drain(..).enumerate() {
        assert!(!wire.is_closed(), "connection {number}");
        if number % 2 == 1 {
            silent.push(wire);
            continue;
        }
        wire.send(super::wire::get("/hello"));
        let answer = wire.try_answer().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        match super::number(&answer.body, "generation") {
            1 => {
                stayed += 1;
                assert!(answer.says_close(), "{answer:?}");
                ends_politely(&wire);
            }
            _ => {
                moved += 1;
                assert!(!answer.says_close(), "{answer:?}");
            }
        }
    }
    assert!(moved > 5 && stayed > 20, "{moved} moved, {stayed} stayed");
    // New connections meet the next generation, which has kept room for them.
    assert_eq!(Wire::connect(supervisor.address("http")).generation(), 2);
    // Those that say nothing are closed once the old one ends, or have moved.
    supervisor.settle();
    for mut wire in silent {
        if wire.is_closed() {
            ends_politely(&wire);
        } else {
            assert_eq!(wire.generation(), 2);
        }
    }
    supervisor.stop();
}

/// Keeps more descriptors under way than the old generation may have open. They count for a user, not for
/// a process (`unix(7)`, `ETOOMANYREFS`): each test here has a user of its own.
const CROWD: &str = r#"
import os, socket, sys
queues = []
for _ in range(20):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(here, [b"x"], [0] * 20)
    queues.append((here, there))
print("crowded", flush=True)
sys.stdin.read()
"#;

/// A process of the user that the service runs as.
struct Crowd(Child);

impl Crowd {
    fn gather() -> Self {
        let user = ["--reuid=games", "--regid=games", "--clear-groups"];
        let mut child = Command::new("setpriv")
            .args(user)
            .args(["/usr/bin/python3", "-c", CROWD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "crowded\n");
        Self(child)
    }

    /// The end of its input ends it.
    fn disperse(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

#[test]
fn connections_wait_while_too_many_descriptors_of_their_user_are_under_way() {
    const CONNECTIONS: usize = 200;
    let setup = Setup::configuration(&format!(
        "[service.demo]\ncommand = [\"{}\"]\nlisten = [\"http=tcp:127.0.0.1:0\"]\nuser = \"games\"\n",
        demo(1)
    ));
    let mut supervisor = setup.launcher(["prlimit", "--nofile=300:300"]).start();
    let mut wires = used(&supervisor, CONNECTIONS);
    let crowd = Crowd::gather();
    let report = supervisor.reload();
    assert_eq!(report["connections_moved"], 0, "{report}");
    crowd.disperse();
    supervisor.wait_until("all have moved", |status| {
        status["services"][0]["last_handover"]["connections_moved"] == CONNECTIONS
    });
    for wire in &mut wires {
        assert_eq!(wire.generation(), 2);
    }
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn as_many_connections_as_an_unprivileged_user_may_have_move() {
    // Nearly all that it may have open, of which a quarter may be under way.
    const CONNECTIONS: usize = 250;
    let setup = Setup::demo().launcher([
        "prlimit",
        "--nofile=300:300",
        "setpriv",
        "--reuid=daemon",
        "--regid=daemon",
        "--clear-groups",
        "--inh-caps=-all",
    ]);
    // The supervisor itself is not privileged, and writes where it may.
    let directory = setup.path("");
    let done = Command::new("chown").arg("daemon").arg(&directory).status();
    assert!(done.unwrap().success());
    let mut supervisor = setup.start();
    let mut wires = used(&supervisor, CONNECTIONS);
    let report = supervisor.reload();
    assert_eq!(report["connections_moved"], CONNECTIONS, "{report}");
    for wire in &mut wires {
        assert_eq!(wire.generation(), 2);
    }
    supervisor.settle();
    supervisor.stop();
}
