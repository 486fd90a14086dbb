//! What runs short costs an error and nothing that runs: descriptors, processes, memory, room on a
//! disk, and somebody who reads what is written.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use nix::sys::stat::Mode;

use crate::confined::Confined;
use crate::harness::{
    Setup, Supervisor, answer, built, eventually, get, is_alive, open_descriptors,
};
use crate::limits::descriptors;

fn post(address: SocketAddr, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(crate::harness::PATIENCE))
        .unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    answer(stream)
}

/// Changes a limit of the supervisor while it runs.
fn limit(supervisor: &Supervisor, option: &str) {
    let pid = supervisor.pid().to_string();
    let status = Command::new("prlimit")
        .args(["--pid", &pid, option])
        .status();
    assert!(status.unwrap().success(), "{option}");
}

/// Leaves it so many descriptors that are free.
fn limit_to_spare(supervisor: &Supervisor, spare: usize) {
    let numbers = || descriptors(supervisor.pid().as_raw());
    let mut before = numbers();
    // A client of before may be on its way out.
    eventually("its descriptors have settled", || {
        let now = numbers();
        std::mem::replace(&mut before, now.clone()) == now
    });
    let free = (0..1024).filter(|number| !before.contains(number));
    let last = free.take(spare).last().unwrap();
    limit(supervisor, &format!("--nofile={}:1024", last + 1));
}

/// Runs a command with one descriptor more each time until it succeeds: each time before, it says
/// what it lacks, and what served serves on. Returns how often it failed.
fn lacking_descriptors(supervisor: &Supervisor, words: &[&str]) -> usize {
    let address = supervisor.address("http");
    let before = supervisor.serving();
    // One to accept the client with.
    for (failed, spare) in (1..100).enumerate() {
        limit_to_spare(supervisor, spare);
        let output = supervisor.heirloom(words.iter().copied());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => {
                limit(supervisor, "--nofile=1024:1024");
                return failed;
            }
            Some(1) => assert!(said.contains("Too many open files"), "{spare}: {said}"),
            other => panic!("{spare}: {other:?}: {said}\n{}", supervisor.log()),
        }
        assert_eq!(get(address, "/counters/a"), "1");
        // To see who serves takes none but the client's.
        assert_eq!(supervisor.serving(), before, "{}", supervisor.log());
    }
    panic!("it never succeeds\n{}", supervisor.log());
}

#[test]
fn a_handover_that_lacks_any_one_descriptor_fails_and_changes_nothing() {
    let mut supervisor = Setup::demo().args(["--probation", "0s"]).start();
    assert_eq!(post(supervisor.address("http"), "/counters/a"), "1");
    supervisor.reload();
    supervisor.settle();
    let before = open_descriptors(supervisor.pid());
    let failed = lacking_descriptors(&supervisor, &["reload"]);
    assert!(failed > 10, "only {failed} are needed");
    supervisor.settle();
    assert_eq!(get(supervisor.address("http"), "/counters/a"), "1");
    supervisor.reload();
    supervisor.settle();
    eventually("nothing is kept of those that failed", || {
        open_descriptors(supervisor.pid()) <= before
    });
    supervisor.stop();
}

#[test]
fn a_snapshot_that_lacks_a_descriptor_fails_and_changes_nothing() {
    let supervisor = Setup::demo().start();
    assert_eq!(post(supervisor.address("http"), "/counters/a"), "1");
    let path = supervisor.path("state");
    let words = ["snapshot", "-o", path.to_str().unwrap()];
    assert!(lacking_descriptors(&supervisor, &words) > 0);
    supervisor.stop();
}

#[test]
fn where_no_process_can_be_started_a_handover_fails_and_questions_are_answered() {
    let group = Confined::by_tasks("tasks");
    let into = group.launcher();
    let supervisor = Setup::demo()
        .launcher(into.each_ref().map(String::as_str))
        .start();
    eventually("it serves", || supervisor.log().contains("ready after"));
    let address = supervisor.address("http");
    assert_eq!(post(address, "/counters/a"), "1");
    group.set(group.tasks());
    let before = supervisor.serving();
    let path = supervisor.path("state");
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains("Resource temporarily unavailable"), "{said}");
    // Neither needs a thread that cannot be started.
    supervisor.expect(0, ["snapshot", "-o", path.to_str().unwrap()]);
    assert_eq!(supervisor.serving(), before);
    assert_eq!(get(address, "/counters/a"), "1");
    group.set("max");
    supervisor.reload();
    assert_eq!(get(address, "/counters/a"), "1");
    supervisor.stop();
}

