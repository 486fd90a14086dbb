//! The old generation after the commit: it takes nothing from the next one's listeners and is idle, however
//! long it is held up; datagrams that came before or meanwhile are answered.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use heirloom_bench::load::{Pace, Plan, Request};
use nix::unistd::{SysconfVar, sysconf};

use super::{
    hand_over, number,
    wire::{Wire, get},
};
use crate::{
    harness::{PATIENCE, Setup},
    load::under,
};

/// The inode of the socket that listens on this port.
fn listening_inode(address: SocketAddr) -> u64 {
    let port = format!(":{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut lines = table.lines().map(|line| line.split_ascii_whitespace());
    let found = lines.find_map(|mut fields| {
        let listens = fields.nth(1)?.ends_with(&port) && fields.nth(1)? == "0A";
        listens.then(|| fields.nth(5)).flatten()
    });
    found.unwrap().parse().unwrap()
}

/// What a process's epolls watch.
fn watched_by(pid: i32) -> BTreeSet<u64> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = infos.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    let mut watched = BTreeSet::new();
    for text in texts {
        let targets = text.lines().filter(|line| line.starts_with("tfd:"));
        watched.extend(targets.filter_map(|line| {
            let inode = line
                .split_ascii_whitespace()
                .find_map(|word| word.strip_prefix("ino:"))?;
            u64::from_str_radix(inode, 16).ok()
        }));
    }
    watched
}

/// The processor time a process has used, in the clock's ticks.
fn ticks_of(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    let fields: Vec<&str> = fields.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn an_old_generation_that_is_held_up_takes_nothing_and_is_idle() {
    let mut supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    let inode = listening_inode(address);
    let (_, old) = supervisor.serving();
    assert!(watched_by(old).contains(&inode), "the look itself works");
    let mut held = Wire::connect(address);
    held.send(get("/slow?ms=6000&key=s"));
    Wire::connect(address).get("/hello");
    supervisor.reload();
    let (_, new) = supervisor.serving();
    // At once, not after a while. As long as it is in reserve it keeps the socket, and looks away.
    assert!(!watched_by(old).contains(&inode), "{}", supervisor.log());
    assert!(watched_by(new).contains(&inode));
    supervisor.wait_until("the others have moved", |status| {
        status["services"][0]["last_handover"]["connections"]["left"]["http/1"] == 1
    });
    let before = ticks_of(old);
    // Hundreds of new connections, of which not one wakes the old one.
    let plan = Plan::new(address, Request::get("/version"))
        .fresh(4, Pace::per_second(100))
        .duration(Duration::from_secs(60));
    let report = under(plan, &supervisor, || {
        thread::sleep(Duration::from_secs(2));
    });
    assert!(report.requests > 100, "{report}");
    assert_eq!(report.answered_by(1), 0, "{report}");
    let used = ticks_of(old) - before;
    let second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    let second = u64::try_from(second).unwrap();
    assert!(used * 50 <= second, "{used} of {second} ticks a second");
    assert_eq!(held.answer(), "value=1 generation=1");
    assert_eq!(held.generation(), 2);
    supervisor.settle();
    supervisor.stop();
}

/// A plain program that answers each datagram with its generation and the datagram; told to end, it takes
/// no further one.
const DATAGRAMS: &str = r#"#!/usr/bin/python3
import os, select, signal, socket

told, teller = os.pipe()
os.set_blocking(teller, False)
signal.set_wakeup_fd(teller)
signal.signal(signal.SIGTERM, lambda *_: None)
datagrams = socket.socket(fileno=3)
datagrams.setblocking(False)
generation = os.environ["HEIRLOOM_GENERATION"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
while True:
    ready, _, _ = select.select([told, datagrams], [], [])
    if told in ready:
        break
    try:
        text, sender = datagrams.recvfrom(65536)
    except BlockingIOError:
        continue  # the other generation was first
    datagrams.sendto(f"generation={generation} ".encode() + text, sender)
"#;

/// Datagrams on their way at a time: far fewer than a socket's queue holds.
const DATAGRAMS_UNDER_WAY: usize = 32;

#[test]
fn a_datagram_that_the_kernel_has_queued_is_answered_once() {
    let setup = Setup::program([]).no_default_listener().args([
        "--listen",
        "udp=udp:127.0.0.1:0",
        "--probation",
        "0s",
    ]);
    let program = setup.script("datagrams", DATAGRAMS);
    let program = program.to_str().unwrap().to_owned();
    let mut supervisor = setup.with_program(&[program]).start();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(supervisor.address("udp")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let answered = scope.spawn(|| {
            let mut unanswered = BTreeSet::new();
            let mut generations = BTreeSet::new();
            let mut sent = 0_u64;
            loop {
                let over = over.load(Ordering::Relaxed);
                if over && unanswered.is_empty() {
                    break;
                }
                while !over && unanswered.len() < DATAGRAMS_UNDER_WAY {
                    sent += 1;
                    unanswered.insert(sent);
                    client.send(format!("number={sent}").as_bytes()).unwrap();
                }
                let mut answer = [0; 200];
                let count = client
                    .recv(&mut answer)
                    .unwrap_or_else(|error| panic!("{error}; unanswered: {unanswered:?}"));
                let answer = std::str::from_utf8(&answer[..count]).unwrap();
                generations.insert(number(answer, "generation"));
                assert!(unanswered.remove(&number(answer, "number")), "{answer}");
            }
            (sent, generations.len())
        });
        hand_over(&supervisor, 20);
        over.store(true, Ordering::Relaxed);
        let (sent, generations) = answered.join().unwrap();
        assert!(sent > 500, "{sent} datagrams");
        assert!(generations > 10, "{generations} generations");
    });
    supervisor.settle();
    supervisor.stop();
}

/// Connections that moved are served by all threads of the runtime.
#[test]
fn connections_that_moved_are_served_by_every_thread() {
    let mut supervisor = Setup::demo().start();
    let address = supervisor.address("http");
    let mut wires: Vec<Wire> = (0..64).map(|_| Wire::connect(address)).collect();
    for wire in &mut wires {
        wire.generation();
    }
    supervisor.reload();
    let (_, pid) = supervisor.serving();
    let before = switches_of_workers(pid);
    // All at once, so that one thread alone would not do.
    for _ in 0..20 {
        for wire in &mut wires {
            wire.send(get("/hello"));
        }
        for wire in &mut wires {
            assert_eq!(number(&wire.answer(), "generation"), 2);
        }
    }
    let busy = switches_of_workers(pid)
        .into_iter()
        .zip(before)
        .filter(|(after, before)| after > before)
        .count();
    assert!(busy > 1, "{busy} thread at work");
    supervisor.settle();
    supervisor.stop();
}

/// How often each thread that serves has waited, by its name the runtime's.
fn switches_of_workers(pid: i32) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut paths: Vec<_> = tasks.map(|task| task.unwrap().path()).collect();
    paths.sort();
    let workers = paths.into_iter().filter(|path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("tokio-"))
    });
    workers
        .map(|path| {
            let status = fs::read_to_string(path.join("status")).unwrap();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse().unwrap()
        })
        .collect()
}
