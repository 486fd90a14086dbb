//! What a supervisor that is gone has left: its record, and its processes, which serve on.
//!
//! Owns judging whether the record is of use, and getting hold of what it names: from systemd, which keeps
//! descriptors for the unit; otherwise from the processes themselves, which hold the sockets. Taking the
//! services over is [`super::supervisor`]'s.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use heirloom_handover::rendezvous;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::family;
use super::notify_socket;
use super::output::inode_of;
use super::readiness::socket_inode;
use super::record::{self, Handle, Running, handles::Found, slots};
use crate::sys::pidfd;

/// How long programs are waited for that may not have noticed yet that their supervisor is gone.
const LONGEST_MEETING: Duration = Duration::from_secs(2);

/// How often they are tried.
const MEET_EVERY: Duration = Duration::from_millis(5);

/// How long killed processes may take to be gone.
const LONGEST_END: Duration = Duration::from_secs(2);

/// What systemd kept for a supervisor that is gone.
#[derive(Debug, Default)]
pub(crate) struct FromStore {
    pub(crate) found: Found,
    pub(crate) handles: BTreeSet<Handle>,
    pub(crate) record: Option<OwnedFd>,
}

/// Under which name systemd keeps the record's file.
pub(crate) const RECORD_NAME: &str = "heirloom.record";

/// Under which names systemd keeps the others: this and the handle.
pub(crate) const HANDLE_PREFIX: &str = "heirloom.";

/// What a supervisor has left that another can take over.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) record: record::Supervisor,
    pub(crate) file: File,
    pub(crate) found: Found,
}

/// Looks for what a supervisor of this name has left; what nobody can take over is ended. None if there is
/// nothing: then a start is a start.
///
/// # Errors
///
/// Its processes live, and cannot be taken over: why, and what to do.
pub(crate) fn left_behind(
    path: &Path,
    name: &str,
    boot: &str,
    from_store: FromStore,
) -> Result<Option<Left>, String> {
    let from_systemd = from_store.record.is_some();
    let file = match from_store.record {
        Some(file) => Some(File::from(file)),
        None => slots::open(path).unwrap_or_else(|error| {
            tracing::warn!("{} is passed over: {error}", path.display());
            None
        }),
    };
    let Some(file) = file else { return Ok(None) };
    let Some((_, bytes)) = slots::newest(&file) else {
        return Ok(None);
    };
    let record = match record::read_supervisor(&bytes) {
        Ok(record) => record,
        Err(error) => {
            return Err(format!(
                "a supervisor that is gone has left a record in {} that cannot be used ({error}); start the version that wrote it, or end its programs and remove the file",
                path.display()
            ));
        }
    };
    // Where the run of the machine cannot be told, as under ProcSubset=pid, the numbers of processes may be
    // of another one; what systemd keeps is of this one.
    let known_run = !record.boot.is_empty() && !boot.is_empty();
    if (known_run && record.boot != boot) || record.name != name {
        return Ok(None);
    }
    await_end(&record)?;
    Handle::begin_after(record.last_handle);
    if record.stopping {
        tracing::warn!(
            "a supervisor that is gone was stopping its programs; what is left of them is killed"
        );
        end_strays(&record.lineage, &BTreeSet::new());
        return Ok(None);
    }
    let mut search = Search {
        found: from_store.found,
        living: Vec::new(),
        denied: None,
        numbers_hold: known_run || from_systemd,
    };
    for running in processes(&record).filter(|running| !running.reaped) {
        search.process(running);
    }
    if search.living.is_empty() {
        end_strays(&record.lineage, &BTreeSet::new());
        return Ok(None);
    }
    search.listeners(&record);
    search.missing_listener(&record)?;
    search.ends(&record);
    let Search { found, .. } = search;
    Ok(Some(Left {
        record,
        file,
        found,
    }))
}

/// Waits until the writer of a record is gone for good: its sockets are closed before it has ended.
///
/// # Errors
///
/// It lives, though its control socket does not answer.
fn await_end(record: &record::Supervisor) -> Result<(), String> {
    let deadline = Instant::now() + LONGEST_END;
    let (pid, _) = record.process;
    while record.process != family::own() && family::still_runs(record.process) {
        if Instant::now() >= deadline {
            return Err(format!(
                "a supervisor named {} is running already (process {pid}), though its control socket was removed; it was left alone; end it with SIGTERM, or kill it and start this again to take its programs over",
                record.name
            ));
        }
        std::thread::sleep(MEET_EVERY);
    }
    Ok(())
}

