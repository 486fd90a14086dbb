//! A control group for each process of a generation, where the supervisor was given a part of the
//! hierarchy to manage.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Setup, Supervisor, eventually, get, is_alive};

/// A control group of version 2, given away as systemd does; gone with this value, and all in it.
struct Part(PathBuf);

impl Part {
    fn given(what: &str) -> Self {
        let part = Self::kept(what);
        let give = "import os, sys; os.setxattr(sys.argv[1], 'user.delegate', b'1')";
        let given = Command::new("python3")
            .args(["-c", give, part.0.to_str().unwrap()])
            .status();
        assert!(given.unwrap().success());
        part
    }

    /// One that nobody was given.
    fn kept(what: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let mount =
            mount.expect("no control groups of version 2 are mounted here; this needs them");
        let top = Path::new(mount.split(' ').nth(4).unwrap());
        let part = Self(top.join(format!("heirloom-test-{}-{what}", std::process::id())));
        let made = fs::create_dir(&part.0);
        made.unwrap_or_else(|error| {
            panic!(
                "{}: {error}; run this as root, where control groups of version 2 can be written",
                part.0.display()
            )
        });
        part
    }

    /// What runs a command in it.
    fn launcher(&self) -> [String; 4] {
        let into = format!("echo $$ >{}/cgroup.procs; exec \"$@\"", self.0.display());
        ["sh".to_owned(), "-c".to_owned(), into, "-".to_owned()]
    }

    fn setup(&self, setup: Setup) -> Setup {
        setup.launcher(self.launcher().each_ref().map(String::as_str))
    }

    /// The names of the groups of generations in it.
    fn generations(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap());
        let groups = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        let names = groups.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "supervisor").collect();
        names.sort();
        names
    }

    fn counts_memory(&self) -> bool {
        let controllers = fs::read_to_string(self.0.join("cgroup.controllers")).unwrap();
        controllers
            .split_ascii_whitespace()
            .any(|one| one == "memory")
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _nothing_left = fs::write(self.0.join("cgroup.kill"), "1");
        let remove = format!(
            "for n in $(seq 500); do find {0} -depth -type d -exec rmdir {{}} + 2>/dev/null; [ -d {0} ] || exit 0; sleep 0.01; done",
            self.0.display()
        );
        let _told_by_what_is_left = Command::new("sh").args(["-c", &remove]).status();
    }
}

/// A service whose former generation does not stay in reserve.
fn alone() -> Setup {
    Setup::demo().args(["--probation", "0s"])
}

fn group_of(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.unwrap().to_owned()
}

/// The pid that a program wrote to a file.
fn written(supervisor: &Supervisor, name: &str) -> i32 {
    let read = || fs::read_to_string(supervisor.path(name)).unwrap_or_default();
    eventually("the pid is written", || read().ends_with('\n'));
    read().trim().parse().unwrap()
}

#[test]
fn each_generation_has_a_group_that_goes_with_it() {
    let part = Part::given("each");
    let mut supervisor = part.setup(alone().args(["--instances", "2"])).start();
    let name = "generation-heirloom-demo";
    assert_eq!(
        part.generations(),
        [format!("{name}-1-0"), format!("{name}-1-1")]
    );
    for reload in 1..=3 {
        supervisor.reload();
        let status = supervisor.settle();
        let generations = status["services"][0]["generations"].as_array().unwrap();
        assert_eq!(generations.len(), 2, "{status}");
        for one in generations {
            let (number, instance) = (&one["generation"], &one["instance"]);
            let group = group_of(i32::try_from(one["pid"].as_i64().unwrap()).unwrap());
            assert!(
                group.ends_with(&format!("/{name}-{number}-{instance}")),
                "{group}"
            );
            // Where the system counts memory by group, it is told.
            let memory = one["memory_bytes"].as_u64();
            assert_eq!(memory.is_some(), part.counts_memory(), "{status}");
            assert_ne!(memory, Some(0));
        }
        assert_eq!(part.generations().len(), 2, "after {reload} reloads");
    }
    let own = group_of(supervisor.pid().as_raw());
    assert_eq!(own.ends_with("/supervisor"), part.counts_memory(), "{own}");
    supervisor.expect(0, ["stop"]);
    supervisor.wait();
    assert_eq!(part.generations(), [""; 0], "{}", supervisor.log());
}

