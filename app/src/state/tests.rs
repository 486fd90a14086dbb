//! Whole handovers within one process: two generations with a keeper each, and a supervisor played by
//! the test. What needs real processes is in `tests/`.

mod reserve;
mod several;

use std::{
    convert::Infallible,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use heirloom_handover::{
    fds,
    lifeline::Lifeline,
    message::{self, Order, Purpose, Reads, Report},
    way_back::Fate,
};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, service::service_fn};
use nix::{
    fcntl::OFlag,
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
    unistd::pipe2,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use futures_util::{SinkExt, StreamExt};
use heirloom_state_codec::{self as heirloom_state_codec, State as State_};

use super::{Map, Origin, State, TakeOverError, Tenure};
use crate::{
    Drain, Listener, http,
    session::{Leaving, Served, Sessions},
    websocket::{Message, WebSocket},
};

/// Nothing a test waits for takes longer on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What comes next on the supervisor's end of a socket.
async fn heard(socket: &OwnedFd) -> Report {
    let socket = socket.try_clone().unwrap();
    let received = spawn_blocking(move || fds::receive(&socket, message::LARGEST_BYTES));
    let received = timeout(PATIENCE, received).await.unwrap().unwrap().unwrap();
    Report::parse(&received.bytes).unwrap()
}

/// One generation, and the supervisor's end of its socket.
pub(super) struct Generation {
    pub(super) drain: Drain,
    socket: OwnedFd,
    owning: JoinHandle<Result<Origin, TakeOverError>>,
}

impl Generation {
    pub(super) fn start(number: u64, state: State) -> Self {
        let (socket, other) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let drain = Drain::new(PATIENCE);
        let owning = {
            let drain = drain.clone();
            tokio::spawn(async move {
                let tenure = Tenure::new("test", number.to_string());
                state.take_over_on(other, number, &drain, tenure).await
            })
        };
        Self {
            drain,
            socket,
            owning,
        }
    }

    /// What it says next.
    pub(super) async fn says(&self) -> Report {
        heard(&self.socket).await
    }

    pub(super) async fn says_hello(&self) -> Vec<Reads> {
        match self.says().await {
            Report::Hello { reads, .. } => reads,
            other => panic!("{other:?} where a hello should come"),
        }
    }

    pub(super) fn order(&self, order: &Order, descriptors: &[OwnedFd]) {
        fds::send(&self.socket, &order.to_bytes(), descriptors).unwrap();
    }

    pub(super) async fn owns(self) -> Owner {
        let origin = timeout(PATIENCE, self.owning)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        Owner {
            drain: self.drain,
            socket: self.socket,
            origin,
        }
    }

    pub(super) async fn gives_up(self) -> TakeOverError {
        timeout(PATIENCE, self.owning)
            .await
            .unwrap()
            .unwrap()
            .unwrap_err()
    }
}

/// A generation that has come to own the state.
pub(super) struct Owner {
    pub(super) drain: Drain,
    socket: OwnedFd,
    pub(super) origin: Origin,
}

impl Owner {
    pub(super) async fn first(state: State) -> Self {
        let first = Generation::start(1, state);
        first.says_hello().await;
        first.order(&Order::Begin, &[]);
        first.owns().await
    }

    pub(super) async fn says(&self) -> Report {
        heard(&self.socket).await
    }

    pub(super) fn order(&self, order: &Order, descriptors: &[OwnedFd]) {
        fds::send(&self.socket, &order.to_bytes(), descriptors).unwrap();
    }

    /// Begins a handover to the next generation, up to the point where both have their descriptors.
    pub(super) async fn send_to(&self, next: &Generation, migration: u64, purpose: Purpose) {
        self.send(next, migration, purpose, None).await;
    }

    /// The same, with a way back for so long if there is no supervisor.
    async fn send(
        &self,
        next: &Generation,
        migration: u64,
        purpose: Purpose,
        way_back: Option<Duration>,
    ) {
        let reads = next.says_hello().await;
        let (reading, writing) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (old_life, new_life) = Lifeline::pair().unwrap();
        let (old_link, new_link) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let send = Order::Send {
            migration,
            to: 2,
            purpose,
            pause: Duration::from_millis(5),
            freeze: PAUSE_LIMIT,
            reads: reads.clone(),
            bytes_max: None,
            way_back,
        };
        let (mut old_ends, mut new_ends) = (
            vec![writing, old_life, old_link],
            vec![reading, new_life, new_link],
        );
        if way_back.is_some() {
            let (records, recording) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let (old_fate, new_fate) = Fate::pair().unwrap();
            let (old_back, new_back) = UnixStream::pair().unwrap();
            old_ends.extend([records, old_fate, old_back.into()]);
            new_ends.extend([recording, new_fate, new_back.into()]);
        }
        self.order(&send, &old_ends);
        let receive = Order::Receive {
            migration,
            from: 1,
            bytes_max: None,
            // Both generations of a test are of one version.
            way_back: way_back.map(|_| reads),
        };
        next.order(&receive, &new_ends);
    }

    /// A whole handover to the next generation.
    pub(super) async fn hand_over(&self, next: Generation, migration: u64) -> Self {
        self.send_to(&next, migration, Purpose::Handover).await;
        self.freeze(&next, migration).await;
        let commit = Order::Commit {
            migration,
            alone: false,
        };
        next.order(&commit, &[]);
        assert!(matches!(next.says().await, Report::Committed { .. }));
        assert!(matches!(self.says().await, Report::Yielded { .. }));
        next.owns().await
    }
}

impl Owner {
    /// Goes on with a handover to the point where all has been copied.
    async fn freeze(&self, next: &Generation, migration: u64) {
        let said = self.says().await;
        assert!(matches!(said, Report::Converged { .. }), "{said:?}");
        self.order(&Order::Freeze { migration }, &[]);
        let said = self.says().await;
        assert!(matches!(said, Report::Frozen { .. }), "{said:?}");
        let said = next.says().await;
        assert!(matches!(said, Report::Ready { .. }), "{said:?}");
    }
}

/// Longer than any freeze of a test that is to end well.
const PAUSE_LIMIT: Duration = Duration::from_secs(20);

/// Answers each request with a generation's name and the length of its body.
/// How many have been begun is counted.
fn serve(owner: &Owner, listener: Listener, name: &'static str) -> Arc<AtomicUsize> {
    let begun = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&begun);
    let count = move || counter.fetch_add(1, Ordering::Relaxed);
    let answer = move |request: Request<http::RequestBody>| async move {
        let slow = request.uri().path() == "/slow";
        if request.uri().path() == "/unread" {
            let text = format!("{name} unread");
            return Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))));
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        if slow {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let text = format!("{name} {}", body.len());
        Ok(Response::new(Full::new(Bytes::from(text))))
    };
    let service = service_fn(move |request| {
        count();
        answer(request)
    });
    http::serve(listener, service, &owner.drain, http::Options::default()).unwrap();
    begun
}

