//! Runs `keeper.sh`: a systemd that has booted, and its end, whatever happens to the test.
//!
//! The script holds everything that could be left over and ends with the pipe to its stdin. The pipe closes when a [`Keeper`] is
//! dropped, which also waits, and when the test process dies in any way.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::version::{self, Version};

const BOOT_LIMIT: Duration = Duration::from_secs(60);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/keeper.sh");

/// A booted systemd.
#[derive(Debug)]
pub(crate) struct Keeper {
    script: Child,
    console: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    leader_pid: u32,
    directory: PathBuf,
}

impl Keeper {
    /// Boots the root of `version`. Each of `files` (here, there) is seen in it, read-only.
    ///
    /// # Panics
    /// With what to install if the machine lacks something, with the console's text if the boot failed.
    pub(crate) fn boot(version: Version, files: &[(&Path, &str)]) -> Self {
        version::require_tools();
        let lower = version.root();
        let directory = tempfile::Builder::new()
            .prefix("heirloom-rig-")
            .tempdir()
            .expect("a temporary directory");
        // The script removes it: it may outlive this process.
        let directory = directory.keep();
        let address = directory.with_extension("notify");
        let notify = UnixDatagram::bind(&address).expect("a socket beside the directory");
        let mut script = Command::new("bash")
            .arg(SCRIPT)
            .arg("boot")
            .arg(lower)
            .arg(&directory)
            .args(
                files
                    .iter()
                    .map(|(here, there)| format!("{}:{there}", here.display())),
            )
            .env("NOTIFY_SOCKET", &address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            // A test runner that kills the test's process group must not kill the one that cleans up.
            .process_group(0)
            .spawn()
            .expect("bash starts");
        let console = Arc::new(Mutex::new(String::new()));
        let reader = script.stdout.take().map(|output| {
            let console = Arc::clone(&console);
            std::thread::spawn(move || collect(output, &console))
        });
        let mut keeper = Self {
            script,
            console,
            reader,
            leader_pid: 0,
            directory,
        };
        let booted = keeper.await_ready(&notify);
        // The script removes it as well, if it ends first.
        drop(fs::remove_file(&address));
        if let Err(reason) = booted {
            panic!(
                "systemd {} did not boot: {reason}; its console:\n{}",
                version.number(),
                keeper.console()
            );
        }
        keeper.leader_pid =
            leader_below(keeper.script.id()).expect("a booted root has a process 1");
        keeper
    }

    /// The pid, as this machine counts, of the systemd inside.
    pub(crate) fn leader_pid(&self) -> u32 {
        self.leader_pid
    }

    /// What was printed so far.
    pub(crate) fn console(&self) -> String {
        self.console
            .lock()
            .expect("nobody panics holding it")
            .clone()
    }

    /// nspawn passes on the READY=1 of the systemd inside. A script that ends first has failed.
    fn await_ready(&mut self, notify: &UnixDatagram) -> Result<(), String> {
        let deadline = Instant::now() + BOOT_LIMIT;
        // Woken by messages; the timeout is only for noticing that none will come.
        notify
            .set_read_timeout(Some(Duration::from_millis(200)))
            .map_err(|error| error.to_string())?;
        let mut message = [0; 4096];
        while Instant::now() < deadline {
            match notify.recv(&mut message) {
                Ok(length)
                    if String::from_utf8_lossy(&message[..length])
                        .lines()
                        .any(|line| line == "READY=1") =>
                {
                    return Ok(());
                }
                Ok(_) => {}
                Err(_) => {
                    if let Some(status) =
                        self.script.try_wait().map_err(|error| error.to_string())?
                    {
                        return Err(format!("keeper.sh ended with {status}"));
                    }
                }
            }
        }
        Err(format!("not ready within {BOOT_LIMIT:?}"))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        // Its cleaning up is over when it has ended; it says itself what it could not remove.
        drop(self.script.wait());
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
    }
}

fn collect(mut output: impl Read, console: &Mutex<String>) {
    const LIMIT_BYTES: usize = 64 * 1024;
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = output.read(&mut chunk) {
        let mut console = console.lock().expect("nobody panics holding it");
        if console.len() < LIMIT_BYTES {
            console.push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
    }
}

/// The process below `ancestor` that is process 1 two namespaces further in: the keeper's own, and nspawn's.
fn leader_below(ancestor: u32) -> Option<u32> {
    let parents = processes();
    parents
        .iter()
        .filter(|process| {
            process.namespace_pids.len() >= 3 && process.namespace_pids.last() == Some(&1)
        })
        .map(|process| process.pid)
        .find(|&pid| descends_from(pid, ancestor, &parents))
}

fn descends_from(mut pid: u32, ancestor: u32, processes: &[Process]) -> bool {
    while pid > 1 {
        if pid == ancestor {
            return true;
        }
        let Some(process) = processes.iter().find(|process| process.pid == pid) else {
            return false;
        };
        pid = process.parent;
    }
    false
}

/// One process, from its `/proc/PID/status`.
#[derive(Debug)]
struct Process {
    pid: u32,
    parent: u32,
    /// Its pid in each process namespace it is in, this machine's first.
    namespace_pids: Vec<u32>,
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| process(&entry.path()))
        .collect()
}

fn process(directory: &Path) -> Option<Process> {
    let pid = directory.file_name()?.to_str()?.parse().ok()?;
    let status = fs::read_to_string(directory.join("status")).ok()?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let parent = field("PPid:")?.parse().ok()?;
    let namespace_pids = field("NSpid:")?
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    Some(Process {
        pid,
        parent,
        namespace_pids,
    })
}

/// The rig's own promises: nothing of it is left, also when the script is killed with no chance to clean up.
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::Keeper;
    use crate::version::Version;
    use crate::wait::eventually;

