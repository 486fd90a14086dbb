//! Points at which a test makes a process die, stand still, or be slow.
//!
//! Owns the list of all points, of the supervisor and of the library, and what happens at one that is
//! armed. A point is one line in the code: `fault::reached(Point::OldFrozen)`. **In a build without debug
//! assertions, as every release is, [`reached`] is empty**: nothing is read, and nothing can be armed.
//!
//! Points are armed by the variable `HEIRLOOM_FAULT`, which is read once, when the first point is reached:
//! `POINT:ACTION[:NTH][@GENERATION]`, several with commas in between. `kill` ends the process as SIGKILL does, `stop`
//! stops all of it as SIGSTOP does, `slow=MILLISECONDS` holds up the thread that came there. It happens
//! the NTH time the point is reached (the first if that is not said), and once; only in that GENERATION, if one
//! is named, so that a program which is started again is not struck again. The process writes a line about it to
//! its error output before.

/// Whose step a point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The supervisor's.
    Supervisor,
    /// That of the generation that gives its state away.
    Old,
    /// That of the generation that takes it over.
    New,
}

macro_rules! points {
    ($($role:ident { $($(#[doc = $text:literal])+ $point:ident = $name:literal,)+ })+) => {
        /// A step of a handover.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Point {
            $($($(#[doc = $text])+ $point,)+)+
        }

        impl Point {
            /// All of them, in the order of a handover, those of one role after those of another.
            pub const ALL: &[Self] = &[$($(Self::$point,)+)+];

            /// What it is called in `HEIRLOOM_FAULT`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$point => $name,)+)+
                }
            }

            /// Whose step it is.
            #[must_use]
            pub const fn role(self) -> Role {
                match self {
                    $($(Self::$point => Role::$role,)+)+
                }
            }
        }
    };
}

points! {
    Supervisor {
        /// A program is about to be started.
        Starting = "supervisor.starting",
        /// It has been started.
        Started = "supervisor.started",
        /// A HELLO has been read, and is not answered.
        Greeted = "supervisor.greeted",
        /// Pipe, lifeline and link are made; no order is sent.
        Connecting = "supervisor.connecting",
        /// RECEIVE is sent, SEND is not.
        HalfConnected = "supervisor.half-connected",
        /// Both are sent, and its own ends are closed.
        Connected = "supervisor.connected",
        /// A report about a migration was read, and has not been acted upon.
        Heard = "supervisor.heard",
        /// FREEZE is about to be sent.
        Freeze = "supervisor.freeze",
        /// COMMIT is about to be sent.
        Commit = "supervisor.commit",
        /// ABORT is about to be sent.
        Abort = "supervisor.abort",
        /// An order about a migration has been sent.
        Ordered = "supervisor.ordered",
        /// The verdict on a migration is known; lives and figures are as before.
        Verdict = "supervisor.verdict",
        /// RETIRE is about to be sent.
        Retire = "supervisor.retire",
        /// It has been sent.
        Retired = "supervisor.retired",
        /// A handover has ended; nothing it prepared is in force, nobody was told.
        Finished = "supervisor.finished",
        /// Its report is about to be given to the client.
        Answer = "supervisor.answer",
        /// A file for a state was made; the program is not told.
        Drafted = "supervisor.drafted",
        /// The program has written a state; the file is not checked.
        Written = "supervisor.written",
        /// The file has its name; nobody was told.
        Kept = "supervisor.kept",
        /// RESTORE is about to be sent.
        Restore = "supervisor.restore",
        /// It owns the state that was saved; the file still has its name.
        Restored = "supervisor.restored",
    }
    Old {
        /// SEND was read.
        OldAsked = "old.asked",
        /// Changes are tracked; nothing is copied.
        OldCopying = "old.copying",
        /// A slice of the base was encoded.
        OldSlice = "old.slice",
        /// A round's end was encoded.
        OldRound = "old.round",
        /// The new generation has applied a round.
        OldApplied = "old.applied",
        /// CONVERGED is about to be reported.
        OldConverged = "old.converged",
        /// It has been reported.
        OldToldConverged = "old.told-converged",
        /// FREEZE was read; changes are still made.
        OldFreezing = "old.freezing",
        /// The gate is closed; nothing of the rest is encoded.
        OldClosed = "old.closed",
        /// The rest and the end mark are encoded, and not sent.
        OldEnding = "old.ending",
        /// The end mark is sent; FROZEN is about to be reported.
        OldFrozen = "old.frozen",
        /// It has been reported.
        OldToldFrozen = "old.told-frozen",
        /// It wants its state back, and has not looked at the lifeline.
        OldResolving = "old.resolving",
        /// The lifeline says that it may have it; the gate is closed.
        OldResolved = "old.resolved",
        /// THAWED is reported; the gate is closed.
        OldToldThawed = "old.told-thawed",
        /// The gate is open again.
        OldThawed = "old.thawed",
        /// COMMITTED was read from the lifeline.
        OldCommitted = "old.committed",
        /// Operations go over the link from now on; no connection has moved.
        OldYielded = "old.yielded",
        /// YIELDED has been reported.
        OldToldYielded = "old.told-yielded",
        /// A connection is about to be sent.
        OldConnection = "old.connection",
        /// It was sent, and is not answered.
        OldSentConnection = "old.sent-connection",
        /// Its answer was read; whoever gave it is not told.
        OldAnsweredConnection = "old.answered-connection",
        /// RETIRE was read.
        OldRetired = "old.retired",
        /// Nothing is left to do; GONE is about to be reported.
        OldDrained = "old.drained",
        /// It has been reported.
        OldToldGone = "old.told-gone",
    }
    New {
        /// HELLO is about to be reported.
        NewGreeting = "new.greeting",
        /// It has been reported.
        NewGreeted = "new.greeted",
        /// RECEIVE was read.
        NewReceiving = "new.receiving",
        /// Some of the copy was read.
        NewReading = "new.reading",
        /// A round is applied; APPLIED is about to be said.
        NewApplied = "new.applied",
        /// It has been said.
        NewToldApplied = "new.told-applied",
        /// The end mark was read; nothing is compared.
        NewEnding = "new.ending",
        /// All is right; READY is about to be reported.
        NewVerified = "new.verified",
        /// It has been reported.
        NewToldReady = "new.told-ready",
        /// COMMIT was read; COMMITTED is about to be said on the lifeline.
        NewCommitting = "new.committing",
        /// It is queued there; the gate is closed.
        NewCommitted = "new.committed",
        /// It was refused there.
        NewRefused = "new.refused",
        /// The gate is open; the app does not know.
        NewOwning = "new.owning",
        /// COMMITTED is about to be reported.
        NewOwned = "new.owned",
        /// It has been reported.
        NewToldCommitted = "new.told-committed",
        /// A connection has come, and is not answered.
        NewConnection = "new.connection",
        /// It is acknowledged, and nobody serves it.
        NewTookConnection = "new.took-connection",
        /// Somebody serves it.
        NewServesConnection = "new.serves-connection",
    }
}

/// This step is reached: if it is armed, what was wanted happens.
#[cfg(debug_assertions)]
pub fn reached(point: Point) {
    armed::reached(point);
}

/// This step is reached, which means nothing in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn reached(_point: Point) {}

#[cfg(debug_assertions)]
mod armed {
    use std::{
        io::Write,
        sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        },
        thread,
        time::Duration,
    };

    use nix::sys::signal::{Signal, raise};

    use super::Point;
    use crate::environment::HEIRLOOM_GENERATION;

    const VARIABLE: &str = "HEIRLOOM_FAULT";

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Action {
        Kill,
        Stop,
        Slow(Duration),
    }

    #[derive(Debug)]
    pub(super) struct Armed {
        point: Point,
        action: Action,
        /// Where, if not everywhere.
        generation: Option<u64>,
        /// How often it is still to be passed.
        left: AtomicU32,
    }

    pub(super) fn reached(point: Point) {
        static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();
        let all = ARMED.get_or_init(|| {
            let text = std::env::var(VARIABLE).unwrap_or_default();
            let own = std::env::var(HEIRLOOM_GENERATION).ok();
            let own: Option<u64> = own.and_then(|own| own.parse().ok());
            let all = parse(&text).unwrap_or_else(|error| {
                // A test that thinks it has armed something must not pass.
                say(&format!("{VARIABLE}: {error}"));
                std::process::abort()
            });
            let here = |one: &Armed| one.generation.is_none() || one.generation == own;
            all.into_iter().filter(here).collect()
        });
        for armed in all.iter().filter(|armed| armed.point == point) {
            // Once: it is at zero again only after four thousand million more.
            if armed.left.fetch_sub(1, Ordering::Relaxed) == 0 {
                strike(point, armed.action);
            }
        }
    }

    fn strike(point: Point, action: Action) {
        let signal = match action {
            Action::Kill => Signal::SIGKILL,
            Action::Stop => Signal::SIGSTOP,
            Action::Slow(time) => {
                say(&format!("fault: {}: slow", point.name()));
                return thread::sleep(time);
            }
        };
        say(&format!("fault: {}: {signal}", point.name()));
        // By this thread, so that it does not go on meanwhile.
        let _sent = raise(signal);
    }

    fn say(line: &str) {
        // Unbuffered, so that it is there before the process is not.
        let _unheard = writeln!(std::io::stderr(), "{line}");
    }

    pub(super) fn parse(text: &str) -> Result<Vec<Armed>, String> {
        let wanted = text.split(',').filter(|one| !one.is_empty());
        wanted.map(parse_one).collect()
    }

    fn parse_one(text: &str) -> Result<Armed, String> {
        let (text, generation) = match text.split_once('@') {
            None => (text, None),
            Some((text, number)) => {
                let number = number.parse();
                let number = number.map_err(|_| format!("{text}: no generation behind the @"))?;
                (text, Some(number))
            }
        };
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let mut all = Point::ALL.iter();
        let point = all.find(|point| point.name() == name);
        let point = *point.ok_or_else(|| format!("there is no point {name:?}"))?;
        let action = match parts.next() {
            Some("kill") => Action::Kill,
            Some("stop") => Action::Stop,
            Some(other) => other
                .strip_prefix("slow=")
                .and_then(|time| time.parse().ok())
                .map(|time| Action::Slow(Duration::from_millis(time)))
                .ok_or_else(|| format!("{other:?} is none of kill, stop, slow=MILLISECONDS"))?,
            None => return Err(format!("what is to happen at {name} is not said")),
        };
        let nth: u32 = match parts.next() {
            None => 1,
            Some(nth) => nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(|| {
                format!("{nth:?} does not say how often {name} is to be reached before")
            })?,
        };
        match parts.next() {
            None => Ok(Armed {
                point,
                action,
                generation,
                left: AtomicU32::new(nth - 1),
            }),
            Some(more) => Err(format!("{more:?} means nothing")),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_armed_is_understood_and_nothing_else() {
            let armed =
                parse("old.frozen:kill,new.committing:slow=250:3@7,new.refused:stop@8").unwrap();
            let read: Vec<_> = armed
                .iter()
                .map(|one| {
                    let left = one.left.load(Ordering::Relaxed);
                    (one.point, one.action, left, one.generation)
                })
                .collect();
            let slow = Action::Slow(Duration::from_millis(250));
            assert_eq!(
                read,
                [
                    (Point::OldFrozen, Action::Kill, 0, None),
                    (Point::NewCommitting, slow, 2, Some(7)),
                    (Point::NewRefused, Action::Stop, 0, Some(8)),
                ]
            );
            assert!(parse("").unwrap().is_empty());
            for bad in [
                "old",
                "old.frozen",
                "old.frozen:die",
                "old.frozen:slow=",
                "old.frozen:kill:0",
                "old.frozen:kill:1:2",
                "old.frozen:kill@",
                "old.frozen@7:kill",
            ] {
                parse(bad).unwrap_err();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own_that_says_whose_it_is() {
        let names: BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for point in Point::ALL {
            let role = match point.role() {
                Role::Supervisor => "supervisor.",
                Role::Old => "old.",
                Role::New => "new.",
            };
            assert!(point.name().starts_with(role), "{point:?}");
        }
    }
}
