//! A log arrives as it was, whatever is added while it is copied.

use futures_util::FutureExt;
use heirloom_state_codec::{Context, State as Schema, Step, StepError};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::Log;
use crate::state::{
    State,
    testing::{Relay, least},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Schema)]
#[state(name = "line", version = 1, oldest)]
struct Line1 {
    number: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Schema)]
#[state(name = "line", version = 2)]
struct Line2 {
    number: u64,
    mark: bool,
}

impl Step for Line2 {
    type Older = Line1;
    type Attic = bool;

    fn up(old: Line1, attic: Option<bool>, _: &mut Context) -> Result<Self, StepError> {
        Ok(Self {
            number: old.number,
            mark: attic.unwrap_or(false),
        })
    }

    fn down(self, _: &mut Context) -> Result<(Line1, Option<bool>), StepError> {
        let old = Line1 {
            number: self.number,
        };
        Ok((old, self.mark.then_some(true)))
    }
}

fn now<T>(operation: impl Future<Output = T>) -> T {
    operation.now_or_never().expect("the gate is open")
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Push(u8),
    Slice,
    Anew,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        5 => (1_u8..40).prop_map(Act::Push),
        4 => Just(Act::Slice),
        1 => Just(Act::Anew),
    ];
    proptest::collection::vec(act, 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_log_goes_to_an_older_program_and_comes_back(acts in acts()) {
        let states = [State::new(), State::new(), State::new()];
        let source: Log<Line2> = Log::new(&states[0], "lines");
        let older: Log<Line1> = Log::new(&states[1], "lines");
        let back: Log<Line2> = Log::new(&states[2], "lines");
        let mut relay = Relay::begin(&source, &older, true);
        let mut number = 0;
        for act in acts {
            match act {
                Act::Push(count) => for _ in 0..count {
                    let line = Line2 { number, mark: number % 3 == 0 };
                    prop_assert_eq!(now(source.push(line)).unwrap(), number);
                    number += 1;
                },
                Act::Slice => relay.slice(&least()).unwrap(),
                Act::Anew => relay = Relay::begin(&source, &older, true),
            }
        }
        relay.finish().unwrap();
        // One more, by the program that does not know the mark.
        prop_assert_eq!(now(older.push(Line1 { number })).unwrap(), number);
        crate::state::testing::copy(&older, &back, true);
        let marks = now(back.range(0..u64::MAX)).unwrap();
        let expected: Vec<_> = (0..number)
            .map(|number| Line2 { number, mark: number % 3 == 0 })
            .chain([Line2 { number, mark: false }])
            .collect();
        prop_assert_eq!(marks, expected);
    }
}

#[test]
fn a_range_is_cut_at_what_there_is() {
    let state = State::new();
    let log: Log<Line1> = Log::new(&state, "lines");
    for number in 0..5 {
        now(log.push(Line1 { number })).unwrap();
    }
    let numbers = |range| -> Vec<u64> {
        let lines = now(log.range(range)).unwrap();
        lines.into_iter().map(|line: Line1| line.number).collect()
    };
    assert_eq!(numbers(1..3), [1, 2]);
    assert_eq!(numbers(3..u64::MAX), [3, 4]);
    assert!(numbers(7..9).is_empty());
    #[expect(clippy::reversed_empty_ranges, reason = "an app may compute one")]
    let reversed = numbers(4..2);
    assert!(reversed.is_empty());
    assert_eq!(now(log.get(4)).unwrap(), Some(Line1 { number: 4 }));
    assert_eq!(now(log.get(u64::MAX)).unwrap(), None);
}
