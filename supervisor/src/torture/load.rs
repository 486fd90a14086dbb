//! The clients: each in a thread of its own, asking one thing after the other. They never retry, and note
//! all that they miss.
//!
//! As a pool does, a client looks whether a kept connection was closed before it uses it; that it was is
//! noted as well.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::http::{self, Answer, Read as Parsed};
use super::plan::{Crowd, Work};
use super::sequence::{Heard, Sequence};
use super::tally::{Cause, Miss};

/// How long an answer may take; longer than any stall that is asked for by default, and any freeze.
const LONGEST_ANSWER: Duration = Duration::from_secs(30);

/// The pause of clients that are idle.
const IDLE_PACE: Duration = Duration::from_secs(3);

/// How often a client that waits looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a client that only connects waits for what the program does.
const CONNECTED_FOR: Duration = Duration::from_millis(500);

/// So many misses are kept; what comes then is counted with the last of them.
const MOST_MISSES: usize = 100_000;

/// What all of them are told to do.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    pub(crate) work: Work,
    pub(crate) crowd: Crowd,
    pub(crate) records: Arc<Records>,
}

/// What all of them have seen.
#[derive(Debug)]
pub(crate) struct Records {
    start: Instant,
    /// In the name of each client's own counter.
    seed: u64,
    seen: Mutex<Seen>,
}

/// The same, as it is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) writes: u64,
    pub(crate) opened: u64,
    pub(crate) longest: Duration,
    pub(crate) misses: Vec<Miss>,
}

impl Records {
    pub(crate) fn new(start: Instant, seed: u64) -> Self {
        Self {
            start,
            seed,
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Counts are whole whenever the lock is free.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, when nobody works any more.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut self.seen())
    }

    fn missed(&self, cause: Cause, connection: Option<(u16, Duration)>, count: u64, text: String) {
        let at = self.start.elapsed();
        let mut seen = self.seen();
        if seen.misses.len() >= MOST_MISSES
            && let Some(last) = seen.misses.last_mut()
        {
            last.count += count;
            return;
        }
        seen.misses.push(Miss {
            at,
            cause,
            connection,
            count,
            text,
        });
    }
}

/// How a client uses connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    Keeping,
    Fresh,
    Idle,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    work: Work,
    habit: Habit,
    pace: Duration,
    number: usize,
    records: Arc<Records>,
    connection: Option<Connection>,
    sequence: Sequence,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    port: u16,
    since: Duration,
}

impl Connection {
    fn id(&self) -> (u16, Duration) {
        (self.port, self.since)
    }
}

impl Load {
    pub(crate) fn clients(&self) -> Vec<Client> {
        let Crowd {
            keeping,
            fresh,
            idle,
            pace,
        } = self.crowd;
        let habits = std::iter::repeat_n(Habit::Keeping, keeping)
            .chain(std::iter::repeat_n(Habit::Fresh, fresh))
            .chain(std::iter::repeat_n(Habit::Idle, idle));
        let clients = habits.enumerate().map(|(number, habit)| Client {
            address: self.address,
            work: self.work.clone(),
            habit,
            pace: match habit {
                Habit::Keeping | Habit::Fresh => pace,
                Habit::Idle => IDLE_PACE,
            },
            number,
            records: Arc::clone(&self.records),
            connection: None,
            sequence: Sequence::default(),
        });
        clients.collect()
    }
}

