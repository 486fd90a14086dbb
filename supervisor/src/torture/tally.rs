//! What was lost, and what had to be. Pure.
//!
//! A process that is killed takes along what it alone had: the requests it was at, the connections it held,
//! the state if nobody else had it. That is *cut*. All else that a client misses is *lost*, and whoever
//! promises that nothing is lost must answer for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::dice::{Deed, Target};

/// Why a client did not get what it wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The connection was refused.
    Refused,
    /// It was reset.
    Reset,
    /// It was closed in place of an answer.
    Unanswered,
    /// It was closed within the answer.
    CutShort,
    /// There was no answer in time.
    TimedOut,
    /// The answer said that the program could not do it.
    BadStatus,
    /// The answer made no sense.
    Malformed,
    /// A connection was closed between two requests, or an answer said that it would be.
    Closed,
    /// Writes that had been acknowledged are gone.
    WritesGone,
    /// Writes are there that nobody made.
    WritesTooMany,
}

impl Cause {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Unanswered => "closed-instead-of-an-answer",
            Self::CutShort => "closed-within-an-answer",
            Self::TimedOut => "timed-out",
            Self::BadStatus => "bad-status",
            Self::Malformed => "malformed",
            Self::Closed => "closed",
            Self::WritesGone => "writes-gone",
            Self::WritesTooMany => "writes-too-many",
        }
    }
}

/// Something that a client missed. Times count from the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Miss {
    pub(crate) at: Duration,
    pub(crate) cause: Cause,
    /// The client's port, and since when it is this connection's; none if there never was one.
    pub(crate) connection: Option<(u16, Duration)>,
    /// How much of it: writes are counted, all else is one.
    pub(crate) count: u64,
    /// For people.
    pub(crate) text: String,
}

/// What a process was to the state when something was done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Custody {
    /// Another owned it.
    NotOwner,
    /// It owned it, and another took it back: what was asked of it in that instant is open.
    Owner,
    /// It was the only one that had it.
    Alone,
}

impl Custody {
    fn owned(self) -> bool {
        match self {
            Self::NotOwner => false,
            Self::Owner | Self::Alone => true,
        }
    }
}

/// Something that was done to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Harm {
    pub(crate) at: Duration,
    /// When the service was whole again.
    pub(crate) until: Duration,
    pub(crate) handover: u64,
    pub(crate) generation: u64,
    pub(crate) deed: Deed,
    pub(crate) target: Target,
    /// Ports of the clients whose connections it held.
    pub(crate) ports: BTreeSet<u16>,
    /// Whether it died of it: one that was stopped may have been killed for that.
    pub(crate) died: bool,
    /// What it was to the state.
    pub(crate) custody: Custody,
}

/// Which loss it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It went with a process that was killed.
    Cut,
    Lost,
}

/// Judges one miss.
pub(crate) fn judge(miss: &Miss, harms: &[Harm]) -> Judgement {
    let explained = harms
        .iter()
        .filter(|harm| harm.died && harm.at <= miss.at)
        .any(|harm| {
            let held = miss
                .connection
                .is_some_and(|(port, since)| since <= harm.at && harm.ports.contains(&port));
            // A request that has the owner do something, or asks for a state that is gone, can only say so.
            let orphaned = harm.custody.owned() && miss.at <= harm.until;
            match miss.cause {
                Cause::Reset | Cause::Unanswered | Cause::CutShort => held,
                Cause::BadStatus | Cause::Closed => held || orphaned,
                // A client with a long pause hears of it late.
                Cause::WritesGone => harm.custody == Custody::Alone,
                // Whoever dies, the port is open, nobody invents writes, and a request that nobody is at waits.
                Cause::Refused | Cause::TimedOut | Cause::Malformed | Cause::WritesTooMany => false,
            }
        });
    if explained {
        Judgement::Cut
    } else {
        Judgement::Lost
    }
}

/// Misses, by what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) requests_cut: u64,
    pub(crate) requests_lost: u64,
    pub(crate) closed_cut: u64,
    pub(crate) closed: u64,
    pub(crate) writes_cut: u64,
    pub(crate) writes_lost: u64,
    /// What is lost or cut, by cause.
    pub(crate) lost: BTreeMap<Cause, u64>,
    pub(crate) cut: BTreeMap<Cause, u64>,
    /// The first that was lost.
    pub(crate) first: Option<Miss>,
}

impl Tally {
    /// Judges all of them. With `strict` a connection that is closed counts as lost.
    pub(crate) fn new(misses: &[Miss], harms: &[Harm], strict: bool) -> Self {
        let mut tally = Self::default();
        for miss in misses {
            let judgement = judge(miss, harms);
            let (by_cause, sum) = match judgement {
                Judgement::Cut => (
                    &mut tally.cut,
                    match miss.cause {
                        Cause::Closed => &mut tally.closed_cut,
                        Cause::WritesGone | Cause::WritesTooMany => &mut tally.writes_cut,
                        _of_a_request => &mut tally.requests_cut,
                    },
                ),
                Judgement::Lost => (
                    &mut tally.lost,
                    match miss.cause {
                        Cause::Closed => &mut tally.closed,
                        Cause::WritesGone | Cause::WritesTooMany => &mut tally.writes_lost,
                        _of_a_request => &mut tally.requests_lost,
                    },
                ),
            };
            *sum += miss.count;
            *by_cause.entry(miss.cause).or_default() += miss.count;
            let counts = strict || miss.cause != Cause::Closed;
            let earlier = tally.first.as_ref().is_none_or(|first| miss.at < first.at);
            if judgement == Judgement::Lost && counts && earlier {
                tally.first = Some(miss.clone());
            }
        }
        tally
    }
}

