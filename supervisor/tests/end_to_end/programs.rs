//! Real programs that know nothing of Heirloom, as `examples/` has them: reloaded again and again
//! under load, without losing a request on a fresh connection. `docs/programs.md` tells the same.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use heirloom_bench::load::{FailureKind, Load, Pace, Plan, Report, Request, Response, Reuse};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Setup, Supervisor, built, eventually, get, need};

/// How often each program is replaced.
const RELOADS: usize = 6;

/// So many requests each new generation answers before it is replaced.
const ANSWERS: u64 = 40;

/// How much a program is asked to do.
#[derive(Clone, Copy, Debug)]
struct Rates {
    fresh_clients: usize,
    fresh_per_second: u32,
    kept_clients: usize,
    kept_per_second: u32,
    /// Whether every tenth request on a fresh connection asks for `/slow`, which takes 300 ms.
    slow: bool,
}

const USUAL: Rates = Rates {
    fresh_clients: 8,
    fresh_per_second: 25,
    kept_clients: 4,
    kept_per_second: 50,
    slow: true,
};

/// What clients saw, by how they use connections.
#[derive(Debug)]
struct Seen {
    fresh: Report,
    kept: Report,
}

/// An address nobody listens on at the moment.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// The pid in an answer such as `pid 123`.
fn pid_in(text: &str) -> Option<u64> {
    text.trim().strip_prefix("pid ")?.parse().ok()
}

fn answering_pid(address: SocketAddr) -> i32 {
    let body = get(address, "/");
    i32::try_from(pid_in(&body).unwrap_or_else(|| panic!("{body:?}"))).unwrap()
}

/// The processes that were started and serve.
fn serving(supervisor: &Supervisor) -> BTreeSet<i32> {
    let service = supervisor.service();
    let generations = service["generations"].as_array().unwrap().iter();
    generations
        .filter(|one| one["phase"] == "serving")
        .map(|one| i32::try_from(one["pid"].as_i64().unwrap()).unwrap())
        .collect()
}

/// Whether a process is one of these or was started by one of them.
fn descends(mut pid: i32, from: &BTreeSet<i32>) -> bool {
    while pid > 1 {
        if from.contains(&pid) {
            return true;
        }
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            return false;
        };
        let behind_the_name = stat.rsplit_once(") ").unwrap().1;
        pid = behind_the_name.split(' ').nth(1).unwrap().parse().unwrap();
    }
    false
}

/// The processes that run in a directory.
fn running_in(directory: &Path) -> Vec<(String, PathBuf)> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| {
            let cwd = fs::read_link(process.path().join("cwd")).ok()?;
            let command = fs::read_to_string(process.path().join("cmdline")).ok()?;
            (cwd.starts_with(directory) && !command.is_empty()).then_some((command, cwd))
        })
        .collect()
}

fn plan(address: SocketAddr) -> Plan {
    Plan::new(address, Request::get("/"))
        .deadline(Duration::from_secs(10))
        .duration(Duration::from_secs(120))
        .generation(|response: &Response| pid_in(&response.text()))
}

/// Reloads a program again and again under load, each time until its new processes answer, and
/// stops it. Nothing may be lost on a fresh connection, and nothing may be left behind.
fn reload_under_load(mut supervisor: Supervisor, rates: Rates) -> Seen {
    let address = supervisor.address("http");
    let directory = supervisor.path("");
    let fresh = plan(address)
        .fresh(
            rates.fresh_clients,
            Pace::per_second(rates.fresh_per_second),
        )
        .requests(move |_, number| {
            let slow = rates.slow && number % 10 == 9;
            Request::get(if slow { "/slow" } else { "/" })
        });
    let kept = plan(address).keep_alive(
        rates.kept_clients,
        Pace::per_second(rates.kept_per_second),
        Reuse::Checked,
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let fresh = runtime.block_on(Load::start(fresh)).unwrap();
    let kept = runtime.block_on(Load::start(kept)).unwrap();
    for _ in 0..RELOADS {
        supervisor.reload();
        let new = serving(&supervisor);
        eventually("the new processes answer", || {
            let report = fresh.report();
            assert_eq!(report.failed, 0, "{report}\n{}", supervisor.log());
            let by_new = report
                .generations
                .iter()
                .filter(|(pid, _)| descends(i32::try_from(**pid).unwrap(), &new));
            by_new.map(|(_, answers)| answers.count()).sum::<u64>() >= ANSWERS
        });
    }
    fresh.stop();
    kept.stop();
    let seen = Seen {
        fresh: runtime.block_on(fresh.finish()),
        kept: runtime.block_on(kept.finish()),
    };
    println!("fresh connections: {}", seen.fresh);
    println!("kept connections: {}", seen.kept);
    assert_eq!(seen.fresh.failed, 0, "{}\n{}", seen.fresh, supervisor.log());
    assert!(
        seen.fresh.generations.len() > RELOADS,
        "too few processes answered: {}",
        seen.fresh
    );
    supervisor.settle();
    let last = serving(&supervisor);
    assert!(descends(answering_pid(address), &last), "{last:?}");
    supervisor.stop();
    assert_eq!(running_in(&directory), [], "left behind");
    TcpStream::connect(address).unwrap_err();
    seen
}

/// A program that closes kept connections when it is told to end may do so under a request that is
/// on its way: at most one a connection and reload, and nothing worse.
fn closed_under_a_request_at_most(seen: &Seen, rates: Rates) {
    let closed = [FailureKind::Reset, FailureKind::ClosedBeforeResponse];
    let closed: u64 = closed.iter().map(|kind| seen.kept.failed_by(*kind)).sum();
    assert_eq!(seen.kept.failed, closed, "{}", seen.kept);
    let most = rates.kept_clients * RELOADS;
    assert!(closed <= most as u64, "{}", seen.kept);
}

#[test]
fn nginx() {
    need("nginx", "nginx-light");
    let supervisor = nginx_example().start();
    let rates = Rates {
        slow: false,
        ..USUAL
    };
    let seen = reload_under_load(supervisor, rates);
    closed_under_a_request_at_most(&seen, rates);
}

fn nginx_example() -> Setup {
    Setup::example("nginx", &[("127.0.0.1:8080", &free_address())])
}

#[test]
fn an_nginx_configuration_with_a_mistake_changes_nothing() {
    need("nginx", "nginx-light");
    let supervisor = nginx_example().start();
    let before = serving(&supervisor);
    let good = fs::read_to_string(supervisor.path("nginx.conf")).unwrap();
    supervisor.write("nginx.conf", &good.replace("http {", "htpp {"));
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains("unknown directive \"htpp\""), "{said}");
    assert_eq!(serving(&supervisor), before);
    assert!(descends(answering_pid(supervisor.address("http")), &before));
    supervisor.write("nginx.conf", &good);
    supervisor.reload();
    assert!(serving(&supervisor).is_disjoint(&before));
    supervisor.stop();
}