/// Two handles to one listening socket, as two generations have them.
fn listeners() -> (Listener, Listener, std::net::SocketAddr) {
    let first = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = first.local_addr().unwrap();
    let second = first.try_clone().unwrap();
    let named = |socket: std::net::TcpListener| {
        Listener::from_descriptor("http".to_owned(), socket.into()).unwrap()
    };
    (named(first), named(second), address)
}

async fn ask(client: &mut TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).await.unwrap();
    answer(client).await
}

/// Reads one response with a length; its head must not say that the connection ends.
async fn answer(client: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        let count = timeout(PATIENCE, client.read(&mut byte))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            count,
            1,
            "closed behind {:?}",
            String::from_utf8_lossy(&bytes)
        );
        bytes.push(byte[0]);
        if bytes.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(bytes).unwrap().to_lowercase();
    assert!(!head.contains("connection: close"), "{head}");
    let length = head
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next())
        .unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    client.read_exact(&mut body).await.unwrap();
    String::from_utf8(body).unwrap()
}

const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn connections_go_on_in_the_next_generation() {
    let (listener, shared, address) = listeners();
    let old = Owner::first(State::new()).await;
    assert_eq!(old.origin, Origin::Fresh);
    let begun = serve(&old, listener, "old");
    let mut used = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask(&mut used, GET).await, "old 0");
    let mut half = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask(&mut half, GET).await, "old 0");
    half.write_all(b"GET / HT").await.unwrap();
    let mut fresh_half = TcpStream::connect(address).await.unwrap();
    fresh_half.write_all(b"GE").await.unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut upload = TcpStream::connect(address).await.unwrap();
    upload
        .write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\nabc")
        .await
        .unwrap();
    // Until the old generation has begun both, and has the silent ones.
    while begun.load(Ordering::Relaxed) < 4 || old.drain.running() < 7 {
        tokio::task::yield_now().await;
    }

    let new = Generation::start(2, State::new());
    let new = old.hand_over(new, 7).await;
    assert_eq!(new.origin, Origin::Generation(1));
    serve(&new, shared, "new");
    old.order(&Order::Retire, &[]);

    assert_eq!(ask(&mut used, GET).await, "new 0");
    assert_eq!(ask(&mut half, "TP/1.1\r\nhost: x\r\n\r\n").await, "new 0");
    assert_eq!(
        ask(&mut fresh_half, "T / HTTP/1.1\r\nhost: x\r\n\r\n").await,
        "new 0"
    );
    assert_eq!(ask(&mut silent, GET).await, "new 0");
    // What was begun is finished where it was begun, and the next goes on.
    assert_eq!(answer(&mut slow).await, "old 0");
    // hyper had read this one already, so it is begun too.
    assert_eq!(answer(&mut slow).await, "old 0");
    assert_eq!(ask(&mut slow, GET).await, "new 0");
    assert_eq!(ask(&mut upload, "def").await, "old 6");
    assert_eq!(ask(&mut upload, GET).await, "new 0");
    timeout(PATIENCE, old.drain.finished()).await.unwrap();
    let mut another = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask(&mut another, GET).await, "new 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_reads_costs_no_connection() {
    let (listener, shared, address) = listeners();
    let old = Owner::first(State::new()).await;
    serve(&old, listener, "old");
    let head = "POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
    let body = "x".repeat(100_000);
    let mut before = TcpStream::connect(address).await.unwrap();
    assert_eq!(
        ask(&mut before, &format!("{head}{body}")).await,
        "old unread"
    );
    // The answer is there, and most of the request is not.
    let mut across = TcpStream::connect(address).await.unwrap();
    let half = &body[..50_000];
    assert_eq!(
        ask(&mut across, &format!("{head}{half}")).await,
        "old unread"
    );

    let new = Generation::start(2, State::new());
    let new = old.hand_over(new, 7).await;
    serve(&new, shared, "new");
    old.order(&Order::Retire, &[]);
    assert_eq!(ask(&mut before, GET).await, "new 0");
    across.write_all(half.as_bytes()).await.unwrap();
    // The old one may have read this together with the end of the body.
    let next = ask(&mut across, GET).await;
    assert!(["old 0", "new 0"].contains(&next.as_str()), "{next}");
    assert_eq!(ask(&mut across, GET).await, "new 0");
    timeout(PATIENCE, old.drain.finished()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_that_is_called_off_leaves_everything_as_it_was() {
    let (listener, _shared, address) = listeners();
    let old = Owner::first(State::new()).await;
    serve(&old, listener, "old");
    let mut client = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask(&mut client, GET).await, "old 0");
    let new = Generation::start(2, State::new());
    old.send_to(&new, 7, Purpose::Handover).await;
    assert!(matches!(old.says().await, Report::Converged { .. }));
    old.order(&Order::Freeze { migration: 7 }, &[]);
    assert!(matches!(old.says().await, Report::Frozen { .. }));
    assert!(matches!(new.says().await, Report::Ready { .. }));
    // Frozen: the request waits, and is not refused.
    client.write_all(GET.as_bytes()).await.unwrap();
    let abort = Order::Abort {
        migration: 7,
        reason: "the test says so".to_owned(),
    };
    old.order(&abort, &[]);
    let thawed = old.says().await;
    assert!(
        matches!(&thawed, Report::Thawed { reason, .. } if reason == "the test says so"),
        "{thawed:?}"
    );
    assert_eq!(answer(&mut client).await, "old 0");
    // A commit that comes too late is refused.
    let commit = Order::Commit {
        migration: 7,
        alone: false,
    };
    new.order(&commit, &[]);
    let error = new.gives_up().await.to_string();
    assert!(error.contains("taken the state back"), "{error}");
}

