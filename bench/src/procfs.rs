//! What /proc tells about a process: memory, wake-ups, identity.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

/// Resident memory of a process, in bytes.
///
/// # Errors
/// If the process has gone.
pub fn resident_bytes(pid: Pid) -> Result<u64> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let kibibytes = field(&status, "VmRSS:").with_context(|| format!("no VmRSS of {pid}"))?;
    Ok(kibibytes * 1024)
}

/// How often the threads of a process were put to sleep and so, but for the first time, woken.
/// The difference between two readings is the number of wake-ups between them.
///
/// # Errors
/// If the process has gone.
pub fn voluntary_switches(pid: Pid) -> Result<u64> {
    sum_over_threads(pid, "status", |status| {
        field(status, "voluntary_ctxt_switches:")
    })
}

/// Processor time that the threads of a process have had, those that ended not counted.
///
/// # Errors
/// If the process has gone, or the kernel does not count (CONFIG_SCHED_INFO).
pub fn processor_time(pid: Pid) -> Result<Duration> {
    let time_ns = sum_over_threads(pid, "schedstat", |schedstat| {
        schedstat.split_whitespace().next()?.parse().ok()
    })?;
    Ok(Duration::from_nanos(time_ns))
}

/// The children of a process.
///
/// # Errors
/// If it has gone, or the kernel does not tell (CONFIG_PROC_CHILDREN).
pub fn children(pid: Pid) -> Result<Vec<Pid>> {
    let tasks = format!("/proc/{pid}/task");
    let mut children = Vec::new();
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let path = task?.path().join("children");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path:?}"))?;
        let each = text.split_whitespace().filter_map(|pid| pid.parse().ok());
        children.extend(each.map(Pid::from_raw));
    }
    Ok(children)
}

/// How many descriptors a process has open. `None` if it has gone.
#[must_use]
pub fn open_descriptors(pid: Pid) -> Option<u64> {
    // The size of this directory is their number since Linux 6.2.
    Some(fs::metadata(format!("/proc/{pid}/fd")).ok()?.size())
}

fn sum_over_threads(pid: Pid, file: &str, value: impl Fn(&str) -> Option<u64>) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let path = task?.path().join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path:?}"))?;
        sum += value(&text).with_context(|| format!("{path:?} does not have the value"))?;
    }
    Ok(sum)
}

/// When a process was started, in clock ticks since boot. With its pid, this names it for good.
/// `None` if there is no such process, or only its zombie.
#[must_use]
pub fn start_ticks(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces and parentheses itself.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    match *fields.first()? {
        "Z" | "X" => None,
        _ => fields.get(19)?.parse().ok(),
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

/// The number behind `name` at the start of a line.
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_switches_and_a_start() {
        assert!(resident_bytes(Pid::this()).unwrap() > 100_000);
        assert!(voluntary_switches(Pid::this()).is_ok());
        assert!(processor_time(Pid::this()).unwrap() > Duration::ZERO);
        assert!(start_ticks(Pid::this()).unwrap() > 0);
        assert!(open_descriptors(Pid::this()).unwrap() > 2);
        assert!(children(Pid::parent()).unwrap().contains(&Pid::this()));
    }

    #[test]
    fn a_process_that_never_was_has_no_start() {
        assert_eq!(start_ticks(Pid::from_raw(i32::MAX)), None);
    }

    #[test]
    fn a_field_is_found_only_at_the_start_of_a_line() {
        let status = "nonvoluntary_ctxt_switches:\t9\nvoluntary_ctxt_switches:\t4\n";
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(4));
    }
}
