//! A running `heirloom`, used as a deploy script would use it: through its command line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::process::Process;
use crate::procfs::start_ticks;

/// How long the supervisor and its first generation may take until they serve.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a status may take.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);
/// How long a reload may take.
const RELOAD_PATIENCE: Duration = Duration::from_secs(60);
/// How long draining everything at the end may take.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// What `heirloom status --json` says, as far as it is used here.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The services; always one here.
    pub services: Vec<Service>,
}

/// One service in a status.
#[derive(Debug, Clone, Deserialize)]
pub struct Service {
    /// `serving`, `starting` and so on.
    pub state: String,
    /// Its listeners.
    pub listeners: Vec<Listener>,
    /// Its generations, of which several may live.
    #[serde(default)]
    pub generations: Vec<Generation>,
    /// The last handover, if there was one.
    #[serde(default)]
    pub last_handover: Option<Handover>,
}

/// One listener in a status.
#[derive(Debug, Clone, Deserialize)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Where it listens, for instance `tcp:127.0.0.1:8080`.
    pub address: String,
}

/// One generation in a status.
#[derive(Debug, Clone, Deserialize)]
pub struct Generation {
    /// Its number.
    pub generation: u64,
    /// Its process.
    pub pid: i32,
    /// What it is doing.
    pub phase: String,
}

/// The last handover in a status.
#[derive(Debug, Clone, Deserialize)]
pub struct Handover {
    /// `committed`, `aborted` or `rolled-back`.
    pub outcome: String,
    /// `handover`, `overlap` or `sequential`.
    #[serde(default)]
    pub strategy: Option<String>,
    /// From the start of the new process to the end of the handover, in milliseconds.
    #[serde(default)]
    pub total_ms: Option<f64>,
    /// From freeze to commit, in milliseconds.
    #[serde(default)]
    pub pause_ms: Option<f64>,
    /// The longest that the copy may have held up a request before the freeze, in milliseconds.
    #[serde(default)]
    pub stall_ms: Option<f64>,
    /// Entries of state that went over.
    #[serde(default)]
    pub entries: Option<u64>,
    /// Bytes of the snapshot.
    #[serde(default)]
    pub snapshot_bytes: Option<u64>,
    /// Connections that went from the old generation to the new one.
    #[serde(default)]
    pub connections_moved: Option<u64>,
}

impl Handover {
    /// Whether state and connections went over, not only the listeners.
    #[must_use]
    pub fn moves_connections(&self) -> bool {
        self.strategy.as_deref() == Some("handover")
    }
}

/// One line of `heirloom events --json`.
#[derive(Debug, Clone, Deserialize)]
struct Happened {
    time: String,
    event: String,
}

/// A supervisor with one service on a port of its own on the loopback address.
#[derive(Debug)]
pub struct Supervisor {
    program: PathBuf,
    /// What it runs.
    command: Vec<String>,
    control: PathBuf,
    process: Option<Process>,
    address: SocketAddr,
    /// How long it took from its start, or from its predecessor's death, until it said that its service serves.
    took: Duration,
    /// Every generation ever seen in a status, with its start, so that none can be left behind.
    seen: BTreeMap<i32, u64>,
    /// Holds the control socket and the output. Removed last.
    directory: TempDir,
}

