//! How one client sees that each of its writes is there once. Pure.
//!
//! Its counter is its own, so each answer is the number of its writes so far: one more than the last, and
//! one more again at most for each write of which it never heard.

/// What a client knows of its counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sequence {
    last: Option<u64>,
    unknown: u64,
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Everything is there, once.
    Right,
    /// So many writes that were acknowledged are gone.
    Gone(u64),
    /// So many are there that nobody made.
    TooMany(u64),
}

impl Sequence {
    /// A write was sent, and its answer did not come.
    pub(crate) fn unknown(&mut self) {
        self.unknown += 1;
    }

    /// The answer to a write. What follows is judged by it, whatever it meant.
    pub(crate) fn heard(&mut self, value: u64) -> Heard {
        let heard = match self.last {
            // What was there before is the program's.
            None => Heard::Right,
            Some(last) => {
                let least = last + 1;
                let most = least + self.unknown;
                if value < least {
                    Heard::Gone(least - value)
                } else if value > most {
                    Heard::TooMany(value - most)
                } else {
                    Heard::Right
                }
            }
        };
        *self = Self {
            last: Some(value),
            unknown: 0,
        };
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_is_gone_or_there_twice_is_noticed() {
        let mut sequence = Sequence::default();
        assert_eq!(sequence.heard(41), Heard::Right);
        assert_eq!(sequence.heard(42), Heard::Right);
        assert_eq!(sequence.heard(44), Heard::TooMany(1));
        assert_eq!(sequence.heard(44), Heard::Gone(1));
        assert_eq!(sequence.heard(1), Heard::Gone(44));
        assert_eq!(sequence.heard(2), Heard::Right);
    }

    #[test]
    fn a_write_without_an_answer_may_be_there_or_not() {
        let mut both = Sequence::default();
        both.heard(1);
        both.unknown();
        both.unknown();
        let mut none = both;
        assert_eq!(both.heard(4), Heard::Right);
        assert_eq!(none.heard(2), Heard::Right);
        none.unknown();
        assert_eq!(none.heard(5), Heard::TooMany(1));
        none.unknown();
        none.heard(6);
        // What came late may not come twice.
        assert_eq!(none.heard(8), Heard::TooMany(1));
    }
}
