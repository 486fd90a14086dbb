//! Requests and answers that take longer than a handover: each is finished by the generation that began
//! it, byte by byte, and its connection goes on in the next.

use std::{collections::BTreeMap, sync::Mutex, thread, time::Duration};

use super::{
    HANDOVERS,
    crew::{Turn, beside},
    hand_over, number,
    wire::Wire,
};
use crate::harness::{Setup, Supervisor, built};

/// Between two pieces; a dozen of them are longer than a handover.
const PAUSE: Duration = Duration::from_millis(10);

/// So many pieces make one request or answer.
const PIECES: u64 = 12;

/// A piece of a request's body.
const PIECE: &str = "twenty bytes of body";

fn streaming() -> Setup {
    Setup::program([built("example-streaming").to_str().unwrap()])
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// Sends a body piece by piece, and checks that it is counted once.
fn uploads(wire: &mut Wire, key: &str, framing: Framing) {
    let path = format!("/uploads/{key}");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\n{}\r\n",
        framing.fields()
    );
    wire.send(head);
    if framing == Framing::Expected {
        let word = wire.try_answer().unwrap();
        assert_eq!(word.status, 100, "{word:?}");
    }
    for _ in 0..PIECES {
        thread::sleep(PAUSE);
        match framing {
            Framing::Chunks => wire.send(chunk(PIECE)),
            Framing::Length | Framing::Expected => wire.send(PIECE),
        }
    }
    if framing == Framing::Chunks {
        wire.send("0\r\n\r\n");
    }
}

/// How a body's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    Chunks,
    /// By its length, and it is sent once it is asked for.
    Expected,
}

impl Framing {
    const ALL: [Self; 3] = [Self::Length, Self::Chunks, Self::Expected];

    fn fields(self) -> String {
        let length = PIECES * PIECE.len() as u64;
        match self {
            Self::Length => format!("content-length: {length}\r\n"),
            Self::Chunks => "transfer-encoding: chunked\r\n".to_owned(),
            Self::Expected => format!("content-length: {length}\r\nexpect: 100-continue\r\n"),
        }
    }
}

/// A client of its own for each framing.
fn uploaders<'a>(
    supervisor: &Supervisor,
    counts: &'a Mutex<BTreeMap<String, u64>>,
) -> Vec<Turn<'a>> {
    let address = supervisor.address("http");
    Framing::ALL
        .into_iter()
        .map(|framing| {
            let mut wire = Wire::connect(address);
            let key = format!("{framing:?}");
            Box::new(move || {
                uploads(&mut wire, &key, framing);
                let answer = wire.answer();
                assert_eq!(number(&answer, "bytes"), PIECES * PIECE.len() as u64);
                let mut counts = counts.lock().unwrap();
                let count = counts.entry(key.clone()).or_default();
                *count += 1;
                assert_eq!(number(&answer, "count"), *count, "{answer}");
            }) as Turn<'a>
        })
        .collect()
}

/// Reads an answer that comes piece by piece: all pieces, in order, of one generation.
fn whole_stream(body: &str, pieces: u64) -> u64 {
    let lines: Vec<&str> = body.lines().collect();
    assert_eq!(lines.len() as u64, pieces);
    let generation = number(lines[0], "generation");
    for (expected, line) in lines.iter().enumerate() {
        assert_eq!(number(line, "piece"), expected as u64);
        assert_eq!(number(line, "generation"), generation);
    }
    generation
}

#[test]
fn slow_uploads_and_downloads_are_finished_where_they_were_begun() {
    let mut supervisor = streaming().start();
    let address = supervisor.address("http");
    let counts = Mutex::new(BTreeMap::new());
    let mut clients = uploaders(&supervisor, &counts);

    let mut downloads = Wire::connect(address);
    let pause = PAUSE.as_millis();
    let stream = format!("/stream?pieces={PIECES}&bytes=5000&ms={pause}");
    let mut last = 0;
    clients.push(Box::new(move || {
        let generation = whole_stream(&downloads.get(&stream), PIECES);
        assert!(generation >= last, "{generation} after {last}");
        last = generation;
    }));

    let mut echoed = Wire::connect(address);
    clients.push(Box::new(move || {
        echoed.send("POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n");
        echoed.send(chunk("first"));
        let mut status = String::new();
        while !echoed.line().is_empty() {
            status.push('.');
        }
        assert_eq!(echoed.try_chunk().unwrap(), b"first");
        for number in 0..PIECES {
            thread::sleep(PAUSE);
            let text = format!("piece {number}");
            echoed.send(chunk(&text));
            assert_eq!(echoed.try_chunk().unwrap(), text.as_bytes());
        }
        echoed.send("0\r\n\r\n");
        assert_eq!(echoed.try_chunk().unwrap(), b"");
    }));

    let mut ignored = Wire::connect(address);
    clients.push(Box::new(move || {
        // The answer does not wait for the body, most of which comes later.
        ignored.send("POST /ignored HTTP/1.1\r\nhost: test\r\ncontent-length: 60000\r\n\r\n");
        ignored.answer();
        for _ in 0..6 {
            ignored.send([b'x'; 10_000]);
            thread::sleep(PAUSE / 4);
        }
    }));

    let turns = beside(&supervisor, clients, || hand_over(&supervisor, HANDOVERS));
    assert!(turns.iter().all(|turns| *turns > 5), "{turns:?}");
    for (key, count) in counts.into_inner().unwrap() {
        let stands = Wire::connect(address).get(&format!("/uploads/{key}"));
        assert_eq!(stands, count.to_string(), "{key}");
    }
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_body_that_was_asked_for_comes_after_the_handover() {
    let mut supervisor = streaming().start();
    let mut wire = Wire::connect(supervisor.address("http"));
    let mut unasked = Wire::connect(supervisor.address("http"));
    let head =
        "POST /uploads/a HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\nexpect: 100-continue\r\n";
    wire.send(head);
    wire.send("\r\n");
    assert_eq!(wire.try_answer().unwrap().status, 100);
    // The head of this one is not complete yet, so the next generation asks for its body.
    unasked.send(head);
    supervisor.reload();
    wire.send("body");
    assert_eq!(wire.answer(), "count=1 bytes=4 generation=1");
    unasked.send("\r\n");
    assert_eq!(unasked.try_answer().unwrap().status, 100);
    unasked.send("body");
    assert_eq!(unasked.answer(), "count=2 bytes=4 generation=2");
    assert_eq!(wire.post("/uploads/a", "x"), "count=3 bytes=1 generation=2");
    supervisor.settle();
    supervisor.stop();
}

/// More than the buffers of a connection hold.
const MUCH: &str = "/stream?pieces=400&bytes=50000&ms=0";

#[test]
fn a_client_that_does_not_read_holds_nobody_up_and_gets_all_of_its_answer() {
    let mut supervisor = streaming().start();
    let address = supervisor.address("http");
    let mut blocked = Wire::connect(address);
    blocked.send(super::wire::get(MUCH));
    crate::harness::begun(blocked.socket());
    let mut busy = Wire::connect(address);
    for generation in 2..=4 {
        supervisor.reload();
        let answer = busy.post("/uploads/a", "x");
        assert_eq!(number(&answer, "generation"), generation);
    }
    assert_eq!(whole_stream(&blocked.answer(), 400), 1);
    let answer = blocked.post("/uploads/a", "x");
    assert_eq!(answer, "count=4 bytes=1 generation=4");
    supervisor.settle();
    supervisor.stop();
}
