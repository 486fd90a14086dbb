//! The life of one process of a service, from its start to the end of the last process it left.
//!
//! A table: every phase with every event. What the actions mean in system calls, and which reasons
//! go with a report, is the daemon's matter.

use serde::{Deserialize, Serialize};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// It runs, and is not ready yet.
    Starting,
    /// It serves.
    Serving,
    /// Another serves in its place, and it stays, to take that back.
    Reserve,
    /// It was told to stop and finishes what it has begun; a deadline runs.
    Draining,
    /// It was killed and has not been reaped.
    Killed,
    /// It has ended; processes it started are still there and were told to end; a deadline runs.
    Clearing,
    /// Nothing of it is left.
    Gone,
}

/// What can happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It was seen to be ready.
    Ready,
    /// The time it has to become ready is over.
    NotReadyInTime,
    /// It gave itself up: an error it reported, a missed watchdog, listeners it closed.
    Failed,
    /// Another takes its place, or the service stops: finish and go.
    Retire,
    /// Another takes its place and may yet fail: stay.
    Reserve,
    /// The one that took its place has failed: serve again.
    Return,
    /// It is not wanted after all: finish soon and go.
    Discard,
    /// It must go at once.
    Kill,
    /// The time it has to drain is over.
    DrainOver,
    /// Its main process was reaped.
    Exited,
    /// Its main process was reaped and none of its processes is left.
    Empty,
}

/// How long a process that was told to stop may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// The service's drain timeout: clients are being served.
    Drain,
    /// A short time: it never served, or it is dead already.
    Short,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send the stop signal to the main process.
    Tell,
    /// Send the stop signal to every process that is left.
    TellRest,
    /// Kill every process of the generation.
    Kill,
    /// Start, or restart, the deadline whose end is [`Event::DrainOver`].
    Allow(Patience),
    /// Tell the service.
    Report(Report),
}

/// What the service hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// It serves from now on.
    Ready,
    /// It did not become ready and will not.
    FailedToStart,
    /// It serves again, in place of the one that had taken its place.
    Returned,
    /// It served, and does not any more though nobody asked it to stop.
    Died,
    /// Nothing of it is left.
    Gone,
}

