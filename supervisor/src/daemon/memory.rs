//! Whether memory would do for a second copy of a service's state.
//!
//! Owns reading how much is left, of the machine and of the control groups the supervisor is in, and
//! the estimate of what a handover needs. Where the numbers come from is a parameter, for tests.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::inspect::resident;

/// While the state moves, the new process comes to hold what the old one holds, and a fifth more for
/// what is on the way.
const NEED_PERCENT: u64 = 120;

/// Where the numbers are read.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// `/proc`.
    pub(crate) proc: PathBuf,
    /// `/sys/fs/cgroup`.
    pub(crate) cgroup: PathBuf,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            cgroup: PathBuf::from("/sys/fs/cgroup"),
        }
    }
}

/// What sets the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Machine,
    ControlGroup,
}

/// Why a handover is not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "memory would not do for a second copy of the state: about {} are needed, {} are left {}; \
     free memory, raise the limit, or set memory_check = false to try all the same",
    size(*need), size(*left),
    match limit { Limit::Machine => "on this machine", Limit::ControlGroup => "in the supervisor's control group" }
)]
pub(crate) struct TooLittle {
    need: u64,
    left: u64,
    limit: Limit,
}

/// Checks that a second copy of what a process holds would fit. What cannot be read limits nothing.
///
/// # Errors
///
/// [`TooLittle`] with the numbers.
pub(crate) fn check(source: &Source, old: Pid) -> Result<(), TooLittle> {
    let held = resident(&source.proc, old.as_raw()).unwrap_or(0);
    enough(source, held / 100 * NEED_PERCENT)
}

fn enough(source: &Source, need: u64) -> Result<(), TooLittle> {
    let machine = available(source).map(|left| (left, Limit::Machine));
    let group = left_in_group(source).map(|left| (left, Limit::ControlGroup));
    let least = machine
        .into_iter()
        .chain(group)
        .min_by_key(|(left, _)| *left);
    match least {
        Some((left, limit)) if left < need => Err(TooLittle { need, left, limit }),
        Some(_) | None => Ok(()),
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(source: &Source) -> Option<u64> {
    let text = fs::read_to_string(source.proc.join("meminfo")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the narrowest of the supervisor's memory control groups has left, of either version.
fn left_in_group(source: &Source) -> Option<u64> {
    let text = fs::read_to_string(source.proc.join("self/cgroup")).ok()?;
    let mut least = None;
    for line in text.lines() {
        // `ID:CONTROLLERS:PATH`; version 2 has neither a number nor controllers.
        let mut fields = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, names) = if controllers.is_empty() {
            (source.cgroup.clone(), VERSION_2)
        } else if controllers.split(',').any(|one| one == "memory") {
            (source.cgroup.join("memory"), VERSION_1)
        } else {
            continue;
        };
        let own = root.join(path.trim_start_matches('/'));
        // Each group on the way to the root may be the narrowest.
        let groups = own.ancestors().take_while(|group| group.starts_with(&root));
        let left = groups.filter_map(|group| left_in(group, &names)).min();
        least = [least, left].into_iter().flatten().min();
    }
    least
}

/// The files of a control group that say how much it may use, how much it does, and how much of that
/// can be had back.
#[derive(Clone, Copy, Debug)]
struct Names {
    /// The least of them counts.
    limits: &'static [&'static str],
    usage: &'static str,
    reclaimable: &'static str,
}

const VERSION_1: Names = Names {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};
const VERSION_2: Names = Names {
    // Beyond the second nothing is killed, but everything in the group is held up.
    limits: &["memory.max", "memory.high"],
    usage: "memory.current",
    reclaimable: "inactive_file",
};

fn left_in(group: &Path, names: &Names) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(group.join(name)).ok()?;
        // `max` is no number, and no limit.
        text.trim().parse().ok()
    };
    let limit = names.limits.iter().filter_map(|name| number(name)).min()?;
    let left = limit.saturating_sub(number(names.usage)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let reclaimable = stat.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        value
            .parse::<u64>()
            .ok()
            .filter(|_| name == names.reclaimable)
    });
    Some(left.saturating_add(reclaimable.unwrap_or(0)))
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine with so much memory available and these control groups.
    fn machine(available: u64, own: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Source) {
        let directory = tempfile::tempdir().unwrap();
        let source = Source {
            proc: directory.path().join("proc"),
            cgroup: directory.path().join("cgroup"),
        };
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let meminfo = format!("MemFree: 1 kB\nMemAvailable: {} kB\n", available / 1024);
        write(source.proc.join("meminfo"), &meminfo);
        write(source.proc.join("self/cgroup"), own);
        for (path, text) in files {
            write(source.cgroup.join(path), text);
        }
        (directory, source)
    }

    #[test]
    fn the_machine_is_a_limit() {
        let (_kept, source) = machine(100 * MIB, "", &[]);
        enough(&source, 100 * MIB).unwrap();
        let error = enough(&source, 100 * MIB + 1).unwrap_err();
        assert_eq!(error.limit, Limit::Machine);
        assert!(
            error.to_string().contains("about 100.0 MiB are needed"),
            "{error}"
        );
    }

    #[test]
    fn the_narrowest_control_group_is_a_limit_less_what_can_be_had_back() {
        let files = [
            ("memory/a/memory.limit_in_bytes", "52428800\n"),
            ("memory/a/memory.usage_in_bytes", "41943040\n"),
            (
                "memory/a/memory.stat",
                "cache 9\ntotal_inactive_file 1048576\n",
            ),
            ("memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/a/b/memory.usage_in_bytes", "1000\n"),
        ];
        let own = "5:cpu,cpuacct:/\n4:hugetlb,memory:/a/b\n0::/\n";
        let (_kept, source) = machine(100 * MIB, own, &files);
        enough(&source, 11 * MIB).unwrap();
        let error = enough(&source, 11 * MIB + 1).unwrap_err();
        assert_eq!(error.limit, Limit::ControlGroup);
        let files = [
            ("x/memory.max", "max\n"),
            ("x/memory.current", "1000\n"),
            ("memory.max", "3145728\n"),
            ("memory.current", "1048576\n"),
        ];
        let (_kept, source) = machine(100 * MIB, "0::/x\n", &files);
        enough(&source, 2 * MIB).unwrap();
        enough(&source, 2 * MIB + 1).unwrap_err();
        let high = [&files[..], &[("memory.high", "2097152\n")]].concat();
        let (_kept, source) = machine(100 * MIB, "0::/x\n", &high);
        enough(&source, MIB).unwrap();
        enough(&source, MIB + 1).unwrap_err();
    }

    #[test]
    fn what_cannot_be_read_limits_nothing() {
        let nowhere = Source {
            proc: PathBuf::from("/nonexistent"),
            cgroup: PathBuf::from("/nonexistent"),
        };
        enough(&nowhere, u64::MAX).unwrap();
        enough(&Source::default(), 1).unwrap();
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(MIB), "1.0 MiB");
        assert_eq!(size(MIB - 1), "1.0 MiB");
        assert_eq!(size(3 << 30), "3.0 GiB");
    }
}
