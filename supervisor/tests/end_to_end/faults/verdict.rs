//! What a fault may cost, and nothing else may be lost: the one place that says so.

use heirloom_handover::fault::{Point, Role};

use super::Deed;

/// What may come of a fault.
#[derive(Debug)]
pub(super) struct Allowed {
    /// How `reload` may end.
    pub(super) reload: &'static [i32],
    /// Whether connections may break: those of the process that dies.
    pub(super) cuts: bool,
    /// Whether the state may be gone: with the only process that had it.
    pub(super) loses: bool,
    /// Whether the generation of before must go on as the same process.
    pub(super) spares_old: bool,
}

const NOTHING: Allowed = Allowed {
    reload: &[0],
    cuts: false,
    loses: false,
    spares_old: false,
};

const REFUSED: Allowed = Allowed {
    reload: &[1],
    cuts: false,
    loses: false,
    spares_old: true,
};

/// Steps in which the one that gives its state away takes it back; the new one is killed to get there.
pub(super) const TAKING_BACK: [Point; 4] = [
    Point::OldResolving,
    Point::OldResolved,
    Point::OldToldThawed,
    Point::OldThawed,
];

/// What may come of a fault in one of the two programs.
pub(super) fn of_program(point: Point, deed: Deed) -> Allowed {
    match point.role() {
        Role::Supervisor => unreachable!("{point:?} is no program's"),
        Role::Old => of_old(point, deed),
        Role::New => of_new(point, deed),
    }
}

fn of_old(point: Point, deed: Deed) -> Allowed {
    let taken_back = TAKING_BACK.contains(&point);
    match deed {
        // It died as the only one that had the whole state, or after it had taken it back.
        Deed::Kill if taken_back || is_before(point, Point::OldFrozen) => Allowed {
            reload: &[1],
            cuts: true,
            loses: true,
            spares_old: false,
        },
        // The copy is complete: the new one owns it.
        Deed::Kill => Allowed {
            cuts: true,
            ..NOTHING
        },
        Deed::Stop | Deed::Slow if taken_back => REFUSED,
        // It stands still with its state until it goes on; or the new one had it before.
        Deed::Stop => Allowed {
            reload: &[0, 1],
            ..NOTHING
        },
        Deed::Slow => NOTHING,
    }
}

fn of_new(point: Point, deed: Deed) -> Allowed {
    let refused = point == Point::NewRefused;
    match deed {
        Deed::Kill | Deed::Stop if refused || is_before(point, Point::NewCommitted) => REFUSED,
        Deed::Slow if refused => REFUSED,
        // It owned the state, alone. One that is stopped where its word is awaited is killed.
        Deed::Kill | Deed::Stop => Allowed {
            reload: &[0, 5],
            cuts: true,
            loses: true,
            spares_old: false,
        },
        Deed::Slow => NOTHING,
    }
}

/// Whether a step comes before another of the same process.
fn is_before(one: Point, other: Point) -> bool {
    let place = |point| Point::ALL.iter().position(|each| *each == point);
    place(one) < place(other)
}
