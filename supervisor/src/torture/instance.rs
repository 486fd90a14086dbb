//! The supervisor that a torture is done with: this same program, in a directory of its own, told what to do
//! by its control socket as by anybody else.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, mkdtemp};

use super::Failed;
use super::plan::Plan;
use super::victim;
use crate::config::file::{self, Configuration};
use crate::control::client::{self, NoReply};
use crate::control::place::Wanted;
use crate::control::protocol::{
    Event, EventKind, GenerationStatus, Reply, Report, Request, Status,
};

/// How long the program may take to come up beyond its `ready_timeout`, and the supervisor to answer.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);

/// How long a handover may take beyond what the program is allowed.
const LONGEST_HANDOVER: Duration = Duration::from_secs(120);

/// What a supervisor is asked too often.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A running supervisor. Dropping it ends it, and all that it has started.
#[derive(Debug)]
pub(crate) struct Instance {
    process: Child,
    directory: PathBuf,
    name: String,
    wanted: Wanted,
}

/// What it needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    pub(crate) descriptors: u64,
    /// Processes beside those that serve or are in reserve.
    pub(crate) processes: u64,
    pub(crate) zombies: u64,
}

/// Why the supervisor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unheard {
    /// It is dead, or does not answer.
    #[error("the supervisor is gone or does not answer: {0}")]
    Gone(#[from] NoReply),
    /// It did not want to.
    #[error("the supervisor refused: {0}")]
    Refused(String),
}

