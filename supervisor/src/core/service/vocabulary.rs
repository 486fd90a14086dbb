//! The words of the machine: what identifies things, what happens, what is to be done.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One process, for the life of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ProcessId(pub(crate) u64);

/// One plan, for the life of the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct PlanId(pub(crate) u64);

/// The number of a generation, from 1.
pub(crate) type Generation = u64;

/// How one program takes over from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Strategy {
    /// The new process is ready before the old one is told to stop.
    Overlap,
    /// The old process has ended before the new one starts; clients wait in the listeners.
    Sequential,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Hand over to the program as it stands now.
    Reload,
    /// Hand over to a proven program of before.
    Rollback,
    /// Start the program, see it ready, and let it go again.
    DryRun,
}

/// The settings of a service that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policy {
    /// How a handover is done.
    pub(crate) strategy: Strategy,
    /// How many processes serve at once.
    pub(crate) instances: usize,
    /// A handover waits while this many processes of former generations still drain.
    pub(crate) most_draining: usize,
}

/// A handover, looked up and ready to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) kind: Kind,
    pub(crate) plan: PlanId,
    /// The settings that hold once it has committed.
    pub(crate) policy: Policy,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The service is to run this plan from nothing.
    Start(PlanId),
    /// A handover was asked for, and the program looked up.
    Handover(Job),
    /// A process became ready.
    Ready(ProcessId),
    /// A process ended, or gave up, before it was ready.
    FailedToStart(ProcessId),
    /// A process that served does not any more.
    Died(ProcessId),
    /// A process that served does not any more, and the one it had replaced serves again.
    Returned {
        /// The one that does not any more.
        new: ProcessId,
        /// The one that serves again.
        old: ProcessId,
    },
    /// Nothing of a process is left.
    Gone(ProcessId),
    /// A process has lived through its probation.
    Proved(ProcessId),
    /// A process has lived so long that a death would not be one of a row.
    Settled(ProcessId),
    /// The wait before a slot's next attempt is over.
    BackoffOver(usize),
    /// Let everything finish and end.
    Stop,
    /// End everything now.
    StopAtOnce,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a process of a plan.
    Spawn {
        process: ProcessId,
        plan: PlanId,
        generation: Generation,
        slot: usize,
    },
    /// Let a process finish and end.
    Retire(ProcessId),
    /// Let a process that is not wanted end soon.
    Discard(ProcessId),
    /// End a process now.
    Kill(ProcessId),
    /// Let a process's probation begin.
    StartProbation(ProcessId),
    /// Wait, then report [`Event::BackoffOver`].
    StartBackoff { slot: usize, delay: Duration },
    /// A handover has begun.
    Begun { from: Generation, to: Generation },
    /// It waits for a former generation to end.
    WaitingForRoom,
    /// A handover has ended.
    Finished(Finish),
    /// Nobody will need this plan again.
    Forget(PlanId),
    /// A plan has become proven.
    Proven(PlanId),
    /// Nothing of the service runs any more.
    Stopped,
}

/// How a handover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finish {
    /// The generation that served before; 0 if none did.
    pub(crate) from: Generation,
    /// The generation that was to take over.
    pub(crate) to: Generation,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// The plan of the handover that was asked for and ends with this; none if it had ended before,
    /// and this undoes it.
    pub(crate) concludes: Option<PlanId>,
}

/// What came of a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The new generation serves.
    Committed,
    /// The dry run's process became ready.
    Rehearsed,
    /// The new generation failed; what served before serves on.
    Aborted {
        /// The process that failed.
        culprit: ProcessId,
    },
    /// The new generation failed after it had taken over at least in part; the plan before it was
    /// brought back.
    RolledBack {
        /// The process that failed.
        culprit: ProcessId,
        /// Whether the plan before it serves again.
        restored: bool,
    },
    /// The service is being stopped.
    Interrupted,
}

/// What the service is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A slot's process is on its way and no handover runs.
    Starting,
    /// Every slot serves.
    Serving,
    /// A handover runs.
    HandingOver,
    /// Nothing serves any more and processes still finish.
    Draining,
    /// A slot waits for its next attempt.
    BackingOff,
    /// Nothing runs.
    Stopped,
}
