//! The state machine of the generation that gives its state away.
//!
//! A table of every state with every event, and nothing else: no time, no descriptors, no reasons.
//! The library an app links turns the world into [`Event`]s and [`Action`]s into system calls.
//!
//! The promise it keeps: from a freeze there are exactly two ways, and which of them it is the
//! lifeline decides. Nothing but a look at the lifeline leads out of [`State::Resolving`].

/// Where the generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It owns the state, and nobody is copying it.
    Serving,
    /// It owns the state, and copies it while it serves.
    Copying,
    /// The copy is close; it waits to be told to freeze, and copies what changes.
    Converged,
    /// Nothing changes any more; the rest of the copy is under way. A deadline runs.
    Freezing,
    /// Nothing changes any more; the copy is complete. A deadline runs.
    Frozen,
    /// The copy was complete and only tried: it owns the state and waits for the end of the rehearsal.
    Rehearsed,
    /// It looks at the lifeline for who owns the state.
    Resolving,
    /// The new generation owns the state.
    Yielded,
    /// The new generation owns the state, and this one follows its changes, to take it back if that one
    /// dies or gives it back.
    Reserve,
}

/// What can happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The supervisor wants a copy for a new generation.
    Send,
    /// The copy is so close that a freeze would be short.
    Converged,
    /// The supervisor wants the freeze.
    Freeze,
    /// The end mark has been written.
    Complete,
    /// The end mark of a rehearsal has been written.
    CompleteRehearsal,
    /// The copy cannot go on: the reader is gone, or something of the app's own went wrong.
    Broken,
    /// The supervisor calls the migration off.
    Abort,
    /// The freeze has lasted as long as it may.
    Deadline,
    /// The lifeline says that the new generation owns the state.
    Committed,
    /// The lifeline is closed at the other end.
    PeerGone,
    /// The look at the lifeline found no commit.
    ResolvedOurs,
    /// The look at the lifeline found a commit.
    ResolvedTheirs,
    /// The supervisor wants this generation to finish and end.
    Retire,
    /// The supervisor is gone.
    SupervisorGone,
    /// There is a way back: the new generation's changes can be followed.
    Follow,
    /// The way back says that the state is this generation's again.
    Returned,
    /// The reserve is over, and the state never comes back.
    StoodDown,
    /// The supervisor wants the state given back to the generation in reserve.
    GiveBack,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Begin to copy.
    Copy,
    /// Tell the supervisor that a copy is under way already, or that there is no state to copy.
    Refuse,
    /// Tell the supervisor that the copy is close.
    TellConverged,
    /// Close the gate, start the deadline, write the rest of the copy and the end mark.
    Freeze,
    /// Tell the supervisor that the copy is complete.
    TellFrozen,
    /// Give the copy up: stop tracking changes, close the stream.
    EndCopy,
    /// Tell the supervisor that the copy failed.
    TellFailed,
    /// Shut the lifeline's receiving side down and look for a commit.
    Resolve,
    /// Open the gate again; the state is as it was.
    Thaw,
    /// Tell the supervisor that this generation owns the state again.
    TellThawed,
    /// From now on carry operations out in the new generation.
    Yield,
    /// Tell the supervisor that the new generation owns the state.
    TellYielded,
    /// Finish and end.
    Drain,
    /// Tell the supervisor that this generation has taken the state back.
    TellReturned,
    /// Tell the supervisor that this generation never takes the state back.
    TellStoodDown,
    /// Close the gate, start the deadline, and offer the state to the generation in reserve.
    Offer,
}