impl Supervisor {
    /// Runs `program` (`heirloom`) with `command` as its service and waits until that serves.
    ///
    /// # Errors
    /// If it ends, or does not serve in time; with the last lines it wrote.
    pub async fn start(program: &Path, command: &[&str]) -> Result<Self> {
        let directory = TempDir::with_prefix("heirloom-")?;
        let control = directory.path().join("control.sock");
        let mut supervisor = Self {
            program: program.to_owned(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            control,
            process: None,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            took: Duration::ZERO,
            seen: BTreeMap::new(),
            directory,
        };
        let begun = Instant::now();
        supervisor.run(begun).await?;
        Ok(supervisor)
    }

    /// Kills the supervisor, and nothing else, and starts another of its name.
    ///
    /// # Errors
    /// If that ends, or says in time of no service that it serves.
    pub async fn kill_and_follow(&mut self) -> Result<()> {
        let process = self.process.take().context("the supervisor has ended")?;
        let begun = Instant::now();
        process.kill().await?;
        self.run(begun).await
    }

    async fn run(&mut self, begun: Instant) -> Result<()> {
        let mut run = std::process::Command::new(&self.program);
        run.args(["run", "--name", "bench", "--listen", "http=tcp:127.0.0.1:0"])
            .args(["--drain-timeout", "30s", "--control"])
            .arg(&self.control)
            .arg("--")
            .args(&self.command);
        let output = self.directory.path().join("output");
        self.process = Some(Process::start("heirloom run", run, &output)?);
        self.wait_until_serving().await?;
        self.took = begun.elapsed();
        Ok(())
    }

    /// How long it took from its start, or from its predecessor's death, until it said that its service serves.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Where the service is reached.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The supervisor's own process.
    ///
    /// # Errors
    /// If it has ended.
    pub fn pid(&self) -> Result<Pid> {
        Ok(self
            .process
            .as_ref()
            .context("the supervisor has ended")?
            .pid())
    }

    /// The pid of the generation with the highest number.
    ///
    /// # Errors
    /// If there is none, or no status.
    pub async fn service_pid(&mut self) -> Result<Pid> {
        let service = self.status().await?;
        let newest = service.generations.iter().max_by_key(|one| one.generation);
        Ok(Pid::from_raw(
            newest.context("the service has no generation")?.pid,
        ))
    }

    /// The status of the service.
    ///
    /// # Errors
    /// If the command fails or answers something else than one service.
    pub async fn status(&mut self) -> Result<Service> {
        let output = self
            .client(&["status", "--json"], &[], STATUS_PATIENCE)
            .await?;
        let status: Status = serde_json::from_slice(&output)
            .context("heirloom status --json wrote something else than a status")?;
        let service = status
            .services
            .into_iter()
            .next()
            .context("the status has no service")?;
        for generation in &service.generations {
            if let Some(start) = start_ticks(Pid::from_raw(generation.pid)) {
                self.seen.insert(generation.pid, start);
            }
        }
        Ok(service)
    }

    /// Hands over, to `command` if it is not empty; gives the time the command line took.
    ///
    /// # Errors
    /// If the reload failed, with the reason it gave.
    pub async fn reload(&mut self, command: &[&str]) -> Result<Duration> {
        let start = Instant::now();
        self.client(&["reload"], command, RELOAD_PATIENCE).await?;
        Ok(start.elapsed())
    }

    /// How long the last copy of the state took, in milliseconds: from the old generation being told to
    /// copy until the new one owned all of it.
    ///
    /// # Errors
    /// If there was none, or no events.
    pub async fn copying_ms(&self) -> Result<f64> {
        let output = self
            .client(&["events", "--json"], &[], STATUS_PATIENCE)
            .await?;
        let lines = output
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let events: Vec<Happened> = lines
            .map(serde_json::from_slice)
            .collect::<Result<_, _>>()
            .context("heirloom events --json wrote something else than events")?;
        let last = |kind: &str| {
            let event = events.iter().rev().find(|one| one.event == kind);
            let time = event.with_context(|| format!("there was no event {kind}"))?;
            Ok::<_, anyhow::Error>(humantime::parse_rfc3339(&time.time)?)
        };
        let took = last("taken-over")?.duration_since(last("copying")?)?;
        Ok(took.as_secs_f64() * 1e3)
    }

    /// Ends the supervisor and every generation, and removes its files.
    ///
    /// # Errors
    /// If it did not end by itself, or left a generation behind. Nothing is left either way.
    pub async fn stop(mut self) -> Result<()> {
        // Generations that came since the last status are to be known too.
        let known = self.status().await.map(drop);
        let asked = match known {
            Ok(()) => self.client(&["stop"], &[], STOP_PATIENCE).await.map(drop),
            Err(error) => Err(error),
        };
        let ended = match self.process.take() {
            Some(mut process) => {
                if asked.is_ok() {
                    // A signal now would mean "at once" and cut its last moments short.
                    drop(timeout(STOP_PATIENCE, process.ended()).await);
                }
                process.end(STOP_PATIENCE).await
            }
            None => Ok(()),
        };
        let left = self.kill_generations();
        asked.and(ended)?;
        if left > 0 {
            bail!("{left} generations outlived the supervisor and were killed");
        }
        Ok(())
    }

    async fn wait_until_serving(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            self.check_running()?;
            let found = match self.status().await {
                Ok(service) if service.state == "serving" => http_address(&service),
                Ok(service) => Err(anyhow::anyhow!("its service is {}", service.state)),
                Err(error) => Err(error),
            };
            match found {
                Ok(address) => {
                    self.address = address;
                    return Ok(());
                }
                Err(error) if Instant::now() >= deadline => {
                    let tail = self.process.as_ref().map(|process| process.tail(15));
                    return Err(error.context(format!(
                        "heirloom did not serve within {START_PATIENCE:?}; it wrote last:\n{}",
                        tail.unwrap_or_default()
                    )));
                }
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// # Errors
    /// If the supervisor has ended, with the last lines it wrote.
    pub fn check_running(&mut self) -> Result<()> {
        self.process
            .as_mut()
            .context("the supervisor has ended")?
            .check_running()
    }

    /// Runs a client command; gives what it wrote.
    async fn client(&self, words: &[&str], behind: &[&str], limit: Duration) -> Result<Vec<u8>> {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .arg("--control")
            .arg(&self.control)
            .kill_on_drop(true);
        // Ctrl-C on the terminal is for the parent alone.
        command.process_group(0);
        if !behind.is_empty() {
            command.arg("--").args(behind);
        }
        let what = format!("heirloom {}", words.join(" "));
        let output = timeout(limit, command.output())
            .await
            .with_context(|| format!("{what} took longer than {limit:?}"))?
            .with_context(|| format!("starting {}", self.program.display()))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            bail!("{what} failed ({}): {}", output.status, reason.trim());
        }
        Ok(output.stdout)
    }

    /// Kills the generations that are still there; says how many.
    fn kill_generations(&mut self) -> usize {
        let mut killed = 0;
        for (pid, start) in std::mem::take(&mut self.seen) {
            let pid = Pid::from_raw(pid);
            if start_ticks(pid) == Some(start) && killpg(pid, Signal::SIGKILL).is_ok() {
                killed += 1;
            }
        }
        killed
    }

    /// Where the supervisor keeps its files while it runs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // The way out after an error. The supervisor first, so that it starts nothing anew.
        drop(self.process.take());
        self.kill_generations();
    }
}

fn http_address(service: &Service) -> Result<SocketAddr> {
    let listener = service
        .listeners
        .iter()
        .find(|listener| listener.name == "http")
        .context("the status has no listener named http")?;
    let address = listener
        .address
        .strip_prefix("tcp:")
        .unwrap_or(&listener.address);
    address
        .parse()
        .with_context(|| format!("not an address: {}", listener.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_with_unknown_fields_is_read() {
        let status: Status = serde_json::from_str(
            r#"{"name": "shop", "future": [], "services": [{"name": "shop", "state": "serving",
                "listeners": [{"name": "http", "address": "tcp:127.0.0.1:8080", "queued": 0}],
                "generations": [{"generation": 7, "pid": 321, "phase": "serving"}],
                "last_handover": {"from": 6, "to": 7, "outcome": "committed", "reason": null,
                    "total_ms": 31.0, "pause_ms": 1.4, "connections_moved": 812}}]}"#,
        )
        .unwrap();
        let service = &status.services[0];
        assert_eq!(
            http_address(service).unwrap(),
            "127.0.0.1:8080".parse().unwrap()
        );
        assert_eq!(service.last_handover.as_ref().unwrap().pause_ms, Some(1.4));
    }
}
