//! Connections with a state of their own: raw TCP or Unix sessions, and [`WebSocket`]s, that go on in
//! the next generation in mid-sentence.
//!
//! A [`Session`] is a socket, the bytes read from it and not used, and a typed state. A handler serves
//! it until it ends, or until it is asked to [`Leave`]; then it returns the session, at a point of its
//! own choice between two messages, and the library carries it over. The state has versions like any
//! other ([`heirloom_state_codec`]), so it survives an update there and back.
//!
//! [`WebSocket`]: crate::websocket::WebSocket

use std::{
    fmt,
    future::Future,
    io,
    marker::PhantomData,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use heirloom_state_codec::{
    AtticRecord, Bincode, Codec, Context, Lineage, MigrateError, Step, read_entry, write_entry,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Handle,
};

use crate::{
    Drain, Listener,
    accept::{self, Acceptor, Room, Seat},
    moving::{Kind, Parked, Phase, PhaseWatch, census::Speaks, giving::Mover},
    state::State,
    stream::Stream,
};

/// Room for one read, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// One connection with its state.
#[derive(Debug)]
pub struct Session<V> {
    stream: Stream,
    unread: Vec<u8>,
    /// What this connection is about.
    pub state: V,
    /// What a newer version of the state had that this one has no room for.
    attic: Option<AtticRecord>,
}

impl<V> Session<V> {
    /// Bytes that have been read and not been used.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        &self.unread
    }

    /// Uses up the first `count` of [`Self::unread`]; more than there are count as all.
    pub fn consume(&mut self, count: usize) {
        self.unread.drain(..count.min(self.unread.len()));
    }

    /// Uses up bytes in the middle of [`Self::unread`], within which they must be.
    pub(crate) fn cut_out(&mut self, bytes: Range<usize>) {
        self.unread.drain(bytes);
    }

    /// Waits for more bytes and adds them to [`Self::unread`]; 0 if none will come. Nothing is lost
    /// if this is given up half-way. The caller bounds what it lets pile up.
    ///
    /// # Errors
    ///
    /// The system's.
    pub async fn fill(&mut self) -> io::Result<usize> {
        self.unread.reserve(READ_BYTES);
        self.stream.read_buf(&mut self.unread).await
    }

    /// Writes all of it. Not to be given up half-way: finish a message before leaving.
    ///
    /// # Errors
    ///
    /// The system's.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Writes some of it, and says how much. Nothing is lost if this is given up half-way.
    ///
    /// # Errors
    ///
    /// The system's; `WriteZero` if it takes no more.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.write(bytes).await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            count => Ok(count),
        }
    }

    /// Closes so that what was written last arrives.
    pub async fn close(self) {
        self.stream.close().await;
    }
}

/// What a session is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leaving {
    /// Return the session: the next generation goes on with it.
    Move,
    /// Say goodbye in the protocol's own way and end: this generation ends, and the session cannot move.
    End,
}

/// Tells a handler when it is to leave.
pub struct Leave {
    phases: PhaseWatch,
    drain: Drain,
    name: Arc<str>,
    versions: Arc<[u32]>,
    /// Where it was last asked to go.
    way: Way,
}

/// Where a session goes, and in which version.
type Destination = (Arc<Mover>, u32);

/// Where a session is to go, for whoever waits until its handler returns it.
#[derive(Clone, Default)]
struct Way(Arc<Mutex<Option<Destination>>>);

impl Way {
    fn lock(&self) -> MutexGuard<'_, Option<Destination>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leave {
    /// Waits until the session is asked to leave. Cheap to give up and call again.
    pub async fn asked(&mut self) -> Leaving {
        loop {
            tokio::select! {
                biased;
                mover = moving(&mut self.phases) => {
                    let Some(version) = version(&mover, &self.name, &self.versions) else {
                        self.phases.stay(&mover);
                        continue;
                    };
                    *self.way.lock() = Some((mover, version));
                    return Leaving::Move;
                }
                () = self.drain.begun() => return Leaving::End,
            }
        }
    }
}

