//! The record: all that a supervisor knows, as plain data, for the one that comes after it.
//!
//! Owns the document's form and version. It is written by the running supervisor and read by a later
//! one, which may be another build of it: by its successor in place (see [`super::upgrade`]), which is
//! given the descriptors themselves, or by the next one after a death (see [`super::adoption`]), which
//! has to find them. Descriptors are named by [`Handle`]s; [`handles`] is about those, [`slots`] about
//! keeping the document where a torn write cannot be read.

pub(crate) mod handles;
pub(crate) mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::service::Service;
use crate::control::protocol::{Connections, Event, Report};
use crate::core::generation::Phase;
use crate::core::service::{self as machine, PlanId, ProcessId};
use crate::core::{reserve, transfer};
use crate::daemon::process::Custody;
use crate::daemon::runner::What;
pub(crate) use handles::{Handle, Held};

/// The form of the document. Raised with every change that an older or a newer supervisor would read
/// wrongly; one that does not know a version refuses it.
pub(crate) const VERSION: u32 = 2;

/// No record is larger: 256 services with all their processes are a tenth of it.
pub(crate) const LARGEST_BYTES: usize = 8 << 20;

/// What is read first: it says whether the rest can be.
#[derive(Debug, Deserialize)]
struct Head {
    version: u32,
}

/// Why a document is no record for this supervisor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("it is of version {0} of the record, and this supervisor knows version {VERSION}")]
    Version(u32),
    #[error("it is not a record: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("it has {0} bytes, and {LARGEST_BYTES} are the most")]
    TooLarge(usize),
}

/// A supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Supervisor {
    pub(crate) version: u32,
    /// The version of the program that wrote it.
    pub(crate) written_by: String,
    pub(crate) name: String,
    /// How often the supervisor has replaced itself, from 1.
    pub(crate) generation: u64,
    /// Its process, which stays the same when it replaces itself, and when that was started, in clock ticks
    /// since the machine was.
    pub(crate) process: (i32, u64),
    /// What marks the processes of this supervisor and of those it follows.
    pub(crate) lineage: String,
    /// The run of the machine in which the pids and points of time below mean something; empty if it is not
    /// known.
    pub(crate) boot: String,
    /// The path it was started by.
    pub(crate) program: Option<PathBuf>,
    /// The configuration's file.
    pub(crate) file: Option<PathBuf>,
    /// The last handle that was given.
    pub(crate) last_handle: Handle,
    /// Whether it was told to end.
    pub(crate) stopping: bool,
    /// Why the last reload by a signal was refused.
    pub(crate) refused: Option<String>,
    /// States that could not be saved.
    pub(crate) unsaved: Vec<String>,
    pub(crate) services: Vec<Runner>,
    /// Services the configuration no longer has, on their way out.
    pub(crate) removed: Vec<Runner>,
}

/// A service.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Runner {
    pub(crate) settings: Settings,
    pub(crate) command: Option<Vec<String>>,
    pub(crate) machine: machine::Service,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) stored: Vec<Stored>,
    pub(crate) plans: BTreeMap<PlanId, Plan>,
    pub(crate) processes: Vec<Process>,
    pub(crate) migrations: Vec<Migration>,
    pub(crate) reserves: Vec<Reserve>,
    /// The handover under way.
    pub(crate) active: Option<Active>,
    /// Handovers that were asked for and have not begun.
    pub(crate) jobs: Vec<Job>,
    /// Slots whose next attempt waits, and until when, in milliseconds of `CLOCK_BOOTTIME`.
    pub(crate) backoffs: BTreeMap<usize, u64>,
    pub(crate) failed_starts: u32,
    /// Whether it waits for another attempt to start at all.
    pub(crate) starting_again: bool,
    pub(crate) last_handover: Option<Report>,
    pub(crate) last_migration: u64,
    pub(crate) last_plan: u64,
    pub(crate) came_up: Option<bool>,
    pub(crate) stopped: bool,
}

/// A service's settings; its name is not among them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    name: String,
    settings: Service,
}

