//! Chance, all of it from one seed: which handover is disturbed, by what, whom it meets and when. Pure.

use std::time::Duration;

use super::plan::{Aim, Plan};

/// A generator of numbers (`SplitMix64`): the same seed, the same numbers, on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What is done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    Kill,
    Stall,
}

/// Which of the two generations it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    New,
    Old,
}

/// How a handover is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disturbance {
    pub(crate) deed: Deed,
    pub(crate) target: Target,
    /// The moment, as a part of a thousand of how long a handover takes; up to 1,250, to meet what comes
    /// just after it.
    pub(crate) moment: u64,
}

impl Disturbance {
    /// The moment, where a handover takes so long.
    pub(crate) fn after(&self, whole: Duration) -> Duration {
        let whole_us = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(whole_us.saturating_mul(self.moment) / 1000)
    }
}

/// What happens to the next handover. The same number of dice is thrown whatever comes of it, so that what
/// happens to later ones does not depend on it.
pub(crate) fn next(dice: &mut Dice, plan: &Plan) -> Option<Disturbance> {
    let (happens, which, moment) = (dice.below(100), dice.next(), dice.below(1250));
    let mut possible = Vec::new();
    for (deed, aim) in [(Deed::Kill, plan.kill), (Deed::Stall, plan.stall)] {
        let targets: &[Target] = match aim {
            Aim::None => &[],
            Aim::New => &[Target::New],
            Aim::Old => &[Target::Old],
            Aim::Both => &[Target::New, Target::Old],
        };
        possible.extend(targets.iter().map(|target| (deed, *target)));
    }
    if possible.is_empty() || happens >= u64::from(plan.share) {
        return None;
    }
    let count = possible.len() as u64;
    let which = usize::try_from(which % count).unwrap_or(0);
    let (deed, target) = possible[which];
    Some(Disturbance {
        deed,
        target,
        moment,
    })
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Crowd, Until, Work};
    use super::*;
    use crate::config::service::Service;

    fn plan(kill: Aim, stall: Aim, share: u8) -> Plan {
        Plan {
            service: Service::default(),
            alternate: None,
            until: Until::Handovers(1),
            every: Duration::ZERO,
            kill,
            stall,
            stall_for: Duration::ZERO,
            share,
            seed: 1,
            work: Work::Connect,
            crowd: Crowd {
                keeping: 1,
                fresh: 1,
                idle: 1,
                pace: Duration::ZERO,
            },
            strict: false,
        }
    }

    fn thousand(plan: &Plan, seed: u64) -> Vec<Option<Disturbance>> {
        let mut dice = Dice::new(seed);
        (0..1000).map(|_| next(&mut dice, plan)).collect()
    }

    #[test]
    fn the_same_seed_does_the_same_again() {
        let plan = plan(Aim::Both, Aim::New, 50);
        assert_eq!(thousand(&plan, 7), thousand(&plan, 7));
        assert_ne!(thousand(&plan, 7), thousand(&plan, 8));
    }

    #[test]
    fn only_who_is_aimed_at_is_met_and_about_as_often_as_wanted() {
        let all = thousand(&plan(Aim::New, Aim::None, 50), 1);
        let met: Vec<_> = all.iter().flatten().collect();
        assert!((400..600).contains(&met.len()), "{}", met.len());
        let aimed = |one: &&Disturbance| one.deed == Deed::Kill && one.target == Target::New;
        assert!(met.iter().all(aimed));
        assert!(met.iter().all(|one| one.moment < 1250));
        let both = thousand(&plan(Aim::Both, Aim::Both, 100), 1);
        for deed in [Deed::Kill, Deed::Stall] {
            for target in [Target::New, Target::Old] {
                let met = both.iter().flatten();
                let count = met.filter(|one| (one.deed, one.target) == (deed, target));
                assert!(count.count() > 150, "{deed:?} {target:?}");
            }
        }
        assert!(
            thousand(&plan(Aim::Both, Aim::Both, 0), 1)
                .iter()
                .all(Option::is_none)
        );
        assert!(
            thousand(&plan(Aim::None, Aim::None, 100), 1)
                .iter()
                .all(Option::is_none)
        );
    }

    #[test]
    fn when_it_happens_does_not_depend_on_what_else_may() {
        let moments = |plan: &Plan| -> Vec<u64> {
            let all = thousand(plan, 3);
            all.iter().flatten().map(|one| one.moment).collect()
        };
        let one = moments(&plan(Aim::New, Aim::None, 100));
        assert_eq!(one, moments(&plan(Aim::Both, Aim::Both, 100)));
    }
}