#[test]
fn gunicorn() {
    need("gunicorn", "gunicorn");
    let seen = reload_under_load(Setup::example("gunicorn", &[]).start(), USUAL);
    closed_under_a_request_at_most(&seen, USUAL);
}

#[test]
fn gunicorn_without_keep_alive() {
    need("gunicorn", "gunicorn");
    let without = [("keepalive = 75", "keepalive = 0")];
    let seen = reload_under_load(Setup::example("gunicorn", &without).start(), USUAL);
    assert_eq!(seen.kept.failed, 0, "{}", seen.kept);
}

#[test]
fn an_application_that_gunicorn_cannot_load_changes_nothing() {
    need("gunicorn", "gunicorn");
    let supervisor = Setup::example("gunicorn", &[]).start();
    let before = serving(&supervisor);
    supervisor.write("app.py", "import nothing_of_this_name\n");
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains("nothing_of_this_name"), "{said}");
    assert_eq!(serving(&supervisor), before);
    assert!(descends(answering_pid(supervisor.address("http")), &before));
    supervisor.stop();
}

#[test]
fn node() {
    need("node", "nodejs");
    let seen = reload_under_load(Setup::example("node", &[]).start(), USUAL);
    assert_eq!(seen.kept.failed, 0, "{}", seen.kept);
}

#[test]
fn asyncio() {
    need("python3", "python3");
    let seen = reload_under_load(Setup::example("asyncio", &[]).start(), USUAL);
    assert_eq!(seen.kept.failed, 0, "{}", seen.kept);
}

#[test]
fn shell() {
    need("perl", "perl-base");
    let rates = Rates {
        fresh_clients: 4,
        fresh_per_second: 15,
        kept_clients: 1,
        kept_per_second: 5,
        ..USUAL
    };
    let seen = reload_under_load(Setup::example("shell", &[]).start(), rates);
    assert_eq!(seen.kept.failed, 0, "{}", seen.kept);
}

#[test]
fn listenfd() {
    let program = built("example-listenfd");
    let program = [("target/debug/example-listenfd", program.to_str().unwrap())];
    let seen = reload_under_load(Setup::example("listenfd", &program).start(), USUAL);
    assert_eq!(seen.kept.failed, 0, "{}", seen.kept);
}

#[test]
fn an_instance_that_dies_takes_no_other_with_it() {
    need("perl", "perl-base");
    let mut supervisor = Setup::example("shell", &[]).start();
    let before = serving(&supervisor);
    assert_eq!(before.len(), 4, "{before:?}");
    let victim = before.first().unwrap();
    kill(Pid::from_raw(*victim), Signal::SIGKILL).unwrap();
    supervisor.wait_until("another takes its place", |status| {
        let generations = status["services"][0]["generations"].as_array().unwrap();
        let serving = generations.iter().filter(|one| one["phase"] == "serving");
        let pids: Vec<&Value> = serving.map(|one| &one["pid"]).collect();
        pids.len() == 4 && pids.iter().all(|pid| **pid != *victim)
    });
    let after = serving(&supervisor);
    let stayed = before.intersection(&after).count();
    assert_eq!(stayed, 3, "{before:?} {after:?}\n{}", supervisor.log());
    supervisor.stop();
}
