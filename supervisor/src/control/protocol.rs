//! Requests and replies, and the documents in them.
//!
//! Fields are only ever added. One line of JSON each; a connection carries one request and the
//! replies to it.

use std::path::PathBuf;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The longest request, in bytes, its newline included.
pub(crate) const LONGEST_REQUEST_BYTES: usize = 64 * 1024;

/// The longest reply a client reads, in bytes.
pub(crate) const LONGEST_REPLY_BYTES: usize = 16 * 1024 * 1024;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// [`Status`].
    Status,
    /// What happened lately and, if wanted, what happens from now on.
    Events { follow: bool },
    /// Hand over.
    Reload {
        /// The service; all of them if none is named.
        service: Option<String>,
        /// Only try.
        #[serde(default)]
        dry_run: bool,
        /// The program and its arguments from now on.
        #[serde(default)]
        program: Option<Vec<String>>,
        /// Answer when the probation is over, not when the new generation serves.
        #[serde(default)]
        until_proven: bool,
    },
    /// Hand over to the last proven program.
    Rollback { service: Option<String> },
    /// Save a service's state to a file: [`Saved`].
    Snapshot {
        service: Option<String>,
        /// Which instance, if there are several.
        #[serde(default)]
        instance: Option<usize>,
        /// The file, from `/`.
        path: PathBuf,
    },
    /// Replace the supervisor itself by its program as it stands now.
    Upgrade {
        /// How long handovers that are under way may be waited for.
        #[serde(default)]
        timeout_ms: Option<u64>,
    },
    /// Let everything finish and end.
    Stop {
        /// After so long, end it all the same.
        #[serde(default)]
        timeout_ms: Option<u64>,
        /// End the supervisor alone; what it runs is left to the next one of its name.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        leave_running: bool,
    },
}

impl Request {
    /// Reads the line of a client.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for the client.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| {
            format!(
                "the request is not understood ({error}); are client and supervisor of one version?"
            )
        })
    }
}

/// What the supervisor answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", content = "content", rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// Something happened.
    Event(Event),
    /// What runs.
    Status(Status),
    /// A handover has ended.
    Report(Report),
    /// A state was saved.
    Saved(Saved),
    /// The supervisor has replaced itself.
    Upgraded(Upgraded),
    /// The request was not carried out.
    Refused(Refusal),
    /// This was the last of it.
    Done,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// Whose fault it is.
    pub(crate) fault: Fault,
    /// What is wrong, and what to do.
    pub(crate) reason: String,
}

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// The request, or the configuration it leads to.
    Usage,
    /// The state of things does not allow it now.
    State,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// When, as RFC 3339 in UTC with milliseconds.
    pub(crate) time: String,
    /// Where.
    pub(crate) service: String,
    /// To which generation.
    pub(crate) generation: Option<u64>,
    /// What, in one word.
    pub(crate) event: EventKind,
    /// What, for people.
    pub(crate) text: String,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EventKind {
    /// A listener was bound, taken over or given up.
    Listener,
    /// A handover was asked for.
    Asked,
    /// A handover has begun.
    Begun,
    /// It waits for a former generation to end.
    Waiting,
    /// A process was started.
    Started,
    /// It serves.
    Ready,
    /// It did not become ready.
    Failed,
    /// It served and ended without being asked to.
    Died,
    /// It copies its state, for the one that takes over.
    Copying,
    /// The copy is so close that a freeze would be short.
    Converged,
    /// Its state stands still, and the copy is complete.
    Frozen,
    /// The handover of its state was called off; it owns it again.
    Thawed,
    /// It has seen that the new generation owns the state.
    Yielded,
    /// It has taken the state over.
    TakenOver,
    /// It begins without the state of the one before it.
    NotTakenOver,
    /// Its state was saved to a file.
    Saved,
    /// Its state could not be saved.
    NotSaved,
    /// It has taken up a state that was saved.
    Restored,
    /// It was taken over from a supervisor that is gone.
    Adopted,
    /// It has given its state away and stays, to take it back if the one that has it fails.
    InReserve,
    /// It took its state back from the generation that had taken it over.
    Returned,
    /// It is in reserve no more.
    StoodDown,
    /// The generation before cannot take all of the state back.
    NoWayBack,
    /// It was told to finish and end.
    Draining,
    /// Connections have gone to the new generation.
    Moved,
    /// It has given its state away, finished, and is about to end.
    Drained,
    /// It was killed.
    Killed,
    /// Nothing of it is left.
    Gone,
    /// The next attempt waits.
    BackingOff,
    /// A handover has ended well.
    Committed,
    /// A dry run has ended well.
    Rehearsed,
    /// A handover has failed and changed nothing.
    Aborted,
    /// A handover was undone.
    RolledBack,
    /// A program has lived through its probation.
    Proven,
    /// The service runs no more.
    Stopped,
}

