//! The answering side of the control socket.
//!
//! Owns who may ask, how long a request may be and may take, and turning what the supervisor
//! answers into lines. A client that is slow, silent or gone occupies its place for a bounded time
//! and holds up nobody.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, oneshot};

use super::history::History;
use super::input::{Asked, Awaited, Input, Inputs};
use super::timer::Timer;
use crate::control::protocol::{Event, Fault, LONGEST_REQUEST_BYTES, Refusal, Reply, Request};

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

/// The running server.
#[derive(Debug)]
pub(crate) struct Server {
    accepting: Timer,
    places: Arc<Semaphore>,
}

impl Server {
    /// Begins to answer clients.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(crate) fn start(
        listener: UnixListener,
        inputs: &Inputs,
        history: &History,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(MOST_CLIENTS));
        let accepting = accept(
            listener,
            inputs.clone(),
            history.clone(),
            Arc::clone(&places),
        );
        Ok(Self {
            accepting: Timer::task(accepting),
            places,
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

async fn accept(
    listener: tokio::net::UnixListener,
    inputs: Inputs,
    history: History,
    places: Arc<Semaphore>,
) {
    let followers = Arc::new(Semaphore::new(MOST_FOLLOWERS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely; the client waits in the socket's queue.
                tracing::warn!("a client could not be accepted: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let client = Client {
            stream: BufReader::new(stream),
            inputs: inputs.clone(),
            followers: Arc::clone(&followers),
        };
        let history = history.clone();
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => drop(tokio::spawn(async move {
                if let Err(error) = client.answer(history).await {
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
    stream: BufReader<UnixStream>,
    inputs: Inputs,
    /// Places for followers, which stay for as long as they like.
    followers: Arc<Semaphore>,
}

impl Client {
    async fn answer(mut self, history: History) -> io::Result<()> {
        let peer = self.stream.get_ref().peer_cred()?.uid();
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
            Request::Events { follow } => {
                let followers = Arc::clone(&self.followers);
                let place = followers.try_acquire().ok();
                if follow && place.is_none() {
                    let reason = format!("{MOST_FOLLOWERS} clients follow the events already");
                    return self.refuse(Fault::State, &reason).await;
                }
                let (kept, events) = history.follow();
                // A follower that held the history would keep it, and itself, from ending.
                drop(history);
                for event in kept {
                    self.tell(&Reply::Event(event)).await?;
                }
                if follow {
                    return self.follow(events).await;
                }
            }
            Request::Stop { timeout_ms } => {
                let (answer, stopped) = oneshot::channel();
                self.ask(Asked::Stop { timeout_ms, answer }).await?;
                let mut silence = [0];
                let unsaved = tokio::select! {
                    stopped = stopped => stopped.map_err(|_| ended())?,
                    // Whoever asked says nothing more; whatever comes is its end.
                    _end = self.stream.read(&mut silence) => return Ok(()),
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

    /// The request, or what is wrong with it.
    async fn request(&mut self) -> io::Result<Result<Request, String>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(LONGEST_REQUEST_BYTES as u64);
        tokio::time::timeout(LONGEST_ASK, limited.read_until(b'\n', &mut line))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.last() != Some(&b'\n') {
            return Ok(Err(format!(
                "a request is one line of at most {LONGEST_REQUEST_BYTES} bytes"
            )));
        }
        Ok(Request::parse(&line))
    }

    /// Tells what happens to the services until each handover has ended.
    async fn report(
        &mut self,
        awaited: Vec<Awaited>,
        mut events: broadcast::Receiver<Event>,
    ) -> io::Result<()> {
        let mut silence = [0];
        let services: Vec<String> = awaited.iter().map(|one| one.service.clone()).collect();
        for Awaited { mut report, .. } in awaited {
            let report = loop {
                tokio::select! {
                    biased;
                    report = &mut report => break report.map_err(|_| ended())?,
                    // Whoever asked says nothing more; whatever comes is its end.
                    _end = self.stream.read(&mut silence) => return Ok(()),
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
        &mut self,
        services: &[String],
        event: Result<Event, RecvError>,
    ) -> io::Result<()> {
        match event {
            Ok(event) if services.contains(&event.service) => self.tell(&Reply::Event(event)).await,
            Ok(_) | Err(RecvError::Lagged(_)) => Ok(()),
            Err(RecvError::Closed) => Err(ended()),
        }
    }

    /// Tells what happens until the client or the supervisor ends.
    async fn follow(&mut self, mut events: broadcast::Receiver<Event>) -> io::Result<()> {
        let mut silence = [0];
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => self.tell(&Reply::Event(event)).await?,
                    Err(RecvError::Lagged(missed)) => {
                        tracing::debug!("a follower missed {missed} events");
                    }
                    Err(RecvError::Closed) => return self.tell(&Reply::Done).await,
                },
                // A follower says nothing; whatever comes is its end.
                _end = self.stream.read(&mut silence) => return Ok(()),
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
            let _gone = self.stream.get_ref().try_write(&line);
        }
    }

    async fn refuse(&mut self, fault: Fault, reason: &str) -> io::Result<()> {
        self.tell(&Reply::Refused(Refusal {
            fault,
            reason: reason.to_owned(),
        }))
        .await
    }

    async fn tell(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        tokio::time::timeout(LONGEST_TELL, self.stream.get_mut().write_all(&line))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the supervisor ends")
}
