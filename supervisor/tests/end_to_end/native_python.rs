//! A native app in another language, written from `docs/protocol.md` and `docs/snapshot-format.md`
//! alone: `examples/native-python`. Its own tests play the supervisor's part; here they are run, and
//! the program is run under the supervisor.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::harness::{PATIENCE, Setup, get};

/// Debian's interpreter, which finds Debian's module `xxhash`.
const PYTHON: &str = "/usr/bin/python3";

fn need_xxhash() {
    let found = Command::new(PYTHON).args(["-c", "import xxhash"]).status();
    assert!(
        found.is_ok_and(|status| status.success()),
        "{PYTHON} or its module xxhash is not installed; run: apt-get install --yes python3-xxhash"
    );
}

/// Runs one file of the example's own tests.
fn passes(module: &str) {
    need_xxhash();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/native-python");
    let output = Command::new(PYTHON)
        .args(["-m", "unittest", "--buffer", module])
        .current_dir(directory)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn it_reads_and_writes_the_formats() {
    passes("test_formats");
}

#[test]
fn it_hands_over_and_saves() {
    passes("test_native");
}

#[test]
fn it_survives_a_failure_at_each_step() {
    passes("test_failures");
}

#[test]
fn its_sessions_move() {
    passes("test_sessions");
}

#[test]
fn it_runs_under_heirloom() {
    need_xxhash();
    let ports = [("127.0.0.1:8081", "127.0.0.1:0")];
    let supervisor = Setup::example("native-python", &ports).start();
    let address = supervisor.address("http");
    assert!(get(address, "/hello").starts_with("hello, generation=1,"));
    let talk = TcpStream::connect(supervisor.address("chat")).unwrap();
    talk.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = BufReader::new(talk);
    let mut talk = |text: &str| {
        said.get_mut().write_all(text.as_bytes()).unwrap();
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(talk("NAME ann\n"), "OK ann\n");
    assert_eq!(talk("SAY a\nSAY "), "ann #1 generation=1 a\n");
    let report = supervisor.reload();
    assert_eq!(report["connections_moved"], 1, "{report}");
    assert!(get(address, "/hello").starts_with("hello, generation=2,"));
    assert_eq!(talk("b\n"), "ann #2 generation=2 b\n");
    supervisor.stop();
}