/// The state of a session: how many messages it has had.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, State_)]
#[state(name = "session", version = 1, oldest)]
struct Talk {
    count: u64,
}

/// Answers each line, and each text of a WebSocket, with its number and the generation's name.
fn talk(owner: &Owner, sessions: Sessions<Talk>, name: &'static str) -> Served<Talk> {
    sessions.serve(&owner.drain, move |mut session, mut leave| async move {
        loop {
            if let Some(end) = session.unread().iter().position(|byte| *byte == b'\n') {
                session.consume(end + 1);
                session.state.count += 1;
                let answer = format!("{} {name}\n", session.state.count);
                session.write_all(answer.as_bytes()).await.ok()?;
                continue;
            }
            tokio::select! {
                biased;
                leaving = leave.asked() => match leaving {
                    Leaving::Move => return Some(session),
                    Leaving::End => return None,
                },
                read = session.fill() => {
                    read.ok().filter(|count| *count > 0)?;
                }
            }
        }
    })
}

fn talk_in_frames(owner: &Owner, sessions: Sessions<Talk>, name: &'static str) -> Served<Talk> {
    sessions.serve(&owner.drain, move |session, mut leave| async move {
        let mut socket = WebSocket::new(session);
        loop {
            tokio::select! {
                biased;
                leaving = leave.asked() => match leaving {
                    Leaving::Move => return socket.into_session().await,
                    Leaving::End => return socket.say_goodbye().await.ok().and(None),
                },
                message = socket.receive() => {
                    message.ok()??;
                    socket.state().count += 1;
                    let text = format!("{} {name}", socket.state().count);
                    socket.send(Message::Text(text)).await.ok()?;
                }
            }
        }
    })
}

