//! Every process of one instance of a generation: the one that was started and all it has started
//! since.
//!
//! A member is known by its process group, by its ancestors, or, once its ancestors have ended and
//! it was handed to the supervisor as its subreaper, by the generation and instance named in the
//! environment it was started with; and, where a control group could be made for it, by that. Read from
//! `/proc` whenever it is asked; nothing is remembered.
//!
//! A family that a former supervisor started does not descend from this one: its main process is known
//! by its descriptor, and those that are left of it by the rendezvous named in their environment, which
//! no two processes share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpid};

use heirloom_handover::environment::{
    HEIRLOOM_GENERATION, HEIRLOOM_INSTANCE, HEIRLOOM_RENDEZVOUS, HEIRLOOM_SERVICE,
};

use super::record::{Handle, Running};
use crate::sys::pidfd;

use super::control_groups;

/// One instance of a generation, as its processes can be told.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    pub(crate) main: Pid,
    /// Once it is, a process with its pid is a stranger, and so is a group of that number.
    pub(crate) main_is_reaped: bool,
    pub(crate) service: String,
    pub(crate) generation: u64,
    pub(crate) instance: usize,
    /// The control group it was started in: nothing of it can leave that by a new session, group or
    /// environment.
    pub(crate) group: Option<PathBuf>,
    /// Where the main process can be spoken to once its supervisor is gone.
    pub(crate) rendezvous: String,
    /// When the main process was started, in clock ticks since the machine was.
    pub(crate) start_time: u64,
    /// Stands for the main process; none where the system has no such descriptors.
    pub(crate) pidfd: Option<(Handle, Arc<OwnedFd>)>,
    pub(crate) bond: Bond,
}

/// What a family is to this supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bond {
    /// Its main process is our child: we reap it, and its orphans become ours.
    Child,
    /// A former supervisor started it: somebody else reaps it.
    Adopted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    parent: i32,
    group: i32,
    dead: bool,
    /// When it was started, in clock ticks since the machine was.
    pub(super) started: u64,
}

impl Family {
    /// Its processes that are alive, in no particular order.
    pub(crate) fn members(&self) -> Vec<Pid> {
        match self.bond {
            Bond::Child => self.descended(),
            Bond::Adopted => self.left_behind().into_iter().map(|(pid, _)| pid).collect(),
        }
    }

    /// Those of a family that does not descend from us, and when each was started.
    fn left_behind(&self) -> Vec<(Pid, u64)> {
        let all = processes();
        let main = self.main.as_raw();
        let main_is_ours = self.main_is_alive();
        let grouped = self.group.as_deref().map(control_groups::members);
        let grouped: BTreeSet<i32> = grouped.into_iter().flatten().collect();
        let belongs = |mut pid: i32| {
            if grouped.contains(&pid) {
                return true;
            }
            let named = named_by(pid, &[(HEIRLOOM_RENDEZVOUS, &self.rendezvous)]);
            for _ in 0..=all.len() {
                match all.get(&pid) {
                    _any if named || (main_is_ours && pid == main) => return true,
                    Some(stat) if main_is_ours && stat.group == main => return true,
                    Some(stat) => pid = stat.parent,
                    None => return false,
                }
            }
            false
        };
        all.iter()
            .filter(|(pid, stat)| !stat.dead && **pid != getpid().as_raw() && belongs(**pid))
            .map(|(pid, stat)| (Pid::from_raw(*pid), stat.started))
            .collect()
    }

    /// Whether the main process has not ended, also when its end was not told yet.
    pub(crate) fn main_is_alive(&self) -> bool {
        if self.main_is_reaped {
            return false;
        }
        match (self.bond, &self.pidfd) {
            (Bond::Child, _) => {
                let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
                waitid(Id::Pid(self.main), look).map_or(true, |is| is == WaitStatus::StillAlive)
            }
            (Bond::Adopted, Some((_, pidfd))) => {
                let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                poll(&mut polled, PollTimeout::ZERO) == Ok(0)
            }
            (Bond::Adopted, None) => {
                stat_of(self.main).is_some_and(|stat| !stat.dead && stat.started == self.start_time)
            }
        }
    }

    /// Sends a signal to the main process, if it is still there.
    pub(crate) fn signal_main(&self, signal: Signal) {
        if self.main_is_reaped {
            return;
        }
        // It may be dead already. A child's pid is its own until it is reaped.
        let _dead = match (self.bond, &self.pidfd) {
            (Bond::Child, _) => kill(self.main, signal).map_err(io::Error::from),
            (Bond::Adopted, Some((_, pidfd))) => pidfd::signal(pidfd.as_fd(), signal),
            (Bond::Adopted, None) if self.main_is_alive() => {
                kill(self.main, signal).map_err(io::Error::from)
            }
            (Bond::Adopted, None) => Ok(()),
        };
    }

