//! What happened, for `events`, `reload`'s progress and the log.
//!
//! Every event is logged and kept for a while; followers that do not keep up miss some.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use crate::clock::time_of_day;
use crate::control::protocol::{Event, EventKind};

/// How many events are kept.
const KEPT: usize = 512;

/// An event and its number, from 1.
pub(crate) type Numbered = (u64, Event);

/// The events so far, and those to come.
#[derive(Clone, Debug)]
pub(crate) struct History {
    kept: Arc<Mutex<VecDeque<Numbered>>>,
    followers: broadcast::Sender<Numbered>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self::resume(Vec::new())
    }

    /// Goes on from what a former supervisor has noted.
    pub(crate) fn resume(kept: Vec<Numbered>) -> Self {
        let (followers, _) = broadcast::channel(KEPT);
        Self {
            kept: Arc::new(Mutex::new(kept.into())),
            followers,
        }
    }

    /// What is kept.
    pub(crate) fn kept(&self) -> Vec<Numbered> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }

    /// Notes something.
    pub(crate) fn note(&self, service: &str, generation: Option<u64>, kind: EventKind, text: &str) {
        let event = Event {
            time: humantime::format_rfc3339_millis(time_of_day()).to_string(),
            service: service.to_owned(),
            generation,
            event: kind,
            text: text.to_owned(),
        };
        log(&event);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        let number = kept.back().map_or(1, |(last, _)| last + 1);
        kept.push_back((number, event.clone()));
        drop(kept);
        // Nobody follows most of the time.
        let _followers = self.followers.send((number, event));
    }

    /// What is kept, and a receiver of what comes after.
    pub(crate) fn follow(&self) -> (Vec<Numbered>, broadcast::Receiver<Numbered>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.followers.subscribe())
    }
}

fn log(event: &Event) {
    let Event {
        service,
        generation,
        text,
        ..
    } = event;
    let generation = generation.unwrap_or(0);
    match event.event {
        EventKind::Failed
        | EventKind::Died
        | EventKind::Aborted
        | EventKind::RolledBack
        | EventKind::NotTakenOver
        | EventKind::NoWayBack
        | EventKind::NotSaved
        | EventKind::BackingOff => tracing::warn!(service, generation, "{text}"),
        EventKind::Listener
        | EventKind::Adopted
        | EventKind::Asked
        | EventKind::Begun
        | EventKind::Waiting
        | EventKind::Started
        | EventKind::Ready
        | EventKind::Copying
        | EventKind::Converged
        | EventKind::Frozen
        | EventKind::Thawed
        | EventKind::Yielded
        | EventKind::TakenOver
        | EventKind::InReserve
        | EventKind::Returned
        | EventKind::StoodDown
        | EventKind::Saved
        | EventKind::Restored
        | EventKind::Draining
        | EventKind::Moved
        | EventKind::Drained
        | EventKind::Killed
        | EventKind::Gone
        | EventKind::Committed
        | EventKind::Rehearsed
        | EventKind::Proven
        | EventKind::Stopped => tracing::info!(service, generation, "{text}"),
    }
}
