//! nginx as a daemon, for its binary upgrade does nothing when its parent is a supervisor.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{END_PATIENCE, START_PATIENCE, free_address};

/// How long the new master may take until it has workers.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Which of its two reloads.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reload {
    Hup,
    Usr2,
}

#[derive(Debug)]
pub(super) struct Nginx {
    address: SocketAddr,
    reload: Reload,
    /// The process group of the first master. All later ones, and all workers, are in it.
    group: Pid,
    directory: TempDir,
}

impl Nginx {
    pub(super) fn start(reload: Reload) -> Result<Self> {
        let directory = TempDir::with_prefix("heirloom-nginx-")?;
        let address = free_address()?;
        let path = directory.path();
        let configuration = path.join("nginx.conf");
        fs::write(&configuration, configure(path, address))?;
        let binary = find_binary()?;
        let output = Command::new(&binary)
            .arg("-e")
            .arg(path.join("error.log"))
            .arg("-p")
            .arg(path)
            .arg("-c")
            .arg(&configuration)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {binary}"))?;
        if !output.status.success() {
            bail!(
                "nginx did not start: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let group = started_group(path)?;
        Ok(Self {
            address,
            reload,
            group,
            directory,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn check_running(&self) -> Result<()> {
        let master = self.master()?;
        kill(master, None).with_context(|| {
            let log = fs::read_to_string(self.directory.path().join("error.log"));
            format!("the nginx master has ended: {}", log.unwrap_or_default())
        })
    }

    pub(super) async fn reload(&self) -> Result<()> {
        match self.reload {
            Reload::Hup => Ok(kill(self.master()?, Signal::SIGHUP)?),
            Reload::Usr2 => self.upgrade().await,
        }
    }

    /// The upgrade as nginx documents it: a new master beside the old one, and when that has its
    /// workers, the old one is asked to finish.
    async fn upgrade(&self) -> Result<()> {
        let old = self.master()?;
        let deadline = Instant::now() + UPGRADE_PATIENCE;
        // While the last old master drains, its pid file is in the way and nginx refuses.
        let moved = self.directory.path().join("nginx.pid.oldbin");
        while moved.exists() {
            wait(deadline, "the last old nginx master to end").await?;
        }
        kill(old, Signal::SIGUSR2)?;
        loop {
            match self.master() {
                Ok(new) if new != old && has_children(new) => break,
                Ok(_) | Err(_) => wait(deadline, "the new nginx master to have workers").await?,
            }
        }
        Ok(kill(old, Signal::SIGQUIT)?)
    }

    pub(super) async fn end(self) -> Result<()> {
        // "Fast shutdown" for all masters and workers there may be.
        let deadline = Instant::now() + END_PATIENCE;
        if killpg(self.group, Signal::SIGTERM).is_ok() {
            while killpg(self.group, None).is_ok() {
                if Instant::now() >= deadline {
                    bail!("nginx ignored SIGTERM for {END_PATIENCE:?} and was killed");
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    fn master(&self) -> Result<Pid> {
        read_pid(&self.directory.path().join("nginx.pid"))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Nothing is left of the group after `end`; this is the way out after an error.
        let _ = killpg(self.group, Signal::SIGKILL);
    }
}

fn configure(directory: &Path, address: SocketAddr) -> String {
    let directory = directory.display();
    format!(
        "daemon on;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
worker_processes 2;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {address} backlog=4096;
        location / {{ default_type text/plain; return 200 \"ok\\n\"; }}
    }}
}}
"
    )
}

/// The upgrade executes what nginx was started as, without looking along the path.
fn find_binary() -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let directories = path.split(':').chain(["/usr/sbin", "/usr/local/sbin"]);
    directories
        .map(|directory| format!("{directory}/nginx"))
        .find(|candidate| candidate.starts_with('/') && Path::new(candidate).is_file())
        .context("nginx is not installed. On Debian: apt install nginx-light")
}

/// The group of a daemon that has just written its pid file, or is about to.
fn started_group(directory: &Path) -> Result<Pid> {
    let deadline = std::time::Instant::now() + START_PATIENCE;
    loop {
        match read_pid(&directory.join("nginx.pid")) {
            Ok(pid) => return Ok(getpgid(Some(pid))?),
            Err(error) if std::time::Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

fn read_pid(path: &Path) -> Result<Pid> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let pid = text
        .trim()
        .parse()
        .with_context(|| format!("no pid in {}", path.display()))?;
    Ok(Pid::from_raw(pid))
}

fn has_children(pid: Pid) -> bool {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children.is_ok_and(|children| !children.trim().is_empty())
}

async fn wait(deadline: Instant, what: &str) -> Result<()> {
    if Instant::now() >= deadline {
        bail!("waited {UPGRADE_PATIENCE:?} for {what}");
    }
    sleep(POLL).await;
    Ok(())
}
