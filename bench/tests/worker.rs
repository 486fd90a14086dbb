//! The plain worker: takes its listener as any socket-activated program, and ends on SIGTERM in the
//! way its measurements rely on.
#![expect(
    clippy::unwrap_used,
    reason = "a panic in a helper is how its test fails"
)]

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use heirloom_bench::load::{Connection, Peek, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

/// Starts a worker with a listener as descriptor 3, as systemd would.
fn start(arguments: &[&str]) -> (Child, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\" 3<&0 0</dev/null";
    let child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_worker")])
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    (child, address)
}

fn terminate(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
}

#[tokio::test]
async fn on_sigterm_it_closes_what_is_idle_and_ends_well() {
    let (mut child, address) = start(&[]);
    let deadline = Instant::now() + PATIENCE;
    let mut idle = Connection::open(address, deadline).await.unwrap();
    let response = idle
        .send(&Request::get("/"), false, deadline)
        .await
        .unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "ok\n"));
    assert!(response.keeps_open());
    assert_eq!(idle.peek(), Peek::Open);

    terminate(&child);
    let status = timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    // The process is gone, so whatever it did to the connection has happened.
    assert_eq!(idle.peek(), Peek::Closed);
}

#[tokio::test]
async fn while_it_boots_connections_wait_and_are_then_served() {
    let boot = Duration::from_millis(300);
    let (mut child, address) = start(&["--boot", "300ms"]);
    let begin = Instant::now();
    let mut connection = Connection::open(address, begin + PATIENCE).await.unwrap();
    let response = connection
        .send(&Request::get("/"), true, begin + PATIENCE)
        .await
        .unwrap();
    assert_eq!(response.status, 200);
    assert!(
        begin.elapsed() >= boot,
        "answered after {:?}, before it had booted",
        begin.elapsed()
    );
    terminate(&child);
    assert!(
        timeout(PATIENCE, child.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn without_a_listener_it_says_so() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
    command
        .env_remove("LISTEN_FDS")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::select! {
        output = command.output() => output.unwrap(),
        () = sleep(PATIENCE) => panic!("it does not end"),
    };
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("no listener was passed in"), "{text}");
}
