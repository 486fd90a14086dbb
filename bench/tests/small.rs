//! The measurements of state and connections and the showcase, each at its smallest: that they work
//! and lose nothing. What they measure then means nothing.
#![expect(
    clippy::unwrap_used,
    reason = "a panic in a helper is how its test fails"
)]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// They take seconds; a busy machine may take longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a program of this crate, which needs those of the workspace beside it.
async fn run(program: &str, arguments: &[&str]) -> String {
    for needed in ["heirloom", "heirloom-demo", "heirloom-demo-v2"] {
        let path = Path::new(program).with_file_name(needed);
        assert!(
            path.is_file(),
            "{needed} is not built; run `cargo build --workspace` first"
        );
    }
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    out.into_owned()
}

#[tokio::test]
async fn little_state_is_measured_and_none_is_lost() {
    let measurements = ["--small", "state-pause", "state-write", "state-snapshot"];
    let tables = run(env!("CARGO_BIN_EXE_measure"), &measurements).await;
    for heading in [
        "pause p99",
        "while copying, p50",
        "untracked",
        "decoding alone",
    ] {
        assert!(tables.contains(heading), "{heading} is missing in {tables}");
    }
    let lost = tables.lines().filter(|line| line.ends_with("| 0, 0 |"));
    assert_eq!(lost.count(), 2, "{tables}");
}

#[tokio::test]
async fn few_connections_are_measured_and_none_is_lost() {
    let table = run(env!("CARGO_BIN_EXE_measure"), &["--small", "connections"]).await;
    assert!(table.contains("| 50 of 50 |"), "{table}");
}

#[tokio::test]
async fn a_few_deaths_in_a_probation_are_measured_and_lose_nothing() {
    let table = run(env!("CARGO_BIN_EXE_measure"), &["--small", "probation"]).await;
    assert!(table.contains("20 of 20"), "{table}");
}

#[tokio::test]
async fn deaths_of_the_supervisor_are_measured_and_lose_nothing() {
    let table = run(env!("CARGO_BIN_EXE_measure"), &["--small", "adoption"]).await;
    assert!(table.contains("| **0** |"), "{table}");
}

#[tokio::test]
async fn the_showcase_shows_that_nothing_is_lost() {
    let arguments = ["--duration", "3s", "--every", "700ms", "--rate", "30"];
    let tally = run(env!("CARGO_BIN_EXE_showcase"), &arguments).await;
    assert!(tally.contains("Nothing was lost"), "{tally}");
    assert!(
        tally.contains("1.0.0") && tally.contains("2.0.0"),
        "{tally}"
    );
}
