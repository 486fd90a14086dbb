//! The supervisor replaces itself while its clients, programs and sockets go on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{
    HEIRLOOM, Setup, Supervisor, answer, ask, begun, children_of, eventually, is_alive,
    open_descriptors,
};
use crate::load::under_load;

/// Puts a file in the place of the supervisor's own program, as a deploy does.
fn deploy(supervisor: &Supervisor, from: &Path) {
    let fresh = supervisor.path("heirloom.new");
    fs::copy(from, &fresh).unwrap();
    fs::rename(fresh, supervisor.path("heirloom")).unwrap();
}

fn upgrade(supervisor: &Supervisor) -> Value {
    let output = supervisor.heirloom(["upgrade", "--json"]);
    assert!(output.status.success(), "{output:?}\n{}", supervisor.log());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn generation(supervisor: &Supervisor) -> u64 {
    supervisor.status()["supervisor_generation"]
        .as_u64()
        .unwrap()
}

/// The file that a process runs.
fn image(supervisor: &Supervisor) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(format!("/proc/{}/exe", supervisor.pid())).unwrap();
    (metadata.dev(), metadata.ino())
}

#[test]
fn an_upgrade_under_load_keeps_the_process_its_programs_and_every_request() {
    let mut supervisor = Setup::demo().of_its_own().start();
    let (before, serving) = (image(&supervisor), supervisor.serving());
    let mut events = supervisor.events();
    under_load(&supervisor, || {
        deploy(&supervisor, Path::new(HEIRLOOM));
        let upgraded = upgrade(&supervisor);
        assert_eq!(upgraded["pid"], supervisor.pid().as_raw());
        assert_eq!(upgraded["supervisor_generation"], 2);
        assert_ne!(image(&supervisor), before, "the new file runs");
        assert_eq!(supervisor.serving(), serving);
        // Whoever followed the events goes on following them.
        let report = supervisor.reload();
        assert_eq!(report["to"], 2);
        events.wait_for_generation("committed", 2);
    });
    // The program of before the upgrade was kept, and what dies is started again.
    supervisor.expect(0, ["rollback"]);
    let (generation, pid) = supervisor.serving();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    events.wait_for_generation("died", generation);
    supervisor.wait_until("another process serves", |status| {
        let service = &status["services"][0];
        let generations = service["generations"].as_array().unwrap();
        let serves = |one: &Value| one["phase"] == "serving" && one["pid"] != pid;
        service["state"] == "serving" && generations.iter().any(serves)
    });
    supervisor.stop();
}

#[test]
fn a_signal_upgrades_as_well_and_reloads_that_come_meanwhile_count() {
    let mut supervisor = Setup::demo().start();
    let mut events = supervisor.events();
    supervisor.signal(Signal::SIGUSR2);
    supervisor.signal(Signal::SIGHUP);
    events.wait_for_generation("committed", 2);
    supervisor.wait_until("it has upgraded", |status| {
        status["supervisor_generation"] == 2
    });
    supervisor.stop();
}

#[test]
fn a_program_that_cannot_follow_changes_nothing() {
    let mut supervisor = Setup::demo().of_its_own().start();
    let (before, serving) = (image(&supervisor), supervisor.serving());
    let own = supervisor.path("heirloom");
    let whole = fs::read(&own).unwrap();
    let refused = |why: &str, content: Option<&[u8]>, mode: u32| {
        let _first = fs::remove_file(&own);
        if let Some(content) = content {
            fs::write(&own, content).unwrap();
            fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
        }
        let said = supervisor.expect(1, ["upgrade"]);
        assert!(said.contains(why), "{why}: {said}");
    };
    refused("No such file", None, 0);
    refused("not executable", Some(&whole), 0o644);
    refused("is empty", Some(b""), 0o755);
    refused(
        "still being written",
        Some(&whole[..whole.len() / 2]),
        0o755,
    );
    refused("neither a program nor", Some(b"hello"), 0o755);
    refused("is a script", Some(b"#!/bin/sh\nexit 0\n"), 0o755);
    // Programs that end well and say nothing, end badly, and say something else.
    refused("said nothing", Some(&fs::read("/bin/true").unwrap()), 0o755);
    refused(
        "said nothing",
        Some(&fs::read("/bin/false").unwrap()),
        0o755,
    );
    refused("it said", Some(&fs::read("/bin/echo").unwrap()), 0o755);
    // One that never ends: it copies what it reads from a terminal that nobody types at.
    let hangs = fs::read("/usr/bin/yes").unwrap();
    refused("cannot follow", Some(&hangs), 0o755);
    assert_eq!(image(&supervisor), before);
    assert_eq!(generation(&supervisor), 1);
    assert_eq!(supervisor.serving(), serving);
    assert_eq!(children_of(supervisor.pid()).len(), 1, "no trial is left");
    supervisor.reload();
    fs::write(&own, &whole).unwrap();
    supervisor.settle();
    upgrade(&supervisor);
    supervisor.stop();
}

#[test]
fn the_health_of_a_generation_in_its_probation_is_looked_at_after_an_upgrade_and_a_death() {
    let setup = Setup::server([]).args(["--probation", "10m"]);
    let check = setup.script("check", "#!/bin/sh\necho >> {dir}/well\n");
    let health = format!("exec:{}", check.to_str().unwrap());
    let first = setup
        .args(["--health", &health, "--health-every", "50ms"])
        .start();
    let well = || fs::read(first.path("well")).map_or(0, |lines| lines.len());
    let is_looked_at = || {
        let before = well();
        // One may have been under way.
        eventually("the command has run again", || well() > before + 1);
    };
    is_looked_at();
    upgrade(&first);
    is_looked_at();
    first.kill();
    let second = first.start_again();
    is_looked_at();
    second.stop();
}