impl Settings {
    pub(crate) fn of(service: &Service) -> Self {
        Self {
            name: service.name.clone(),
            settings: service.clone(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn into_service(self) -> Service {
        Service {
            name: self.name,
            ..self.settings
        }
    }
}

/// A bound socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Listener {
    pub(crate) handle: Handle,
    pub(crate) spec: crate::config::listen::ListenSpec,
    pub(crate) bound: String,
    pub(crate) starter_key: String,
    pub(crate) inode: u64,
    /// The path of a unix socket that is to be removed with it, and what that led to.
    pub(crate) path: Option<(PathBuf, (u64, u64))>,
}

/// A descriptor that a program stored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) handle: Handle,
    pub(crate) name: String,
    pub(crate) polled: bool,
}

/// A program as it was looked up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    pub(crate) program: String,
    pub(crate) resolved: PathBuf,
    pub(crate) content: Content,
    pub(crate) directory: Handle,
    pub(crate) directory_path: PathBuf,
    pub(crate) environment: Vec<(Text, Text)>,
    pub(crate) privileges: crate::sys::spawn::Privileges,
}

/// The file of a program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Content {
    Binary {
        file: Handle,
        was: FileIdentity,
    },
    Script {
        path: PathBuf,
        was: FileIdentity,
        copy: Option<Handle>,
    },
    /// A copy that was held to a hash or signature.
    PinnedBinary(Handle),
    PinnedScript(Handle),
    /// It is not to be had any more: why.
    Lost(String),
}

/// What a file was like when it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileIdentity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) length: u64,
    pub(crate) modified: (i64, i64),
}

/// A process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    pub(crate) plan: PlanId,
    pub(crate) generation: u64,
    pub(crate) slot: usize,
    pub(crate) phase: Phase,
    /// When it was started, in milliseconds since 1970.
    pub(crate) since_ms: u64,
    pub(crate) running: Option<Running>,
    pub(crate) output_over: bool,
    pub(crate) reason: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) watchdog_ms: Option<u64>,
    pub(crate) custody: Custody,
    /// Its `HELLO`, in the words of the protocol.
    pub(crate) hello: Option<String>,
    pub(crate) connections: Option<Connections>,
    pub(crate) deaf: bool,
    pub(crate) restored: bool,
    pub(crate) thawed: u64,
    /// When its deadlines are over, in milliseconds of `CLOCK_BOOTTIME`.
    pub(crate) ready_until_ms: Option<u64>,
    pub(crate) drain_until_ms: Option<u64>,
    pub(crate) proved_at_ms: Option<u64>,
    pub(crate) settled_at_ms: Option<u64>,
}

/// What there is of a process once its program was executed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) pid: i32,
    /// When it was started, in clock ticks since the machine was: with this its pid is its own.
    pub(crate) start_time: u64,
    pub(crate) reaped: bool,
    /// Stands for the process whoever its parent is.
    pub(crate) pidfd: Option<Handle>,
    /// Whether it is a child of the supervisor that wrote this.
    pub(crate) child: bool,
    pub(crate) notify: Option<(Handle, String)>,
    pub(crate) native: Option<Handle>,
    /// Where it can be spoken to once its supervisor is gone.
    pub(crate) rendezvous: String,
    /// The control group it was started in.
    pub(crate) group: Option<PathBuf>,
    pub(crate) output: Option<Output>,
}

/// What is read of a program's output.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Output {
    pub(crate) stdout: Handle,
    pub(crate) stderr: Handle,
    /// By these inodes the two pipes are known.
    pub(crate) pipes: [u64; 2],
    /// The last lines of the error output.
    pub(crate) kept: Vec<String>,
    /// What was read of lines that have not ended; only for a successor in place.
    pub(crate) unfinished: [Text; 2],
}

/// A state that is moving.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Migration {
    pub(crate) new: ProcessId,
    pub(crate) old: ProcessId,
    pub(crate) number: u64,
    pub(crate) purpose: transfer::Purpose,
    pub(crate) state: transfer::State,
    pub(crate) freeze_ms: u64,
    pub(crate) yielded: bool,
    pub(crate) way_back: bool,
}

/// A process in reserve.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reserve {
    pub(crate) new: ProcessId,
    pub(crate) old: ProcessId,
    /// Of the migration that led to it.
    pub(crate) number: u64,
    pub(crate) state: reserve::State,
    pub(crate) yielded: bool,
}

/// The handover under way.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Active {
    pub(crate) job: Job,
    pub(crate) plan: PlanId,
    pub(crate) settings: Settings,
    pub(crate) listeners: Vec<Listener>,
}

/// A handover that was asked for. Who asked is not in it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) what: What,
    pub(crate) settings: Option<Settings>,
    pub(crate) command: Option<Vec<String>>,
}