    #[test]
    fn a_dropped_keeper_leaves_nothing() {
        let keeper = Keeper::boot(Version::V252, &[]);
        let (leader, directory, groups) = (
            keeper.leader_pid,
            keeper.directory.clone(),
            groups_of(&keeper),
        );
        assert!(
            directory.is_dir() && groups.iter().all(|group| group.is_dir()) && !groups.is_empty(),
            "{groups:?}"
        );
        drop(keeper);
        assert!(!Path::new(&format!("/proc/{leader}")).exists());
        assert!(!directory.exists());
        assert!(!groups.iter().any(|group| group.exists()), "{groups:?}");
    }

    #[test]
    fn a_killed_keeper_leaves_no_process_and_its_groups_go_with_the_next() {
        let mut keeper = Keeper::boot(Version::V252, &[]);
        let (leader, directory, groups) = (
            keeper.leader_pid,
            keeper.directory.clone(),
            groups_of(&keeper),
        );
        kill(
            Pid::from_raw(keeper.script.id().try_into().expect("pids are positive")),
            Signal::SIGKILL,
        )
        .expect("our child");
        keeper.script.wait().expect("our child");
        eventually("process 1 of the root to end", || {
            (!Path::new(&format!("/proc/{leader}")).exists()).then_some(())
        });
        // Its mounts were never seen here, so the directory is empty and ours to remove.
        fs::remove_dir(directory).expect("empty");
        drop(Keeper::boot(Version::V252, &[]));
        assert!(!groups.iter().any(|group| group.exists()), "{groups:?}");
    }

    fn groups_of(keeper: &Keeper) -> Vec<PathBuf> {
        let name = format!("heirloom-rig-{}", keeper.script.id());
        let hierarchies = [
            "/sys/fs/cgroup/unified",
            "/sys/fs/cgroup/systemd",
            "/sys/fs/cgroup",
        ];
        hierarchies
            .iter()
            .map(|hierarchy| Path::new(hierarchy).join(&name))
            .filter(|group| group.exists())
            .collect()
    }
}
