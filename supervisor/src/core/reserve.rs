//! One reserve: the process that gave its state away stays, to take it back if the one that has it fails in
//! its probation.
//!
//! A table of every state with every event; no time, no descriptors, no reasons. Who owns the state is not
//! decided here but by the way back between the two ([`heirloom_handover::reserve`]): here it is decided what
//! they are told, and when one of them must not live on.
//!
//! The promise it keeps: whoever hears of the end, hears of it from the one in reserve, or after its death. A
//! process that does not answer is killed before another one is started in its place.

use serde::{Deserialize, Serialize};

/// How far a reserve is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum State {
    /// The old one follows the new one.
    Standing,
    /// The old one was told that it is not needed any more.
    Dismissing,
    /// The new one was told to give the state back.
    Returning,
    /// The old one has taken the state back because the new one is gone, which is still to be seen here.
    Burying,
    /// The new one is dead, or was killed: the old one knows who owns the state.
    Deciding,
    /// It is over.
    Ended,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It is not needed any more.
    Dismiss,
    /// The state is to go back.
    GiveBack,
    /// The new process is dead, or has failed and was killed.
    NewDied,
    /// The old process is dead, and all it said has been heard.
    OldDied,
    /// The old one says that it owns the state.
    Returned,
    /// The old one says that it never will.
    StoodDown,
    /// The new one says that there is no way back any more, or that it keeps the state.
    Lost,
    /// The time for an answer is over.
    Deadline,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Tell the old one that it is not needed any more.
    StandDown,
    /// Tell the new one to give the state back.
    Return,
    /// Kill every process of the new one: the end of the way back comes with the last.
    KillNew,
    /// Kill the old one.
    KillOld,
    /// Start, or restart, the wait whose end is [`Event::Deadline`].
    Allow,
    /// It is over.
    Done(Outcome),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// The new one keeps the state; the old one is not needed any more, or is dead.
    Kept,
    /// The new one has given the state back, and is not needed any more.
    GivenBack,
    /// The new one is dead, and the old one has taken the state back.
    Returned,
    /// The new one is dead, and the state with it.
    Fallen,
}

const KEPT: (State, &[Action]) = (State::Ended, &[Action::Done(Outcome::Kept)]);
const FALLEN: (State, &[Action]) = (State::Ended, &[Action::Done(Outcome::Fallen)]);
const RETURNED: (State, &[Action]) = (State::Ended, &[Action::Done(Outcome::Returned)]);
const DISMISS: (State, &[Action]) = (State::Dismissing, &[Action::StandDown, Action::Allow]);
const DECIDE: (State, &[Action]) = (State::Deciding, &[Action::KillNew, Action::Allow]);
const BURY: (State, &[Action]) = (State::Burying, &[Action::KillNew, Action::Allow]);

/// The table: what follows when `event` happens in `state`.
pub(crate) fn step(state: State, event: Event) -> (State, &'static [Action]) {
    let stay: (State, &'static [Action]) = (state, &[]);
    match state {
        State::Standing => match event {
            Event::Dismiss | Event::Lost => DISMISS,
            Event::GiveBack => (State::Returning, &[Action::Return, Action::Allow]),
            Event::NewDied => DECIDE,
            Event::OldDied | Event::StoodDown => KEPT,
            Event::Returned => BURY,
            Event::Deadline => stay,
        },
        State::Dismissing => match event {
            Event::NewDied => DECIDE,
            Event::OldDied | Event::StoodDown => KEPT,
            Event::Returned => BURY,
            Event::Deadline => (
                State::Ended,
                &[Action::KillOld, Action::Done(Outcome::Kept)],
            ),
            Event::Dismiss | Event::GiveBack | Event::Lost => stay,
        },
        State::Returning => match event {
            Event::Returned => (State::Ended, &[Action::Done(Outcome::GivenBack)]),
            // Which of the two has it only the old one can say.
            Event::NewDied | Event::Deadline => DECIDE,
            Event::OldDied | Event::StoodDown => KEPT,
            Event::Lost => DISMISS,
            Event::Dismiss | Event::GiveBack => stay,
        },
        State::Burying => match event {
            Event::NewDied | Event::Deadline => RETURNED,
            Event::OldDied => FALLEN,
            Event::Dismiss | Event::GiveBack | Event::Returned | Event::StoodDown | Event::Lost => {
                stay
            }
        },
        State::Deciding => match event {
            Event::Returned => RETURNED,
            Event::OldDied | Event::StoodDown => FALLEN,
            Event::Deadline => (
                State::Ended,
                &[Action::KillOld, Action::Done(Outcome::Fallen)],
            ),
            Event::Dismiss | Event::GiveBack | Event::NewDied | Event::Lost => stay,
        },
        State::Ended => match event {
            Event::Dismiss
            | Event::GiveBack
            | Event::NewDied
            | Event::OldDied
            | Event::Returned
            | Event::StoodDown
            | Event::Lost
            | Event::Deadline => stay,
        },
    }
}

/// What a supervisor does that finds a reserve in this state, for it cannot know whether it was done: the
/// one before it may have died first. Either does nothing where it was.
pub(crate) fn resumed(state: State) -> &'static [Action] {
    match state {
        State::Standing | State::Ended => &[],
        State::Dismissing => &[Action::StandDown, Action::Allow],
        // The new one refuses a second order, which would mean that it keeps the state: if there was none,
        // the time for an answer passes.
        State::Returning => &[Action::Allow],
        State::Burying | State::Deciding => &[Action::KillNew, Action::Allow],
    }
}

