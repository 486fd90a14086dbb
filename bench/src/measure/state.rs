//! The measurements of state: what a handover of it costs, and what being able to costs.

pub mod handovers;
pub mod pause;
pub mod snapshot;
pub mod supervised;
pub mod transfers;
pub mod write_cost;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What the numbers to hold speak of.
    Full,
    /// So little that it takes seconds: whether it works, not what it costs. Nothing is judged.
    Small,
}
