//! What is measured when somebody asks for the status: memory and connections.
//!
//! Reads `/proc` and control groups, in a thread of its own, for a machine with many sockets has much to
//! read. On a starved one it gives up: what is not counted by then is told as nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::control_groups;
use super::family::Family;
use super::readiness::socket_inode;
use crate::control::protocol::{GenerationStatus, ServiceStatus, Status};

/// How long connections and memory may be counted for a status, in a client's time: with an answer that
/// has to be made and sent it waits twice as long.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);

/// Fills in what `status` says of each generation's connections and memory, as far as there is time;
/// families by the pid of their main process.
pub(crate) fn measure(status: &mut Status, families: &BTreeMap<i32, Family>, asked: Instant) {
    let tcp: Vec<Connection> = ["tcp", "tcp6"]
        .into_iter()
        .flat_map(|table| read(table, tcp_connection))
        .collect();
    let unix = read("unix", unix_connection);
    for service in &mut status.services {
        let ours = established(service, &tcp, &unix);
        for generation in &mut service.generations {
            if asked.elapsed() >= LONGEST {
                return;
            }
            let family = generation.pid.and_then(|pid| families.get(&pid));
            if let Some(family) = family {
                measure_generation(family, generation, &ours);
            }
        }
    }
}

fn measure_generation(family: &Family, generation: &mut GenerationStatus, ours: &BTreeSet<u64>) {
    generation.rss_bytes = resident(Path::new("/proc"), family.main.as_raw()).unwrap_or(0);
    let group = family.group.as_ref();
    generation.memory_bytes = group.and_then(|group| control_groups::memory(group));
    let mut held = BTreeSet::new();
    for member in family.members() {
        for entry in fs::read_dir(format!("/proc/{member}/fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Ok(target) = fs::read_link(entry.path())
                && let Some(inode) = socket_inode(&target.to_string_lossy())
                && ours.contains(&inode)
            {
                held.insert(inode);
            }
        }
    }
    generation.connections = held.len() as u64;
}

/// The inodes of all connections to a service's listeners.
fn established(service: &ServiceStatus, tcp: &[Connection], unix: &[Connection]) -> BTreeSet<u64> {
    let mut inodes = BTreeSet::new();
    for listener in &service.listeners {
        let (scheme, place) = listener.address.split_once(':').unwrap_or_default();
        let (table, local) = match scheme {
            "tcp" => (tcp, place.rsplit_once(':').map_or(place, |(_, port)| port)),
            _unix => (unix, place),
        };
        let to_it = table.iter().filter(|connection| connection.local == local);
        inodes.extend(to_it.map(|connection| connection.inode));
    }
    inodes
}

/// An established connection: the local port or path, and the socket.
#[derive(Debug, PartialEq, Eq)]
struct Connection {
    local: String,
    inode: u64,
}

fn read(table: &str, parse: fn(&str) -> Option<Connection>) -> Vec<Connection> {
    let text = fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
    text.lines().skip(1).filter_map(parse).collect()
}

/// A line of `/proc/net/tcp` (`proc(5)`): `sl local remote st … inode`, state 01 established.
fn tcp_connection(line: &str) -> Option<Connection> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, _, "01", ..] = fields[..] else {
        return None;
    };
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    Some(Connection {
        local: port.to_string(),
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// A line of `/proc/net/unix`: `num refs protocol flags type st inode path`, state 03 connected.
fn unix_connection(line: &str) -> Option<Connection> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, _, _, _, _, "03", inode, path] = fields[..] else {
        return None;
    };
    Some(Connection {
        local: path.to_owned(),
        inode: inode.parse().ok()?,
    })
}

/// Resident memory from `/proc/PID/statm`, in bytes.
pub(super) fn resident(proc: &Path, pid: i32) -> Option<u64> {
    let text = fs::read_to_string(proc.join(format!("{pid}/statm"))).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn established_connections_are_told_from_others() {
        let tcp = "   1: 0100007F:1F90 0100007F:A2B4 01 00000000:00000000 00:00000000 00000000  1000        0 5151 1 x";
        assert_eq!(
            tcp_connection(tcp),
            Some(Connection {
                local: "8080".to_owned(),
                inode: 5151
            })
        );
        assert_eq!(tcp_connection(&tcp.replace(" 01 ", " 0A ")), None);
        let unix = "00000000: 00000003 00000000 00000000 0001 03 424 /run/a.sock";
        assert_eq!(
            unix_connection(unix),
            Some(Connection {
                local: "/run/a.sock".to_owned(),
                inode: 424
            })
        );
        assert_eq!(unix_connection(&unix.replace(" 03 ", " 01 ")), None);
    }

    #[test]
    fn the_memory_of_this_process_is_read() {
        assert!(resident(Path::new("/proc"), std::process::id().cast_signed()).unwrap() > 100_000);
    }
}
