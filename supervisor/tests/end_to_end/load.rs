//! Handovers under load, from a client that never retries.

use std::time::Duration;

use heirloom_bench::load::{Load, Pace, Plan, Report, Request, Reuse};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::{Setup, Supervisor, children_of, eventually, open_descriptors};

/// Keep-alive and fresh connections, a request every few milliseconds each.
fn plan(supervisor: &Supervisor) -> Plan {
    Plan::new(supervisor.address("http"), Request::get("/hello"))
        .keep_alive(8, Pace::per_second(100), Reuse::Checked)
        .fresh(8, Pace::per_second(50))
        .duration(Duration::from_secs(120))
}

/// Fresh connections only, for a server that keeps none.
pub(crate) fn fresh_plan(supervisor: &Supervisor) -> Plan {
    Plan::new(supervisor.address("http"), Request::get("/"))
        .fresh(8, Pace::per_second(12))
        .duration(Duration::from_secs(120))
}

/// Runs `work` under load; nothing may be refused and no request lost.
pub(crate) fn under_load(supervisor: &Supervisor, work: impl FnOnce()) -> Report {
    under(plan(supervisor), supervisor, work)
}

/// Runs `work` under this load; nothing may be refused and no request lost.
pub(crate) fn under(plan: Plan, supervisor: &Supervisor, work: impl FnOnce()) -> Report {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let load = runtime.block_on(Load::start(plan)).unwrap();
    work();
    eventually("it is worth being called a load", || {
        load.report().requests > 50
    });
    let report = runtime.block_on(load.stop_and_finish());
    assert_eq!(
        report.failed,
        0,
        "{:?}\n{}",
        report.first_failures,
        supervisor.log()
    );
    report
}

#[test]
fn twenty_reloads_by_command_lose_nothing() {
    let supervisor = Setup::demo().start();
    under_load(&supervisor, || {
        for _ in 0..20 {
            supervisor.reload();
        }
    });
    assert_eq!(supervisor.serving().0, 21);
    supervisor.stop();
}

#[test]
fn twenty_reloads_by_signal_lose_nothing() {
    let supervisor = Setup::demo().start();
    under_load(&supervisor, || {
        let mut events = supervisor.events();
        for _ in 0..20 {
            supervisor.signal(Signal::SIGHUP);
            events.wait_for("committed");
        }
    });
    assert_eq!(supervisor.serving().0, 21);
    supervisor.stop();
}

#[test]
fn a_hundred_signals_within_a_second_become_few_handovers_and_lose_nothing() {
    let mut supervisor = Setup::demo().start();
    under_load(&supervisor, || {
        for _ in 0..100 {
            supervisor.signal(Signal::SIGHUP);
            std::thread::sleep(Duration::from_millis(5));
        }
        // One more, whose outcome is waited for, is behind all of them.
        supervisor.reload();
    });
    let (generation, _) = supervisor.serving();
    assert!((3..=102).contains(&generation), "generation {generation}");
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn two_hundred_reloads_leave_the_supervisor_as_it_was() {
    let mut supervisor = Setup::demo().args(["--probation", "0s"]).start();
    for _ in 0..20 {
        supervisor.reload();
    }
    supervisor.settle();
    let before = Footprint::of(supervisor.pid());
    for _ in 0..180 {
        supervisor.reload();
    }
    supervisor.settle();
    // The pipes of a program that has just ended, and the last client, take a moment to go.
    eventually("every descriptor is given back", || {
        open_descriptors(supervisor.pid()) <= before.descriptors
    });
    let after = Footprint::of(supervisor.pid());
    assert_eq!(after.children, 1);
    let growth = after.resident_kib.saturating_sub(before.resident_kib);
    assert!(growth < 1024, "{before:?} {after:?}");
    supervisor.stop();
}

#[derive(Debug)]
struct Footprint {
    descriptors: usize,
    children: usize,
    resident_kib: u64,
}

impl Footprint {
    fn of(pid: Pid) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
        Self {
            descriptors: open_descriptors(pid),
            children: children_of(pid).len(),
            resident_kib: resident,
        }
    }
}
