//! One migration: the state of a serving process becomes that of the process that replaces it.
//!
//! A table of every state with every event; no time, no descriptors, no reasons. The daemon turns
//! what both sides report into [`Event`]s and [`Action`]s into orders. What the two sides do in between
//! is decided by [`heirloom_handover::source`] and [`heirloom_handover::target`].
//!
//! The promise it keeps: once the commit was ordered, nothing but what the two sides say of the
//! lifeline decides who owns the state. A death counts when all that was said before it has been
//! heard.

use serde::{Deserialize, Serialize};

/// What the migration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// The new process is to own the state.
    Handover,
    /// The new process only shows that it could.
    Rehearsal,
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum State {
    /// The old one copies while it serves.
    Copying,
    /// The old one was told to let the state stand still.
    Freezing,
    /// The old one says that the copy is complete.
    Frozen,
    /// The new one says that it has the whole copy; the old one has not spoken yet.
    Verified,
    /// The old one died after it was told to freeze; the new one may have the whole copy.
    Orphaned,
    /// The new one was told to own the state.
    Committing,
    /// The old one says that the new one owns the state; the new one has not spoken yet.
    Yielded,
    /// The old one is dead, and the new one was told to own the state.
    Alone,
    /// The new one is gone or was killed after it was told to own the state: the old one knows whether
    /// it did.
    Resolving,
    /// It is over.
    Ended,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The old one says that a freeze would be short.
    Converged,
    /// The old one says that the copy is complete.
    Frozen,
    /// The new one says that it has verified all of it.
    Ready,
    /// The new one says that it cannot take the copy, or says what makes no sense.
    Reject,
    /// The old one says that it cannot make the copy, or says what makes no sense.
    Failed,
    /// The old one says that it owns the state again.
    Thawed,
    /// The old one says that the new one owns the state.
    Yielded,
    /// The new one says that it owns the state.
    Committed,
    /// The old process is dead, and all it said has been heard.
    OldDied,
    /// The new process is dead, and all it said has been heard.
    NewDied,
    /// The old one cannot be spoken to any more.
    OldDeaf,
    /// The new one cannot be spoken to any more.
    NewDeaf,
    /// The time to take over is over.
    Timeout,
    /// The time for the step that was last allowed is over.
    Deadline,
    /// It is not wanted any more.
    Cancel,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Tell the old one to let the state stand still.
    Freeze,
    /// Tell the new one to own the state.
    Commit,
    /// Tell the new one to own the state, for the old one is dead.
    CommitAlone,
    /// Tell the old one that it is called off.
    AbortOld,
    /// Tell the new one that it is called off.
    AbortNew,
    /// Kill the new one.
    KillNew,
    /// Start, or restart, the wait whose end is [`Event::Deadline`].
    Allow,
    /// It is over.
    Done(Outcome),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// The new one owns the state.
    Committed,
    /// The new one could have owned it.
    Rehearsed,
    /// The old one owns the state, if it lives.
    Aborted,
    /// The new one owned the state, and is gone.
    Fallen,
}

/// Both hear that it is called off, and the old one owns the state.
const ABORT: (State, &[Action]) = (
    State::Ended,
    &[
        Action::AbortOld,
        Action::AbortNew,
        Action::Done(Outcome::Aborted),
    ],
);
/// The same where the new one is not there to hear it.
const ABORT_OLD: (State, &[Action]) = (
    State::Ended,
    &[Action::AbortOld, Action::Done(Outcome::Aborted)],
);
/// The same where the old one is not there to hear it, or knows.
const ABORT_NEW: (State, &[Action]) = (
    State::Ended,
    &[Action::AbortNew, Action::Done(Outcome::Aborted)],
);
/// The new one is dead and nobody needs to hear of it.
const ABANDON: (State, &[Action]) = (State::Ended, &[Action::Done(Outcome::Aborted)]);
/// The new one may believe that it owns the state, and the old one is dead or never froze.
const KILL: (State, &[Action]) = (
    State::Ended,
    &[
        Action::KillNew,
        Action::AbortOld,
        Action::Done(Outcome::Aborted),
    ],
);
/// The new one may own the state and must not live on: the old one knows.
const RESOLVE: (State, &[Action]) = (
    State::Resolving,
    &[Action::KillNew, Action::AbortOld, Action::Allow],
);
const COMMITTED: (State, &[Action]) = (State::Ended, &[Action::Done(Outcome::Committed)]);
const FALLEN: (State, &[Action]) = (State::Ended, &[Action::Done(Outcome::Fallen)]);
const KILL_FALLEN: (State, &[Action]) = (
    State::Ended,
    &[Action::KillNew, Action::Done(Outcome::Fallen)],
);
const ALONE: (State, &[Action]) = (State::Alone, &[Action::CommitAlone, Action::Allow]);

