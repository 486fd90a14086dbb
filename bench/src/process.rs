//! A child process: started, watched and ended by its pid. What runs in it is of no concern here.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How much of the end of a child's output is read for a message, in bytes.
const TAIL_LIMIT: u64 = 8 * 1024;
/// How long a child killed with SIGKILL may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A child in a process group of its own, so that Ctrl-C on the terminal reaches only its parent.
/// Its output goes to a file. Dropping it kills the group at once; [`end`](Self::end) asks first.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `command` with nothing on standard input and its output in the new file `output`.
    ///
    /// # Errors
    /// If the file cannot be made or the program not be started.
    pub fn start(name: &str, mut command: std::process::Command, output: &Path) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;

        let file =
            File::create(output).with_context(|| format!("creating {}", output.display()))?;
        let program = command.get_program().to_string_lossy().into_owned();
        command
            .process_group(0)
            .stdout(file.try_clone()?)
            .stderr(file);
        let mut command = Command::from(command);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let child = command
            .spawn()
            .with_context(|| format!("starting {name} ({program})"))?;
        let pid = child
            .id()
            .context("a child that was just started has a pid")?;
        let pid = Pid::from_raw(i32::try_from(pid)?);
        Ok(Self {
            name: name.to_owned(),
            pid,
            child,
            output: output.to_owned(),
        })
    }

    /// Its process id, which is also that of its group.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends it `signal`.
    ///
    /// # Errors
    /// If it has ended, with what it wrote last.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.check_running()?;
        kill(self.pid, signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// # Errors
    /// If it has ended, with what it wrote last.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{}", self.obituary(status)),
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If the system cannot wait for it.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// A sentence about how it ended, with the last lines it wrote.
    #[must_use]
    pub fn obituary(&self, status: ExitStatus) -> String {
        let tail = self.tail(15);
        if tail.is_empty() {
            return format!("{} ended ({status}) and wrote nothing", self.name);
        }
        format!("{} ended ({status}); it wrote last:\n{tail}", self.name)
    }

    /// The last lines of its output.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        tail_of(&self.output, lines).unwrap_or_default()
    }

    /// Sends SIGTERM and waits; after `patience`, kills its whole group.
    ///
    /// # Errors
    /// If it had to be killed.
    pub async fn end(mut self, patience: Duration) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        // It may end between the line above and this one; the wait below sees that.
        let _ = kill(self.pid, Signal::SIGTERM);
        if let Ok(status) = timeout(patience, self.child.wait()).await {
            status?;
            return Ok(());
        }
        let _ = killpg(self.pid, Signal::SIGKILL);
        timeout(KILL_PATIENCE, self.child.wait())
            .await
            .context("it survived SIGKILL")??;
        bail!(
            "{} ignored SIGTERM for {patience:?} and was killed",
            self.name
        )
    }
}

impl Process {
    /// Kills its whole group at once and waits until it is gone.
    ///
    /// # Errors
    /// If it survives that.
    pub async fn kill(mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL);
            timeout(KILL_PATIENCE, self.child.wait())
                .await
                .context("it survived SIGKILL")??;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Until it is reaped its pid is its own, so this cannot reach a stranger.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }
}

fn tail_of(path: &Path, lines: usize) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_LIMIT)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_LIMIT).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> std::process::Command {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_child_that_fails_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");
        let mut process =
            Process::start("the child", shell("echo reason >&2; exit 3"), &output).unwrap();
        let status = timeout(Duration::from_secs(10), process.ended())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(status.code(), Some(3));
        let error = process.check_running().unwrap_err().to_string();
        assert!(
            error.contains("the child ended") && error.contains("reason"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_child_that_ignores_sigterm_is_killed_and_that_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out");
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let process = Process::start("the child", shell(script), &output).unwrap();
        let pid = process.pid();
        let ready = async {
            while process.tail(1) != "ready" {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), ready).await.unwrap();
        let error = process
            .end(Duration::from_millis(50))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("was killed"), "{error}");
        assert!(kill(pid, None).is_err(), "it is gone");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let command = std::process::Command::new("/nonexistent/program");
        let error = Process::start("it", command, &directory.path().join("out")).unwrap_err();
        assert!(
            format!("{error:#}").contains("/nonexistent/program"),
            "{error:#}"
        );
    }
}
