//! The state machine of the way back, at its reading end: the generation in reserve.
//!
//! A table of every state with every event, and nothing else; see [`crate::source`] for what the generation
//! does besides, and [`crate::way_back`] for the calls.
//!
//! The promise it keeps: it owns the state only when nobody can change it elsewhere any more, and every change
//! that was acknowledged has been read. A time that has passed never leads there: only the end of what can be
//! read does, which the system tells when the last process that could write is gone, or an offer of the
//! writer's that it was told is taken.

/// Where the reading end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It follows the changes of the generation that owns the state.
    Following,
    /// The other one offers the state; the last changes are still to be read.
    Offered,
    /// The other one is gone; its last changes are still to be read.
    Orphaned,
    /// All changes are read, and it is open why there are no more.
    Ended,
    /// It says that it takes the offer.
    Accepting,
    /// That was refused: the other one has thought better of it, or is gone.
    Doubting,
    /// It owns the state.
    Ours,
    /// It never owns the state any more.
    Over,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// All records are read and applied, and nobody can write another.
    RecordsEnd,
    /// A record makes no sense, or cannot be applied.
    Unusable,
    /// The fate says that there is no way back any more.
    Lost,
    /// The fate says that the state is offered.
    Offer,
    /// The fate is closed at the other end, and all that was said is read.
    FateEnd,
    /// What takes the offer is in the other one's queue.
    Queued,
    /// It was refused.
    Refused,
    /// The supervisor needs no reserve any more, or nobody has for too long.
    StandDown,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Say on the fate that the offer is taken.
    Accept,
    /// The state is this generation's.
    Own,
    /// Close the way back.
    Leave,
}

/// The table: what follows when `event` happens in `state`.
#[must_use]
pub fn step(state: State, event: Event) -> (State, &'static [Action]) {
    use Action::{Accept, Leave, Own};
    let over: (State, &'static [Action]) = (State::Over, &[Leave]);
    let stay: (State, &'static [Action]) = (state, &[]);
    match state {
        State::Following => match event {
            Event::RecordsEnd => (State::Ended, &[]),
            Event::Offer => (State::Offered, &[]),
            Event::FateEnd => (State::Orphaned, &[]),
            Event::Unusable | Event::Lost | Event::StandDown => over,
            Event::Queued | Event::Refused => stay,
        },
        State::Offered => match event {
            Event::RecordsEnd => (State::Accepting, &[Accept]),
            Event::FateEnd => (State::Orphaned, &[]),
            Event::Unusable | Event::Lost | Event::StandDown => over,
            Event::Offer | Event::Queued | Event::Refused => stay,
        },
        State::Orphaned => match event {
            Event::RecordsEnd => (State::Ours, &[Own]),
            Event::Unusable | Event::Lost | Event::StandDown => over,
            Event::Offer | Event::FateEnd | Event::Queued | Event::Refused => stay,
        },
        State::Ended => match event {
            Event::Offer => (State::Accepting, &[Accept]),
            Event::FateEnd => (State::Ours, &[Own]),
            Event::Unusable | Event::Lost | Event::StandDown => over,
            Event::RecordsEnd | Event::Queued | Event::Refused => stay,
        },
        State::Accepting => match event {
            Event::Queued => (State::Ours, &[Own]),
            Event::Refused => (State::Doubting, &[]),
            // It may be in the queue already: only the answer of the fate counts now.
            Event::RecordsEnd
            | Event::Unusable
            | Event::Lost
            | Event::Offer
            | Event::FateEnd
            | Event::StandDown => stay,
        },
        State::Doubting => match event {
            Event::FateEnd => (State::Ours, &[Own]),
            Event::Lost | Event::StandDown => over,
            Event::RecordsEnd | Event::Unusable | Event::Offer | Event::Queued | Event::Refused => {
                stay
            }
        },
        State::Ours | State::Over => match event {
            Event::RecordsEnd
            | Event::Unusable
            | Event::Lost
            | Event::Offer
            | Event::FateEnd
            | Event::Queued
            | Event::Refused
            | Event::StandDown => stay,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 8] = [
        State::Following,
        State::Offered,
        State::Orphaned,
        State::Ended,
        State::Accepting,
        State::Doubting,
        State::Ours,
        State::Over,
    ];
    const EVENTS: [Event; 8] = [
        Event::RecordsEnd,
        Event::Unusable,
        Event::Lost,
        Event::Offer,
        Event::FateEnd,
        Event::Queued,
        Event::Refused,
        Event::StandDown,
    ];

    /// The whole table once more: a row a state, a column an event in the order of `EVENTS`. `.` stays;
    /// otherwise the next state's letter and, behind it, the actions: a accept, o own, l leave.
    const TABLE: [(State, [&str; 8]); 8] = [
        (
            State::Following,
            ["E:", "X:l", "X:l", "F:", "P:", ".", ".", "X:l"],
        ),
        (
            State::Offered,
            ["A:a", "X:l", "X:l", ".", "P:", ".", ".", "X:l"],
        ),
        (
            State::Orphaned,
            ["O:o", "X:l", "X:l", ".", ".", ".", ".", "X:l"],
        ),
        (
            State::Ended,
            [".", "X:l", "X:l", "A:a", "O:o", ".", ".", "X:l"],
        ),
        (
            State::Accepting,
            [".", ".", ".", ".", ".", "O:o", "D:", "."],
        ),
        (
            State::Doubting,
            [".", ".", "X:l", ".", "O:o", ".", ".", "X:l"],
        ),
        (State::Ours, ["."; 8]),
        (State::Over, ["."; 8]),
    ];

    fn written(state: State, event: Event) -> String {
        let (next, actions) = step(state, event);
        if next == state && actions.is_empty() {
            return ".".to_owned();
        }
        let letter = match next {
            State::Following => 'W',
            State::Offered => 'F',
            State::Orphaned => 'P',
            State::Ended => 'E',
            State::Accepting => 'A',
            State::Doubting => 'D',
            State::Ours => 'O',
            State::Over => 'X',
        };
        let actions = actions.iter().map(|action| match action {
            Action::Accept => 'a',
            Action::Own => 'o',
            Action::Leave => 'l',
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
    fn it_owns_the_state_after_the_last_record_and_when_the_other_one_cannot_and_never_again_if_not()
     {
        for state in STATES {
            for event in EVENTS {
                let (next, actions) = step(state, event);
                if next == State::Ours && state != State::Ours {
                    assert_eq!(actions, [Action::Own]);
                    let gone_first = (state, event) == (State::Orphaned, Event::RecordsEnd);
                    let gone_last =
                        event == Event::FateEnd && matches!(state, State::Ended | State::Doubting);
                    let taken = (state, event) == (State::Accepting, Event::Queued);
                    assert!(
                        gone_first || gone_last || taken,
                        "{event:?} in {state:?} owns the state"
                    );
                }
                if matches!(state, State::Ours | State::Over) {
                    assert_eq!(next, state);
                }
            }
        }
    }
}