/// Every process of a record.
pub(crate) fn processes(record: &record::Supervisor) -> impl Iterator<Item = &Running> {
    let runners = record.services.iter().chain(&record.removed);
    runners
        .flat_map(|runner| &runner.processes)
        .filter_map(|process| process.running.as_ref())
}

/// Every listener of a record.
fn listeners(record: &record::Supervisor) -> impl Iterator<Item = &record::Listener> {
    let runners = record.services.iter().chain(&record.removed);
    runners.flat_map(|runner| {
        let active = runner.active.iter().flat_map(|active| &active.listeners);
        runner.listeners.iter().chain(active)
    })
}

/// Kills every process of a lineage that the record does not know; waits until they are gone.
pub(crate) fn end_strays(lineage: &str, known: &BTreeSet<String>) {
    let prefix = format!("@heirloom-{lineage}-");
    let deadline = Instant::now() + LONGEST_END;
    loop {
        let strays = family::with_rendezvous(&prefix, known);
        if strays.is_empty() || Instant::now() >= deadline {
            return;
        }
        for (pid, started) in strays {
            tracing::warn!("process {pid}, which nobody can take over, is killed");
            family::signal_stranger(pid, started, Signal::SIGKILL);
        }
        std::thread::sleep(MEET_EVERY);
    }
}

struct Search {
    found: Found,
    /// With a descriptor for each that one could be had for.
    living: Vec<(Pid, Option<OwnedFd>)>,
    /// Whether a number and a start time tell a process; otherwise it must have its rendezvous too.
    numbers_hold: bool,
    /// Why a process could not be looked into.
    denied: Option<(Pid, io::Error)>,
}

impl Search {
    /// Whether a process lives, and is the one that the record means.
    fn process(&mut self, running: &Running) {
        let pid = Pid::from_raw(running.pid);
        let pidfd = match pidfd::open(pid) {
            Ok(pidfd) => Some(pidfd),
            // There is no such process.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return,
            // That there is no descriptor for it says nothing of whether it lives.
            Err(error) => {
                self.denied = Some((pid, error));
                None
            }
        };
        // Looked at with the descriptor in hand: now the number cannot become another's.
        if !family::is_alive(running) {
            return;
        }
        if !self.numbers_hold && !family::has_rendezvous(pid, &running.rendezvous) {
            return;
        }
        if let Some(handle) = running.pidfd
            && !self.found.has(handle)
            && let Some(Ok(duplicate)) = pidfd.as_ref().map(OwnedFd::try_clone)
        {
            self.found.insert(handle, duplicate);
        }
        self.living.push((pid, pidfd));
    }

    /// Takes listeners that nobody kept from the processes that have them.
    fn listeners(&mut self, record: &record::Supervisor) {
        for listener in listeners(record) {
            if self.found.has(listener.handle) {
                continue;
            }
            for (pid, pidfd) in &self.living {
                let Some(pidfd) = pidfd else { continue };
                match take_socket(*pid, pidfd, listener.inode) {
                    Ok(Some(fd)) => {
                        self.found.insert(listener.handle, fd);
                        break;
                    }
                    Ok(None) => {}
                    Err(error) => self.denied = Some((*pid, error)),
                }
            }
        }
    }

    fn missing_listener(&self, record: &record::Supervisor) -> Result<(), String> {
        let Some(missing) = listeners(record).find(|one| !self.found.has(one.handle)) else {
            return Ok(());
        };
        let bound = &missing.bound;
        let pids: Vec<String> = self.living.iter().map(|(pid, _)| pid.to_string()).collect();
        let pids = pids.join(", ");
        Err(match &self.denied {
            Some((pid, error)) => format!(
                "the programs of a supervisor that is gone serve on (processes {pids}), and the socket on {bound} cannot be taken from process {pid}: {error}; start this as the same user or as root, and see /proc/sys/kernel/yama/ptrace_scope, which must be 0 unless root does it; or end those processes"
            ),
            None => format!(
                "the programs of a supervisor that is gone serve on (processes {pids}), and none of them has the socket on {bound} any more; end those processes, then start this again"
            ),
        })
    }

