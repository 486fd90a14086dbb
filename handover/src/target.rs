//! The state machine of the generation that takes the state over.
//!
//! A table of every state with every event, and nothing else; see [`crate::source`] for the other
//! side.
//!
//! The promise it keeps: it owns the state only after it has verified all of it and its `COMMITTED`
//! went through, or after its supervisor said that nobody else is left.

/// Where the generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It has said that it is there, and waits to be told what to do.
    Greeting,
    /// It reads the copy.
    Receiving,
    /// It has the whole copy, and waits to be told to own it.
    Verified,
    /// It says on the lifeline that it owns the state.
    Committing,
    /// That was refused: the other side has taken the state back, or is dead. A deadline runs.
    Refused,
    /// It owns the state.
    Owning,
    /// It does not own the state and never will: it ends.
    Dismissed,
}

/// What can happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The supervisor says that there is no state to take over.
    Begin,
    /// The supervisor says where the copy comes from.
    Receive,
    /// The copy was read to its end and everything about it is right.
    Verified,
    /// The copy is damaged, cannot be understood, or is refused.
    Unusable,
    /// The supervisor wants the commit.
    Commit,
    /// The supervisor wants the commit, and the other side is dead or was a file.
    CommitAlone,
    /// `COMMITTED` is in the other side's queue.
    Queued,
    /// `COMMITTED` was refused: the other side has taken the state back, or is dead.
    Refused,
    /// The supervisor has not said in time which of the two it is.
    Deadline,
    /// The supervisor calls the migration off.
    Abort,
    /// The supervisor is gone.
    SupervisorGone,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the copy.
    Read,
    /// Tell the supervisor that the copy is complete and right.
    TellReady,
    /// Tell the supervisor why the copy cannot be taken.
    TellReject,
    /// Say on the lifeline that this generation owns the state.
    SayCommitted,
    /// Open the gate: the state is this generation's.
    Own,
    /// Tell the supervisor that this generation owns the state.
    TellCommitted,
    /// Give up: the app is told to end.
    GiveUp,
}