fn serve_sockets(owner: &Owner, listener: Listener, frames: Served<Talk>) {
    let service = service_fn(move |request: Request<http::RequestBody>| {
        let response = frames.upgrade(&request, Talk { count: 0 }).unwrap();
        async move { Ok::<_, Infallible>(response.map(|()| Full::new(Bytes::new()))) }
    });
    http::serve(listener, service, &owner.drain, http::Options::default()).unwrap();
}

async fn line(client: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        let count = timeout(PATIENCE, client.read(&mut byte))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(count, 1, "closed behind {line:?}");
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_websockets_go_on_with_their_state() {
    let declare = || {
        let state = State::new();
        let (lines, frames) = (state.sessions("lines"), state.sessions("frames"));
        (state, lines, frames)
    };
    let (raw, raw_shared, raw_address) = listeners();
    let (web, web_shared, web_address) = listeners();
    let (state, lines, frames) = declare();
    let old = Owner::first(state).await;
    let lines = talk(&old, lines, "old");
    lines.accept(raw, 100, || Talk { count: 0 }).unwrap();
    let frames = talk_in_frames(&old, frames, "old");
    serve_sockets(&old, web, frames);

    let mut liner = TcpStream::connect(raw_address).await.unwrap();
    liner.write_all(b"a\nb\nhal").await.unwrap();
    assert_eq!(line(&mut liner).await, "1 old");
    assert_eq!(line(&mut liner).await, "2 old");
    let client = TcpStream::connect(web_address).await.unwrap();
    let (mut client, _) = tokio_tungstenite::client_async("ws://test/", client)
        .await
        .unwrap();
    let text = |text: &str| tungstenite::Message::text(text);
    client.send(text("x")).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), text("1 old"));

    let (state, lines, frames) = declare();
    let new = old.hand_over(Generation::start(2, state), 7).await;
    let lines = talk(&new, lines, "new");
    lines.accept(raw_shared, 100, || Talk { count: 0 }).unwrap();
    let frames = talk_in_frames(&new, frames, "new");
    serve_sockets(&new, web_shared, frames);
    match old.says().await {
        Report::Moved { moved, left, .. } => {
            assert_eq!((moved.total(), left.total()), (2, 0));
        }
        other => panic!("{other:?} where the count of connections should come"),
    }
    liner.write_all(b"f\n").await.unwrap();
    assert_eq!(line(&mut liner).await, "3 new");
    client.send(text("y")).await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), text("2 new"));
    client.close(None).await.unwrap();
    assert!(matches!(
        client.next().await,
        Some(Ok(tungstenite::Message::Close(_)))
    ));
    old.order(&Order::Retire, &[]);
    timeout(PATIENCE, old.drain.finished()).await.unwrap();
    match old.says().await {
        Report::Gone { moved, cut, .. } => assert_eq!((moved.total(), cut), (2, 0)),
        other => panic!("{other:?} where the last word should come"),
    }
}

/// A counter.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, State_)]
#[state(name = "counter", version = 1, oldest)]
struct Counter {
    value: u64,
}

fn counters(state: &State) -> Map<u64, Counter> {
    Map::new(state, "counters")
}

/// Adds one to counters until told to stop; how often that was acknowledged.
fn writer(map: Map<u64, Counter>, stop: Arc<AtomicBool>, seed: u64) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let mut acknowledged = 0;
        let mut key = seed;
        while !stop.load(Ordering::Relaxed) {
            key = key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let change = |entry: &mut Option<Counter>| {
                entry.get_or_insert(Counter { value: 0 }).value += 1;
            };
            map.update(key >> 54, change).await.unwrap();
            acknowledged += 1;
            if acknowledged % 16 == 0 {
                tokio::task::yield_now().await;
            }
        }
        acknowledged
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_and_none_counts_twice() {
    let stop = Arc::new(AtomicBool::new(false));
    let state = State::new();
    let map = counters(&state);
    let mut owner = Owner::first(state).await;
    let mut last = map.clone();
    let mut writers = vec![writer(map, Arc::clone(&stop), 1)];
    let mut former = Vec::new();
    for generation in 2..=8 {
        let state = State::new();
        let map = counters(&state);
        let next = owner
            .hand_over(Generation::start(generation, state), generation)
            .await;
        // Those of every generation before go on, over one link or several.
        last = map.clone();
        writers.push(writer(map, Arc::clone(&stop), generation));
        former.push(std::mem::replace(&mut owner, next));
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = 0;
    for writer in writers {
        acknowledged += timeout(PATIENCE, writer).await.unwrap().unwrap();
    }
    let held = last.entries().await.unwrap();
    let sum: u64 = held.iter().map(|(_, counter)| counter.value).sum();
    assert_eq!(sum, acknowledged);
    assert!(acknowledged > 1000, "{acknowledged}");
}
