//! The servers that are compared: how each is started, told to reload, and ended.
//!
//! Each is configured so that only its reload can close a connection: long keep-alive times and no
//! limit of requests on a connection. Each answers a few bytes from memory.

mod alone;
mod gunicorn;
mod haproxy;
mod nginx;
mod start_server;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use crate::load::{Connection, Request};
use crate::process::Process;
use crate::supervisor::Supervisor;

pub use alone::Alone;
use nginx::Nginx;

/// How long a server may take until it answers.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long a server may take to end after SIGTERM.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// How long the worker pretends to boot where a slow boot is the point.
pub const SLOW_BOOT: Duration = Duration::from_secs(2);

/// A server together with its way of reloading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// nginx, new configuration: SIGHUP to the master.
    NginxHup,
    /// nginx, new binary: SIGUSR2 to the master, then SIGQUIT to the old one.
    NginxUsr2,
    /// HAProxy in master-worker mode: SIGUSR2 to the master, which executes itself again.
    HaproxyUsr2,
    /// gunicorn: SIGHUP to the master.
    GunicornHup,
    /// Server::Starter with a worker that boots for two seconds: SIGHUP.
    StartServerHup,
    /// Heirloom with that same worker.
    HeirloomPlain,
    /// Heirloom with the demo service, its two versions by turns.
    HeirloomDemo,
}

/// The programs of this tree that are measured.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The supervisor.
    pub heirloom: PathBuf,
    /// The demo service, version 1.
    pub demo: PathBuf,
    /// The demo service, version 2.
    pub demo_v2: PathBuf,
    /// The plain server of this crate.
    pub worker: PathBuf,
    /// The holder of state of this crate.
    pub holder: PathBuf,
    /// What moves all state at once, of this crate.
    pub transfer: PathBuf,
    /// What writes to maps, of this crate.
    pub write_cost: PathBuf,
}

impl Programs {
    /// Those that lie beside the running program.
    ///
    /// # Errors
    /// If one is missing.
    pub fn beside_this_one() -> Result<Self> {
        let this = std::env::current_exe()?;
        let directory = this.parent().context("this program has no directory")?;
        let find = |name: &str| {
            let path = directory.join(name);
            if !path.is_file() {
                bail!(
                    "{} is missing: build it, or run scripts/bench",
                    path.display()
                );
            }
            Ok(path)
        };
        Ok(Self {
            heirloom: find("heirloom")?,
            demo: find("heirloom-demo")?,
            demo_v2: find("heirloom-demo-v2")?,
            worker: find("worker")?,
            holder: find("holder")?,
            transfer: find("transfer")?,
            write_cost: find("write_cost")?,
        })
    }
}

impl Peer {
    /// All, in the order of the tables.
    pub const ALL: [Self; 7] = [
        Self::NginxHup,
        Self::NginxUsr2,
        Self::HaproxyUsr2,
        Self::GunicornHup,
        Self::StartServerHup,
        Self::HeirloomPlain,
        Self::HeirloomDemo,
    ];

