//! What a program may do: its user, groups and capabilities, as the system shows them. Needs root, as
//! changing a user does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use crate::harness::{Setup, Supervisor, built, get};

const NONE: &str = "0000000000000000";
const NET_BIND_SERVICE: &str = "0000000000000400";
const KILL: &str = "0000000000000020";
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// What the system says of a process: fields of `/proc/PID/status`, words with one space between.
fn status(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(name, value)| {
            let words: Vec<&str> = value.split_ascii_whitespace().collect();
            (name.to_owned(), words.join(" "))
        })
        .collect()
}

fn sets(status: &BTreeMap<String, String>) -> [&str; 5] {
    SETS.map(|name| status[name].as_str())
}

/// A service that sleeps, with these settings.
fn sleeper(settings: &str) -> Setup {
    Setup::configuration(&format!(
        "[service.a]\ncommand = [\"/bin/sleep\", \"600\"]\nready = \"after:1ms\"\ndirectory = \"/\"\n{settings}\n"
    ))
}

/// What the system says of the supervisor and of its program.
fn both(supervisor: &Supervisor) -> [BTreeMap<String, String>; 2] {
    let (_, pid) = supervisor.serving();
    [supervisor.pid().as_raw(), pid].map(status)
}

/// What the system says of the program with these settings, and of its supervisor.
fn started(settings: &str) -> [BTreeMap<String, String>; 2] {
    let supervisor = sleeper(settings).start();
    let both = both(&supervisor);
    supervisor.stop();
    both
}

#[test]
fn a_program_with_a_user_is_that_user_and_can_become_nothing_else() {
    let [own, program] = started("user = \"daemon\"");
    assert_eq!(program["Uid"], "1 1 1 1");
    assert_eq!(program["Gid"], "1 1 1 1");
    assert_eq!(program["Groups"], "1");
    assert_eq!(program["NoNewPrivs"], "1");
    assert_eq!(sets(&program), [NONE; 5]);
    assert_eq!(own["Uid"], "0 0 0 0");
    assert_ne!(own["CapBnd"], NONE);
}

#[test]
fn groups_are_those_that_are_named() {
    // Debian's base-passwd: adm is 4, games 60, cdrom 24.
    let named = "user = \"daemon\"\ngroup = \"games\"\ngroups = [\"cdrom\", \"adm\"]";
    let [_, program] = started(named);
    assert_eq!(program["Uid"], "1 1 1 1");
    assert_eq!(program["Gid"], "60 60 60 60");
    assert_eq!(program["Groups"], "4 24");
    let [_, program] = started("user = \"daemon\"\ngroups = []");
    assert_eq!(program["Gid"], "1 1 1 1");
    assert_eq!(program["Groups"], "");
}

#[test]
fn where_sudo_is_to_work_the_bounding_set_stays() {
    let [own, program] = started("user = \"daemon\"\nno_new_privileges = false");
    assert_eq!(program["NoNewPrivs"], "0");
    let expected = [NONE, NONE, NONE, own["CapBnd"].as_str(), NONE];
    assert_eq!(sets(&program), expected);
    let said = "user = \"daemon\"\nno_new_privileges = false\ncapabilities = []";
    let [_, program] = started(said);
    assert_eq!(program["NoNewPrivs"], "0");
    assert_eq!(sets(&program), [NONE; 5]);
}

#[test]
fn a_capability_that_is_named_is_had_and_no_other() {
    for name in ["net_bind_service", "CAP_NET_BIND_SERVICE"] {
        let [_, program] = started(&format!("user = \"daemon\"\ncapabilities = [\"{name}\"]"));
        assert_eq!(program["Uid"], "1 1 1 1");
        assert_eq!(program["NoNewPrivs"], "1");
        assert_eq!(sets(&program), [NET_BIND_SERVICE; 5]);
    }
}

#[test]
fn a_program_of_roots_is_limited_only_where_it_is_said() {
    let [own, program] = started("");
    assert_eq!(program["Uid"], "0 0 0 0");
    assert_eq!(program["NoNewPrivs"], "0");
    assert_eq!(sets(&program), sets(&own));
    let [_, program] = started("no_new_privileges = true\ncapabilities = [\"kill\"]");
    assert_eq!(program["Uid"], "0 0 0 0");
    assert_eq!(program["NoNewPrivs"], "1");
    assert_eq!(sets(&program), [KILL; 5]);
    let [own, program] = started("user = \"root\"");
    assert_eq!(program["NoNewPrivs"], "0");
    assert_eq!(program["CapEff"], own["CapEff"]);
}

