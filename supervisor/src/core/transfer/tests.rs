//! The table once more, and the promises it keeps in every history.

use proptest::prelude::*;

use super::*;

const STATES: [State; 10] = [
    State::Copying,
    State::Freezing,
    State::Frozen,
    State::Verified,
    State::Orphaned,
    State::Committing,
    State::Yielded,
    State::Alone,
    State::Resolving,
    State::Ended,
];
const EVENTS: [Event; 15] = [
    Event::Converged,
    Event::Frozen,
    Event::Ready,
    Event::Reject,
    Event::Failed,
    Event::Thawed,
    Event::Yielded,
    Event::Committed,
    Event::OldDied,
    Event::NewDied,
    Event::OldDeaf,
    Event::NewDeaf,
    Event::Timeout,
    Event::Deadline,
    Event::Cancel,
];

/// The table of a handover: a row a state, a column an event in the order of `EVENTS`. `.` stays;
/// otherwise the next state's letter and, behind it, the actions: f freeze, c commit, a commit alone,
/// o abort the old one, n abort the new one, k kill the new one, d allow the deadline's time; and
/// the outcome: C committed, R rehearsed, A aborted, F fallen.
const TABLE: [(State, [&str; 15]); 10] = [
    (
        State::Copying,
        [
            "G:fd", "E:onA", "E:onA", "E:onA", "E:onA", "E:onA", "E:onA", "E:koA", "E:nA", "E:oA",
            "E:nA", "E:oA", "E:onA", ".", "E:onA",
        ],
    ),
    (
        State::Freezing,
        [
            ".", "F:", "V:", "E:onA", "E:onA", "E:nA", "Y:d", "R:kod", "O:", "E:oA", ".", "E:oA",
            "E:onA", "E:onA", "E:onA",
        ],
    ),
    (
        State::Frozen,
        [
            ".", ".", "M:cd", "E:onA", "E:onA", "E:nA", "Y:d", "R:kod", "O:", "E:oA", ".", "E:oA",
            "E:onA", "E:onA", "E:onA",
        ],
    ),
    (
        State::Verified,
        [
            ".", "M:cd", ".", "E:onA", "E:onA", "E:nA", "Y:d", "R:kod", "L:ad", "E:oA", ".",
            "E:oA", "E:onA", "E:onA", "E:onA",
        ],
    ),
    (
        State::Orphaned,
        [
            ".", ".", "L:ad", "E:nA", "E:nA", "E:nA", "Y:d", "E:koA", ".", "E:A", ".", "E:nA",
            "E:nA", "E:nA", "E:nA",
        ],
    ),
    (
        State::Committing,
        [
            ".", ".", ".", "R:kod", ".", "E:nA", "Y:", "E:C", "L:ad", "R:od", ".", "R:kod",
            "R:kod", "R:kod", "R:kod",
        ],
    ),
    (
        State::Yielded,
        [
            ".", ".", ".", "E:kF", ".", ".", ".", "E:C", ".", "E:F", ".", "E:kF", "E:kF", "E:kF",
            "E:kF",
        ],
    ),
    (
        State::Alone,
        [
            ".", ".", ".", "E:koA", ".", ".", ".", "E:C", ".", "E:A", ".", "E:koA", "E:koA",
            "E:koA", "E:koA",
        ],
    ),
    (
        State::Resolving,
        [
            ".", ".", ".", ".", ".", "E:A", "E:F", "E:F", "E:A", ".", ".", ".", ".", "E:A", ".",
        ],
    ),
    (
        State::Ended,
        [
            ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".", ".",
        ],
    ),
];

/// Where a rehearsal differs.
const REHEARSAL: [(State, Event, &str); 5] = [
    (State::Frozen, Event::Ready, "E:onR"),
    (State::Verified, Event::Frozen, "E:onR"),
    (State::Freezing, Event::OldDied, "E:nA"),
    (State::Frozen, Event::OldDied, "E:nA"),
    (State::Verified, Event::OldDied, "E:nA"),
];

