//! The gate: whether the state may be changed here, now, or somewhere else.
//!
//! Every store asks it under its own lock, so that the answer holds as long as the lock does. To
//! close it is therefore to store one word and then to take each lock once ([`Gate::close`] and
//! `Store::settle`): an operation that had asked before has finished by then, and one that comes later
//! is turned away. So a write costs one load and one branch while nobody is migrating.
//!
//! Owns the word and waiting for it. When it changes is decided by the keeper; what a store does with
//! the answer is the store's affair.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    error::StateError,
    link::Link,
    way_back::{Record, WayBack},
};

/// Beside the mode: changes are written for a generation in reserve before they are acknowledged.
const WRITTEN_BACK: u8 = 0x80;

/// What an operation finds at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Go on; nobody is copying.
    Open = 0,
    /// Go on, and note what changes: a copy is being made.
    Tracking = 1,
    /// Wait: the state stands still, or has not arrived yet.
    Closed = 2,
    /// The state is another generation's: carry the operation out there.
    Elsewhere = 3,
}

/// Where an operation is to be carried out.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In this process.
    Here,
    /// In the generation at the other end of the link.
    There(Arc<Link>),
}

/// The gate of one state.
#[derive(Debug)]
pub(crate) struct Gate {
    mode: AtomicU8,
    /// What a change waits while a copy does not keep up, in microseconds.
    throttle_usec: AtomicU32,
    changed: Notify,
    link: Mutex<Option<Arc<Link>>>,
    way_back: Mutex<Option<Arc<WayBack>>>,
}

impl Gate {
    /// An open gate.
    pub(crate) fn new() -> Self {
        Self {
            mode: AtomicU8::new(Mode::Open as u8),
            throttle_usec: AtomicU32::new(0),
            changed: Notify::new(),
            link: Mutex::new(None),
            way_back: Mutex::new(None),
        }
    }

    /// What holds now. To be asked under the lock of what is to be read or changed.
    #[inline]
    pub(crate) fn mode(&self) -> Mode {
        // The lock under which this is asked orders it behind the change: see the head of this file.
        match self.mode.load(Ordering::Relaxed) & !WRITTEN_BACK {
            0 => Mode::Open,
            1 => Mode::Tracking,
            2 => Mode::Closed,
            _ => Mode::Elsewhere,
        }
    }

    /// Whether an operation may be carried out here. To be asked under the lock, as [`Self::mode`].
    #[inline]
    pub(crate) fn lets_pass(&self) -> bool {
        match self.mode() {
            Mode::Open | Mode::Tracking => true,
            Mode::Closed | Mode::Elsewhere => false,
        }
    }

    /// Lets operations pass again after they were sent elsewhere.
    pub(crate) fn return_here(&self) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.open(false);
    }

    /// Lets operations pass, noting changes or not.
    pub(crate) fn open(&self, tracking: bool) {
        self.set(if tracking { Mode::Tracking } else { Mode::Open });
    }

    /// Turns operations away from now on. Those that run have ended once each store has settled.
    pub(crate) fn close(&self) {
        self.set(Mode::Closed);
    }

    /// Sends operations to another generation from now on.
    pub(crate) fn yield_to(&self, link: Arc<Link>) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
        self.set(Mode::Elsewhere);
    }

    /// Lets every operation from now on fail: the state is another generation's that cannot be asked.
    pub(crate) fn lose(&self) {
        self.set(Mode::Elsewhere);
    }

    fn set(&self, mode: Mode) {
        let change = |word| Some((word & WRITTEN_BACK) | mode as u8);
        // Always some, so it always succeeds.
        let _former = self
            .mode
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
        self.changed.notify_waiters();
    }

    /// Lets every change from now on be written here before it is acknowledged. To be called while the gate is
    /// closed.
    pub(crate) fn write_back(&self, way: Arc<WayBack>) {
        *self.way_back.lock().unwrap_or_else(PoisonError::into_inner) = Some(way);
        self.mode.fetch_or(WRITTEN_BACK, Ordering::SeqCst);
    }

    /// The way back, as long as changes are to be written there.
    pub(crate) fn way_back(&self) -> Option<Arc<WayBack>> {
        if self.mode.load(Ordering::Relaxed) & WRITTEN_BACK == 0 {
            return None;
        }
        let mut way_back = self.way_back.lock().unwrap_or_else(PoisonError::into_inner);
        if way_back.as_ref().is_some_and(|way| !way.is_open()) {
            *way_back = None;
        }
        if way_back.is_none() {
            self.mode.fetch_and(!WRITTEN_BACK, Ordering::SeqCst);
        }
        way_back.clone()
    }

    /// What a change is to be written into, if there is a way back. To be asked under the lock of what is
    /// changed, and written before that is let go of.
    #[inline]
    pub(crate) fn record(&self) -> Option<Record> {
        if self.mode.load(Ordering::Relaxed) & WRITTEN_BACK == 0 {
            return None;
        }
        self.way_back().map(Record::new)
    }

    /// How long each change waits while a copy is being made; zero for not at all.
    pub(crate) fn set_throttle(&self, wait: Duration) {
        let usec = u32::try_from(wait.as_micros()).unwrap_or(u32::MAX);
        self.throttle_usec.store(usec, Ordering::Relaxed);
    }

    /// Waits as long as changes are to be slowed down. Called before a change in [`Mode::Tracking`],
    /// without any lock.
    pub(crate) async fn throttled(&self) {
        let usec = self.throttle_usec.load(Ordering::Relaxed);
        if usec > 0 {
            tokio::time::sleep(Duration::from_micros(usec.into())).await;
        }
    }

    /// Whether [`Self::throttled`] would wait.
    #[inline]
    pub(crate) fn is_throttled(&self) -> bool {
        self.throttle_usec.load(Ordering::Relaxed) > 0
    }

    /// Waits while the gate is closed and says where to go. With [`Place::Here`] the mode is to be
    /// asked again under the lock.
    ///
    /// # Errors
    ///
    /// [`StateError::OwnerGone`] if the generation that owns the state cannot be reached.
    pub(crate) async fn place(&self) -> Result<Place, StateError> {
        loop {
            // Registered before the look, so that no change in between is missed.
            let changed = self.changed.notified();
            match self.mode() {
                Mode::Open | Mode::Tracking => return Ok(Place::Here),
                Mode::Elsewhere => {
                    let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
                    return link.clone().map(Place::There).ok_or(StateError::OwnerGone);
                }
                Mode::Closed => {}
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_gate_is_waited_at_until_it_opens() {
        let gate = Arc::new(Gate::new());
        gate.close();
        let waiting = {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.place().await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        gate.open(true);
        assert!(matches!(waiting.await.unwrap(), Ok(Place::Here)));
        assert_eq!(gate.mode(), Mode::Tracking);
    }
}