/// What one supervisor runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) name: String,
    pub(crate) pid: i32,
    pub(crate) version: String,
    /// How often the supervisor has replaced itself, from 1.
    pub(crate) supervisor_generation: u64,
    pub(crate) services: Vec<ServiceStatus>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceStatus {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) listeners: Vec<ListenerStatus>,
    pub(crate) generations: Vec<GenerationStatus>,
    pub(crate) last_handover: Option<Report>,
    /// Descriptors that were stored by name.
    pub(crate) stored: Vec<String>,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListenerStatus {
    pub(crate) name: String,
    /// Where it is bound, with the real port.
    pub(crate) address: String,
    /// How many connections wait to be accepted; `null` where the system does not tell.
    pub(crate) queued: Option<u32>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GenerationStatus {
    pub(crate) generation: u64,
    /// `null` while its program cannot be started yet.
    pub(crate) pid: Option<i32>,
    pub(crate) phase: String,
    /// The instance it is, from 0.
    pub(crate) instance: usize,
    /// The program as it was asked for.
    pub(crate) program: String,
    /// The file that was found and executed.
    pub(crate) resolved: String,
    /// When it was started, as RFC 3339 in UTC.
    pub(crate) since: String,
    /// Established connections to the service's listeners.
    pub(crate) connections: u64,
    /// Memory of its main process.
    pub(crate) rss_bytes: u64,
    /// What all its processes hold, with the files they have read; `null` where that is not counted.
    #[serde(default)]
    pub(crate) memory_bytes: Option<u64>,
    /// What it says of itself (`STATUS=`).
    pub(crate) status: Option<String>,
    /// Whether it speaks the handover protocol.
    #[serde(default)]
    pub(crate) native: bool,
    /// Its version, as it told; `null` for a plain program.
    #[serde(default)]
    pub(crate) version: Option<String>,
}

/// How a handover ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) service: String,
    /// The generation that served before; 0 if none did.
    pub(crate) from: u64,
    /// The generation that was to take over.
    pub(crate) to: u64,
    pub(crate) strategy: String,
    pub(crate) outcome: Outcome,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// From being asked for to its end.
    pub(crate) total_ms: f64,
    /// How long clients may have waited: for a handover of state, as long as it stood still (the
    /// longest of several instances); for a sequential one, from the moment the old one was told to
    /// stop.
    pub(crate) pause_ms: f64,
    /// The longest that a request may have been held up by the copy before that.
    #[serde(default)]
    pub(crate) stall_ms: f64,
    /// Entries of state that were taken over.
    #[serde(default)]
    pub(crate) entries: u64,
    pub(crate) snapshot_bytes: u64,
    pub(crate) delta_rounds: u64,
    pub(crate) connections_moved: u64,
    /// The same and more by protocol, as the old generation counts them; none if it does not.
    #[serde(default)]
    pub(crate) connections: Option<Connections>,
    /// What would be lost if the new generation failed in its probation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warning: Option<String>,
    /// The last lines the failed generation wrote to its standard error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) stderr: Vec<String>,
}

/// A supervisor that has replaced itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upgraded {
    pub(crate) name: String,
    pub(crate) pid: i32,
    /// Of the program that runs now.
    pub(crate) version: String,
    pub(crate) supervisor_generation: u64,
}

/// A state that was saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(crate) service: String,
    pub(crate) generation: u64,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Rounds of changes written.
    pub(crate) rounds: u64,
    /// How long the state stood still.
    pub(crate) pause_ms: f64,
}

/// What became of the old generation's connections, by protocol. In a status this goes on being counted
/// until that generation has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connections {
    /// They are served by the new generation.
    pub(crate) moved: BTreeMap<String, u64>,
    /// They are served by the old one still: a request runs, or their protocol does not let them move.
    pub(crate) left: BTreeMap<String, u64>,
    /// They were cut off at the end of the drain.
    pub(crate) cut: u64,
}

impl Connections {
    /// Counts another process's in.
    pub(crate) fn add(&mut self, other: &Self) {
        let add = |sum: &mut BTreeMap<String, u64>, counts: &BTreeMap<String, u64>| {
            for (protocol, count) in counts {
                *sum.entry(protocol.clone()).or_default() += count;
            }
        };
        add(&mut self.moved, &other.moved);
        add(&mut self.left, &other.left);
        self.cut += other.cut;
    }
}

/// What came of a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The new generation serves.
    Committed,
    /// A dry run: the new generation became ready, and was let go.
    Rehearsed,
    /// It failed; what served before serves on.
    Aborted,
    /// It had taken over, failed, and was undone.
    RolledBack,
}

impl Outcome {
    /// The word for it, as in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Rehearsed => "rehearsed",
            Self::Aborted => "aborted",
            Self::RolledBack => "rolled-back",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_plain_json() {
        let reload: Request =
            serde_json::from_str(r#"{"command":"reload","service":null}"#).unwrap();
        assert_eq!(
            reload,
            Request::Reload {
                service: None,
                dry_run: false,
                program: None,
                until_proven: false
            }
        );
        assert!(serde_json::from_str::<Request>(r#"{"command":"dance"}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"command":"status","x":1}"#).is_ok());
    }
}