/// The table: what follows when `event` happens in `state`.
#[must_use]
pub fn step(state: State, event: Event) -> (State, &'static [Action]) {
    use Action::{
        Copy, Drain, EndCopy, Freeze, Offer, Refuse, Resolve, TellConverged, TellFailed,
        TellFrozen, TellReturned, TellStoodDown, TellThawed, TellYielded, Thaw, Yield,
    };
    match state {
        State::Serving => match event {
            Event::Send => (State::Copying, &[Copy]),
            Event::Retire => (State::Serving, &[Drain]),
            // As a migration whose copy is complete: the one in reserve has it all.
            Event::GiveBack => (State::Frozen, &[Offer]),
            // What is left over from a migration that has ended.
            Event::Converged
            | Event::Freeze
            | Event::Complete
            | Event::CompleteRehearsal
            | Event::Broken
            | Event::Abort
            | Event::Deadline
            | Event::Committed
            | Event::PeerGone
            | Event::ResolvedOurs
            | Event::ResolvedTheirs
            | Event::SupervisorGone
            | Event::Follow
            | Event::Returned
            | Event::StoodDown => (State::Serving, &[]),
        },
        State::Copying => match event {
            Event::Send => (State::Copying, &[Refuse]),
            Event::Converged => (State::Converged, &[TellConverged]),
            // Told first: the new one complains of the stream's end as soon as it comes, and what it
            // says is not the reason.
            Event::Broken | Event::PeerGone => (State::Serving, &[TellFailed, EndCopy]),
            Event::Abort | Event::SupervisorGone => (State::Serving, &[EndCopy]),
            Event::Retire => (State::Serving, &[TellFailed, EndCopy, Drain]),
            // A commit cannot be: nothing complete was ever sent.
            Event::Freeze
            | Event::Complete
            | Event::CompleteRehearsal
            | Event::Deadline
            | Event::Committed
            | Event::ResolvedOurs
            | Event::ResolvedTheirs
            | Event::Follow
            | Event::Returned
            | Event::StoodDown
            | Event::GiveBack => (State::Copying, &[]),
        },
        State::Converged => match event {
            Event::Send => (State::Converged, &[Refuse]),
            Event::Freeze => (State::Freezing, &[Freeze]),
            Event::Broken | Event::PeerGone => (State::Serving, &[TellFailed, EndCopy]),
            Event::Abort | Event::SupervisorGone => (State::Serving, &[EndCopy]),
            Event::Retire => (State::Serving, &[TellFailed, EndCopy, Drain]),
            Event::Converged
            | Event::Complete
            | Event::CompleteRehearsal
            | Event::Deadline
            | Event::Committed
            | Event::ResolvedOurs
            | Event::ResolvedTheirs
            | Event::Follow
            | Event::Returned
            | Event::StoodDown
            | Event::GiveBack => (State::Converged, &[]),
        },
        State::Freezing => match event {
            Event::Send => (State::Freezing, &[Refuse]),
            Event::Complete => (State::Frozen, &[TellFrozen]),
            Event::CompleteRehearsal => (State::Rehearsed, &[Thaw, TellFrozen, EndCopy]),
            // Without an end mark there was no commit, but one rule is better than two.
            Event::Broken
            | Event::Abort
            | Event::Deadline
            | Event::PeerGone
            | Event::Retire
            | Event::SupervisorGone => (State::Resolving, &[Resolve]),
            Event::Converged
            | Event::Freeze
            | Event::Committed
            | Event::ResolvedOurs
            | Event::ResolvedTheirs
            | Event::Follow
            | Event::Returned
            | Event::StoodDown
            | Event::GiveBack => (State::Freezing, &[]),
        },
        State::Frozen => match event {
            Event::Send => (State::Frozen, &[Refuse]),
            Event::Committed => (State::Yielded, &[EndCopy, Yield, TellYielded]),
            Event::Abort
            | Event::Broken
            | Event::Deadline
            | Event::PeerGone
            | Event::Retire
            | Event::SupervisorGone => (State::Resolving, &[Resolve]),
            Event::Converged
            | Event::Freeze
            | Event::Complete
            | Event::CompleteRehearsal
            | Event::ResolvedOurs
            | Event::ResolvedTheirs
            | Event::Follow
            | Event::Returned
            | Event::StoodDown
            | Event::GiveBack => (State::Frozen, &[]),
        },
        State::Rehearsed => match event {
            Event::Send => (State::Copying, &[Copy]),
            Event::Retire => (State::Serving, &[Drain]),
            Event::Abort | Event::PeerGone | Event::Broken | Event::SupervisorGone => {
                (State::Serving, &[])
            }
            Event::Converged
            | Event::Freeze
            | Event::Complete
            | Event::CompleteRehearsal
            | Event::Deadline
            | Event::Committed
            | Event::ResolvedOurs
            | Event::ResolvedTheirs
            | Event::Follow
            | Event::Returned
            | Event::StoodDown
            | Event::GiveBack => (State::Rehearsed, &[]),
        },
        State::Resolving => match event {
            Event::Send => (State::Resolving, &[Refuse]),
            // Said before anybody is answered: a supervisor that finds this generation dead, and no word
            // of a thaw, knows that the copy is not out of date.
            Event::ResolvedOurs => (State::Serving, &[TellThawed, Thaw, EndCopy]),
            Event::ResolvedTheirs => (State::Yielded, &[EndCopy, Yield, TellYielded]),
            Event::Converged
            | Event::Freeze
            | Event::Complete
            | Event::CompleteRehearsal
            | Event::Broken
            | Event::Abort
            | Event::Deadline
            | Event::Committed
            | Event::PeerGone
            | Event::Retire
            | Event::SupervisorGone
            | Event::Follow
            | Event::Returned
            | Event::StoodDown
            | Event::GiveBack => (State::Resolving, &[]),
        },
        State::Yielded => match event {
            Event::Send => (State::Yielded, &[Refuse]),
            Event::Retire | Event::SupervisorGone => (State::Yielded, &[Drain]),
            Event::Follow => (State::Reserve, &[]),
            Event::Converged
            | Event::Freeze
            | Event::Complete
            | Event::CompleteRehearsal
            | Event::Broken
            | Event::Abort
            | Event::Deadline
            | Event::Committed
            | Event::PeerGone
            | Event::ResolvedOurs
            | Event::ResolvedTheirs
            | Event::Returned
            | Event::StoodDown
            | Event::GiveBack => (State::Yielded, &[]),
        },
        State::Reserve => match event {
            Event::Send => (State::Reserve, &[Refuse]),
            Event::Returned => (State::Serving, &[TellReturned, Thaw]),
            Event::StoodDown => (State::Yielded, &[TellStoodDown]),
            // What is wanted of it waits until it is clear whether it owns the state.
            Event::Retire
            | Event::SupervisorGone
            | Event::Converged
            | Event::Freeze
            | Event::Complete
            | Event::CompleteRehearsal
            | Event::Broken
            | Event::Abort
            | Event::Deadline
            | Event::Committed
            | Event::PeerGone
            | Event::ResolvedOurs
            | Event::ResolvedTheirs
            | Event::Follow
            | Event::GiveBack => (State::Reserve, &[]),
        },
    }
}

