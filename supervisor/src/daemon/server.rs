//! The answering side of the control socket.
//!
//! Owns who may ask, how long a request may be and may take, and turning what the supervisor
//! answers into lines. A client that is slow, silent or gone occupies its place for a bounded time
//! and holds up nobody.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, oneshot, watch};

use super::history::{History, Numbered};
use super::input::{Asked, Awaited, Input, Inputs};
use super::record::{self, Conversation, Handle, Held, Text, handles::Found};
use super::timer::Timer;
use crate::control::protocol::{Fault, LONGEST_REQUEST_BYTES, Refusal, Reply, Request, Upgraded};

/// So many clients are answered at once.
const MOST_CLIENTS: usize = 64;

/// So many of them may follow the events; the others have room to ask for something.
const MOST_FOLLOWERS: usize = 32;

/// How long a client may take to say what it wants.
const LONGEST_ASK: Duration = Duration::from_secs(10);

/// How long clients that are being answered may keep the supervisor from ending.
const LONGEST_END: Duration = Duration::from_secs(2);

/// How long a client may take to read one line.
const LONGEST_TELL: Duration = Duration::from_secs(10);

/// What is not begun for now, because the supervisor is about to replace itself. Who asks for it waits,
/// and is answered by the successor if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnHold {
    #[default]
    Nothing,
    /// What changes something or takes long.
    Changes,
    /// Everything but a stop.
    Requests,
}

impl OnHold {
    fn holds(self, request: &Request) -> bool {
        match request {
            Request::Stop { .. } => false,
            // It joins the one that is under way.
            Request::Upgrade { .. } => false,
            Request::Status | Request::Events { .. } => self == Self::Requests,
            Request::Reload { .. } | Request::Rollback { .. } | Request::Snapshot { .. } => {
                self != Self::Nothing
            }
        }
    }
}

/// The clients, and what is on hold for them: what the loop and their tasks share.
#[derive(Clone, Debug)]
pub(crate) struct Desk {
    talks: Arc<Mutex<BTreeMap<Handle, Arc<Talk>>>>,
    on_hold: Arc<watch::Sender<OnHold>>,
}

/// The conversation with one client.
#[derive(Debug)]
struct Talk {
    handle: Handle,
    stream: UnixStream,
    at: Mutex<At>,
}

/// How far it is.
#[derive(Debug)]
struct At {
    /// What it has sent and nobody has acted upon.
    heard: Vec<u8>,
    /// What it has not taken yet of what it is told.
    untold: Vec<u8>,
    pause: Option<Conversation>,
}

impl Talk {
    fn at(&self) -> MutexGuard<'_, At> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self {
            talks: Arc::default(),
            on_hold: Arc::new(watch::channel(OnHold::Nothing).0),
        }
    }

    /// From now on this is not begun.
    pub(crate) fn hold(&self, what: OnHold) {
        self.on_hold.send_replace(what);
    }

    /// Whether every client waits for something that a successor can give it as well.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.all().iter().all(|talk| talk.at().pause.is_some())
    }

    /// Every conversation; to be kept while what is recorded of them is used.
    pub(crate) fn conversations(&self) -> Conversations {
        Conversations(self.all())
    }

    fn all(&self) -> Vec<Arc<Talk>> {
        let talks = self.talks.lock().unwrap_or_else(PoisonError::into_inner);
        talks.values().cloned().collect()
    }

    fn open(&self, talk: Talk) -> Open {
        let talk = Arc::new(talk);
        let mut talks = self.talks.lock().unwrap_or_else(PoisonError::into_inner);
        talks.insert(talk.handle, Arc::clone(&talk));
        Open {
            desk: self.clone(),
            talk,
        }
    }
}

/// The conversations there are at one time.
#[derive(Debug, Default)]
pub(crate) struct Conversations(Vec<Arc<Talk>>);

impl Conversations {
    /// What a successor needs to go on with them.
    pub(crate) fn record<'a>(&'a self, held: &mut Held<'a>) -> Vec<record::Client> {
        let each = self.0.iter().filter_map(|talk| {
            let at = talk.at();
            Some(record::Client {
                state: at.pause.clone()?,
                handle: held.hold(talk.handle, talk.stream.as_fd()),
                heard: Text(at.heard.clone()),
                untold: Text(at.untold.clone()),
            })
        });
        each.collect()
    }
}

/// A conversation that is listed as long as this lives.
#[derive(Debug)]
struct Open {
    desk: Desk,
    talk: Arc<Talk>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let talks = &self.desk.talks;
        let mut talks = talks.lock().unwrap_or_else(PoisonError::into_inner);
        talks.remove(&self.talk.handle);
    }
}