fn written(purpose: Purpose, state: State, event: Event) -> String {
    let (next, actions) = step(purpose, state, event);
    if next == state && actions.is_empty() {
        return ".".to_owned();
    }
    let letter = match next {
        State::Copying => 'K',
        State::Freezing => 'G',
        State::Frozen => 'F',
        State::Verified => 'V',
        State::Orphaned => 'O',
        State::Committing => 'M',
        State::Yielded => 'Y',
        State::Alone => 'L',
        State::Resolving => 'R',
        State::Ended => 'E',
    };
    let actions = actions.iter().map(|action| match action {
        Action::Freeze => 'f',
        Action::Commit => 'c',
        Action::CommitAlone => 'a',
        Action::AbortOld => 'o',
        Action::AbortNew => 'n',
        Action::KillNew => 'k',
        Action::Allow => 'd',
        Action::Done(Outcome::Committed) => 'C',
        Action::Done(Outcome::Rehearsed) => 'R',
        Action::Done(Outcome::Aborted) => 'A',
        Action::Done(Outcome::Fallen) => 'F',
    });
    format!("{letter}:{}", actions.collect::<String>())
}

#[test]
fn every_state_with_every_event() {
    for (state, row) in TABLE {
        for (event, expected) in EVENTS.into_iter().zip(row) {
            let of_handover = written(Purpose::Handover, state, event);
            assert_eq!(of_handover, expected, "{event:?} in {state:?}");
            let differs = REHEARSAL
                .iter()
                .find(|(of, with, _)| (*of, *with) == (state, event));
            let expected = differs.map_or(expected, |(.., differs)| differs);
            let of_rehearsal = written(Purpose::Rehearsal, state, event);
            assert_eq!(
                of_rehearsal, expected,
                "{event:?} in {state:?} of a rehearsal"
            );
        }
    }
}

#[test]
fn it_ends_exactly_when_it_says_so() {
    for purpose in [Purpose::Handover, Purpose::Rehearsal] {
        for state in STATES {
            for event in EVENTS {
                let (next, actions) = step(purpose, state, event);
                let ends = state != State::Ended && next == State::Ended;
                let done = actions
                    .iter()
                    .filter(|action| matches!(action, Action::Done(_)));
                assert_eq!(done.count(), usize::from(ends), "{event:?} in {state:?}");
            }
        }
    }
}

#[test]
fn a_deadline_ends_every_state_in_which_the_state_may_stand_still() {
    for start in STATES {
        let mut state = start;
        for _ in 0..3 {
            state = step(Purpose::Handover, state, Event::Deadline).0;
        }
        let runs_on = start == State::Copying;
        assert_eq!(state == State::Ended, !runs_on, "from {start:?}");
    }
}

/// After a commit was ordered, what came of it follows from what was said of the lifeline.
fn judge(events: &[Event]) -> Result<(), TestCaseError> {
    let (mut state, mut ordered, mut alone) = (State::Copying, false, false);
    for event in events {
        let (next, actions) = step(Purpose::Handover, state, *event);
        ordered |= actions.contains(&Action::Commit);
        alone |= actions.contains(&Action::CommitAlone);
        if actions.contains(&Action::Commit) || actions.contains(&Action::CommitAlone) {
            // It has said that it verified all of it.
            let said = events.contains(&Event::Ready);
            prop_assert!(said);
        }
        for action in actions {
            let Action::Done(outcome) = action else {
                continue;
            };
            match outcome {
                Outcome::Committed => {
                    prop_assert_eq!(*event, Event::Committed);
                    prop_assert!(ordered || alone || events.contains(&Event::Yielded));
                }
                Outcome::Fallen => {
                    let known = events.contains(&Event::Yielded);
                    prop_assert!(known || events.contains(&Event::Committed));
                }
                Outcome::Aborted if ordered && !alone => {
                    let knows = matches!(event, Event::Thawed | Event::OldDied | Event::Deadline);
                    prop_assert!(knows, "{event:?} decided");
                }
                Outcome::Aborted | Outcome::Rehearsed => {}
            }
        }
        state = next;
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_history_keeps_the_promises(
        events in proptest::collection::vec(proptest::sample::select(EVENTS.to_vec()), 0..12),
    ) {
        judge(&events)?;
        // The usual beginning leads further than chance alone would.
        let begun = [Event::Converged, Event::Frozen, Event::Ready];
        judge(&[&begun[..], &events].concat())?;
    }
}