#[test]
fn what_hides_from_its_generation_ends_with_it() {
    let part = Part::given("hides");
    // A session of its own, an environment of its own, a parent that has ended, and a group within
    // the group.
    let program = "#!/bin/sh
own=$(grep -h cgroup2 /proc/self/mounts | head -n 1 | cut -d ' ' -f 2)$(sed -n s/^0:://p /proc/self/cgroup)
mkdir $own/within
setsid --fork env --ignore-environment sh -c \"echo \\$\\$ >$own/within/cgroup.procs; echo \\$\\$ >{dir}/hidden; exec sleep 607\"
exec {dir}/server
";
    let setup = Setup::server([]);
    let program = setup.script("program", program);
    let server = setup.path("server").to_str().unwrap().to_owned();
    let mut supervisor = part.setup(setup).start();
    supervisor.expect(0, ["reload", "--", program.to_str().unwrap()]);
    let hidden = written(&supervisor, "hidden");
    assert!(
        group_of(hidden).ends_with("-2-0/within"),
        "{}",
        group_of(hidden)
    );
    supervisor.expect(0, ["reload", "--", &server]);
    supervisor.settle();
    assert!(!is_alive(hidden), "{}", supervisor.log());
    assert_eq!(part.generations(), ["generation-server-3-0"]);
    get(supervisor.address("http"), "/");
    supervisor.stop();
}

#[test]
fn a_program_that_dies_takes_what_hides_from_it_along() {
    let part = Part::given("dies");
    let program = "#!/bin/sh
[ -e {dir}/hidden ] || setsid --fork env --ignore-environment sh -c 'echo $$ >{dir}/hidden; exec sleep 608'
exec {dir}/server
";
    let setup = Setup::server([]);
    let program = setup.script("program", program);
    let mut supervisor = part
        .setup(
            setup
                .args(["--drain-timeout", "200ms"])
                .with_program(&[program.to_str().unwrap().to_owned()]),
        )
        .start();
    let hidden = written(&supervisor, "hidden");
    let (_, pid) = supervisor.serving();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    supervisor.events().wait_for_generation("ready", 2);
    supervisor.settle();
    assert!(!is_alive(hidden), "{}", supervisor.log());
    assert_eq!(part.generations(), ["generation-program-2-0"]);
    supervisor.stop();
}

#[test]
fn a_group_that_a_dead_supervisor_left_is_not_shared_and_goes_with_what_is_in_it() {
    let part = Part::given("left");
    let first = part.setup(alone()).start();
    let (_, left) = first.serving();
    kill(first.pid(), Signal::SIGKILL).unwrap();
    let second = part.setup(alone()).start();
    assert!(group_of(left).ends_with("-1-0"));
    let (_, pid) = second.serving();
    assert!(group_of(pid).ends_with("-1-0.1"), "{}", group_of(pid));
    kill(Pid::from_raw(left), Signal::SIGKILL).unwrap();
    eventually("its orphan has ended", || !is_alive(left));
    let mut second = second;
    second.reload();
    second.settle();
    assert_eq!(part.generations(), ["generation-heirloom-demo-2-0"]);
    second.stop();
}

#[test]
fn under_systemd_a_start_without_a_record_ends_what_is_left_in_the_groups() {
    let part = Part::given("ended");
    let [shell, option, into, name] = part.launcher();
    // As systemd tells a process that it is the unit's own.
    let as_main = format!("export SYSTEMD_EXEC_PID=$$; {into}");
    let launcher = [shell.as_str(), &option, &as_main, &name];
    let first = alone().launcher(launcher).start();
    let (_, left) = first.serving();
    first.kill();
    assert!(is_alive(left));
    fs::remove_file(first.path("control.record")).unwrap();
    let mut second = first.start_again();
    second.settle();
    assert!(!is_alive(left), "{}", second.log());
    let (generation, pid) = second.serving();
    assert_eq!(generation, 1);
    assert!(group_of(pid).ends_with("-1-0"), "{}", group_of(pid));
    assert_eq!(part.generations(), ["generation-heirloom-demo-1-0"]);
    second.stop();
}

#[test]
fn where_nothing_was_given_nothing_is_made() {
    let part = Part::kept("kept");
    let mut supervisor = part.setup(alone()).start();
    supervisor.reload();
    let status = supervisor.settle();
    assert!(status["services"][0]["generations"][0]["memory_bytes"].is_null());
    assert_eq!(part.generations(), [""; 0]);
    let (_, pid) = supervisor.serving();
    assert_eq!(group_of(pid), group_of(supervisor.pid().as_raw()));
    supervisor.stop();
}

#[test]
fn a_group_that_cannot_be_made_costs_no_handover() {
    let part = Part::given("full");
    let mut supervisor = part.setup(alone()).start();
    fs::write(part.0.join("cgroup.max.descendants"), "1").unwrap();
    supervisor.reload();
    let log = supervisor.log();
    assert!(
        log.contains("no control group for it: Resource temporarily unavailable"),
        "{log}"
    );
    supervisor.settle();
    fs::write(part.0.join("cgroup.max.descendants"), "max").unwrap();
    supervisor.reload();
    supervisor.settle();
    assert_eq!(part.generations(), ["generation-heirloom-demo-3-0"]);
    supervisor.stop();
}