    /// Those of a family that descends from us.
    fn descended(&self) -> Vec<Pid> {
        let all = processes();
        let own = getpid().as_raw();
        let main = self.main.as_raw();
        let grouped = self.group.as_deref().map(control_groups::members);
        let grouped: BTreeSet<i32> = grouped.into_iter().flatten().collect();
        let number_is_ours = !(self.main_is_reaped && all.contains_key(&main));
        let belongs = |mut pid: i32| {
            if grouped.contains(&pid) {
                return true;
            }
            let mut in_group = false;
            // Towards the supervisor, from which all of ours descend, at most as many steps as there
            // are processes.
            for _ in 0..=all.len() {
                let Some(stat) = all.get(&pid) else {
                    return false;
                };
                in_group |= number_is_ours && (pid == main || stat.group == main);
                if stat.parent == own {
                    return in_group || self.named_by(pid);
                }
                pid = stat.parent;
            }
            false
        };
        all.iter()
            .filter(|(pid, stat)| !stat.dead && **pid != own && belongs(**pid))
            .map(|(pid, _)| Pid::from_raw(*pid))
            .collect()
    }

    /// The process that was started and its descendants: not those whose parents have ended, but far
    /// cheaper to find than all [`members`](Self::members).
    pub(crate) fn descendants(&self) -> Vec<Pid> {
        let mut found = vec![self.main];
        let mut next = 0;
        while let Some(pid) = found.get(next) {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"));
            for task in tasks.into_iter().flatten().flatten() {
                let children = fs::read_to_string(task.path().join("children"));
                let children = children.unwrap_or_default();
                let pids = children
                    .split_ascii_whitespace()
                    .filter_map(|pid| pid.parse().ok());
                found.extend(pids.map(Pid::from_raw));
            }
            next += 1;
        }
        found
    }

    /// Sends a signal to each of its processes; says whether there was any.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let kill_group = || {
            if let Some(group) = self.group.as_deref().filter(|_| signal == Signal::SIGKILL) {
                control_groups::kill(group);
            }
        };
        match self.bond {
            Bond::Child => {
                let members = self.descended();
                kill_group();
                for member in &members {
                    // It may have ended since it was listed. A pid is not given away before its
                    // parent, we or a member, has reaped it.
                    let _ended = kill(*member, signal);
                }
                !members.is_empty()
            }
            Bond::Adopted => {
                let members = self.left_behind();
                kill_group();
                for (member, started) in &members {
                    signal_stranger(*member, *started, signal);
                }
                !members.is_empty()
            }
        }
    }

    /// From now on the kernel chooses among its processes and others as ever, where memory runs out.
    ///
    /// # Errors
    ///
    /// The system's, of the first process that is not ours to speak for.
    pub(crate) fn hold_dear(&self) -> io::Result<()> {
        let own = fs::read_to_string("/proc/self/oom_score_adj")?;
        for member in self.members() {
            match fs::write(format!("/proc/{member}/oom_score_adj"), own.trim_end()) {
                // It has ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                written => written?,
            }
        }
        Ok(())
    }

    /// Whether the process was started by this instance of the generation.
    fn named_by(&self, pid: i32) -> bool {
        let wanted = [
            (HEIRLOOM_SERVICE, self.service.as_str()),
            (HEIRLOOM_GENERATION, &self.generation.to_string()),
            (HEIRLOOM_INSTANCE, &self.instance.to_string()),
        ];
        named_by(pid, &wanted)
    }
}

/// Sends a signal to a process that is not our child, and whose number another may have got since it was
/// listed: never to that one.
pub(super) fn signal_stranger(pid: Pid, started: u64, signal: Signal) {
    let is_it = || stat_of(pid).is_some_and(|stat| !stat.dead && stat.started == started);
    // It may have ended, which is as good.
    let _ended = match pidfd::open(pid) {
        // Looked at with the descriptor in hand: now the number cannot become another's.
        Ok(pidfd) if is_it() => pidfd::signal(pidfd.as_fd(), signal),
        // Short of descriptors, or an old system: a moment between is all that is left.
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) && is_it() => {
            kill(pid, signal).map_err(io::Error::from)
        }
        Ok(_) | Err(_) => Ok(()),
    };
}

/// Whether a process was started with all of these variables.
fn named_by(pid: i32, wanted: &[(&str, &str)]) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    wanted.iter().all(|(name, value)| {
        let wanted = format!("{name}={value}");
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == wanted.as_bytes())
    })
}

/// Whether a process was started with this rendezvous.
pub(super) fn has_rendezvous(pid: Pid, rendezvous: &str) -> bool {
    named_by(pid.as_raw(), &[(HEIRLOOM_RENDEZVOUS, rendezvous)])
}