/// What a supervisor hands to its successor in place, beside the record.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Passage {
    pub(crate) record: Supervisor,
    /// The numbers of the descriptors.
    pub(crate) descriptors: BTreeMap<Handle, i32>,
    /// Of the control socket's listener.
    pub(crate) control: Handle,
    pub(crate) control_path: PathBuf,
    pub(crate) control_inode: (u64, u64),
    /// Of the file that holds the record.
    pub(crate) slots: Option<Handle>,
    /// Those that systemd keeps.
    pub(crate) kept_by_systemd: BTreeSet<Handle>,
    /// Sockets that systemd passed, by name.
    pub(crate) inherited: Vec<Listener>,
    pub(crate) open_files: (u64, u64),
    /// Processes that were there before any service was.
    pub(crate) spared: BTreeSet<i32>,
    /// A signal to reload that came meanwhile.
    pub(crate) reload: bool,
    pub(crate) history: Vec<(u64, Event)>,
    pub(crate) clients: Vec<Client>,
}

/// A client of the control socket whose conversation goes on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Client {
    pub(crate) handle: Handle,
    /// What it has sent so far and nobody has acted upon.
    pub(crate) heard: Text,
    /// What it has not taken yet of what it is told.
    pub(crate) untold: Text,
    pub(crate) state: Conversation,
}

/// What a client waits for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Conversation {
    /// For nothing: it has not said what it wants, or what it wants was not begun.
    Asking,
    /// For events from this number on.
    Following { next: u64 },
    /// For the upgrade, which has happened when this is read.
    Upgrading,
}

/// Bytes, as text where they are text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes(Vec<u8>),
}

impl Serialize for Text {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text.serialize(serializer),
            Err(_) => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Text(text) => Self(text.into_bytes()),
            Written::Bytes(bytes) => Self(bytes),
        })
    }
}

impl Text {
    pub(crate) fn of(text: &OsStr) -> Self {
        Self(text.as_bytes().to_vec())
    }

    pub(crate) fn into_os_string(self) -> OsString {
        OsString::from_vec(self.0)
    }
}

/// Reads a record.
///
/// # Errors
///
/// [`Unreadable`].
pub(crate) fn read_supervisor(bytes: &[u8]) -> Result<Supervisor, Unreadable> {
    read(bytes, "")
}

/// Reads what a supervisor hands to its successor in place.
///
/// # Errors
///
/// [`Unreadable`].
pub(crate) fn read_passage(bytes: &[u8]) -> Result<Passage, Unreadable> {
    read(bytes, "/record")
}

/// Reads a document, once it is clear that it is of the version that is known here; that stands in the
/// part of it that `record` points to (RFC 6901).
fn read<T: for<'de> Deserialize<'de>>(bytes: &[u8], record: &str) -> Result<T, Unreadable> {
    if bytes.len() > LARGEST_BYTES {
        return Err(Unreadable::TooLarge(bytes.len()));
    }
    let value: serde_json::Value = serde_json::from_slice(bytes)?;
    let null = serde_json::Value::Null;
    let Head { version } = Head::deserialize(value.pointer(record).unwrap_or(&null))?;
    if version != VERSION {
        return Err(Unreadable::Version(version));
    }
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_were_text_or_not() {
        for bytes in [&b"PATH=/bin"[..], b"", b"\xff\x00\n", "ö".as_bytes()] {
            let written = serde_json::to_string(&Text(bytes.to_vec())).unwrap();
            let read: Text = serde_json::from_str(&written).unwrap();
            assert_eq!(read.0, bytes, "{written}");
        }
        assert_eq!(
            serde_json::to_string(&Text(b"a".to_vec())).unwrap(),
            "\"a\""
        );
    }

    #[test]
    fn a_record_of_another_version_is_named_before_it_is_read() {
        let error = read_supervisor(br#"{"version": 99, "new": true}"#).unwrap_err();
        assert!(matches!(error, Unreadable::Version(99)), "{error}");
        let error = read_passage(br#"{"record": {"version": 0}}"#).unwrap_err();
        assert!(matches!(error, Unreadable::Version(0)), "{error}");
        let empty = format!(r#"{{"version": {VERSION}}}"#);
        for nonsense in ["", "[]", "{}", &empty] {
            let error = read_supervisor(nonsense.as_bytes()).unwrap_err();
            assert!(matches!(error, Unreadable::Malformed(_)), "{error}");
        }
    }
}
