//! Clients that nobody here wrote: `wrk`, `ab`, `curl`, `h2load`.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::{
    crew::{Turn, beside},
    hand_over,
    wire::Wire,
};
use crate::harness::{Setup, Supervisor, eventually, need};

/// Runs a client to its end, with a handover a second meanwhile; what it wrote, which includes errors.
fn beside_handovers(supervisor: &Supervisor, command: &[&str], target: &str) -> String {
    let url = format!("http://{}{target}", supervisor.address("http"));
    let mut client = Command::new(command[0])
        .args(&command[1..])
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut handovers = 0;
    while client.try_wait().unwrap().is_none() {
        supervisor.reload();
        handovers += 1;
        thread::sleep(Duration::from_secs(1));
    }
    let ended = client.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stdout).unwrap() + &String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}\n{}", supervisor.log());
    assert!(handovers > 2, "{handovers} handovers\n{said}");
    said
}

/// The first word behind these words of what a client wrote, without a unit.
fn word(said: &str, behind: &str) -> u64 {
    let rest = said
        .split_once(behind)
        .unwrap_or_else(|| panic!("no {behind} in {said}"));
    let word = rest.1.split_ascii_whitespace().next().unwrap();
    word.parse()
        .unwrap_or_else(|_| panic!("{word} behind {behind}"))
}

fn counter(address: SocketAddr, key: &str) -> u64 {
    Wire::connect(address)
        .get(&format!("/counters/{key}"))
        .parse()
        .unwrap()
}

#[test]
fn wrk_sees_no_error() {
    need("wrk", "wrk");
    let supervisor = Setup::demo().start();
    let said = beside_handovers(&supervisor, &["wrk", "-t1", "-c8", "-d6s"], "/hello");
    assert!(!said.contains("Socket errors"), "{said}");
    assert!(!said.contains("Non-2xx"), "{said}");
    assert!(said.contains("requests in"), "{said}");
    supervisor.stop();
}

#[test]
fn ab_sees_no_failed_request_and_keeps_its_connections() {
    need("ab", "apache2-utils");
    let supervisor = Setup::demo().start();
    // The answers have one length only, for ab counts another one as a failure.
    let command = ["ab", "-q", "-k", "-c", "8", "-t", "6", "-n", "1000000"];
    let said = beside_handovers(&supervisor, &command, "/counters/none");
    let complete = word(&said, "Complete requests:");
    assert!(complete > 100, "{said}");
    assert_eq!(word(&said, "Failed requests:"), 0, "{said}");
    assert_eq!(word(&said, "Keep-Alive requests:"), complete, "{said}");
    supervisor.stop();
}

#[test]
fn curl_over_http_2_gets_an_answer_at_any_moment() {
    let supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    let url = format!("http://{address}/slow?ms=5&key=curl");
    // A connection for each request: this is how HTTP/2 begins.
    let clients: Vec<Turn<'_>> = (0..2)
        .map(|_| {
            let url = &url;
            Box::new(move || {
                let curl = [
                    "--http2-prior-knowledge",
                    "--silent",
                    "--show-error",
                    "--fail",
                ];
                let ended = Command::new("curl").args(curl).arg(url).output().unwrap();
                assert!(ended.status.success(), "{ended:?}");
                assert!(ended.stdout.starts_with(b"value="), "{ended:?}");
            }) as Turn<'_>
        })
        .collect();
    let turns = beside(&supervisor, clients, || hand_over(&supervisor, 30));
    let turns: u64 = turns.into_iter().sum();
    assert!(turns > 30, "{turns}");
    assert_eq!(counter(address, "curl"), turns);
    supervisor.stop();
}

/// `h2load` takes GOAWAY for the end of a connection and opens no other. What it has begun by then must
/// be answered, every stream of it; more it does not begin.
#[test]
fn h2load_gets_an_answer_on_every_stream_it_began() {
    need("h2load", "nghttp2-client");
    let supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    let url = format!("http://{address}/slow?ms=20&key=h2load");
    let mut succeeded = 0;
    for _ in 0..5 {
        let client = Command::new("h2load")
            .args(["-D", "1", "-c", "4", "-m", "16"])
            .arg(&url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it is at work", || counter(address, "h2load") > succeeded);
        supervisor.reload();
        let ended = client.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stdout).unwrap();
        let line = said.lines().find(|line| line.starts_with("requests: "));
        let line = line.unwrap_or_else(|| panic!("{said}"));
        let count = |what: &str| -> u64 {
            let mut all = line.trim_start_matches("requests: ").split(", ");
            let found = all.find_map(|one| one.strip_suffix(what));
            found
                .unwrap_or_else(|| panic!("{what} in {line}"))
                .trim()
                .parse()
                .unwrap()
        };
        let started = count("started");
        assert!(started > 4, "{said}");
        assert_eq!(
            (count("succeeded"), count("timeout")),
            (started, 0),
            "{said}"
        );
        assert_eq!(count("failed"), count("errored"), "{said}");
        assert_eq!(count("failed"), count("total") - started, "{said}");
        succeeded += started;
    }
    assert_eq!(counter(address, "h2load"), succeeded);
    supervisor.stop();
}