#[cfg(test)]
mod explored;

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 6] = [
        State::Standing,
        State::Dismissing,
        State::Returning,
        State::Burying,
        State::Deciding,
        State::Ended,
    ];
    const EVENTS: [Event; 8] = [
        Event::Dismiss,
        Event::GiveBack,
        Event::NewDied,
        Event::OldDied,
        Event::Returned,
        Event::StoodDown,
        Event::Lost,
        Event::Deadline,
    ];

    /// The whole table once more: a row a state, a column an event in the order of `EVENTS`. `.` stays;
    /// otherwise the next state's letter and, behind it, the actions: s stand down, r return, n kill the new
    /// one, o kill the old one, a allow, K G R F the outcome.
    const TABLE: [(State, [&str; 8]); 6] = [
        (
            State::Standing,
            ["D:sa", "T:ra", "C:na", "E:K", "B:na", "E:K", "D:sa", "."],
        ),
        (
            State::Dismissing,
            [".", ".", "C:na", "E:K", "B:na", "E:K", ".", "E:oK"],
        ),
        (
            State::Returning,
            [".", ".", "C:na", "E:K", "E:G", "E:K", "D:sa", "C:na"],
        ),
        (
            State::Burying,
            [".", ".", "E:R", "E:F", ".", ".", ".", "E:R"],
        ),
        (
            State::Deciding,
            [".", ".", ".", "E:F", "E:R", "E:F", ".", "E:oF"],
        ),
        (State::Ended, ["."; 8]),
    ];

    fn written(state: State, event: Event) -> String {
        let (next, actions) = step(state, event);
        if next == state && actions.is_empty() {
            return ".".to_owned();
        }
        let letter = match next {
            State::Standing => 'S',
            State::Dismissing => 'D',
            State::Returning => 'T',
            State::Burying => 'B',
            State::Deciding => 'C',
            State::Ended => 'E',
        };
        let actions = actions.iter().map(|action| match action {
            Action::StandDown => 's',
            Action::Return => 'r',
            Action::KillNew => 'n',
            Action::KillOld => 'o',
            Action::Allow => 'a',
            Action::Done(Outcome::Kept) => 'K',
            Action::Done(Outcome::GivenBack) => 'G',
            Action::Done(Outcome::Returned) => 'R',
            Action::Done(Outcome::Fallen) => 'F',
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
    fn whoever_waits_for_an_answer_has_a_deadline_and_comes_to_an_end() {
        for state in STATES {
            for event in EVENTS {
                let (next, actions) = step(state, event);
                let waits = !matches!(next, State::Standing | State::Ended);
                if waits && next != state {
                    assert!(actions.contains(&Action::Allow), "{event:?} in {state:?}");
                }
            }
            let mut at = state;
            for _ in 0..2 {
                at = step(at, Event::Deadline).0;
            }
            assert!(matches!(at, State::Standing | State::Ended), "{state:?}");
        }
    }

    #[test]
    fn the_old_one_is_the_service_only_if_it_says_so() {
        for state in STATES {
            for event in EVENTS {
                for action in step(state, event).1 {
                    let Action::Done(outcome) = action else {
                        continue;
                    };
                    let back = matches!(outcome, Outcome::Returned | Outcome::GivenBack);
                    let said = event == Event::Returned || state == State::Burying;
                    assert!(!back || said, "{event:?} in {state:?}");
                }
            }
        }
    }
}
