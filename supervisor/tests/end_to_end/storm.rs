//! Reload signals again and again under connections that last: each goes on where it was, and the supervisor
//! stays as it was.
//!
//! Five seconds of it are part of the ordinary run. `HEIRLOOM_STORM_SECONDS` says how many it is to be;
//! `scripts/soak` asks for ten minutes.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::harness::{PATIENCE, Setup, children_of, eventually, open_descriptors};
use crate::state::client::{Client, Habit};

/// From one signal to the next.
const EVERY: Duration = Duration::from_secs(1);

/// So many connections of each kind.
const CONNECTIONS: usize = 50;

/// A connection of lines.
struct Talk {
    stream: BufReader<TcpStream>,
    said: u64,
}

impl Talk {
    fn connect(chat: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&chat, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut talk = Self {
            stream: BufReader::new(stream),
            said: 0,
        };
        assert_eq!(talk.ask("NAME ann\n"), "OK ann\n");
        talk
    }

    fn ask(&mut self, line: &str) -> String {
        self.stream.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.stream.read_line(&mut answer).unwrap();
        answer
    }

    /// Says something; it must be the next thing that was said here, whoever answers.
    fn go_on(&mut self) {
        self.said += 1;
        let answer = self.ask("SAY hi\n");
        let start = format!("ann #{} gen=", self.said);
        assert!(answer.starts_with(&start), "{answer:?} is not {start:?}…");
    }
}

#[test]
fn a_signal_each_second_under_connections_that_last() {
    let seconds = std::env::var("HEIRLOOM_STORM_SECONDS").map_or(5, |text| {
        text.parse().expect("HEIRLOOM_STORM_SECONDS is a number")
    });
    let mut supervisor = Setup::demo()
        .args(["--listen", "chat=tcp:127.0.0.1:0", "--probation", "0s"])
        .start();
    let (http, chat) = (supervisor.address("http"), supervisor.address("chat"));
    let mut talks: Vec<Talk> = (0..CONNECTIONS).map(|_| Talk::connect(chat)).collect();
    // One that was closed would fail with its next request.
    let mut kept: Vec<Client> = (0..CONNECTIONS)
        .map(|_| Client::new(http, Habit::Keeps))
        .collect();
    let mut counted = 0;
    for client in &mut kept {
        counted += 1;
        assert_eq!(client.post("/counters/storm", ""), counted.to_string());
    }
    for _ in 0..3 {
        supervisor.reload();
    }
    supervisor.settle();
    let descriptors = open_descriptors(supervisor.pid());

    let start = Instant::now();
    for signal in 1..=seconds {
        supervisor.signal(Signal::SIGHUP);
        let due = start + EVERY * signal;
        let mut turn = usize::try_from(signal).unwrap();
        while Instant::now() < due {
            // Some are in use in each handover, all others are idle.
            turn += 7;
            talks[turn % CONNECTIONS].go_on();
            counted += 1;
            let value = kept[turn % CONNECTIONS].post("/counters/storm", "");
            assert_eq!(value, counted.to_string());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    supervisor.settle();
    for talk in &mut talks {
        talk.go_on();
    }
    for client in &mut kept {
        counted += 1;
        assert_eq!(client.post("/counters/storm", ""), counted.to_string());
    }
    // Signals that come during a handover become one.
    let (generation, _) = supervisor.serving();
    assert!(generation > 4, "{generation}\n{}", supervisor.log());
    println!(
        "{seconds} signals, {} handovers, {counted} requests, {} lines",
        generation - 4,
        talks.iter().map(|talk| talk.said).sum::<u64>()
    );
    assert_eq!(children_of(supervisor.pid()).len(), 1);
    eventually("every descriptor is given back", || {
        open_descriptors(supervisor.pid()) <= descriptors
    });
    supervisor.stop();
}
