//! WebSockets and raw sessions: what is said is numbered per connection, and the numbers go on without a
//! gap over handovers, whatever is on its way in their moment.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::{
    HANDOVERS, alternate,
    crew::{Turn, beside},
    demo,
    frames::{self, CONTINUATION, PING, PONG, TEXT, frame},
    talking,
    wire::Wire,
};

/// So many messages are sent before the first answer is read.
const BURST: u64 = 5;

/// Whether an answer is to this text, with this number; the generation that gave it.
fn generation_of(answer: &str, number: u64, text: &str) -> u64 {
    let expected = (format!("{number} gen="), format!(" {text}"));
    let between = answer
        .strip_prefix(&expected.0)
        .and_then(|rest| rest.strip_suffix(&expected.1));
    let between = between.unwrap_or_else(|| panic!("{answer:?} where {number} should be {text:?}"));
    between.parse().unwrap()
}

/// Sees that answers come from one generation after the other.
#[derive(Debug, Default)]
struct Ascending {
    last: u64,
    changes: u64,
}

impl Ascending {
    fn next(&mut self, generation: u64) {
        assert!(generation >= self.last, "{generation} after {}", self.last);
        self.changes += u64::from(generation > self.last);
        self.last = generation;
    }
}

/// Sends several texts at once, with a ping in between, and one in fragments, slowly.
fn talks_in_frames(address: SocketAddr) -> impl FnMut() + Send {
    let mut wire = frames::connect(address);
    let mut number = 0;
    let mut seen = Ascending::default();
    move || {
        let first = number + 1;
        let mut burst = Vec::new();
        for one in first..first + BURST {
            burst.extend(frame(TEXT, true, &format!("text {one}")));
        }
        burst.extend(frame(PING, true, "are you there"));
        wire.send(burst);
        for _ in 0..BURST {
            number += 1;
            let answer = frames::text(&mut wire);
            seen.next(generation_of(&answer, number, &format!("text {number}")));
        }
        assert_eq!(frames::next(&mut wire), (PONG, "are you there".to_owned()));
        wire.send(frame(TEXT, false, "one "));
        thread::sleep(Duration::from_millis(20));
        wire.send(frame(CONTINUATION, false, "two "));
        wire.send(frame(PING, true, "still"));
        // Once, wherever the message is finished.
        assert_eq!(frames::next(&mut wire), (PONG, "still".to_owned()));
        thread::sleep(Duration::from_millis(20));
        let last = frame(CONTINUATION, true, "three");
        let (most, rest) = last.split_at(8);
        wire.send(most);
        thread::sleep(Duration::from_millis(20));
        wire.send(rest);
        number += 1;
        let answer = frames::text(&mut wire);
        seen.next(generation_of(&answer, number, "one two three"));
    }
}

/// Sends several lines at once, the last of them in two parts.
fn talks_in_lines(address: SocketAddr) -> impl FnMut() + Send {
    let mut wire = Wire::connect(address);
    wire.send("NAME ann\n");
    assert_eq!(wire.line(), "OK ann");
    let mut number = 0;
    let mut seen = Ascending::default();
    move || {
        let first = number + 1;
        let lines: String = (first..first + BURST)
            .map(|one| format!("SAY line {one}\n"))
            .collect();
        let (most, rest) = lines.split_at(lines.len() - 4);
        wire.send(most);
        for _ in 1..BURST {
            number += 1;
            let answer = wire.line();
            let answer = answer.strip_prefix("ann #").unwrap();
            seen.next(generation_of(answer, number, &format!("line {number}")));
        }
        thread::sleep(Duration::from_millis(10));
        wire.send(rest);
        number += 1;
        let answer = wire.line();
        let answer = answer.strip_prefix("ann #").unwrap();
        seen.next(generation_of(answer, number, &format!("line {number}")));
    }
}