#[test]
fn what_the_supervisor_lacks_is_refused_and_costs_nothing() {
    let setup = sleeper("").launcher(["setpriv", "--bounding-set", "-net_raw"]);
    let supervisor = setup.start();
    let before = supervisor.serving();
    let text = fs::read_to_string(supervisor.path("heirloom.toml")).unwrap();
    let with = |settings: &str| supervisor.write("heirloom.toml", &format!("{text}{settings}\n"));
    for (settings, reason) in [
        (
            "capabilities = [\"net_raw\"]",
            "does not have net_raw itself",
        ),
        ("user = \"nobody-at-all\"", "there is no user nobody-at-all"),
        (
            "user = \"daemon\"\ngroups = [\"no-such\"]",
            "there is no group no-such",
        ),
    ] {
        with(settings);
        let said = supervisor.expect(1, ["reload"]);
        assert!(said.contains(reason), "{said}");
    }
    with("groups = [\"adm\"]");
    let said = supervisor.expect(2, ["reload"]);
    assert!(said.contains("set user as well"), "{said}");
    assert_eq!(supervisor.serving(), before);
    supervisor.stop();
}

/// A reload adds a port below 1024, with a loopback address of its own for this test.
fn a_low_port_is_bound_at_a_reload(setup: Setup, host: u32) -> [BTreeMap<String, String>; 2] {
    assert_eq!(
        fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
            .unwrap()
            .trim(),
        "1024",
        "here a low port needs no privilege, so this test would show nothing"
    );
    let [_, a, b, c] = (std::process::id() << 2 | host).to_be_bytes();
    let address = format!("127.{}.{b}.{c}:81", 100 + a % 100);
    let supervisor = setup.start();
    let path = supervisor.path("heirloom.toml");
    let text = fs::read_to_string(&path).unwrap();
    let more = format!("\"http=tcp:127.0.0.1:0\", \"low=tcp:{address}\"");
    fs::write(&path, text.replace("\"http=tcp:127.0.0.1:0\"", &more)).unwrap();
    supervisor.reload();
    assert_eq!(supervisor.bound("low"), address);
    get(supervisor.address("http"), "/hello");
    let both = both(&supervisor);
    supervisor.stop();
    both
}

fn demo(settings: &str) -> Setup {
    let program = built("heirloom-demo");
    Setup::configuration(&format!(
        "[service.a]\ncommand = [\"{}\"]\nlisten = [\"http=tcp:127.0.0.1:0\"]\ndirectory = \"/\"\n{settings}",
        program.display()
    ))
}

#[test]
fn a_low_port_is_bound_at_a_reload_for_a_program_of_another_user() {
    let [own, program] = a_low_port_is_bound_at_a_reload(demo("user = \"daemon\"\n"), 0);
    assert_eq!(own["Uid"], "0 0 0 0");
    assert_eq!(program["Uid"], "1 1 1 1");
    assert_eq!(sets(&program), [NONE; 5]);
}

/// A supervisor of a user's, with one ambient capability, as systemd makes one.
fn of_a_user(setup: Setup) -> Setup {
    open_to_daemon(&setup.path(""));
    setup.launcher([
        "setpriv",
        "--reuid=1",
        "--regid=1",
        "--clear-groups",
        "--inh-caps=+net_bind_service",
        "--ambient-caps=+net_bind_service",
        "--pdeathsig=TERM",
    ])
}

fn open_to_daemon(directory: &Path) {
    chown(directory, Some(1), Some(1)).unwrap();
}

#[test]
fn a_low_port_is_bound_at_a_reload_by_a_supervisor_that_can_do_nothing_else() {
    let setup = of_a_user(demo(""));
    let [own, program] = a_low_port_is_bound_at_a_reload(setup, 1);
    assert_eq!(own["Uid"], "1 1 1 1");
    assert_eq!(own["CapAmb"], NET_BIND_SERVICE);
    assert_eq!(program["Uid"], "1 1 1 1");
    // It has no right to narrow the bounding set, and there is nothing in the others.
    let expected = [NONE, NONE, NONE, own["CapBnd"].as_str(), NONE];
    assert_eq!(sets(&program), expected);
}

#[test]
fn such_a_supervisor_passes_on_what_it_has_where_that_is_said() {
    let supervisor = of_a_user(sleeper("capabilities = [\"net_bind_service\"]")).start();
    let [_, program] = both(&supervisor);
    let bounding = program["CapBnd"].clone();
    let b = NET_BIND_SERVICE;
    assert_eq!(sets(&program), [b, b, b, bounding.as_str(), b]);
    supervisor.stop();
}

#[test]
fn the_command_that_tests_readiness_may_do_no_more_than_the_program() {
    let setup = sleeper("user = \"daemon\"\n");
    setup.write(
        "heirloom.toml",
        "[service.a]\ncommand = [\"/bin/sleep\", \"600\"]\ndirectory = \"/\"\nuser = \"daemon\"\n\
         ready = \"exec:/bin/grep -E Uid|NoNewPrivs|Cap /proc/self/status\"\n",
    );
    let supervisor = setup.start();
    let log = supervisor.log();
    for line in [
        "Uid:\t1\t1\t1\t1",
        "NoNewPrivs:\t1",
        "CapBnd:\t0000000000000000",
    ] {
        assert!(log.contains(line), "{line}\n{log}");
    }
    supervisor.stop();
}
