//! A control group of a test's own with one limit, in which a supervisor is started.

use std::fs;
use std::path::{Path, PathBuf};

/// Gone with this value.
pub(crate) struct Confined {
    group: PathBuf,
    limit: &'static str,
}

impl Confined {
    /// By memory, in bytes.
    pub(crate) fn by_memory(what: &str, bytes: u64) -> Self {
        let confined = Self::new("memory", ["memory.limit_in_bytes", "memory.max"], what);
        confined.set(bytes);
        confined
    }

    /// By processes and threads; without a limit at first.
    pub(crate) fn by_tasks(what: &str) -> Self {
        Self::new("pids", ["pids.max", "pids.max"], what)
    }

    fn new(controller: &str, files: [&'static str; 2], what: &str) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path_of = |line: &str| line.splitn(3, ':').nth(2).unwrap().to_owned();
        let first = own
            .lines()
            .find(|line| line.contains(&format!(":{controller}:")));
        let (parent, limit) = match first {
            Some(line) => (
                format!("/sys/fs/cgroup/{controller}{}", path_of(line)),
                files[0],
            ),
            None => {
                let unified = own.lines().find_map(|line| line.strip_prefix("0::"));
                (
                    format!("/sys/fs/cgroup{}", unified.unwrap_or_default()),
                    files[1],
                )
            }
        };
        let name = format!("heirloom-test-{}-{what}", std::process::id());
        let group = Path::new(&parent).join(name);
        fs::create_dir(&group).unwrap_or_else(|error| {
            panic!(
                "{}: {error}; run this as root, where control groups can be made",
                group.display()
            )
        });
        let confined = Self { group, limit };
        assert!(
            confined.group.join(limit).exists(),
            "{} has no {limit}; run this where the controller {controller} can be used",
            confined.group.display()
        );
        confined
    }

    pub(crate) fn set(&self, limit: impl ToString) {
        fs::write(self.group.join(self.limit), limit.to_string()).unwrap();
    }

    /// How many processes and threads are in it.
    pub(crate) fn tasks(&self) -> u64 {
        let text = fs::read_to_string(self.group.join("pids.current")).unwrap();
        text.trim().parse().unwrap()
    }

    /// What runs a command in it.
    pub(crate) fn launcher(&self) -> [String; 4] {
        let into = format!(
            "echo $$ >{}/cgroup.procs; exec \"$@\"",
            self.group.display()
        );
        ["sh".to_owned(), "-c".to_owned(), into, "-".to_owned()]
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        // Its processes have just ended; the kernel may need a moment to see that.
        for _ in 0..500 {
            if fs::remove_dir(&self.group).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