/// What a predecessor has left.
#[derive(Debug)]
pub(crate) struct Before<'a> {
    pub(crate) clients: Vec<record::Client>,
    pub(crate) found: &'a mut Found,
    /// What is told to those who wait for the upgrade.
    pub(crate) upgraded: Upgraded,
}

/// The running server.
#[derive(Debug)]
pub(crate) struct Server {
    accepting: Timer,
    places: Arc<Semaphore>,
}

impl Server {
    /// Begins to answer clients, and goes on with those of a predecessor.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(crate) fn start(
        listener: UnixListener,
        inputs: &Inputs,
        history: &History,
        desk: &Desk,
        before: Before<'_>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let hall = Hall {
            inputs: inputs.clone(),
            history: history.clone(),
            desk: desk.clone(),
            places: Arc::new(Semaphore::new(MOST_CLIENTS)),
            followers: Arc::new(Semaphore::new(MOST_FOLLOWERS)),
            upgraded: before.upgraded,
        };
        for client in before.clients {
            let fd = before.found.take(client.handle);
            let stream = fd.map(|fd| UnixStream::from_std(OwnedFd::into(fd)));
            match stream {
                Some(Ok(stream)) => hall.welcome(stream, Some(client)),
                Some(Err(error)) => tracing::warn!("a client is lost: {error}"),
                None => tracing::warn!("a client is lost: its descriptor is not there"),
            }
        }
        Ok(Self {
            places: Arc::clone(&hall.places),
            accepting: Timer::task(hall.accept(listener)),
        })
    }

    /// Accepts nobody any more and lets those that are being answered read what is left, for a
    /// while.
    pub(crate) async fn end(self) {
        drop(self.accepting);
        let all = u32::try_from(MOST_CLIENTS).unwrap_or(u32::MAX);
        let _late = tokio::time::timeout(LONGEST_END, self.places.acquire_many(all)).await;
    }
}

/// What every client's task needs.
#[derive(Debug)]
struct Hall {
    inputs: Inputs,
    history: History,
    desk: Desk,
    places: Arc<Semaphore>,
    /// Places for followers, which stay for as long as they like.
    followers: Arc<Semaphore>,
    upgraded: Upgraded,
}

