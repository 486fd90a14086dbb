//! A generation that something happens to: all processes of its group are stopped, looked at, and killed or
//! let go on.
//!
//! It is stopped first, so that which connections it holds is not guessed: nothing of it moves between the
//! look and the kill.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a process may take to stand still.
const LONGEST_STOP: Duration = Duration::from_secs(2);

/// A process that stands still.
#[derive(Debug)]
pub(crate) struct Stopped {
    group: Pid,
}

/// Stops a generation whose first process has this number and is a child of `parent`; none if it is gone.
pub(crate) fn stop(group: Pid, parent: Pid) -> Option<Stopped> {
    // The number may be another's by now.
    if !children_of(parent).contains(&group) {
        return None;
    }
    killpg(group, Signal::SIGSTOP).ok()?;
    let stopped = Stopped { group };
    let end = Instant::now() + LONGEST_STOP;
    while Instant::now() < end {
        let states = stopped.members().into_iter().filter_map(state_of);
        if states
            .into_iter()
            .all(|state| matches!(state, 'T' | 'Z' | 'X'))
        {
            break;
        }
        thread::sleep(Duration::from_micros(200));
    }
    Some(stopped)
}

impl Stopped {
    fn members(&self) -> Vec<Pid> {
        processes()
            .filter(|pid| field_of(*pid, 2) == Some(self.group.as_raw()))
            .collect()
    }

    /// The ports of the clients that are connected to `server` by a socket it holds.
    pub(crate) fn ports(&self, server: SocketAddr) -> BTreeSet<u16> {
        let connections = connections_to(server).unwrap_or_default();
        let held = self.members().into_iter().flat_map(sockets_of);
        held.filter_map(|inode| connections.get(&inode).copied())
            .collect()
    }

    pub(crate) fn kill(&self) {
        // Whoever has ended is as dead as wanted.
        let _gone = killpg(self.group, Signal::SIGKILL);
    }

    pub(crate) fn go_on(&self) {
        // Whoever did not wait so long may have killed it.
        let _gone = killpg(self.group, Signal::SIGCONT);
    }

    /// Whether its first process has ended.
    pub(crate) fn is_dead(&self) -> bool {
        state_of(self.group).is_none_or(|state| matches!(state, 'Z' | 'X'))
    }
}

/// The processes a process has started and not reaped.
pub(crate) fn children_of(pid: Pid) -> Vec<Pid> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    let numbers = text.split_ascii_whitespace();
    numbers
        .filter_map(|number| number.parse().ok().map(Pid::from_raw))
        .collect()
}

/// Whether a process leads a group of its own, as each generation's first does.
pub(crate) fn leads_a_group(pid: Pid) -> bool {
    field_of(pid, 2) == Some(pid.as_raw())
}

/// Whether a process has ended and was not reaped.
pub(crate) fn is_zombie(pid: Pid) -> bool {
    state_of(pid) == Some('Z')
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| {
        let number = entry.ok()?.file_name().to_str()?.parse().ok()?;
        Some(Pid::from_raw(number))
    })
}

/// A word of `/proc/PID/stat`, counted from behind the name: 0 is the state, 2 the group.
fn word_of(pid: Pid, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(number).map(str::to_owned)
}

fn state_of(pid: Pid) -> Option<char> {
    word_of(pid, 0)?.chars().next()
}

fn field_of(pid: Pid, number: usize) -> Option<i32> {
    word_of(pid, number)?.parse().ok()
}

/// The inodes of a process's sockets.
fn sockets_of(pid: Pid) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets
        .filter_map(|target| {
            let name = target.to_str()?.strip_prefix("socket:[")?;
            name.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

/// The server's connections: the inode of its socket, and the client's port.
fn connections_to(server: SocketAddr) -> io::Result<BTreeMap<u64, u16>> {
    let table = match server {
        SocketAddr::V4(_) => "/proc/net/tcp",
        SocketAddr::V6(_) => "/proc/net/tcp6",
    };
    Ok(parse_connections(
        &fs::read_to_string(table)?,
        server.port(),
    ))
}

/// Those of a table of the system whose own port is `port`.
fn parse_connections(table: &str, port: u16) -> BTreeMap<u64, u16> {
    let port_of = |address: &str| {
        let (_, port) = address.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    let lines = table.lines().skip(1);
    lines
        .filter_map(|line| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let (own, other, inode) = (words.get(1)?, words.get(2)?, words.get(9)?);
            if port_of(own)? != port {
                return None;
            }
            // A socket that listens has nobody at the other end.
            let client = port_of(other).filter(|port| *port != 0)?;
            Some((inode.parse().ok()?, client))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_connections_of_a_process_are_seen_from_outside() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let client = TcpStream::connect(server).unwrap();
        let queued = TcpStream::connect(server).unwrap();
        let (_accepted, _) = listener.accept().unwrap();
        let connections = connections_to(server).unwrap();
        let held = sockets_of(Pid::this()).into_iter();
        let ports: Vec<u16> = held
            .filter_map(|inode| connections.get(&inode).copied())
            .collect();
        assert_eq!(ports, [client.local_addr().unwrap().port()]);
        drop(queued);
    }
}