    /// As it is called in tables.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::NginxHup => "nginx, HUP",
            Self::NginxUsr2 => "nginx, USR2 and QUIT",
            Self::HaproxyUsr2 => "HAProxy -W, USR2",
            Self::GunicornHup => "gunicorn (gthread), HUP",
            Self::StartServerHup => "start_server, HUP, 2 s boot",
            Self::HeirloomPlain => "Heirloom, same worker, 2 s boot",
            Self::HeirloomDemo => "Heirloom, demo service",
        }
    }

    /// The program it needs from the system, and the Debian package that has it.
    #[must_use]
    pub fn needs(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::NginxHup | Self::NginxUsr2 => Some(("nginx", "nginx-light")),
            Self::HaproxyUsr2 => Some(("haproxy", "haproxy")),
            Self::GunicornHup => Some(("gunicorn", "gunicorn")),
            Self::StartServerHup => Some(("start_server", "libserver-starter-perl")),
            Self::HeirloomPlain | Self::HeirloomDemo => None,
        }
    }

    /// What its program says about its version.
    ///
    /// # Errors
    /// If it is not installed; with what to install.
    pub fn version(self, programs: &Programs) -> Result<String> {
        let (program, package) = match self.needs() {
            Some((program, package)) => (PathBuf::from(program), Some(package)),
            None => (programs.heirloom.clone(), None),
        };
        let flag = match self {
            Self::NginxHup | Self::NginxUsr2 | Self::HaproxyUsr2 => "-v",
            Self::GunicornHup | Self::StartServerHup => "--version",
            Self::HeirloomPlain | Self::HeirloomDemo => "--version",
        };
        let output = Command::new(&program)
            .arg(flag)
            .stdin(Stdio::null())
            .output();
        let Ok(output) = output else {
            let package = package.unwrap_or("(part of this tree)");
            bail!(
                "{} is not installed. On Debian: apt install {package}. \
                 To measure without it: --without {}",
                program.display(),
                self.name()
            );
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let number = text
            .split(|character: char| character.is_whitespace() || "/()".contains(character))
            .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
            .unwrap_or("unknown");
        Ok(number.to_owned())
    }

    /// As it is called on the command line.
    #[must_use]
    pub fn name(self) -> String {
        use clap::ValueEnum as _;
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// If it does not; with the last lines it wrote.
    pub async fn start(self, programs: &Programs) -> Result<Running> {
        let worker = programs.worker.to_string_lossy().into_owned();
        let boot = format!("{}s", SLOW_BOOT.as_secs());
        let kind = match self {
            Self::NginxHup => Kind::Nginx(Nginx::start(nginx::Reload::Hup)?),
            Self::NginxUsr2 => Kind::Nginx(Nginx::start(nginx::Reload::Usr2)?),
            Self::HaproxyUsr2 => Kind::Signal(haproxy::start()?),
            Self::GunicornHup => Kind::Signal(gunicorn::start()?),
            Self::StartServerHup => Kind::Signal(start_server::start(&[&worker, "--boot", &boot])?),
            Self::HeirloomPlain => {
                let command = [worker.as_str(), "--boot", &boot];
                let supervisor = Supervisor::start(&programs.heirloom, &command).await?;
                Kind::Heirloom {
                    supervisor,
                    versions: Vec::new(),
                    reloads: 0,
                }
            }
            Self::HeirloomDemo => {
                let versions: Vec<String> = [&programs.demo_v2, &programs.demo]
                    .map(|path| path.to_string_lossy().into_owned())
                    .to_vec();
                let supervisor = Supervisor::start(&programs.heirloom, &[&versions[1]]).await?;
                Kind::Heirloom {
                    supervisor,
                    versions,
                    reloads: 0,
                }
            }
        };
        let mut running = Running { kind };
        running.wait_until_answering().await?;
        Ok(running)
    }
}

/// A server that runs.
#[derive(Debug)]
pub struct Running {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Signal(Signalled),
    Nginx(Nginx),
    /// With the programs it is handed over to by turns; none means the same one again.
    Heirloom {
        supervisor: Supervisor,
        versions: Vec<String>,
        reloads: usize,
    },
}

/// A server in the foreground that reloads when it gets one signal.
#[derive(Debug)]
struct Signalled {
    process: Process,
    address: SocketAddr,
    signal: Signal,
    /// Holds its configuration and output.
    directory: tempfile::TempDir,
}

impl Running {
    /// Where it is reached.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match &self.kind {
            Kind::Signal(server) => server.address,
            Kind::Nginx(nginx) => nginx.address(),
            Kind::Heirloom { supervisor, .. } => supervisor.address(),
        }
    }

    /// Makes it reload, and waits as long as its own way of reloading can wait: until the reload
    /// is done for `heirloom reload`, until the old master may go for nginx USR2, else not at all.
    ///
    /// # Errors
    /// If it has ended, or says that the reload failed.
    pub async fn reload(&mut self) -> Result<()> {
        match &mut self.kind {
            Kind::Signal(server) => server.process.signal(server.signal),
            Kind::Nginx(nginx) => nginx.reload().await,
            Kind::Heirloom {
                supervisor,
                versions,
                reloads,
            } => {
                let next = versions
                    .get(*reloads % versions.len().max(1))
                    .map(String::as_str);
                *reloads += 1;
                supervisor.reload(next.as_slice()).await.map(drop)
            }
        }
    }

    /// Ends it and removes its files.
    ///
    /// # Errors
    /// If it could not be ended, or in the case of Heirloom did not end by itself.
    pub async fn end(self) -> Result<()> {
        match self.kind {
            Kind::Signal(server) => {
                // Its whole group: asked politely in the middle of a reload, some take half a minute.
                let ended = server.process.kill().await;
                drop(server.directory);
                ended
            }
            Kind::Nginx(nginx) => nginx.end().await,
            Kind::Heirloom { supervisor, .. } => supervisor.stop().await,
        }
    }

    async fn wait_until_answering(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let Err(failure) = ask(self.address(), deadline).await else {
                return Ok(());
            };
            match &mut self.kind {
                Kind::Signal(server) => server.process.check_running()?,
                Kind::Nginx(nginx) => nginx.check_running()?,
                Kind::Heirloom { supervisor, .. } => supervisor.check_running()?,
            }
            if Instant::now() >= deadline {
                bail!(
                    "no answer from {} within {START_PATIENCE:?}: {failure}",
                    self.address()
                );
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// If it is not answered with status 200.
pub async fn ask(address: SocketAddr, deadline: Instant) -> Result<()> {
    let mut connection = Connection::open(address, deadline).await?;
    let response = connection
        .send(&Request::get("/version"), true, deadline)
        .await?;
    if response.status != 200 {
        bail!("status {}: {}", response.status, response.text());
    }
    Ok(())
}

/// A port nobody listens on at the moment, for servers that cannot choose one and tell.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing_built() -> Programs {
        let nowhere = PathBuf::from("/nonexistent");
        Programs {
            heirloom: nowhere.clone(),
            demo: nowhere.clone(),
            demo_v2: nowhere.clone(),
            worker: nowhere.clone(),
            holder: nowhere.clone(),
            transfer: nowhere.clone(),
            write_cost: nowhere,
        }
    }

    /// Every peer that is installed is started, asked, reloaded and ended. Those of this tree are
    /// left to scripts/bench, which builds them.
    #[tokio::test(flavor = "multi_thread")]
    async fn installed_peers_start_reload_and_end() {
        let programs = nothing_built();
        let peers = [
            Peer::NginxHup,
            Peer::NginxUsr2,
            Peer::HaproxyUsr2,
            Peer::GunicornHup,
        ];
        for peer in peers {
            if peer.version(&programs).is_err() {
                continue;
            }
            let mut running = peer.start(&programs).await.unwrap();
            running.reload().await.unwrap();
            running.wait_until_answering().await.unwrap();
            running.end().await.unwrap();
        }
    }

    #[test]
    fn a_missing_program_comes_with_what_to_install() {
        let programs = nothing_built();
        let error = Peer::HeirloomDemo
            .version(&programs)
            .unwrap_err()
            .to_string();
        assert!(error.contains("--without heirloom-demo"), "{error}");
    }
}