/// The table: what follows when `event` happens in `phase`.
pub(crate) fn step(phase: Phase, event: Event) -> (Phase, &'static [Action]) {
    use Action::{Allow, Kill, Report as Tells, Tell, TellRest};
    use Patience::{Drain, Short};
    match phase {
        Phase::Starting => match event {
            Event::Ready => (Phase::Serving, &[Tells(Report::Ready)]),
            Event::NotReadyInTime | Event::Failed => (
                Phase::Draining,
                &[Tell, Allow(Short), Tells(Report::FailedToStart)],
            ),
            Event::Retire => (Phase::Draining, &[Tell, Allow(Drain)]),
            Event::Discard => (Phase::Draining, &[Tell, Allow(Short)]),
            Event::Kill => (Phase::Killed, &[Kill, Allow(Short)]),
            Event::Exited => (
                Phase::Clearing,
                &[TellRest, Allow(Short), Tells(Report::FailedToStart)],
            ),
            Event::DrainOver | Event::Empty | Event::Reserve | Event::Return => {
                (Phase::Starting, &[])
            }
        },
        Phase::Serving => match event {
            Event::Failed => (Phase::Killed, &[Kill, Allow(Short), Tells(Report::Died)]),
            Event::Retire => (Phase::Draining, &[Tell, Allow(Drain)]),
            Event::Discard => (Phase::Draining, &[Tell, Allow(Short)]),
            Event::Kill => (Phase::Killed, &[Kill, Allow(Short)]),
            Event::Exited => (
                Phase::Clearing,
                &[TellRest, Allow(Short), Tells(Report::Died)],
            ),
            Event::Reserve => (Phase::Reserve, &[]),
            // READY=1 again: it has reloaded its resources.
            Event::Ready
            | Event::NotReadyInTime
            | Event::DrainOver
            | Event::Empty
            | Event::Return => (Phase::Serving, &[]),
        },
        Phase::Reserve => match event {
            Event::Return => (Phase::Serving, &[Tells(Report::Returned)]),
            Event::Retire => (Phase::Draining, &[Tell, Allow(Drain)]),
            Event::Discard => (Phase::Draining, &[Tell, Allow(Short)]),
            Event::Failed | Event::Kill => (Phase::Killed, &[Kill, Allow(Short)]),
            Event::Exited => (Phase::Clearing, &[TellRest, Allow(Short)]),
            Event::Ready
            | Event::NotReadyInTime
            | Event::DrainOver
            | Event::Empty
            | Event::Reserve => (Phase::Reserve, &[]),
        },
        Phase::Draining => match event {
            Event::Kill | Event::DrainOver => (Phase::Killed, &[Kill, Allow(Short)]),
            // The deadline that runs goes on for what it leaves behind.
            Event::Exited => (Phase::Clearing, &[TellRest]),
            Event::Ready
            | Event::NotReadyInTime
            | Event::Failed
            | Event::Retire
            | Event::Reserve
            | Event::Return
            | Event::Discard
            | Event::Empty => (Phase::Draining, &[]),
        },
        Phase::Killed => match event {
            // It may have started another in the instant it was killed.
            Event::Kill | Event::DrainOver | Event::Exited => {
                (Phase::Killed, &[Kill, Allow(Short)])
            }
            Event::Empty => (Phase::Gone, &[Tells(Report::Gone)]),
            Event::Ready
            | Event::NotReadyInTime
            | Event::Failed
            | Event::Retire
            | Event::Reserve
            | Event::Return
            | Event::Discard => (Phase::Killed, &[]),
        },
        Phase::Clearing => match event {
            Event::Kill | Event::DrainOver => (Phase::Killed, &[Kill, Allow(Short)]),
            Event::Empty => (Phase::Gone, &[Tells(Report::Gone)]),
            Event::Ready
            | Event::NotReadyInTime
            | Event::Failed
            | Event::Retire
            | Event::Reserve
            | Event::Return
            | Event::Discard
            | Event::Exited => (Phase::Clearing, &[]),
        },
        Phase::Gone => match event {
            Event::Ready
            | Event::NotReadyInTime
            | Event::Failed
            | Event::Retire
            | Event::Reserve
            | Event::Return
            | Event::Discard
            | Event::Kill
            | Event::DrainOver
            | Event::Exited
            | Event::Empty => (Phase::Gone, &[]),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 7] = [
        Phase::Starting,
        Phase::Serving,
        Phase::Reserve,
        Phase::Draining,
        Phase::Killed,
        Phase::Clearing,
        Phase::Gone,
    ];
    const EVENTS: [Event; 11] = [
        Event::Ready,
        Event::NotReadyInTime,
        Event::Failed,
        Event::Retire,
        Event::Discard,
        Event::Kill,
        Event::DrainOver,
        Event::Exited,
        Event::Empty,
        Event::Reserve,
        Event::Return,
    ];

    /// The whole table as prose would give it: a row a phase, a column an event in the order of
    /// `EVENTS`. `.` stays; otherwise the next phase's letter and, behind it, the actions: t tell,
    /// r tell the rest, k kill, d/s allow the drain's time or a short one, R F D G B the report.
    const TABLE: [(Phase, [&str; 11]); 7] = [
        (
            Phase::Starting,
            [
                "S:R", "D:tsF", "D:tsF", "D:td", "D:ts", "K:ks", ".", "C:rsF", ".", ".", ".",
            ],
        ),
        (
            Phase::Serving,
            [
                ".", ".", "K:ksD", "D:td", "D:ts", "K:ks", ".", "C:rsD", ".", "E:", ".",
            ],
        ),
        (
            Phase::Reserve,
            [
                ".", ".", "K:ks", "D:td", "D:ts", "K:ks", ".", "C:rs", ".", ".", "S:B",
            ],
        ),
        (
            Phase::Draining,
            [
                ".", ".", ".", ".", ".", "K:ks", "K:ks", "C:r", ".", ".", ".",
            ],
        ),
        (
            Phase::Killed,
            [
                ".", ".", ".", ".", ".", "K:ks", "K:ks", "K:ks", "G:G", ".", ".",
            ],
        ),
        (
            Phase::Clearing,
            [
                ".", ".", ".", ".", ".", "K:ks", "K:ks", ".", "G:G", ".", ".",
            ],
        ),
        (Phase::Gone, ["."; 11]),
    ];

    fn written(phase: Phase, event: Event) -> String {
        let (next, actions) = step(phase, event);
        if next == phase && actions.is_empty() {
            return ".".to_owned();
        }
        let letter = match next {
            Phase::Starting => 'A',
            Phase::Serving => 'S',
            Phase::Reserve => 'E',
            Phase::Draining => 'D',
            Phase::Killed => 'K',
            Phase::Clearing => 'C',
            Phase::Gone => 'G',
        };
        let actions = actions.iter().map(|action| match action {
            Action::Tell => 't',
            Action::TellRest => 'r',
            Action::Kill => 'k',
            Action::Allow(Patience::Drain) => 'd',
            Action::Allow(Patience::Short) => 's',
            Action::Report(Report::Ready) => 'R',
            Action::Report(Report::FailedToStart) => 'F',
            Action::Report(Report::Died) => 'D',
            Action::Report(Report::Returned) => 'B',
            Action::Report(Report::Gone) => 'G',
        });
        format!("{letter}:{}", actions.collect::<String>())
    }

    #[test]
    fn every_phase_with_every_event() {
        for (phase, row) in TABLE {
            for (event, expected) in EVENTS.into_iter().zip(row) {
                assert_eq!(written(phase, event), expected, "{event:?} in {phase:?}");
            }
        }
    }

    #[test]
    fn every_phase_ends_when_deadlines_pass_and_processes_end() {
        for start in PHASES {
            let mut phase = step(start, Event::Retire).0;
            phase = step(phase, Event::DrainOver).0;
            phase = step(phase, Event::Exited).0;
            phase = step(phase, Event::Empty).0;
            assert_eq!(phase, Phase::Gone, "from {start:?}");
        }
    }

    #[test]
    fn the_service_hears_of_the_end_exactly_once() {
        for phase in PHASES {
            for event in EVENTS {
                let (next, actions) = step(phase, event);
                let told = actions.contains(&Action::Report(Report::Gone));
                assert_eq!(told, next == Phase::Gone && phase != Phase::Gone);
            }
        }
    }

    #[test]
    fn a_process_on_its_way_out_always_has_a_deadline() {
        for phase in PHASES {
            for event in EVENTS {
                let (next, actions) = step(phase, event);
                let leaving = matches!(next, Phase::Draining | Phase::Killed | Phase::Clearing);
                let was = matches!(phase, Phase::Draining | Phase::Killed | Phase::Clearing);
                if leaving && !was {
                    assert!(actions.iter().any(|a| matches!(a, Action::Allow(_))));
                }
            }
        }
    }
}