#[test]
fn a_supervisor_that_was_started_without_a_thread_to_spare_says_so() {
    let group = Confined::by_tasks("start");
    let into = group.launcher();
    for tasks in [1, 2] {
        group.set(tasks);
        let setup = Setup::demo().launcher(into.each_ref().map(String::as_str));
        let mut supervisor = setup.spawn();
        assert_eq!(supervisor.wait(), Some(1), "{}", supervisor.log());
        let log = supervisor.log();
        assert!(log.contains("no threads can be started"), "{log}");
    }
}

#[test]
fn a_new_program_without_memory_fails_and_the_old_one_serves_on() {
    let demo = built("heirloom-demo");
    let demo = demo.to_str().unwrap();
    let mut supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    assert_eq!(post(address, "/counters/a"), "1");
    post(address, "/fill?entries=100000&bytes=512");
    let before = supervisor.serving();
    // From too little to be executed at all to too little for the state.
    for kib in [1_000, 8_000, 32_000, 64_000] {
        let bytes = format!("--as={}", kib * 1024);
        let said = supervisor.expect(1, ["reload", "--", "prlimit", &bytes, demo]);
        assert!(said.contains("the new program"), "{kib} KiB: {said}");
        assert_eq!(supervisor.serving(), before, "{kib} KiB");
        assert_eq!(get(address, "/counters/a"), "1");
    }
    supervisor.expect(0, ["reload", "--", demo]);
    assert_eq!(get(address, "/counters/a"), "1");
    supervisor.settle();
    supervisor.stop();
}

/// A supervisor that sees a small file system of its own in `{dir}/small`, and that directory.
fn with_a_small_disk(setup: Setup) -> Setup {
    let small = setup.path("small");
    fs::create_dir(&small).unwrap();
    let mount = format!(
        "mount -t tmpfs -o size=256k small {} && exec \"$@\"",
        small.display()
    );
    setup.launcher([
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        &mount,
        "-",
    ])
}

/// The small disk, as the supervisor sees it; it stays for as long as this is held.
struct Disk(File);

impl Disk {
    fn of(supervisor: &Supervisor) -> Self {
        let path = supervisor.path("small");
        let seen = format!("/proc/{}/root{}", supervisor.pid(), path.display());
        Self(File::open(seen).unwrap())
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd())
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn fill(&self) {
        let mut file = File::create(self.path("ballast")).unwrap();
        while file.write(&[0; 4096]).is_ok_and(|count| count > 0) {}
    }

    fn empty(&self) {
        fs::remove_file(self.path("ballast")).unwrap();
    }
}

#[test]
fn a_snapshot_that_the_disk_has_no_room_for_leaves_what_was_there() {
    let supervisor = with_a_small_disk(Setup::demo()).start();
    let disk = Disk::of(&supervisor);
    let address = supervisor.address("http");
    let place = supervisor.path("small/state");
    let place = place.to_str().unwrap();
    supervisor.expect(0, ["snapshot", "-o", place]);
    let before = fs::read(disk.path("state")).unwrap();
    post(address, "/fill?entries=2000&bytes=512");
    let serving = supervisor.serving();
    let said = supervisor.expect(1, ["snapshot", "-o", place]);
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(disk.names(), ["state"]);
    assert_eq!(fs::read(disk.path("state")).unwrap(), before);
    assert_eq!(supervisor.serving(), serving);
    supervisor.reload();
    let elsewhere = supervisor.path("state");
    supervisor.expect(0, ["snapshot", "-o", elsewhere.to_str().unwrap()]);
    supervisor.stop();
}

#[test]
fn a_state_that_the_disk_has_no_room_for_at_a_stop_leaves_what_was_there() {
    let mut supervisor =
        with_a_small_disk(Setup::demo().args(["--state-file", "{dir}/small/state"])).start();
    let disk = Disk::of(&supervisor);
    fs::write(disk.path("state"), "of before").unwrap();
    post(supervisor.address("http"), "/fill?entries=2000&bytes=512");
    let said = supervisor.expect(1, ["stop"]);
    assert!(said.contains("No space left on device"), "{said}");
    supervisor.wait();
    assert_eq!(disk.names(), ["state"]);
    assert_eq!(fs::read(disk.path("state")).unwrap(), b"of before");
}