impl fmt::Debug for Leave {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Leave")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

async fn moving(phases: &mut PhaseWatch) -> Arc<Mover> {
    std::future::poll_fn(|context| match phases.poll(context) {
        Phase::Moving(mover) => std::task::Poll::Ready(mover),
        Phase::Serving | Phase::Paused => std::task::Poll::Pending,
    })
    .await
}

/// The version in which the next generation can have the session, if it can.
fn version(mover: &Mover, name: &str, versions: &[u32]) -> Option<u32> {
    mover
        .version_for(name, versions)
        .filter(|_| mover.is_open())
}

/// Sessions of one name, declared and not served yet. Made with [`State::sessions`].
#[derive(Debug)]
#[must_use = "sessions are served once Sessions::serve is called"]
pub struct Sessions<V, C = Bincode> {
    name: Arc<str>,
    versions: Arc<[u32]>,
    types: PhantomData<fn() -> (V, C)>,
}

type Handler<V> = dyn Fn(Session<V>, Leave) -> Handled<V> + Send + Sync;
type Handled<V> = Pin<Box<dyn Future<Output = Option<Session<V>>> + Send>>;

/// Sessions that are served. Clones are handles to the same.
pub struct Served<V, C = Bincode> {
    name: Arc<str>,
    versions: Arc<[u32]>,
    drain: Drain,
    handler: Arc<Handler<V>>,
    room: Room,
    types: PhantomData<fn() -> C>,
}

impl State {
    /// Declares connections with a state of their own, by a name that the next generation knows them by
    /// too. To be called before [`State::take_over`].
    ///
    /// # Panics
    ///
    /// If a store or other sessions have the name, or it is other than letters, digits, `-` and `_`.
    pub fn sessions<V>(&self, name: &str) -> Sessions<V>
    where
        V: Step + Lineage<Bincode> + Clone + Send + 'static,
        Bincode: Codec<V>,
    {
        let schemas = <V as Lineage<Bincode>>::schemas();
        let versions = schemas.iter().map(|schema| schema.version).collect();
        self.core().add_sessions(name, schemas);
        Sessions {
            name: Arc::from(name),
            versions,
            types: PhantomData,
        }
    }
}

impl<V, C> Sessions<V, C>
where
    V: Step + Lineage<C> + Clone + Send + 'static,
    C: Codec<V> + 'static,
{
    /// Serves these sessions with `handler`, those of the former generation first. The handler returns
    /// the session when it was asked to leave for the next generation, and nothing when it has ended.
    ///
    /// To be called within a Tokio runtime, after [`State::take_over`].
    pub fn serve<F, H>(self, drain: &Drain, handler: H) -> Served<V, C>
    where
        H: Fn(Session<V>, Leave) -> F + Send + Sync + 'static,
        F: Future<Output = Option<Session<V>>> + Send + 'static,
    {
        let served = Served {
            name: Arc::clone(&self.name),
            versions: self.versions,
            drain: drain.clone(),
            handler: Arc::new(move |session, leave| Box::pin(handler(session, leave))),
            room: Room::new(),
            types: PhantomData,
        };
        let runtime = Handle::current();
        let arriving = served.clone();
        let kind = Kind {
            protocol: Speaks::Session.name().to_owned(),
            name: self.name.to_string(),
        };
        drain.arrivals().serve(
            kind,
            Arc::new(move |parked| {
                let _entered = runtime.enter();
                match arriving.unpack(parked) {
                    Ok(session) => arriving.start(session),
                    Err(error) => {
                        let name = &arriving.name;
                        tracing::error!(%name, %error, "a session cannot go on and is closed");
                    }
                }
            }),
        );
        served
    }
}

impl<V, C> Served<V, C>
where
    V: Step + Lineage<C> + Clone + Send + 'static,
    C: Codec<V> + 'static,
{
    /// Accepts connections from `listener`, each a new session that begins with `state`, as long as there
    /// are less than `connections_max` sessions of this name.
    ///
    /// # Errors
    ///
    /// The system's, if the listener cannot be made non-blocking or registered.
    pub fn accept(
        &self,
        listener: Listener,
        connections_max: usize,
        state: impl Fn() -> V + Send + Sync + 'static,
    ) -> io::Result<()> {
        let name = listener.name().to_owned();
        let acceptor = Acceptor::register(listener)?;
        let served = self.clone();
        self.drain.spawn(async move {
            let handle = |stream, seat| {
                let session = Session::new(stream, Vec::new(), state());
                served.drain.spawn(served.clone().run(session, seat));
            };
            let (room, drain) = (&served.room, &served.drain);
            accept::run(acceptor, &name, room, connections_max, drain, handle).await;
        });
        Ok(())
    }

    /// Serves a connection that has become a session.
    pub(crate) fn start(&self, session: Session<V>) {
        let seat = self.room.enter();
        self.drain.spawn(self.clone().run(session, seat));
    }

    async fn run(self, mut session: Session<V>, _seat: Seat) {
        let _counted = self.drain.census().count(Speaks::Session);
        let mut phases = self.drain.phases().watch();
        loop {
            let way = Way::default();
            let leave = Leave {
                phases,
                drain: self.drain.clone(),
                name: Arc::clone(&self.name),
                versions: Arc::clone(&self.versions),
                way: way.clone(),
            };
            let Some(parked) = (self.handler)(session, leave).await else {
                return;
            };
            let Some((mover, version)) = way.lock().take() else {
                // It was not asked to: it has ended.
                return parked.close().await;
            };
            match self.moved(parked, &mover, version).await {
                None => return,
                Some(back) => session = back,
            }
            phases = self.drain.phases().watch();
            phases.stay(&mover);
        }
    }

    /// Gives a session to the next generation; it comes back if that cannot have it.
    async fn moved(&self, session: Session<V>, mover: &Mover, version: u32) -> Option<Session<V>> {
        let Session {
            stream,
            unread,
            state,
            attic,
        } = session;
        let mut bytes = Vec::new();
        let mut context = Context::default();
        let written =
            write_entry::<C, V>(&state, version, attic.as_ref(), &mut bytes, &mut context);
        let lowered = match written {
            Ok(lowered) => lowered,
            Err(error) => {
                tracing::warn!(name = %self.name, %error, "a session stays in this generation");
                return Some(Session {
                    stream,
                    unread,
                    state,
                    attic,
                });
            }
        };
        let socket = match stream.into_descriptor() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(%error, "a session ended while it was to be moved");
                return None;
            }
        };
        let back = mover
            .give(Parked {
                kind: Kind {
                    protocol: Speaks::Session.name().to_owned(),
                    name: self.name.to_string(),
                },
                socket,
                unread,
                version,
                state: bytes,
                attic: lowered.map_or_else(Vec::new, |record| record.to_bytes()),
            })
            .await?;
        let stream = Stream::from_descriptor(back.socket).ok()?;
        Some(Session {
            stream,
            unread: back.unread,
            state,
            attic,
        })
    }

    fn unpack(&self, parked: Parked) -> Result<Session<V>, CannotGoOn> {
        let stream = Stream::from_descriptor(parked.socket)?;
        let attic = AtticRecord::parse(&parked.attic);
        let mut context = Context::default();
        let read = read_entry::<C, V>(parked.version, &parked.state, attic, &mut context)?;
        Ok(Session {
            stream,
            unread: parked.unread,
            state: read.value,
            attic: read.attic,
        })
    }
}

impl<V> Session<V> {
    pub(crate) fn new(stream: Stream, unread: Vec<u8>, state: V) -> Self {
        Self {
            stream,
            unread,
            state,
            attic: None,
        }
    }
}

/// Why a session of the former generation ends.
#[derive(Debug, thiserror::Error)]
enum CannotGoOn {
    #[error("its socket cannot be used: {0}")]
    Socket(#[from] io::Error),
    #[error("its state cannot be read: {0}")]
    State(#[from] MigrateError),
}

impl<V, C> Clone for Served<V, C> {
    fn clone(&self) -> Self {
        Self {
            name: Arc::clone(&self.name),
            versions: Arc::clone(&self.versions),
            drain: self.drain.clone(),
            handler: Arc::clone(&self.handler),
            room: self.room.clone(),
            types: PhantomData,
        }
    }
}

impl<V, C> fmt::Debug for Served<V, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Served")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