    /// The other ends of what the processes have: their output, and the sockets they speak on.
    fn ends(&mut self, record: &record::Supervisor) {
        let deadline = Instant::now() + LONGEST_MEETING;
        let runners = record.services.iter().chain(&record.removed);
        for process in runners.flat_map(|runner| &runner.processes) {
            let Some(running) = &process.running else {
                continue;
            };
            let pid = Pid::from_raw(running.pid);
            if !self.living.iter().any(|(living, _)| *living == pid) {
                continue;
            }
            if let Some(output) = &running.output {
                let [stdout, stderr] = output.pipes;
                let streams = [(1, output.stdout, stdout), (2, output.stderr, stderr)];
                for (number, handle, inode) in streams {
                    if !self.found.has(handle)
                        && let Some(fd) = read_end(pid, number, inode)
                    {
                        self.found.insert(handle, fd);
                    }
                }
            }
            if let Some((handle, address)) = &running.notify
                && !self.found.has(*handle)
            {
                match notify_socket::bind_again(address) {
                    Ok(fd) => self.found.insert(*handle, fd),
                    Err(error) => tracing::warn!(
                        "what process {pid} says to its NOTIFY_SOCKET cannot be heard: {error}"
                    ),
                }
            }
            let speaks = process.hello.is_some() && !process.deaf;
            if let Some(handle) = running.native.filter(|_| speaks)
                && !self.found.has(handle)
            {
                match meet(&running.rendezvous, running.pid, deadline) {
                    Ok(fd) => self.found.insert(handle, fd),
                    Err(error) => tracing::warn!(
                        "process {pid} cannot be asked for its state any more ({error}); its next handover begins without it"
                    ),
                }
            }
        }
    }
}

fn meet(name: &str, pid: i32, deadline: Instant) -> io::Result<OwnedFd> {
    loop {
        match rendezvous::meet(name, pid) {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(MEET_EVERY);
            }
            met => return met,
        }
    }
}

/// The socket of this inode, if the process has it.
fn take_socket(pid: Pid, pidfd: &OwnedFd, inode: u64) -> io::Result<Option<OwnedFd>> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let Ok(target) = std::fs::read_link(entry.path()) else {
            continue;
        };
        if socket_inode(&target.to_string_lossy()) != Some(inode) {
            continue;
        }
        let number = entry.file_name();
        let number = number.to_str().and_then(|number| number.parse().ok());
        if let Some(number) = number {
            return pidfd::descriptor_of(pidfd.as_fd(), number).map(Some);
        }
    }
    Ok(None)
}

/// The reading end of the pipe of this inode, if that is what a process writes this output to: another pipe
/// there is the program's own.
fn read_end(pid: Pid, number: u32, inode: u64) -> Option<OwnedFd> {
    let path = format!("/proc/{pid}/fd/{number}");
    let target = std::fs::read_link(&path).ok()?;
    if target.to_str()? != format!("pipe:[{inode}]") {
        return None;
    }
    let end = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let end = OwnedFd::from(end.ok()?);
    // It may have been replaced in between.
    (inode_of(end.as_fd()) == inode).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn where_numbers_may_be_of_another_run_a_process_must_have_its_rendezvous() {
        let mut child = Command::new("cat")
            .env("HEIRLOOM_RENDEZVOUS", "@heirloom-of-a-test")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        let start_time = family::stat_of(Pid::from_raw(pid)).unwrap().started;
        let living = |rendezvous: &str, start_time: u64, numbers_hold: bool| {
            let mut search = Search {
                found: Found::default(),
                living: Vec::new(),
                numbers_hold,
                denied: None,
            };
            search.process(&Running {
                pid,
                start_time,
                reaped: false,
                pidfd: None,
                child: true,
                notify: None,
                native: None,
                rendezvous: rendezvous.to_owned(),
                group: None,
                output: None,
            });
            search.living.len()
        };
        assert_eq!(living("@heirloom-of-a-test", start_time, false), 1);
        assert_eq!(living("@heirloom-of-another", start_time, false), 0);
        assert_eq!(living("@heirloom-of-another", start_time, true), 1);
        assert_eq!(living("@heirloom-of-a-test", start_time + 1, true), 0);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn of_the_pipes_of_a_program_only_the_supervisors_is_read() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let inode = inode_of(child.stdout.as_ref().unwrap().as_fd());
        assert!(read_end(pid, 1, inode).is_some());
        assert!(read_end(pid, 1, inode + 1).is_none());
        // Its input is a pipe as well.
        assert!(read_end(pid, 0, inode).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