impl State {
    /// Whether this generation may change the state.
    #[must_use]
    pub fn owns(self) -> bool {
        match self {
            Self::Serving | Self::Copying | Self::Converged | Self::Rehearsed => true,
            Self::Freezing | Self::Frozen | Self::Resolving | Self::Yielded | Self::Reserve => {
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 9] = [
        State::Serving,
        State::Copying,
        State::Converged,
        State::Freezing,
        State::Frozen,
        State::Rehearsed,
        State::Resolving,
        State::Yielded,
        State::Reserve,
    ];
    const EVENTS: [Event; 18] = [
        Event::Send,
        Event::Converged,
        Event::Freeze,
        Event::Complete,
        Event::CompleteRehearsal,
        Event::Broken,
        Event::Abort,
        Event::Deadline,
        Event::Committed,
        Event::PeerGone,
        Event::ResolvedOurs,
        Event::ResolvedTheirs,
        Event::Retire,
        Event::SupervisorGone,
        Event::Follow,
        Event::Returned,
        Event::StoodDown,
        Event::GiveBack,
    ];

    /// The whole table once more: a row a state, a column an event in the order of `EVENTS`. `.`
    /// stays; otherwise the next state's letter and, behind it, the actions: c copy, r refuse, v tell
    /// converged, f freeze, z tell frozen, e end the copy, x tell failed, l look at the lifeline,
    /// t thaw, a tell thawed, y yield, w tell yielded, d drain, b tell returned, s tell stood down,
    /// o offer.
    const TABLE: [(State, [&str; 18]); 9] = [
        (
            State::Serving,
            [
                "C:c", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", "S:d", ".", ".", ".",
                ".", "F:o",
            ],
        ),
        (
            State::Copying,
            [
                "C:r", "V:v", ".", ".", ".", "S:xe", "S:e", ".", ".", "S:xe", ".", ".", "S:xed",
                "S:e", ".", ".", ".", ".",
            ],
        ),
        (
            State::Converged,
            [
                "V:r", ".", "G:f", ".", ".", "S:xe", "S:e", ".", ".", "S:xe", ".", ".", "S:xed",
                "S:e", ".", ".", ".", ".",
            ],
        ),
        (
            State::Freezing,
            [
                "G:r", ".", ".", "F:z", "H:tze", "R:l", "R:l", "R:l", ".", "R:l", ".", ".", "R:l",
                "R:l", ".", ".", ".", ".",
            ],
        ),
        (
            State::Frozen,
            [
                "F:r", ".", ".", ".", ".", "R:l", "R:l", "R:l", "Y:eyw", "R:l", ".", ".", "R:l",
                "R:l", ".", ".", ".", ".",
            ],
        ),
        (
            State::Rehearsed,
            [
                "C:c", ".", ".", ".", ".", "S:", "S:", ".", ".", "S:", ".", ".", "S:d", "S:", ".",
                ".", ".", ".",
            ],
        ),
        (
            State::Resolving,
            [
                "R:r", ".", ".", ".", ".", ".", ".", ".", ".", ".", "S:ate", "Y:eyw", ".", ".",
                ".", ".", ".", ".",
            ],
        ),
        (
            State::Yielded,
            [
                "Y:r", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", "Y:d", "Y:d", "B:",
                ".", ".", ".",
            ],
        ),
        (
            State::Reserve,
            [
                "B:r", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".",
                "S:bt", "Y:s", ".",
            ],
        ),
    ];

    fn written(state: State, event: Event) -> String {
        let (next, actions) = step(state, event);
        if next == state && actions.is_empty() {
            return ".".to_owned();
        }
        let letter = match next {
            State::Serving => 'S',
            State::Copying => 'C',
            State::Converged => 'V',
            State::Freezing => 'G',
            State::Frozen => 'F',
            State::Rehearsed => 'H',
            State::Resolving => 'R',
            State::Yielded => 'Y',
            State::Reserve => 'B',
        };
        let actions = actions.iter().map(|action| match action {
            Action::Copy => 'c',
            Action::Refuse => 'r',
            Action::TellConverged => 'v',
            Action::Freeze => 'f',
            Action::TellFrozen => 'z',
            Action::EndCopy => 'e',
            Action::TellFailed => 'x',
            Action::Resolve => 'l',
            Action::Thaw => 't',
            Action::TellThawed => 'a',
            Action::Yield => 'y',
            Action::TellYielded => 'w',
            Action::Drain => 'd',
            Action::TellReturned => 'b',
            Action::TellStoodDown => 's',
            Action::Offer => 'o',
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
    fn the_gate_opens_again_only_where_the_state_is_ours() {
        for state in STATES {
            for event in EVENTS {
                let (next, actions) = step(state, event);
                if !state.owns() && next.owns() {
                    assert!(actions.contains(&Action::Thaw), "{event:?} in {state:?}");
                    let decided = matches!(
                        event,
                        Event::ResolvedOurs | Event::CompleteRehearsal | Event::Returned
                    );
                    assert!(decided, "{event:?} in {state:?} thaws without a look");
                }
                if state.owns() && !next.owns() {
                    let closes =
                        actions.contains(&Action::Freeze) || actions.contains(&Action::Offer);
                    assert!(closes, "{event:?} in {state:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_yielded_comes_back_by_the_way_back_alone() {
        for event in EVENTS {
            assert!(!step(State::Yielded, event).0.owns(), "{event:?}");
            let owns = step(State::Reserve, event).0.owns();
            assert_eq!(owns, event == Event::Returned, "{event:?}");
        }
    }

    #[test]
    fn every_freeze_ends_when_its_deadline_passes() {
        for start in [State::Freezing, State::Frozen] {
            let (next, actions) = step(start, Event::Deadline);
            assert_eq!((next, actions), (State::Resolving, &[Action::Resolve][..]));
        }
    }
}