/// What is there at the end and was not at the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Leaks {
    /// Descriptors of the supervisor.
    pub(crate) descriptors: u64,
    /// Processes beside those that serve, and those in reserve.
    pub(crate) processes: u64,
    /// Processes that have ended and were not reaped.
    pub(crate) zombies: u64,
    /// By how much the supervisor's memory grew on in the second half, beyond what is usual.
    pub(crate) resident_kib: u64,
}

impl Leaks {
    pub(crate) fn nothing(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn harm(custody: Custody, died: bool) -> Harm {
        Harm {
            at: 10 * SECOND,
            until: 12 * SECOND,
            handover: 3,
            generation: 4,
            deed: if died { Deed::Kill } else { Deed::Stall },
            target: Target::New,
            ports: BTreeSet::from([5000]),
            died,
            custody,
        }
    }

    fn miss(cause: Cause, at: Duration, connection: Option<(u16, Duration)>) -> Miss {
        Miss {
            at,
            cause,
            connection,
            count: 1,
            text: String::new(),
        }
    }

    const REQUESTS: [Cause; 7] = [
        Cause::Refused,
        Cause::Reset,
        Cause::Unanswered,
        Cause::CutShort,
        Cause::TimedOut,
        Cause::BadStatus,
        Cause::Malformed,
    ];

    #[test]
    fn what_the_killed_process_held_is_cut_and_nothing_else() {
        let harms = [harm(Custody::NotOwner, true)];
        let held = Some((5000, SECOND));
        for cause in REQUESTS {
            let cut = match cause {
                Cause::Reset | Cause::Unanswered | Cause::CutShort | Cause::BadStatus => {
                    Judgement::Cut
                }
                _other => Judgement::Lost,
            };
            assert_eq!(
                judge(&miss(cause, 10 * SECOND, held), &harms),
                cut,
                "{cause:?}"
            );
            for (at, connection) in [
                // Before it; another connection; one that had the port later; none.
                (9 * SECOND, held),
                (11 * SECOND, Some((5001, SECOND))),
                (12 * SECOND, Some((5000, 11 * SECOND))),
                (11 * SECOND, None),
            ] {
                let miss = miss(cause, at, connection);
                assert_eq!(judge(&miss, &harms), Judgement::Lost, "{miss:?}");
                assert_eq!(judge(&miss, &[]), Judgement::Lost);
            }
        }
    }

    #[test]
    fn a_process_that_was_only_stopped_excuses_nothing() {
        let miss = miss(Cause::Reset, 11 * SECOND, Some((5000, SECOND)));
        assert_eq!(
            judge(&miss, &[harm(Custody::Alone, false)]),
            Judgement::Lost
        );
    }

    #[test]
    fn writes_go_with_their_owner_only() {
        let gone = miss(Cause::WritesGone, 30 * SECOND, None);
        assert_eq!(judge(&gone, &[harm(Custody::Alone, true)]), Judgement::Cut);
        assert_eq!(
            judge(&gone, &[harm(Custody::NotOwner, true)]),
            Judgement::Lost
        );
        assert_eq!(judge(&gone, &[harm(Custody::Owner, true)]), Judgement::Lost);
        let early = miss(Cause::WritesGone, SECOND, None);
        assert_eq!(
            judge(&early, &[harm(Custody::Alone, true)]),
            Judgement::Lost
        );
        let many = miss(Cause::WritesTooMany, 11 * SECOND, None);
        assert_eq!(judge(&many, &[harm(Custody::Alone, true)]), Judgement::Lost);
    }

    #[test]
    fn without_its_owner_a_state_cannot_be_had_until_the_service_is_whole_again() {
        let elsewhere = Some((6000, SECOND));
        let soon = miss(Cause::BadStatus, 11 * SECOND, elsewhere);
        assert_eq!(judge(&soon, &[harm(Custody::Alone, true)]), Judgement::Cut);
        assert_eq!(judge(&soon, &[harm(Custody::Owner, true)]), Judgement::Cut);
        assert_eq!(
            judge(&soon, &[harm(Custody::NotOwner, true)]),
            Judgement::Lost
        );
        let late = miss(Cause::BadStatus, 13 * SECOND, elsewhere);
        assert_eq!(judge(&late, &[harm(Custody::Alone, true)]), Judgement::Lost);
        let refused = miss(Cause::Refused, 11 * SECOND, elsewhere);
        assert_eq!(
            judge(&refused, &[harm(Custody::Alone, true)]),
            Judgement::Lost
        );
    }

    #[test]
    fn everything_is_counted_once_and_the_first_loss_is_told() {
        let mut gone = miss(Cause::WritesGone, 11 * SECOND, None);
        gone.count = 7;
        let misses = [
            miss(Cause::TimedOut, 20 * SECOND, None),
            miss(Cause::Closed, 5 * SECOND, Some((1, SECOND))),
            miss(Cause::Refused, 15 * SECOND, None),
            miss(Cause::Closed, 11 * SECOND, Some((5000, SECOND))),
            miss(Cause::Reset, 11 * SECOND, Some((5000, SECOND))),
            gone,
        ];
        let harms = [harm(Custody::Alone, true)];
        let tally = Tally::new(&misses, &harms, false);
        assert_eq!((tally.requests_lost, tally.requests_cut), (2, 1));
        assert_eq!((tally.closed, tally.closed_cut), (1, 1));
        assert_eq!((tally.writes_lost, tally.writes_cut), (0, 7));
        assert_eq!(tally.first.as_ref().unwrap().cause, Cause::Refused);
        assert!(Tally::new(&misses[3..], &harms, true).first.is_none());
        let closed = Tally::new(&misses[1..2], &harms, false);
        assert!(closed.first.is_none());
        assert!(Tally::new(&misses[1..2], &harms, true).first.is_some());
    }
}