impl Hall {
    async fn accept(self, listener: tokio::net::UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.welcome(stream, None),
                Err(error) => {
                    // Out of descriptors, most likely; the client waits in the socket's queue.
                    tracing::warn!("a client could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Answers a client; where a predecessor has left off, if it had begun.
    fn welcome(&self, stream: UnixStream, before: Option<record::Client>) {
        let handle = before.as_ref().map_or_else(Handle::new, |one| one.handle);
        let (heard, untold, state) = match before {
            Some(client) => (client.heard.0, client.untold.0, client.state),
            None => (Vec::new(), Vec::new(), Conversation::Asking),
        };
        let talk = Talk {
            handle,
            stream,
            at: Mutex::new(At {
                heard,
                untold,
                pause: Some(state.clone()),
            }),
        };
        let client = Client {
            open: self.desk.open(talk),
            inputs: self.inputs.clone(),
            followers: Arc::clone(&self.followers),
            upgraded: self.upgraded.clone(),
        };
        let history = self.history.clone();
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => drop(tokio::spawn(async move {
                if let Err(error) = client.answer(history, state).await {
                    tracing::debug!("a client left: {error}");
                }
                drop(place);
            })),
            Err(_) => {
                tracing::warn!("more than {MOST_CLIENTS} clients; one was turned away");
                client.turn_away();
            }
        }
    }
}

struct Client {
    open: Open,
    inputs: Inputs,
    followers: Arc<Semaphore>,
    upgraded: Upgraded,
}

impl Client {
    async fn answer(self, history: History, state: Conversation) -> io::Result<()> {
        self.flush().await?;
        match state {
            Conversation::Asking => self.answer_anew(history).await,
            Conversation::Following { next } => self.follow(history, next).await,
            Conversation::Upgrading => {
                self.begin_again();
                self.tell(&Reply::Upgraded(self.upgraded.clone())).await?;
                self.tell(&Reply::Done).await
            }
        }
    }

    async fn answer_anew(self, history: History) -> io::Result<()> {
        let peer = self.open.talk.stream.peer_cred()?.uid();
        if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
            tracing::warn!("a request of user {peer} was refused");
            return self
                .refuse(Fault::State, "this supervisor belongs to another user")
                .await;
        }
        let request = match self.request().await? {
            Ok(request) => request,
            Err(reason) => return self.refuse(Fault::Usage, &reason).await,
        };
        match request {
            Request::Status => {
                let (answer, status) = oneshot::channel();
                self.ask(Asked::Status(answer)).await?;
                let status = status.await.map_err(|_| ended())?;
                self.tell(&Reply::Status(status)).await?;
            }
            Request::Events { follow: true } => return self.follow(history, 0).await,
            Request::Events { follow: false } => {
                for (_, event) in history.kept() {
                    self.tell(&Reply::Event(event)).await?;
                }
            }
            Request::Upgrade { timeout_ms } => {
                let (answer, refused) = oneshot::channel();
                let asked = Asked::Upgrade { timeout_ms, answer };
                // A good end is told by the successor.
                return self.await_succession(asked, refused).await;
            }
            Request::Stop {
                leave_running: true,
                timeout_ms,
            } => {
                let (answer, refused) = oneshot::channel();
                let asked = Asked::Leave { timeout_ms, answer };
                // A good end is the end of the connection.
                return self.await_succession(asked, refused).await;
            }
            Request::Stop {
                timeout_ms,
                leave_running: false,
            } => {
                let (answer, stopped) = oneshot::channel();
                self.ask(Asked::Stop { timeout_ms, answer }).await?;
                let unsaved = tokio::select! {
                    stopped = stopped => stopped.map_err(|_| ended())?,
                    () = self.left() => return Ok(()),
                };
                if !unsaved.is_empty() {
                    return self.refuse(Fault::State, &unsaved.join("; ")).await;
                }
            }
            Request::Snapshot {
                service,
                instance,
                path,
            } => {
                if !path.is_absolute() {
                    let reason = "the path of a snapshot begins with /";
                    return self.refuse(Fault::Usage, reason).await;
                }
                let (answer, saved) = oneshot::channel();
                let asked = Asked::Snapshot {
                    service,
                    instance,
                    path,
                    answer,
                };
                self.ask(asked).await?;
                let reply = match saved.await.map_err(|_| ended())? {
                    Ok(saved) => Reply::Saved(saved),
                    Err(refusal) => return self.tell(&Reply::Refused(refusal)).await,
                };
                self.tell(&reply).await?;
            }
            request @ (Request::Reload { .. } | Request::Rollback { .. }) => {
                let (_, events) = history.follow();
                drop(history);
                let (answer, awaited) = oneshot::channel();
                self.ask(Asked::Handover { request, answer }).await?;
                match awaited.await.map_err(|_| ended())? {
                    Ok(awaited) => self.report(awaited, events).await?,
                    Err(refusal) => return self.tell(&Reply::Refused(refusal)).await,
                }
            }
        }
        self.tell(&Reply::Done).await
    }

    /// The request, or what is wrong with it. One that is on hold stays what was heard.
    async fn request(&self) -> io::Result<Result<Request, String>> {
        let heard = tokio::time::timeout(LONGEST_ASK, self.hear_line());
        let length = heard
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let Some(length) = length else {
            self.begin_again();
            return Ok(Err(format!(
                "a request is one line of at most {LONGEST_REQUEST_BYTES} bytes"
            )));
        };
        let parsed = Request::parse(&self.open.talk.at().heard[..length]);
        if let Ok(request) = &parsed {
            let mut on_hold = self.open.desk.on_hold.subscribe();
            // The desk, which holds the other side, is ours.
            let _free = on_hold.wait_for(|what| !what.holds(request)).await;
        }
        self.begin_again();
        self.open.talk.at().heard.drain(..length);
        Ok(parsed)
    }

    /// Waits for a line; its length, or none if it is too long or the client has stopped within it.
    async fn hear_line(&self) -> io::Result<Option<usize>> {
        let talk = &self.open.talk;
        loop {
            let length = {
                let at = talk.at();
                let end = at.heard.iter().position(|byte| *byte == b'\n');
                if let Some(end) = end.filter(|end| *end < LONGEST_REQUEST_BYTES) {
                    return Ok(Some(end + 1));
                }
                at.heard.len()
            };
            if length >= LONGEST_REQUEST_BYTES {
                return Ok(None);
            }
            talk.stream.readable().await?;
            let mut at = talk.at();
            let mut room = [0; 4096];
            match talk.stream.try_read(&mut room) {
                Ok(0) if length == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => return Ok(None),
                Ok(got) => at.heard.extend_from_slice(&room[..got]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A successor could take over from here.
    fn pause(&self, state: Conversation) {
        self.open.talk.at().pause = Some(state);
    }

    /// No successor could take over before the next pause.
    fn begin_again(&self) {
        self.open.talk.at().pause = None;
    }

    /// Whoever asked says nothing more: returns when it has left, or has said something all the same.
    async fn left(&self) {
        let stream = &self.open.talk.stream;
        while stream.readable().await.is_ok() {
            let read = stream.try_read(&mut [0]);
            if !read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                return;
            }
        }
    }

    /// Tells what happens to the services until each handover has ended.
    async fn report(
        &self,
        awaited: Vec<Awaited>,
        mut events: broadcast::Receiver<Numbered>,
    ) -> io::Result<()> {
        let services: Vec<String> = awaited.iter().map(|one| one.service.clone()).collect();
        for Awaited { mut report, .. } in awaited {
            let report = loop {
                tokio::select! {
                    biased;
                    report = &mut report => break report.map_err(|_| ended())?,
                    () = self.left() => return Ok(()),
                    event = events.recv() => self.progress(&services, event).await?,
                }
            };
            // What led to the report was noted before it.
            while let Ok(event) = events.try_recv() {
                self.progress(&services, Ok(event)).await?;
            }
            self.tell(&Reply::Report(report)).await?;
        }
        Ok(())
    }

    async fn progress(
        &self,
        services: &[String],
        event: Result<Numbered, RecvError>,
    ) -> io::Result<()> {
        match event {
            Ok((_, event)) if services.contains(&event.service) => {
                self.tell(&Reply::Event(event)).await
            }
            Ok(_) | Err(RecvError::Lagged(_)) => Ok(()),
            Err(RecvError::Closed) => Err(ended()),
        }
    }

    /// Tells what happened from an event on, and what happens until the client or the supervisor ends.
    async fn follow(self, history: History, mut next: u64) -> io::Result<()> {
        let followers = Arc::clone(&self.followers);
        let Ok(_place) = followers.try_acquire() else {
            let reason = format!("{MOST_FOLLOWERS} clients follow the events already");
            return self.refuse(Fault::State, &reason).await;
        };
        let (kept, mut events) = history.follow();
        // A follower that held the history would keep it, and itself, from ending.
        drop(history);
        let mut kept = kept.into_iter();
        loop {
            self.pause(Conversation::Following { next });
            let event = match kept.next() {
                Some(event) => Ok(event),
                None => tokio::select! {
                    event = events.recv() => event,
                    // A follower says nothing; whatever comes is its end.
                    () = self.left() => return Ok(()),
                },
            };
            match event {
                Ok((number, _)) if number < next => {}
                Ok((number, event)) => {
                    next = number + 1;
                    self.put(&Reply::Event(event), Some(Conversation::Following { next }))?;
                    self.flush().await?;
                }
                Err(RecvError::Lagged(missed)) => {
                    tracing::debug!("a follower missed {missed} events");
                }
                Err(RecvError::Closed) => {
                    self.begin_again();
                    return self.tell(&Reply::Done).await;
                }
            }
        }
    }

    async fn ask(&self, asked: Asked) -> io::Result<()> {
        self.inputs
            .send(Input::Asked(asked))
            .await
            .map_err(|_| ended())
    }

    /// Says that there is no room, without waiting for anything.
    fn turn_away(&self) {
        let refusal = Reply::Refused(Refusal {
            fault: Fault::State,
            reason: format!("{MOST_CLIENTS} clients are being answered; try again"),
        });
        if let Ok(mut line) = serde_json::to_vec(&refusal) {
            line.push(b'\n');
            // Its buffer is empty; if it has gone, nobody wants to know.
            let _gone = self.open.talk.stream.try_write(&line);
        }
    }

    /// Asks for another supervisor to follow, and tells if none does.
    async fn await_succession(
        &self,
        asked: Asked,
        refused: oneshot::Receiver<Refusal>,
    ) -> io::Result<()> {
        self.ask(asked).await?;
        self.pause(Conversation::Upgrading);
        let refusal = refused.await.map_err(|_| ended())?;
        self.begin_again();
        self.tell(&Reply::Refused(refusal)).await
    }

    async fn refuse(&self, fault: Fault, reason: &str) -> io::Result<()> {
        self.begin_again();
        self.tell(&Reply::Refused(Refusal {
            fault,
            reason: reason.to_owned(),
        }))
        .await
    }

    async fn tell(&self, reply: &Reply) -> io::Result<()> {
        self.put(reply, None)?;
        self.flush().await
    }

    /// Puts a reply where it is told from, here or by a successor; and, at once, where that would go on.
    fn put(&self, reply: &Reply, pause: Option<Conversation>) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        let mut at = self.open.talk.at();
        at.untold.append(&mut line);
        at.pause = pause;
        Ok(())
    }

    /// Waits until everything was told.
    async fn flush(&self) -> io::Result<()> {
        tokio::time::timeout(LONGEST_TELL, self.write())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn write(&self) -> io::Result<()> {
        let talk = &self.open.talk;
        while !talk.at().untold.is_empty() {
            talk.stream.writable().await?;
            let mut at = talk.at();
            match talk.stream.try_write(&at.untold) {
                Ok(written) => drop(at.untold.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the supervisor ends")
}
