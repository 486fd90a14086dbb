//! A control group for each process that is started, with all that comes of it.
//!
//! Owns finding out whether a part of the hierarchy of version 2 was given to the supervisor to manage
//! (`Delegate=` of a systemd unit), making a group in it, what is read of one and killed in one, and
//! removing those that are empty. A group is its path and nothing else. Who belongs to a family where
//! there are no groups as well is in [`super::family`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys;
use crate::sys::spawn::Group;

/// Where the supervisor itself is, if anywhere but in the part's topmost group: a group that shares
/// controllers out to others may not have processes of its own.
const OWN: &str = "supervisor";

/// What the names of groups that are made here begin with.
const PREFIX: &str = "generation-";

/// So many names are tried for a group; taken ones belong to processes a supervisor left behind.
const MOST_NAMES: u32 = 100;

/// How long what was left behind may take to be gone once it is killed, and how often it is looked.
const LONGEST_END: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// So many groups that a program made within its own are looked at.
const MOST_WITHIN: usize = 4096;

/// The part of the hierarchy that is the supervisor's to manage.
#[derive(Debug)]
pub(crate) struct Delegated {
    base: PathBuf,
}

impl Delegated {
    /// The part that was given to the supervisor; none if none was. Has memory counted by group, if that
    /// can be, and removes what a supervisor of before left empty.
    pub(crate) fn take() -> Option<Self> {
        let own = own_group(
            &fs::read_to_string("/proc/self/cgroup").ok()?,
            &fs::read_to_string("/proc/self/mountinfo").ok()?,
        )?;
        let above = own.parent().filter(|_| own.ends_with(OWN));
        let base = match above.filter(|above| is_delegated(above)) {
            Some(above) => above.to_owned(),
            None if is_delegated(&own) => own,
            None => return None,
        };
        let delegated = Self { base };
        if let Err(error) = delegated.count_memory() {
            tracing::warn!(
                "the memory of generations is not counted by control group, {} does not allow it: {error}",
                delegated.base.display()
            );
        }
        delegated.sweep();
        Some(delegated)
    }

    /// Makes a group for one process.
    ///
    /// # Errors
    ///
    /// The system's; most likely the part was taken back or has reached `cgroup.max.descendants`.
    pub(crate) fn make(
        &self,
        service: &str,
        generation: u64,
        instance: usize,
    ) -> io::Result<(PathBuf, Group)> {
        let name = format!("{PREFIX}{service}-{generation}-{instance}");
        let path = self.make_named(&name)?;
        let opened = || {
            Ok(Group {
                directory: File::open(&path)?.into(),
                members: OpenOptions::new()
                    .write(true)
                    .open(path.join("cgroup.procs"))?
                    .into(),
            })
        };
        match opened() {
            Ok(group) => Ok((path, group)),
            Err(error) => {
                remove(&path);
                Err(error)
            }
        }
    }