impl Client {
    /// Works until told to stop; what is begun is finished. The last request comes behind everything else,
    /// so that it shows what is left.
    pub(crate) fn run(mut self, stop: &AtomicBool) {
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            self.turn();
            if stopping {
                return;
            }
            let end = Instant::now() + self.pace;
            while !stop.load(Ordering::Relaxed) {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                thread::sleep(left.min(LOOK_EVERY));
            }
        }
    }

    fn turn(&mut self) {
        match self.work.clone() {
            Work::Get(path) => {
                self.request("GET", &path);
            }
            Work::Count(path) => {
                let own = format!("torture-{}-{}", self.records.seed, self.number);
                let path = path.replace("KEY", &own);
                match self.request("POST", &path) {
                    Some(body) => self.counted(&body),
                    None => self.sequence.unknown(),
                }
            }
            Work::Connect => self.connect_only(),
        }
    }

    /// An acknowledged write.
    fn counted(&mut self, body: &[u8]) {
        let connection = self.connection.as_ref().map(Connection::id);
        let text = String::from_utf8_lossy(body);
        let Ok(value) = text.trim().parse() else {
            let told = text.chars().take(60).collect::<String>();
            let text = format!("an answer that is no number: {told:?}");
            return self.records.missed(Cause::Malformed, connection, 1, text);
        };
        self.records.seen().writes += 1;
        let client = self.number;
        match self.sequence.heard(value) {
            Heard::Right => {}
            Heard::Gone(count) => {
                let text = format!("client {client}: {count} acknowledged writes are gone");
                self.records
                    .missed(Cause::WritesGone, connection, count, text);
            }
            Heard::TooMany(count) => {
                let text =
                    format!("client {client}: {count} writes are there that it did not make");
                self.records
                    .missed(Cause::WritesTooMany, connection, count, text);
            }
        }
    }

    /// Asks once; the body of a good answer.
    fn request(&mut self, method: &str, path: &str) -> Option<Vec<u8>> {
        self.look_at_kept();
        self.records.seen().sent += 1;
        let began = Instant::now();
        let mut connection = self.connect()?;
        let fresh = self.habit == Habit::Fresh;
        let host = self.address.to_string();
        let request = http::request(method, path, &host, fresh);
        match exchange(&mut connection.stream, &request) {
            Ok(answer) => {
                let took = began.elapsed();
                let id = Some(connection.id());
                if answer.keeps_open && !fresh {
                    self.connection = Some(connection);
                } else if !fresh {
                    let text = "the answer said that the connection ends".to_owned();
                    self.records.missed(Cause::Closed, id, 1, text);
                }
                if !(200..300).contains(&answer.status) {
                    let text = format!("{method} {path}: status {}", answer.status);
                    self.records.missed(Cause::BadStatus, id, 1, text);
                    return None;
                }
                let mut seen = self.records.seen();
                seen.answered += 1;
                seen.longest = seen.longest.max(took);
                Some(answer.body)
            }
            Err((cause, text)) => {
                let text = format!("{method} {path}: {text}");
                self.records.missed(cause, Some(connection.id()), 1, text);
                None
            }
        }
    }

    /// A kept connection that was closed is not used again.
    fn look_at_kept(&mut self) {
        let Some(connection) = &self.connection else {
            return;
        };
        let stream = &connection.stream;
        let peeked = stream
            .set_nonblocking(true)
            .and_then(|()| stream.peek(&mut [0]));
        let open = matches!(&peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        if open && stream.set_nonblocking(false).is_ok() {
            return;
        }
        let text = match peeked {
            Ok(0) => "a kept connection was closed".to_owned(),
            Ok(_) => "bytes came on a kept connection that nobody asked for".to_owned(),
            Err(error) => format!("a kept connection was closed: {error}"),
        };
        self.records
            .missed(Cause::Closed, Some(connection.id()), 1, text);
        self.connection = None;
    }

    fn connect(&mut self) -> Option<Connection> {
        if let Some(connection) = self.connection.take() {
            return Some(connection);
        }
        match open(self.address) {
            Ok((stream, port)) => {
                self.records.seen().opened += 1;
                let since = self.records.start.elapsed();
                Some(Connection {
                    stream,
                    port,
                    since,
                })
            }
            Err(error) => {
                let (cause, text) = failure(&error, "connecting");
                let cause = match cause {
                    Cause::Unanswered => Cause::Refused,
                    other => other,
                };
                self.records.missed(cause, None, 1, text);
                None
            }
        }
    }

    /// Connects and waits for a while: whether the program closes or says something is its own matter, a
    /// reset is not.
    fn connect_only(&mut self) {
        self.records.seen().sent += 1;
        let Some(mut connection) = self.connect() else {
            return;
        };
        let waited = connection
            .stream
            .set_read_timeout(Some(CONNECTED_FOR))
            .and_then(|()| connection.stream.read(&mut [0]));
        match waited {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                let text = "a connection was reset".to_owned();
                self.records
                    .missed(Cause::Reset, Some(connection.id()), 1, text);
            }
            Ok(_) | Err(_) => self.records.seen().answered += 1,
        }
    }
}

fn open(address: SocketAddr) -> io::Result<(TcpStream, u16)> {
    let stream = TcpStream::connect_timeout(&address, LONGEST_ANSWER)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LONGEST_ANSWER))?;
    stream.set_write_timeout(Some(LONGEST_ANSWER))?;
    let port = stream.local_addr()?.port();
    Ok((stream, port))
}

/// Sends a request and reads its answer.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<Answer, (Cause, String)> {
    let written = stream.write_all(request);
    written.map_err(|error| failure(&error, "sending"))?;
    let end = Instant::now() + LONGEST_ANSWER;
    let mut bytes = Vec::new();
    let mut room = [0; 16 * 1024];
    loop {
        let count = match stream.read(&mut room) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failure(&error, "waiting for the answer")),
            Ok(count) => count,
        };
        bytes.extend_from_slice(&room[..count]);
        let ended = count == 0;
        match http::read(&bytes, ended) {
            Ok(Parsed::Whole(answer)) => return Ok(answer),
            Ok(Parsed::More) if ended && bytes.is_empty() => {
                let text = "the connection was closed in place of an answer";
                return Err((Cause::Unanswered, text.to_owned()));
            }
            Ok(Parsed::More) if ended => {
                let text = "the connection was closed within the answer";
                return Err((Cause::CutShort, text.to_owned()));
            }
            Ok(Parsed::More) if Instant::now() >= end => {
                return Err((Cause::TimedOut, "the answer took too long".to_owned()));
            }
            Ok(Parsed::More) => {}
            Err(reason) => return Err((Cause::Malformed, reason)),
        }
    }
}

/// What an error of the system means for a client.
fn failure(error: &io::Error, doing: &str) -> (Cause, String) {
    let cause = match error.kind() {
        io::ErrorKind::ConnectionRefused => Cause::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Cause::Reset,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Cause::TimedOut,
        _other => Cause::Unanswered,
    };
    (cause, format!("{doing}: {error}"))
}
