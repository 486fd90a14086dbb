//! A way through the worlds, for people: a line a step, with what is then the case.

use std::fmt::{self, Write as _};

use super::kernel::{Channel, Read};
use super::new::{self, Life};
use super::old;
use super::supervisor;
use super::world::{Setup, Step, World};
use crate::core::exploration::World as _;

/// The steps of a way, numbered, each with the world behind it.
pub(super) fn story(setup: Setup, way: &[Step]) -> String {
    let mut world = World::new(setup);
    let mut text = format!("   0  {:36}  {world}\n", "the new one has said HELLO");
    for (number, step) in way.iter().enumerate() {
        let told = told(&world, *step);
        world = world.after(*step);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:4}  {told:36}  {world}", number + 1);
    }
    text
}

/// What a step is, in the world in which it is taken.
fn told(world: &World, step: Step) -> String {
    match step {
        Step::Old(turn @ old::Turn::Listen) => read("old", turn, &world.to_old),
        Step::Old(turn @ old::Turn::Hear { .. }) => read("old", turn, &world.lifeline),
        Step::Old(turn @ old::Turn::Act) => match world.old.pending.first() {
            Some(action) => format!("old: {turn:?} {action:?}"),
            None => format!("old: {turn:?}"),
        },
        Step::Old(turn) => format!("old: {turn:?}"),
        Step::New(turn @ new::Turn::Listen) => read("new", turn, &world.to_new),
        Step::New(turn @ new::Turn::Read) => read("new", turn, &world.pipe),
        Step::New(turn) => format!("new: {turn:?}"),
        Step::Supervisor(turn @ supervisor::Turn::HearOld) => {
            read("supervisor", turn, &world.from_old)
        }
        Step::Supervisor(turn @ supervisor::Turn::HearNew) => {
            read("supervisor", turn, &world.from_new)
        }
        Step::Supervisor(turn) => format!("supervisor: {turn:?}"),
        Step::Write(owner) => format!("client: a write, answered by {owner:?}"),
        Step::OldKilled => "old: is killed, as ordered".to_owned(),
        Step::NewKilled => "new: is killed, as ordered".to_owned(),
        Step::OldDies => "old: DIES".to_owned(),
        Step::NewDies => "new: DIES".to_owned(),
        Step::SupervisorDies => "supervisor: DIES".to_owned(),
        Step::RetireComes => "somebody: wants the old one to end".to_owned(),
    }
}

fn read<M: Copy + fmt::Debug>(who: &str, turn: impl fmt::Debug, from: &Channel<M>) -> String {
    match from.peek() {
        Read::Message(message) => format!("{who}: {turn:?} {message:?}"),
        other => format!("{who}: {turn:?} {other:?}"),
    }
}

impl fmt::Display for World {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (old, new, supervisor) = (&self.old, &self.new, &self.supervisor);
        match (supervisor.alive, supervisor.verdict) {
            (false, _) => write!(out, "no supervisor")?,
            (true, None) => write!(out, "supervisor {:?}", supervisor.state)?,
            (true, Some(verdict)) => write!(out, "supervisor says {verdict:?}")?,
        }
        if old.alive {
            write!(out, " | old {:?}, gate {:?}", old.state, old.gate)?;
        } else {
            write!(out, " | no old")?;
        }
        match new.life {
            Life::Alive if new.is_open() => write!(out, " | new {:?}, gate Open", new.state)?,
            Life::Alive => write!(out, " | new {:?}", new.state)?,
            Life::Leaving => write!(out, " | new leaving")?,
            Life::Dead => write!(out, " | no new")?,
        }
        write!(
            out,
            " | writes answered {}, old {}, new {}",
            self.acknowledged, old.writes, new.writes
        )?;
        under_way(out, "to old", &self.to_old)?;
        under_way(out, "from old", &self.from_old)?;
        under_way(out, "to new", &self.to_new)?;
        under_way(out, "from new", &self.from_new)?;
        under_way(out, "lifeline", &self.lifeline)?;
        under_way(out, "pipe", &self.pipe)
    }
}

fn under_way<M: Copy + fmt::Debug>(
    out: &mut fmt::Formatter<'_>,
    name: &str,
    channel: &Channel<M>,
) -> fmt::Result {
    if channel.queued().is_empty() {
        return Ok(());
    }
    write!(out, " | {name} {:?}", channel.queued())
}
