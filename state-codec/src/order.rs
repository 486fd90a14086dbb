//! The order of frames, as one rule that writer and reader both ask.
//!
//! `bulk | delta | reference`* with round ends 0, 1, 2 … between them, one freeze, then end. Bulk
//! comes before round end 0 only; round ends come before the freeze only; nothing comes behind end
//! or abort.

use crate::frame::FrameKind;

/// A frame came at a point where it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderDefect {
    /// Bulk belongs to the base.
    #[error("a bulk frame after the base has ended")]
    BulkAfterBase,
    /// Rounds count up by one.
    #[error("round end {found} where {expected} should come")]
    Round {
        /// The number that should come.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// Rounds end with the freeze.
    #[error("a round end after the freeze")]
    RoundAfterFreeze,
    /// The freeze comes once and tells the number of rounds.
    #[error("a second freeze, or one with a wrong number of rounds")]
    Freeze,
    /// A snapshot is of one instant, so it needs a freeze.
    #[error("an end without a freeze")]
    EndBeforeFreeze,
    /// End and abort are last.
    #[error("a frame after the end mark or an abort")]
    AfterEnd,
}

/// How far a stream has come.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Order {
    rounds: u32,
    frozen: bool,
    ended: bool,
}

impl Order {
    /// Admits a frame. `round` is the number that a round end or a freeze bears.
    pub(crate) fn admit(&mut self, kind: FrameKind, round: u32) -> Result<(), OrderDefect> {
        if self.ended {
            return Err(OrderDefect::AfterEnd);
        }
        match kind {
            FrameKind::Bulk if self.rounds > 0 => return Err(OrderDefect::BulkAfterBase),
            FrameKind::Bulk | FrameKind::Delta | FrameKind::Memfd | FrameKind::Connection => {}
            FrameKind::RoundEnd if self.frozen => return Err(OrderDefect::RoundAfterFreeze),
            FrameKind::RoundEnd => {
                let next = self.rounds.checked_add(1).filter(|_| round == self.rounds);
                let expected = self.rounds;
                self.rounds = next.ok_or(OrderDefect::Round {
                    expected,
                    found: round,
                })?;
            }
            FrameKind::Freeze if self.frozen || round != self.rounds => {
                return Err(OrderDefect::Freeze);
            }
            FrameKind::Freeze => self.frozen = true,
            FrameKind::End if !self.frozen => return Err(OrderDefect::EndBeforeFreeze),
            FrameKind::End | FrameKind::Abort => self.ended = true,
        }
        Ok(())
    }

    /// Round ends so far.
    pub(crate) fn rounds(self) -> u32 {
        self.rounds
    }

    /// True once the freeze has come.
    pub(crate) fn is_frozen(self) -> bool {
        self.frozen
    }

    /// True once end or abort has come.
    pub(crate) fn is_ended(self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::FrameKind::{Abort, Bulk, Connection, Delta, End, Freeze, Memfd, RoundEnd};
    use super::*;

    fn run(frames: &[(FrameKind, u32)]) -> Result<(), OrderDefect> {
        let mut order = Order::default();
        frames
            .iter()
            .try_for_each(|&(kind, round)| order.admit(kind, round))
    }

    #[test]
    fn both_ways_to_take_a_snapshot_are_in_order() {
        let stop_and_copy = [
            (Freeze, 0),
            (Bulk, 0),
            (Memfd, 0),
            (Connection, 0),
            (End, 0),
        ];
        assert_eq!(run(&stop_and_copy), Ok(()));
        let pre_copy = [
            (Bulk, 0),
            (Delta, 0),
            (RoundEnd, 0),
            (Delta, 0),
            (RoundEnd, 1),
            (Freeze, 2),
            (Delta, 0),
            (End, 0),
        ];
        assert_eq!(run(&pre_copy), Ok(()));
        assert_eq!(run(&[(Bulk, 0), (Abort, 0)]), Ok(()));
    }

    #[test]
    fn every_rule_is_enforced() {
        assert_eq!(
            run(&[(RoundEnd, 0), (Bulk, 0)]),
            Err(OrderDefect::BulkAfterBase)
        );
        assert_eq!(
            run(&[(RoundEnd, 1)]),
            Err(OrderDefect::Round {
                expected: 0,
                found: 1
            })
        );
        assert_eq!(
            run(&[(Freeze, 0), (RoundEnd, 0)]),
            Err(OrderDefect::RoundAfterFreeze)
        );
        assert_eq!(run(&[(Freeze, 0), (Freeze, 0)]), Err(OrderDefect::Freeze));
        assert_eq!(run(&[(Freeze, 1)]), Err(OrderDefect::Freeze));
        assert_eq!(run(&[(End, 0)]), Err(OrderDefect::EndBeforeFreeze));
        for kind in FrameKind::ALL {
            assert_eq!(run(&[(Abort, 0), (kind, 0)]), Err(OrderDefect::AfterEnd));
            assert_eq!(
                run(&[(Freeze, 0), (End, 0), (kind, 0)]),
                Err(OrderDefect::AfterEnd)
            );
        }
    }
}
