//! Every world that can be reached from one, breadth first, so that what is found is found by a shortest way.
//!
//! What a world is, what can happen in it and what must hold is each model's own: the handover's
//! ([`super::transfer`]), the probation's ([`super::reserve`]).
//!
//! A world that was seen is known by 128 bits of hash, not kept: among ten million, two share one by
//! chance with a probability of less than 10^-24.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

/// What is explored.
pub(crate) trait World: Clone + Hash {
    /// One thing that another can see.
    type Step: Copy;

    /// Everything that can happen now.
    fn steps(&self) -> Vec<Self::Step>;

    /// What it is like after that.
    fn after(&self, step: Self::Step) -> Self;

    /// Whether it need not ever happen: then what does not wait for it is at rest.
    fn is_optional(step: &Self::Step) -> bool;

    /// What holds at every moment.
    fn always(&self) -> Result<(), &'static str>;

    /// What holds when nothing more must happen.
    fn at_rest(&self) -> Result<(), &'static str>;
}

/// What an exploration came to.
#[derive(Debug)]
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    /// Worlds in which nothing more must happen.
    pub(crate) ends: usize,
    /// Steps of the longest of the shortest ways to any of them.
    pub(crate) depth: usize,
    took: Duration,
}

impl fmt::Display for Explored {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_second = self.states as f64 / self.took.as_secs_f64();
        write!(
            formatter,
            "{} states, {} steps, {} ends; the farthest state is {} steps away; {per_second:.0} states a second",
            self.states, self.steps, self.ends, self.depth
        )
    }
}

/// Something that does not hold, and a shortest way to where it shows.
#[derive(Debug)]
pub(crate) struct Wrong<S> {
    pub(crate) what: &'static str,
    pub(crate) way: Vec<S>,
}

struct Seen<S> {
    from: u32,
    step: Option<S>,
    depth: u32,
}

/// Explores all that follows from `start`.
pub(crate) fn explore<W: World>(start: W) -> Result<Explored, Wrong<W::Step>> {
    let began = Instant::now();
    let mut numbers = HashMap::from([(fingerprint(&start), 0_u32)]);
    let mut seen = vec![Seen {
        from: 0,
        step: None,
        depth: 0,
    }];
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut frontier = VecDeque::from([(0_u32, start)]);
    let mut ends = 0;
    while let Some((number, world)) = frontier.pop_front() {
        let found = |what| Wrong {
            what,
            way: way(&seen, number),
        };
        world.always().map_err(found)?;
        let steps = world.steps();
        if steps.iter().all(W::is_optional) {
            ends += 1;
            world.at_rest().map_err(found)?;
        }
        for step in steps {
            let next = world.after(step);
            let fresh = u32::try_from(seen.len()).unwrap_or(u32::MAX);
            let to = *numbers.entry(fingerprint(&next)).or_insert(fresh);
            edges.push((number, to));
            if to == fresh {
                let depth = seen[number as usize].depth + 1;
                seen.push(Seen {
                    from: number,
                    step: Some(step),
                    depth,
                });
                frontier.push_back((fresh, next));
            }
        }
    }
    if let Some(number) = in_a_circle(seen.len(), &edges) {
        return Err(Wrong {
            what: "it can go round in a circle for ever",
            way: way(&seen, number),
        });
    }
    Ok(Explored {
        states: seen.len(),
        steps: edges.len(),
        ends,
        depth: seen.last().map_or(0, |last| last.depth as usize),
        took: began.elapsed(),
    })
}

fn fingerprint(world: &impl World) -> u128 {
    let mut mixer = Mixer {
        low: 0x9e37_79b9_7f4a_7c15,
        high: 0xd1b5_4a32_d192_ed03,
    };
    world.hash(&mut mixer);
    // Every bit of the one comes to count in the other.
    let folded = (u128::from(mixer.low) * 0xa076_1d64_78bd_642f) ^ u128::from(mixer.high);
    (u128::from(mixer.high) << 64) ^ folded
}

/// A hash of two halves in one pass: the standard one takes most of the time in a build without
/// optimisation.
struct Mixer {
    low: u64,
    high: u64,
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        self.low = (self.low.rotate_left(23) ^ value).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.high = (self.high.rotate_left(41) ^ value).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    }

    fn finish(&self) -> u64 {
        self.low ^ self.high
    }
}

/// A world from which one can come back to it, if there is one: what is left when those that nothing
/// leads to are taken away, one after the other.
fn in_a_circle(states: usize, edges: &[(u32, u32)]) -> Option<u32> {
    let mut into = vec![0_u32; states];
    for (_, to) in edges {
        into[*to as usize] += 1;
    }
    // The edges stand in the order of where they begin.
    let mut first = vec![0_usize; states + 1];
    for (from, _) in edges {
        first[*from as usize + 1] += 1;
    }
    for state in 0..states {
        first[state + 1] += first[state];
    }
    let mut free: Vec<usize> = (0..states).filter(|state| into[*state] == 0).collect();
    let mut taken = 0;
    while let Some(state) = free.pop() {
        taken += 1;
        for (_, to) in &edges[first[state]..first[state + 1]] {
            let to = *to as usize;
            into[to] -= 1;
            if into[to] == 0 {
                free.push(to);
            }
        }
    }
    let left = (0..states).find(|state| into[*state] > 0);
    left.filter(|_| taken < states)
        .and_then(|state| u32::try_from(state).ok())
}

/// The way to a world.
fn way<S: Copy>(seen: &[Seen<S>], to: u32) -> Vec<S> {
    let mut way = Vec::new();
    let mut at = to;
    while let Some(step) = seen[at as usize].step {
        way.push(step);
        at = seen[at as usize].from;
    }
    way.reverse();
    way
}

/// A circle is found where there is one.
#[test]
fn what_goes_round_is_found() {
    assert_eq!(in_a_circle(3, &[(0, 1), (1, 2)]), None);
    let found = in_a_circle(4, &[(0, 1), (1, 2), (2, 1), (2, 3)]);
    assert_eq!(found, Some(1));
}