#[test]
fn what_systemd_was_not_told_yet_is_waited_for_and_its_watchdog_is_fed_at_once() {
    // Without a generation in reserve, which would be waited for as well.
    let setup = Setup::demo().args(["--probation", "0s"]);
    let path = setup.path("systemd.sock");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_nonblocking(true).unwrap();
    let mut said = String::new();
    let mut hear = || {
        let mut buffer = [0; 4096];
        while let Ok(length) = systemd.recv(&mut buffer) {
            said.push_str(&String::from_utf8_lossy(&buffer[..length]));
            said.push('\n');
        }
        said.clone()
    };
    let notify = format!("NOTIFY_SOCKET={}", path.display());
    // By itself it would be fed every half hour.
    let mut supervisor = setup
        .launcher(["env", &notify, "WATCHDOG_USEC=3600000000"])
        .start();
    supervisor.settle();
    eventually("it is ready", || hear().contains("READY=1"));
    let stranger = UnixDatagram::unbound().unwrap();
    stranger.set_nonblocking(true).unwrap();
    while stranger.send_to(b"full", &path).is_ok() {}
    supervisor.reload();
    supervisor.settle();
    let refused = supervisor.expect(1, ["upgrade", "--timeout", "500ms"]);
    assert!(refused.contains("did not end within"), "{refused}");
    assert_eq!(generation(&supervisor), 1);
    let count = |said: &str, what: &str| said.matches(what).count();
    eventually("the end of the reload is heard", || {
        count(&hear(), "READY=1") == 2
    });
    let fed = count(&hear(), "WATCHDOG=1");
    upgrade(&supervisor);
    eventually("the watchdog is fed", || count(&hear(), "WATCHDOG=1") > fed);
    supervisor.stop();
}

#[test]
fn a_log_that_cannot_be_opened_any_more_does_not_end_the_successor() {
    let setup = Setup::demo().of_its_own();
    fs::create_dir(setup.path("logs")).unwrap();
    let supervisor = setup.args(["--log-file", "{dir}/logs/log"]).start();
    let serving = supervisor.serving();
    fs::remove_dir_all(supervisor.path("logs")).unwrap();
    upgrade(&supervisor);
    assert_eq!(supervisor.serving(), serving);
    assert!(supervisor.log().contains("the log cannot be opened"));
    supervisor.stop();
}

#[test]
fn an_upgrade_waits_for_a_handover_and_is_given_up_in_time() {
    let mut supervisor = Setup::server(["--boot-until", "{dir}/go"]).start_with("go");
    fs::remove_file(supervisor.path("go")).unwrap();
    let mut events = supervisor.events();
    let reload = supervisor.begin(["reload"]);
    events.wait_for_generation("started", 2);
    let said = supervisor.expect(1, ["upgrade", "--timeout", "100ms"]);
    assert!(said.contains("did not end within 100ms"), "{said}");
    let waiting = supervisor.begin(["upgrade"]);
    eventually("it waits", || supervisor.log().contains("about to be"));
    // What is asked for meanwhile is begun by the successor.
    let later = supervisor.begin(["reload"]);
    assert_eq!(generation(&supervisor), 1);
    fs::write(supervisor.path("go"), "").unwrap();
    for begun in [reload, waiting, later] {
        let (status, error) = supervisor.finish(begun);
        assert_eq!(status, Some(0), "{error}\n{}", supervisor.log());
    }
    assert_eq!(generation(&supervisor), 2);
    supervisor.settle();
    assert_eq!(supervisor.serving().0, 3);
    supervisor.stop();
}

#[test]
fn what_drains_goes_on_draining_across_an_upgrade() {
    let mut supervisor = Setup::server([]).start();
    let go = supervisor.path("go");
    let slow = ask(
        supervisor.address("http"),
        &format!("/until/{}", go.display()),
    );
    begun(&slow);
    let (_, old) = supervisor.serving();
    supervisor.reload();
    upgrade(&supervisor);
    let status = supervisor.service();
    let phases: Vec<&Value> = status["generations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["phase"])
        .collect();
    assert!(phases.contains(&&Value::from("draining")), "{status}");
    fs::write(go, "").unwrap();
    assert!(answer(slow).contains("generation=1"));
    supervisor.settle();
    assert!(!is_alive(old));
    supervisor.stop();
}

#[test]
fn twenty_upgrades_leave_the_supervisor_as_it_was() {
    let mut supervisor = Setup::demo().start();
    let mut events = supervisor.events();
    for _ in 0..10 {
        upgrade(&supervisor);
    }
    supervisor.settle();
    let descriptors = open_descriptors(supervisor.pid());
    for _ in 0..10 {
        upgrade(&supervisor);
    }
    supervisor.settle();
    eventually("every descriptor is given back", || {
        open_descriptors(supervisor.pid()) <= descriptors
    });
    assert_eq!(generation(&supervisor), 21);
    assert_eq!(children_of(supervisor.pid()).len(), 1);
    supervisor.reload();
    events.wait_for_generation("committed", 2);
    // What was heard before the first of them is still known, once.
    let ready = supervisor.history();
    let ready = ready
        .iter()
        .filter(|event| event["event"] == "ready" && event["generation"] == 1);
    assert_eq!(ready.count(), 1);
    supervisor.stop();
}