#[test]
fn talks_go_on_over_fifty_handovers_between_two_versions() {
    let mut supervisor = talking().start();
    let (http, chat) = (supervisor.address("http"), supervisor.address("chat"));
    let mut clients: Vec<Turn<'_>> = Vec::new();
    for _ in 0..4 {
        clients.push(Box::new(talks_in_frames(http)));
        clients.push(Box::new(talks_in_lines(chat)));
    }
    // Those that become a WebSocket in any moment.
    clients.push(Box::new(move || {
        let mut wire = frames::connect(http);
        wire.send(frame(TEXT, true, "hi"));
        generation_of(&frames::text(&mut wire), 1, "hi");
    }));
    let turns = beside(&supervisor, clients, || alternate(&supervisor, HANDOVERS));
    assert!(turns.iter().all(|turns| *turns > 10), "{turns:?}");
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_talk_that_is_silent_for_fifty_handovers_goes_on() {
    let mut supervisor = talking().start();
    let mut framed = frames::connect(supervisor.address("http"));
    framed.send(frame(TEXT, true, "a"));
    generation_of(&frames::text(&mut framed), 1, "a");
    framed.send(frame(TEXT, false, "b "));
    let mut lined = Wire::connect(supervisor.address("chat"));
    lined.send("NAME ann\nSAY a\nSAY ");
    assert_eq!(lined.line(), "OK ann");
    assert_eq!(lined.line(), "ann #1 gen=1 a");
    alternate(&supervisor, HANDOVERS);
    framed.send(frame(CONTINUATION, true, "c"));
    let last = HANDOVERS + 1;
    assert_eq!(frames::text(&mut framed), format!("2 gen={last} b c"));
    lined.send("c\n");
    assert_eq!(lined.line(), format!("ann #2 gen={last} c"));
    // A program that knows no such talks says goodbye to them.
    supervisor.settle();
    supervisor.stop();
}

/// A client that nobody here wrote; see the file.
const CLIENT: &str = include_str!("talks.py");

#[test]
fn the_websockets_of_python_notice_nothing() {
    let setup = talking();
    let script = setup.write("talks.py", CLIENT);
    let mut supervisor = setup.start();
    let uri = format!("ws://{}/ws", supervisor.address("http"));
    // By its path, as the library is Debian's.
    let client = Command::new("/usr/bin/python3")
        .arg(script)
        .arg(uri)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    alternate(&supervisor, 20);
    // The end of its input ends it.
    let ended = client.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(
        ended.status.success(),
        "{said}\n{}\n{}",
        String::from_utf8_lossy(&ended.stderr),
        supervisor.log()
    );
    let generations = super::number(&said, "generations");
    assert!(generations > 5, "{said}");
    assert!(super::number(&said, "messages") > 50, "{said}");
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_session_too_large_for_one_message_moves_as_well() {
    let mut supervisor = talking().start();
    let mut wire = frames::connect(supervisor.address("http"));
    // A message of 300 KiB in fragments, of which the last is missing.
    let part = "x".repeat(120);
    wire.send(frame(TEXT, false, "begin "));
    for _ in 0..2500 {
        wire.send(frame(CONTINUATION, false, &part));
    }
    wire.send(frame(PING, true, "read"));
    assert_eq!(frames::next(&mut wire), (PONG, "read".to_owned()));
    let said = supervisor.heirloom(["reload", "--", &demo(2)]);
    assert!(said.status.success(), "{said:?}");
    wire.send(frame(CONTINUATION, true, " end"));
    let header = wire.bytes(2);
    assert_eq!(header, [0x81, 127]);
    let length = u64::from_be_bytes(wire.bytes(8).try_into().unwrap());
    let text = String::from_utf8(wire.bytes(length as usize)).unwrap();
    let expected = format!("1 gen=2 begin {} end", part.repeat(2500));
    assert!(text == expected, "{} bytes", text.len());
    supervisor.settle();
    supervisor.stop();
}