/// Every living process whose rendezvous begins like this, and is none of those that are known; and when
/// each was started.
pub(super) fn with_rendezvous(prefix: &str, known: &BTreeSet<String>) -> Vec<(Pid, u64)> {
    let variable = format!("{HEIRLOOM_RENDEZVOUS}=");
    let named = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut entries = environment.split(|byte| *byte == 0);
        let value = entries.find_map(|entry| entry.strip_prefix(variable.as_bytes()));
        let value = value.map(String::from_utf8_lossy);
        value.is_some_and(|value| value.starts_with(prefix) && !known.contains(&*value))
    };
    processes()
        .iter()
        .filter(|(pid, stat)| !stat.dead && named(**pid))
        .map(|(pid, stat)| (Pid::from_raw(*pid), stat.started))
        .collect()
}

/// What the system says of a process.
pub(super) fn stat_of(pid: Pid) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Whether the very process of a record has not ended.
pub(super) fn is_alive(running: &Running) -> bool {
    still_runs((running.pid, running.start_time))
}

/// Whether the process of this number that was started then has not ended.
pub(super) fn still_runs((pid, started): (i32, u64)) -> bool {
    stat_of(Pid::from_raw(pid)).is_some_and(|stat| !stat.dead && stat.started == started)
}

/// The number of this process, and when it was started.
pub(super) fn own() -> (i32, u64) {
    let pid = getpid();
    (pid.as_raw(), stat_of(pid).map_or(0, |stat| stat.started))
}

/// Every living process below `root`, except those in `spared` and what is below them.
pub(super) fn below(root: Pid, spared: &BTreeSet<i32>) -> Vec<Pid> {
    let all = processes();
    let belongs = |mut pid: i32| {
        for _ in 0..=all.len() {
            if spared.contains(&pid) {
                return false;
            }
            match all.get(&pid) {
                Some(stat) if stat.parent == root.as_raw() => return true,
                Some(stat) => pid = stat.parent,
                None => return false,
            }
        }
        false
    };
    all.iter()
        .filter(|(pid, stat)| !stat.dead && belongs(**pid))
        .map(|(pid, _)| Pid::from_raw(*pid))
        .collect()
}

fn processes() -> BTreeMap<i32, Stat> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    numbers
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let text = fs::read(entry.path().join("stat")).ok()?;
            Some((pid, parse_stat(&text)?))
        })
        .collect()
}

/// State, parent and group from `/proc/PID/stat` (`proc(5)`). The name before them may contain
/// anything, so fields are counted from its closing parenthesis.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 2..)?).ok()?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    // The 22nd field of the line.
    let started = fields.nth(16).and_then(|field| field.parse().ok());
    Some(Stat {
        started: started.unwrap_or(0),
        parent,
        group,
        dead: matches!(state, "Z" | "X" | "x"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn fields_are_counted_from_behind_the_name() {
        let stat =
            parse_stat(b"12 (a) b (c) S 1 34 34 0 -1 6 7 8 9 10 11 12 13 14 15 16 17 18 777 19")
                .unwrap();
        assert_eq!(
            stat,
            Stat {
                parent: 1,
                group: 34,
                dead: false,
                started: 777
            }
        );
        assert!(parse_stat(b"12 (x) Z 1 2 2").unwrap().dead);
        assert_eq!(parse_stat(b"12 (x"), None);
    }

    #[test]
    fn a_number_that_another_process_has_got_is_not_signalled() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let started = stat_of(pid).unwrap().started;
        signal_stranger(pid, started - 1, Signal::SIGKILL);
        // It answers, so it was not killed.
        let mut input = child.stdin.take().unwrap();
        io::Write::write_all(&mut input, b"alive").unwrap();
        let mut word = [0; 5];
        let output = child.stdout.as_mut().unwrap();
        output.read_exact(&mut word).unwrap();
        signal_stranger(pid, started, Signal::SIGKILL);
        let ended = child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&ended),
            Some(libc::SIGKILL)
        );
    }

    #[test]
    fn a_process_that_left_the_group_is_still_family() {
        let mut child = Command::new("sh")
            .args([
                "-c",
                "setsid sh -c 'echo ready; exec tail -f /dev/null' & wait",
            ])
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 5];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut word)
            .unwrap();
        let family = Family {
            main: Pid::from_raw(child.id() as i32),
            main_is_reaped: false,
            service: "none".to_owned(),
            generation: 1,
            instance: 0,
            rendezvous: String::new(),
            start_time: 0,
            pidfd: None,
            bond: Bond::Child,
            group: None,
        };
        assert!(family.members().len() >= 2, "{:?}", family.members());
        assert!(family.signal(Signal::SIGKILL));
        child.wait().unwrap();
    }
}