    fn make_named(&self, name: &str) -> io::Result<PathBuf> {
        for number in 0..MOST_NAMES {
            let path = match number {
                0 => self.base.join(name),
                _ => self.base.join(format!("{name}.{number}")),
            };
            match fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                // Whatever is in it is not ours to be kept together with.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Removes every group of a generation in which nothing is left. One that is about to be empty
    /// is removed the next time.
    pub(crate) fn sweep(&self) {
        // What a living program has made within its own group is its own, empty or not.
        for group in self.generations().filter(|group| !is_populated(group)) {
            remove(&group);
        }
    }

    /// Kills what is in any group of a generation, and waits until it is gone: for a start that takes nothing
    /// over, where nobody else can have made those groups. Before Linux 5.14 it does nothing.
    pub(crate) fn end_left_behind(&self) {
        let deadline = Instant::now() + LONGEST_END;
        let left: Vec<PathBuf> = self
            .generations()
            .filter(|group| is_populated(group))
            .collect();
        for group in &left {
            tracing::warn!(
                "what a supervisor that is gone has left in {} is killed",
                group.display()
            );
            kill(group);
        }
        while left.iter().any(|group| is_populated(group)) && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
        }
        self.sweep();
    }

    /// The groups of generations, whoever made them.
    fn generations(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(&self.base).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
            .map(|entry| entry.path())
    }

    /// Has the memory of each group counted, for which the supervisor has to leave the topmost one.
    fn count_memory(&self) -> io::Result<()> {
        let has = |file: &str| {
            let text = fs::read_to_string(self.base.join(file))?;
            io::Result::Ok(text.split_ascii_whitespace().any(|one| one == "memory"))
        };
        if !has("cgroup.controllers")? || has("cgroup.subtree_control")? {
            return Ok(());
        }
        let own = self.base.join(OWN);
        match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // Zero is the writer itself.
        fs::write(own.join("cgroup.procs"), "0")?;
        fs::write(self.base.join("cgroup.subtree_control"), "+memory")
    }
}

/// The processes in a group and in those the program has made within it.
pub(super) fn members(group: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for group in with_all_within(group) {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        // One that this process namespace does not know is told as 0.
        let numbers = text.lines().filter_map(|line| line.parse::<i32>().ok());
        pids.extend(numbers.filter(|pid| *pid != 0));
    }
    pids
}

/// Kills everything in a group at once, also what is being forked meanwhile. Before Linux 5.14 it
/// does nothing.
pub(super) fn kill(group: &Path) {
    // Gone with its last process, or an old kernel: the family's processes are killed one by one too.
    let _nothing_to_kill = fs::write(group.join("cgroup.kill"), "1");
}

/// What a group's processes hold, with the files they have read, in bytes; none if it is not counted.
pub(super) fn memory(group: &Path) -> Option<u64> {
    let text = fs::read_to_string(group.join("memory.current")).ok()?;
    text.trim().parse().ok()
}

/// Whether any process is in a group or in those within it.
fn is_populated(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Removes a group with those within it, as far as they are empty.
fn remove(group: &Path) {
    for one in with_all_within(group).iter().rev() {
        // One that is not empty stays; so does what it is in.
        let _in_use = fs::remove_dir(one);
    }
}

/// A group and all that are within it, each before those within itself.
fn with_all_within(group: &Path) -> Vec<PathBuf> {
    let mut found = vec![group.to_owned()];
    let mut next = 0;
    while let Some(group) = found.get(next) {
        let entries = fs::read_dir(group).into_iter().flatten().flatten();
        let within = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let room = MOST_WITHIN.saturating_sub(found.len());
        let within: Vec<PathBuf> = within.map(|entry| entry.path()).take(room).collect();
        found.extend(within);
        next += 1;
    }
    found
}

/// Whether systemd has given a group away to whoever runs in it.
fn is_delegated(group: &Path) -> bool {
    [c"user.delegate", c"trusted.delegate"]
        .into_iter()
        .any(|name| sys::attribute(group, name).is_some_and(|value| value == b"1"))
}

/// Where this process's group of version 2 is, from the texts of `/proc/self/cgroup` and
/// `/proc/self/mountinfo` (`proc(5)`).
fn own_group(groups: &str, mounts: &str) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        // `ID PARENT DEVICE ROOT PLACE OPTIONS… - KIND SOURCE OPTIONS`
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        (kind.split(' ').next() == Some("cgroup2")).then(|| Path::new(place).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:27 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
33 31 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:11 - cgroup cgroup rw,memory
";

    #[test]
    fn the_own_group_is_found_where_it_is_mounted() {
        let groups = "4:memory:/a\n0::/system.slice/shop.service\n";
        assert_eq!(
            own_group(groups, HYBRID),
            Some(PathBuf::from(
                "/sys/fs/cgroup/unified/system.slice/shop.service"
            ))
        );
        let part = "1 0 0:28 /pod /sys/fs/cgroup rw - cgroup2 none rw\n";
        assert_eq!(
            own_group("0::/pod/x\n", part),
            Some(PathBuf::from("/sys/fs/cgroup/x"))
        );
        assert_eq!(own_group("0::/other/x\n", part), None);
        assert_eq!(own_group("4:memory:/a\n", HYBRID), None);
        assert_eq!(own_group("0::/a\n", ""), None);
    }

    #[test]
    fn a_plain_directory_is_given_to_nobody() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_delegated(directory.path()));
        assert!(!is_delegated(Path::new("/nonexistent")));
    }

    #[test]
    fn a_taken_name_is_left_alone_and_removed_once_it_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let delegated = Delegated {
            base: directory.path().to_owned(),
        };
        let first = delegated.make_named("generation-shop-1-0").unwrap();
        let second = delegated.make_named("generation-shop-1-0").unwrap();
        assert_ne!(first, second);
        fs::create_dir_all(first.join("made/by/the/program")).unwrap();
        fs::write(second.join("in use"), "").unwrap();
        fs::create_dir(directory.path().join("of somebody else")).unwrap();
        let living = delegated.make_named("generation-shop-2-0").unwrap();
        fs::create_dir(living.join("made by it")).unwrap();
        fs::write(living.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        delegated.sweep();
        assert!(living.join("made by it").exists());
        assert!(!first.exists());
        assert!(second.exists());
        assert!(directory.path().join("of somebody else").exists());
    }
}