/// The table: what follows when `event` happens in `state`.
pub(crate) fn step(purpose: Purpose, state: State, event: Event) -> (State, &'static [Action]) {
    let complete: (State, &'static [Action]) = match purpose {
        Purpose::Handover => (State::Committing, &[Action::Commit, Action::Allow]),
        Purpose::Rehearsal => (
            State::Ended,
            &[
                Action::AbortOld,
                Action::AbortNew,
                Action::Done(Outcome::Rehearsed),
            ],
        ),
    };
    let stay: (State, &'static [Action]) = (state, &[]);
    match state {
        State::Copying => match event {
            Event::Converged => (State::Freezing, &[Action::Freeze, Action::Allow]),
            // Said out of turn: nothing complete was ever sent.
            Event::Frozen | Event::Ready | Event::Thawed | Event::Yielded => ABORT,
            Event::Committed => KILL,
            Event::Reject | Event::Failed | Event::Timeout | Event::Cancel => ABORT,
            Event::OldDied | Event::OldDeaf => ABORT_NEW,
            Event::NewDied | Event::NewDeaf => ABORT_OLD,
            Event::Deadline => stay,
        },
        State::Freezing | State::Frozen | State::Verified => match event {
            Event::Converged => stay,
            Event::Frozen => match state {
                State::Verified => complete,
                _not_yet => (State::Frozen, &[]),
            },
            Event::Ready => match state {
                State::Frozen => complete,
                _not_yet => (State::Verified, &[]),
            },
            Event::Reject | Event::Failed | Event::Timeout | Event::Deadline | Event::Cancel => {
                ABORT
            }
            Event::Thawed => ABORT_NEW,
            // Nobody asked for it, but the lifeline has decided.
            Event::Yielded => (State::Yielded, &[Action::Allow]),
            Event::Committed => RESOLVE,
            Event::OldDied => match (purpose, state) {
                (Purpose::Rehearsal, _) => ABORT_NEW,
                (Purpose::Handover, State::Verified) => ALONE,
                // What it wrote is still in the pipe; the new one says whether that is all of it.
                (Purpose::Handover, _) => (State::Orphaned, &[]),
            },
            Event::NewDied | Event::NewDeaf => ABORT_OLD,
            // It may be dying: then its death, otherwise the deadline decides.
            Event::OldDeaf => stay,
        },
        State::Orphaned => match event {
            Event::Ready => ALONE,
            // It was said before it died: the state went on changing, or was never whole.
            Event::Failed | Event::Thawed => ABORT_NEW,
            Event::Yielded => (State::Yielded, &[Action::Allow]),
            Event::Committed => KILL,
            Event::Reject | Event::NewDeaf | Event::Timeout | Event::Deadline | Event::Cancel => {
                ABORT_NEW
            }
            Event::NewDied => ABANDON,
            Event::Converged | Event::Frozen | Event::OldDied | Event::OldDeaf => stay,
        },
        State::Committing => match event {
            Event::Committed => COMMITTED,
            Event::Yielded => (State::Yielded, &[]),
            // Its freeze had lasted as long as it may: the commit is refused.
            Event::Thawed => ABORT_NEW,
            Event::NewDied => (State::Resolving, &[Action::AbortOld, Action::Allow]),
            Event::Reject | Event::NewDeaf | Event::Timeout | Event::Deadline | Event::Cancel => {
                RESOLVE
            }
            Event::OldDied => ALONE,
            // The new one's word is on its way, or the deadline decides.
            Event::Failed | Event::OldDeaf => stay,
            Event::Converged | Event::Frozen | Event::Ready => stay,
        },
        State::Yielded => match event {
            Event::Committed => COMMITTED,
            Event::NewDied => FALLEN,
            Event::Reject | Event::NewDeaf | Event::Timeout | Event::Deadline | Event::Cancel => {
                KILL_FALLEN
            }
            // What was given away does not come back.
            Event::Converged
            | Event::Frozen
            | Event::Ready
            | Event::Failed
            | Event::Thawed
            | Event::Yielded
            | Event::OldDied
            | Event::OldDeaf => stay,
        },
        State::Alone => match event {
            Event::Committed => COMMITTED,
            Event::NewDied => ABANDON,
            Event::Reject | Event::NewDeaf | Event::Timeout | Event::Deadline | Event::Cancel => {
                KILL
            }
            Event::Converged
            | Event::Frozen
            | Event::Ready
            | Event::Failed
            | Event::Thawed
            | Event::Yielded
            | Event::OldDied
            | Event::OldDeaf => stay,
        },
        State::Resolving => match event {
            Event::Thawed => ABANDON,
            // Either knows of the commit.
            Event::Yielded | Event::Committed => FALLEN,
            Event::OldDied | Event::Deadline => ABANDON,
            Event::Converged
            | Event::Frozen
            | Event::Ready
            | Event::Reject
            | Event::Failed
            | Event::NewDied
            | Event::OldDeaf
            | Event::NewDeaf
            | Event::Timeout
            | Event::Cancel => stay,
        },
        State::Ended => match event {
            Event::Converged
            | Event::Frozen
            | Event::Ready
            | Event::Reject
            | Event::Failed
            | Event::Thawed
            | Event::Yielded
            | Event::Committed
            | Event::OldDied
            | Event::NewDied
            | Event::OldDeaf
            | Event::NewDeaf
            | Event::Timeout
            | Event::Deadline
            | Event::Cancel => stay,
        },
    }
}

impl State {
    /// Whether the new process was told to own the state, and it is open whether it does.
    pub(crate) fn is_undecided(self) -> bool {
        match self {
            Self::Committing | Self::Yielded | Self::Alone | Self::Resolving => true,
            Self::Copying
            | Self::Freezing
            | Self::Frozen
            | Self::Verified
            | Self::Orphaned
            | Self::Ended => false,
        }
    }
}

#[cfg(test)]
mod explored;
#[cfg(test)]
mod tests;