impl Instance {
    /// Starts it, and waits until the program serves.
    ///
    /// # Errors
    ///
    /// [`Failed`].
    pub(crate) fn start(plan: &Plan) -> Result<Self, Failed> {
        let system = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| Failed::System(format!("{what}: {error}"))
        };
        let template = std::env::temp_dir().join("heirloom-torture-XXXXXX");
        let directory = mkdtemp(&template).map_err(io::Error::from);
        let directory = directory.map_err(system("no directory can be made"))?;
        let name = plan.service.name.clone();
        let configuration = Configuration {
            name: name.clone(),
            services: [(name.clone(), plan.service.clone())].into(),
        };
        let text = file::print(&configuration).map_err(io::Error::other);
        let text = text.map_err(system("the configuration cannot be written"))?;
        let file = directory.join("heirloom.toml");
        fs::write(&file, text).map_err(system("the configuration cannot be written"))?;
        let log = fs::File::create(directory.join("log"));
        let log = log.map_err(system("the log cannot be written"))?;
        let control = directory.join("control.sock");
        let own = std::env::current_exe().map_err(system("this program cannot be found"))?;
        let process = Command::new(own)
            .args(["run", "--log-format", "human", "--config"])
            .arg(&file)
            .arg("--control")
            .arg(&control)
            .env_remove("RUNTIME_DIRECTORY")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(system("the supervisor cannot be started"))?;
        let mut instance = Self {
            process,
            directory,
            name,
            wanted: Wanted {
                path: Some(control),
                name: None,
            },
        };
        instance.wait_until_up(plan.service.ready_timeout.0 + LONGEST_ANSWER)?;
        Ok(instance)
    }

    fn wait_until_up(&mut self, patience: Duration) -> Result<(), Failed> {
        let end = Instant::now() + patience;
        loop {
            let ended = self.process.try_wait().ok().flatten();
            let serves = self.status().is_ok_and(|status| serves(&status));
            if serves {
                return Ok(());
            }
            if let Some(status) = ended {
                let text = format!("it did not come up ({status}):\n{}", self.last_lines());
                return Err(Failed::NotUp(text));
            }
            if Instant::now() >= end {
                let patience = humantime::format_duration(patience);
                let text = format!(
                    "it did not come up within {patience}:\n{}",
                    self.last_lines()
                );
                return Err(Failed::NotUp(text));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn last_lines(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.len().saturating_sub(10);
        lines[last..].join("\n")
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed())
    }

    /// What supervisor and program have said.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Where the program listens.
    ///
    /// # Errors
    ///
    /// [`Failed`] if that is not a tcp socket.
    pub(crate) fn address(&self) -> Result<SocketAddr, Failed> {
        let status = self.status();
        let status = status.map_err(|error| Failed::NotUp(error.to_string()))?;
        let mut listeners = status.services.iter().flat_map(|one| &one.listeners);
        let address = listeners.find_map(|one| one.address.strip_prefix("tcp:")?.parse().ok());
        address.ok_or_else(|| {
            Failed::NotUp(
                "the first listener is to be a tcp socket with a numeric address".to_owned(),
            )
        })
    }

    fn ask(&self, request: &Request, patience: Duration) -> Result<client::Conversation, NoReply> {
        client::ask(&self.wanted, request, Some(Instant::now() + patience))
    }

    /// What runs.
    ///
    /// # Errors
    ///
    /// [`Unheard`].
    pub(crate) fn status(&self) -> Result<Status, Unheard> {
        let mut conversation = self.ask(&Request::Status, LONGEST_ANSWER)?;
        while let Some(reply) = conversation.next()? {
            match reply {
                Reply::Status(status) => return Ok(status),
                Reply::Refused(refusal) => return Err(Unheard::Refused(refusal.reason)),
                Reply::Event(_)
                | Reply::Report(_)
                | Reply::Saved(_)
                | Reply::Upgraded(_)
                | Reply::Done => {}
            }
        }
        Err(NoReply::BrokenOff("it said nothing".to_owned()).into())
    }

    /// Whether it is known that this happened to a generation, in the handover that was to `to`.
    pub(crate) fn has_happened(&self, to: u64, kind: EventKind, generation: u64) -> bool {
        let follow = false;
        let Ok(mut conversation) = self.ask(&Request::Events { follow }, LONGEST_ANSWER) else {
            return false;
        };
        let is = |event: &Event, kind: EventKind, generation: u64| {
            event.event == kind && event.generation == Some(generation)
        };
        let (mut begun, mut happened) = (false, false);
        while let Ok(Some(reply)) = conversation.next() {
            if let Reply::Event(event) = reply {
                begun |= is(&event, EventKind::Begun, to);
                happened |= begun && is(&event, kind, generation);
            }
        }
        happened
    }

    /// Hands over, to this command if one is given.
    ///
    /// # Errors
    ///
    /// [`Unheard`].
    pub(crate) fn reload(&self, program: Option<Vec<String>>) -> Result<Report, Unheard> {
        let request = Request::Reload {
            service: Some(self.name.clone()),
            dry_run: false,
            program,
            until_proven: false,
        };
        let mut conversation = self.ask(&request, LONGEST_HANDOVER)?;
        while let Some(reply) = conversation.next()? {
            match reply {
                Reply::Report(report) => return Ok(report),
                Reply::Refused(refusal) => return Err(Unheard::Refused(refusal.reason)),
                Reply::Event(_)
                | Reply::Status(_)
                | Reply::Saved(_)
                | Reply::Upgraded(_)
                | Reply::Done => {}
            }
        }
        Err(NoReply::BrokenOff("it did not report".to_owned()).into())
    }

    /// Memory of its own that it has now: pages of its program come and go with what it is asked.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.unwrap_or_default();
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let resident = resident.and_then(|text| text.split_ascii_whitespace().next()?.parse().ok());
        resident.unwrap_or(0)
    }

    /// What it needs now.
    pub(crate) fn footprint(&self) -> Footprint {
        let pid = self.pid();
        let children = victim::children_of(pid);
        let wanted = self
            .status()
            .map_or(0, |status| at_rest(&status).count() as u64);
        let zombies = children.iter().filter(|child| victim::is_zombie(**child));
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Footprint {
            descriptors: descriptors as u64,
            processes: (children.len() as u64).saturating_sub(wanted),
            zombies: zombies.count() as u64,
        }
    }

    /// Stops everything; whether it ended as it should, where it is `whole` still.
    ///
    /// # Errors
    ///
    /// What was wrong.
    pub(crate) fn end(mut self, whole: bool) -> Result<(), String> {
        let told = self.tell_to_stop();
        let status = told.then(|| self.process.wait());
        match status {
            _any if !whole => Ok(()),
            Some(Ok(status)) if status.success() => Ok(()),
            Some(Ok(status)) => Err(format!("the supervisor ended with {status}")),
            Some(Err(error)) => Err(format!("the supervisor's end is not known: {error}")),
            None => Err("the supervisor did not stop when it was told to".to_owned()),
        }
    }

    /// Tells it to stop; says whether it did.
    fn tell_to_stop(&mut self) -> bool {
        let request = Request::Stop {
            timeout_ms: Some(u64::try_from(LONGEST_ANSWER.as_millis()).unwrap_or(u64::MAX)),
            leave_running: false,
        };
        if let Ok(mut conversation) = self.ask(&request, 2 * LONGEST_ANSWER) {
            while let Ok(Some(_)) = conversation.next() {}
        }
        let end = Instant::now() + LONGEST_ANSWER;
        while Instant::now() < end {
            if self.process.try_wait().ok().flatten().is_some() {
                return true;
            }
            thread::sleep(LOOK_AGAIN);
        }
        false
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.process.try_wait().ok().flatten().is_some() || self.tell_to_stop() {
            return;
        }
        // First what it would outlive.
        for child in victim::children_of(self.pid()) {
            let _gone = nix::sys::signal::killpg(child, nix::sys::signal::Signal::SIGKILL);
        }
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// The processes that stay: those that serve, and one in reserve as long as the probation lasts.
fn at_rest(status: &Status) -> impl Iterator<Item = &GenerationStatus> {
    let all = status.services.iter().flat_map(|one| &one.generations);
    all.filter(|one| one.phase == "serving" || one.phase == "reserve")
}

/// Whether nothing but what stays is there.
pub(crate) fn is_at_rest(status: &Status) -> bool {
    let all = status.services.iter().flat_map(|one| &one.generations);
    serves(status) && all.count() == at_rest(status).count()
}

/// Whether the service serves.
pub(crate) fn serves(status: &Status) -> bool {
    let mut services = status.services.iter();
    services.all(|service| service.state == "serving")
}

/// Removes what was written, now that nobody needs to look at it.
pub(crate) fn forget(log: &Path) {
    if let Some(directory) = log.parent() {
        // It is in a directory for things that nobody needs.
        let _left = fs::remove_dir_all(directory);
    }
}