#[test]
fn a_log_on_a_full_disk_stops_nothing_and_tells_what_it_lost() {
    let supervisor =
        with_a_small_disk(Setup::demo().args(["--log-file", "{dir}/small/log"])).start();
    let disk = Disk::of(&supervisor);
    disk.fill();
    for _ in 0..20 {
        supervisor.reload();
    }
    get(supervisor.address("http"), "/hello");
    disk.empty();
    supervisor.reload();
    eventually("what was lost is told", || {
        let log = fs::read_to_string(disk.path("log")).unwrap_or_default();
        log.contains("lines of the log were lost")
    });
    supervisor.stop();
}

#[test]
fn a_state_larger_than_it_may_be_neither_moves_nor_is_saved_until_that_is_raised() {
    let configuration = |most: &str| {
        format!(
            "[service.web]
command = [\"{}\"]
listen = [\"http=tcp:127.0.0.1:0\"]
max_state = \"{most}\"
",
            built("heirloom-demo").display()
        )
    };
    let supervisor = with_a_small_disk(Setup::configuration(&configuration("32KiB"))).start();
    let disk = Disk::of(&supervisor);
    let address = supervisor.address("http");
    let place = supervisor.path("small/state");
    let place = place.to_str().unwrap();
    supervisor.expect(0, ["snapshot", "-o", place]);
    let before = fs::read(disk.path("state")).unwrap();
    assert_eq!(post(address, "/counters/a"), "1");
    post(address, "/fill?entries=100&bytes=512");
    let serving = supervisor.serving();
    for words in [&["reload"][..], &["snapshot", "-o", place]] {
        let said = supervisor.expect(1, words.iter().copied());
        assert!(said.contains("over the limit of 32768 bytes"), "{said}");
        assert!(said.contains("raise max_state"), "{said}");
        assert_eq!(supervisor.serving(), serving);
        assert_eq!(disk.names(), ["state"]);
    }
    assert_eq!(fs::read(disk.path("state")).unwrap(), before);
    // What a reload brings counts for the state that it moves.
    supervisor.write("heirloom.toml", &configuration("1MiB"));
    supervisor.reload();
    assert_eq!(get(address, "/counters/a"), "1");
    supervisor.expect(0, ["snapshot", "-o", place]);
    supervisor.stop();
}

/// Floods its standard error and serves all the same.
const FLOOD: &str = "#!/usr/bin/env python3
import os, sys, threading
def flood():
    line = b'flood ' * 100 + b'\\n'
    for _ in range(COUNT):
        os.write(2, line)
    open('{dir}/written', 'w').close()
threading.Thread(target=flood, daemon=True).start()
sys.argv = ['{dir}/server']
exec(open('{dir}/server').read())
";

fn flooding(count: usize) -> Setup {
    let setup = Setup::server([]);
    let program = setup.script("flood", &FLOOD.replace("COUNT", &count.to_string()));
    let program = program.to_str().unwrap().to_owned();
    setup.with_program(&[program])
}

#[test]
fn a_flood_of_output_blocks_nobody_and_is_cut_to_its_rate() {
    // 60 MB, of which ten seconds' worth is 640 KiB.
    let supervisor = flooding(100_000).args(["--log-rate", "64KiB"]).start();
    eventually("it has written all of it", || {
        supervisor.path("written").exists()
    });
    supervisor.reload();
    eventually("it is told", || {
        supervisor.log().contains("were dropped: log_rate allows")
    });
    let log = supervisor.log();
    let length = log.len();
    assert!(length < 20_000_000, "{length} bytes of log");
    assert!(log.contains("flood flood"));
    supervisor.stop();
}

#[test]
fn a_log_that_nobody_reads_stops_no_handover_and_no_end() {
    let setup = flooding(1_000_000).args(["--log-rate", "1GiB"]);
    let pipe = setup.path("pipe");
    nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let mut reader = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&pipe)
        .unwrap();
    let into = format!("exec \"$@\" >{0} 2>&1", pipe.display());
    let mut supervisor = setup.launcher(["sh", "-c", &into, "-"]).start();
    for _ in 0..3 {
        supervisor.reload();
        get(supervisor.address("http"), "/");
    }
    // Somebody reads again: it is told what was lost.
    let mut read = String::new();
    eventually("what was lost is told", || {
        let mut some = [0; 65536];
        if let Ok(count) = reader.read(&mut some) {
            read.push_str(&String::from_utf8_lossy(&some[..count]));
        }
        read.contains("lines of the log were lost")
    });
    // And nobody once more, until the end.
    supervisor.reload();
    let (_, pid) = supervisor.serving();
    supervisor.expect(0, ["stop"]);
    assert_eq!(supervisor.wait(), Some(0));
    assert!(!is_alive(pid));
}
