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

/// The events so far, and those to come.
#[derive(Clone, Debug)]
pub(crate) struct History {
    kept: Arc<Mutex<VecDeque<Event>>>,
    followers: broadcast::Sender<Event>,
}

impl History {
    pub(crate) fn new() -> Self {
        let (followers, _) = broadcast::channel(KEPT);
        Self {
            kept: Arc::default(),
            followers,
        }
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
        kept.push_back(event.clone());
        drop(kept);
        // Nobody follows most of the time.
        let _followers = self.followers.send(event);
    }

    /// What is kept, and a receiver of what comes after.
    pub(crate) fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
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
