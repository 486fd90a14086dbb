//! Live connections on their way from one generation to the next.
//!
//! A connection at rest is *parked*: its socket, the bytes that were read from it and not used, and a
//! state of its own if it has one. The generation that has given its state away sends it over the
//! lifeline ([`giving`]); the next one acknowledges it and goes on with it in mid-sentence ([`taking`]).
//! Nothing is written to the client, so it cannot tell.
//!
//! The sender keeps its own copy of the socket until the receiver has said that it has the connection,
//! and the receiver says so before it touches it: a connection is always exactly one generation's.
//!
//! What at rest means is each protocol's affair: [`crate::http`], [`crate::session`]. The bytes on the
//! lifeline are [`wire`]'s.

pub(crate) mod census;
pub(crate) mod giving;
pub(crate) mod taking;
pub(crate) mod wire;

use std::{
    future::Future,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use tokio::sync::watch;

use giving::Mover;

/// A connection at rest.
#[derive(Debug)]
pub(crate) struct Parked {
    /// What kind of connection it is, and on which listener it came.
    pub(crate) kind: Kind,
    /// The socket.
    pub(crate) socket: OwnedFd,
    /// Bytes that were read and not used.
    pub(crate) unread: Vec<u8>,
    /// The version of the kind's schema in which its state is coded; 0 without one.
    pub(crate) version: u32,
    /// Its own state.
    pub(crate) state: Vec<u8>,
    /// What that version has no room for.
    pub(crate) attic: Vec<u8>,
}

/// By what both generations know whose a connection is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    /// The protocol.
    pub(crate) protocol: String,
    /// The name of the listener or of the sessions it belongs to.
    pub(crate) name: String,
}

/// What the handover means for a connection.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Serve.
    Serving,
    /// The state stands still: begin nothing new, and wait.
    Paused,
    /// The next generation serves: park as soon as nothing is under way, and go there.
    Moving(Arc<Mover>),
}

/// Tells connections of each phase as it begins.
#[derive(Debug)]
pub(crate) struct Phases {
    sender: watch::Sender<Phase>,
}

impl Phases {
    pub(crate) fn new() -> Self {
        Self {
            sender: watch::Sender::new(Phase::Serving),
        }
    }

    pub(crate) fn begin(&self, phase: Phase) {
        self.sender.send_replace(phase);
    }

    /// Whether connections go to the next generation.
    pub(crate) fn is_moving(&self) -> bool {
        self.mover().is_some_and(|mover| mover.is_open())
    }

    /// Where connections go, if they do.
    pub(crate) fn mover(&self) -> Option<Arc<Mover>> {
        match &*self.sender.borrow() {
            Phase::Serving | Phase::Paused => None,
            Phase::Moving(mover) => Some(Arc::clone(mover)),
        }
    }

    /// The phase, for one connection.
    pub(crate) fn watch(&self) -> PhaseWatch {
        PhaseWatch {
            receiver: self.sender.subscribe(),
            change: None,
            refused: None,
        }
    }
}

/// One connection's view of the phase.
pub(crate) struct PhaseWatch {
    receiver: watch::Receiver<Phase>,
    change: Option<Pin<Box<dyn Future<Output = watch::Receiver<Phase>> + Send>>>,
    /// Where this connection cannot go. It does not keep the way open.
    refused: Option<Weak<Mover>>,
}

impl PhaseWatch {
    /// The connection could not go there: as long as others do, it is served as usual. The state may come
    /// back and move once more, and then so may the connection.
    pub(crate) fn stay(&mut self, refused: &Arc<Mover>) {
        self.refused = Some(Arc::downgrade(refused));
    }

    /// The phase as it is now; the task that asks is woken when it changes.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Phase {
        loop {
            let change = self.change.get_or_insert_with(|| {
                let mut receiver = self.receiver.clone();
                receiver.borrow_and_update();
                Box::pin(async move {
                    if receiver.changed().await.is_err() {
                        // Nobody is left who could begin another phase.
                        std::future::pending::<()>().await;
                    }
                    receiver
                })
            });
            match change.as_mut().poll(context) {
                Poll::Ready(receiver) => {
                    self.receiver = receiver;
                    self.change = None;
                }
                Poll::Pending => return self.now(),
            }
        }
    }

    fn now(&self) -> Phase {
        match &*self.receiver.borrow() {
            Phase::Moving(mover) if self.cannot_go(mover) => Phase::Serving,
            phase => phase.clone(),
        }
    }

    fn cannot_go(&self, mover: &Arc<Mover>) -> bool {
        let refused = self.refused.as_ref();
        refused.is_some_and(|refused| refused.as_ptr() == Arc::as_ptr(mover))
    }

    /// Waits for the end of serving as usual.
    pub(crate) async fn left_serving(&mut self) {
        std::future::poll_fn(|context| match self.poll(context) {
            Phase::Serving => Poll::Pending,
            Phase::Paused | Phase::Moving(_) => Poll::Ready(()),
        })
        .await;
    }

    /// Waits for serving as usual.
    pub(crate) async fn serves(&mut self) {
        std::future::poll_fn(|context| match self.poll(context) {
            Phase::Serving => Poll::Ready(()),
            Phase::Paused | Phase::Moving(_) => Poll::Pending,
        })
        .await;
    }

    /// Waits for a phase in which something is to be done: to go on serving, or to move.
    pub(crate) async fn settled(&mut self) -> Phase {
        std::future::poll_fn(|context| match self.poll(context) {
            Phase::Paused => Poll::Pending,
            phase @ (Phase::Serving | Phase::Moving(_)) => Poll::Ready(phase),
        })
        .await
    }
}