/// The table: what follows when `event` happens in `state`.
#[must_use]
pub fn step(state: State, event: Event) -> (State, &'static [Action]) {
    use Action::{GiveUp, Own, Read, SayCommitted, TellCommitted, TellReady, TellReject};
    match state {
        State::Greeting => match event {
            Event::Begin => (State::Owning, &[Own]),
            Event::Receive => (State::Receiving, &[Read]),
            Event::Abort | Event::SupervisorGone => (State::Dismissed, &[GiveUp]),
            Event::Verified
            | Event::Unusable
            | Event::Commit
            | Event::CommitAlone
            | Event::Queued
            | Event::Refused
            | Event::Deadline => (State::Greeting, &[]),
        },
        State::Receiving => match event {
            Event::Verified => (State::Verified, &[TellReady]),
            Event::Unusable => (State::Dismissed, &[TellReject, GiveUp]),
            Event::Abort | Event::SupervisorGone => (State::Dismissed, &[GiveUp]),
            Event::Begin
            | Event::Receive
            | Event::Commit
            | Event::CommitAlone
            | Event::Queued
            | Event::Refused
            | Event::Deadline => (State::Receiving, &[]),
        },
        State::Verified => match event {
            Event::Commit => (State::Committing, &[SayCommitted]),
            Event::CommitAlone => (State::Owning, &[Own, TellCommitted]),
            Event::Abort | Event::SupervisorGone => (State::Dismissed, &[GiveUp]),
            Event::Begin
            | Event::Receive
            | Event::Verified
            | Event::Unusable
            | Event::Queued
            | Event::Refused
            | Event::Deadline => (State::Verified, &[]),
        },
        State::Committing => match event {
            Event::Queued => (State::Owning, &[Own, TellCommitted]),
            // The supervisor knows why, and says so.
            Event::Refused => (State::Refused, &[]),
            Event::CommitAlone => (State::Owning, &[Own, TellCommitted]),
            // It may be in the queue already: only the lifeline's answer counts now.
            Event::Abort
            | Event::SupervisorGone
            | Event::Begin
            | Event::Receive
            | Event::Verified
            | Event::Unusable
            | Event::Commit
            | Event::Deadline => (State::Committing, &[]),
        },
        State::Refused => match event {
            // The other side is dead, and has said nothing of a thaw: the copy is all there is.
            Event::CommitAlone => (State::Owning, &[Own, TellCommitted]),
            Event::Abort | Event::SupervisorGone | Event::Deadline => (State::Dismissed, &[GiveUp]),
            Event::Begin
            | Event::Receive
            | Event::Verified
            | Event::Unusable
            | Event::Commit
            | Event::Queued
            | Event::Refused => (State::Refused, &[]),
        },
        State::Owning => match event {
            Event::Begin
            | Event::Receive
            | Event::Verified
            | Event::Unusable
            | Event::Commit
            | Event::CommitAlone
            | Event::Queued
            | Event::Refused
            | Event::Deadline
            | Event::Abort
            | Event::SupervisorGone => (State::Owning, &[]),
        },
        State::Dismissed => match event {
            Event::Begin
            | Event::Receive
            | Event::Verified
            | Event::Unusable
            | Event::Commit
            | Event::CommitAlone
            | Event::Queued
            | Event::Refused
            | Event::Deadline
            | Event::Abort
            | Event::SupervisorGone => (State::Dismissed, &[]),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 7] = [
        State::Greeting,
        State::Receiving,
        State::Verified,
        State::Committing,
        State::Refused,
        State::Owning,
        State::Dismissed,
    ];
    const EVENTS: [Event; 11] = [
        Event::Begin,
        Event::Receive,
        Event::Verified,
        Event::Unusable,
        Event::Commit,
        Event::CommitAlone,
        Event::Queued,
        Event::Refused,
        Event::Abort,
        Event::SupervisorGone,
        Event::Deadline,
    ];

    /// The whole table once more: a row a state, a column an event in the order of `EVENTS`. `.`
    /// stays; otherwise the next state's letter and, behind it, the actions: r read, v tell ready,
    /// x tell reject, c say committed, o own, w tell committed, g give up.
    const TABLE: [(State, [&str; 11]); 7] = [
        (
            State::Greeting,
            [
                "O:o", "R:r", ".", ".", ".", ".", ".", ".", "D:g", "D:g", ".",
            ],
        ),
        (
            State::Receiving,
            [
                ".", ".", "V:v", "D:xg", ".", ".", ".", ".", "D:g", "D:g", ".",
            ],
        ),
        (
            State::Verified,
            [
                ".", ".", ".", ".", "C:c", "O:ow", ".", ".", "D:g", "D:g", ".",
            ],
        ),
        (
            State::Committing,
            [".", ".", ".", ".", ".", "O:ow", "O:ow", "F:", ".", ".", "."],
        ),
        (
            State::Refused,
            [
                ".", ".", ".", ".", ".", "O:ow", ".", ".", "D:g", "D:g", "D:g",
            ],
        ),
        (
            State::Owning,
            [".", ".", ".", ".", ".", ".", ".", ".", ".", ".", "."],
        ),
        (
            State::Dismissed,
            [".", ".", ".", ".", ".", ".", ".", ".", ".", ".", "."],
        ),
    ];

    fn written(state: State, event: Event) -> String {
        let (next, actions) = step(state, event);
        if next == state && actions.is_empty() {
            return ".".to_owned();
        }
        let letter = match next {
            State::Greeting => 'G',
            State::Receiving => 'R',
            State::Verified => 'V',
            State::Committing => 'C',
            State::Refused => 'F',
            State::Owning => 'O',
            State::Dismissed => 'D',
        };
        let actions = actions.iter().map(|action| match action {
            Action::Read => 'r',
            Action::TellReady => 'v',
            Action::TellReject => 'x',
            Action::SayCommitted => 'c',
            Action::Own => 'o',
            Action::TellCommitted => 'w',
            Action::GiveUp => 'g',
        });
        format!("{letter}:{}", actions.collect::<String>())
    }

    #[test]
    fn every_state_with_every_event() {
        for (state, row) in TABLE {
            for (event, expected) in EVENTS.into_iter().zip(row) {
                assert_eq!(written(state, event), expected, "{event:?} in {state:?}");
            }
        }
    }

    #[test]
    fn it_owns_what_it_verified_and_nothing_else() {
        for state in STATES {
            for event in EVENTS {
                let (next, actions) = step(state, event);
                if next == State::Owning && state != State::Owning {
                    assert!(actions.contains(&Action::Own));
                    let verified =
                        matches!(state, State::Verified | State::Committing | State::Refused);
                    let fresh = (state, event) == (State::Greeting, Event::Begin);
                    assert!(verified || fresh, "{event:?} in {state:?}");
                }
            }
        }
    }
}
