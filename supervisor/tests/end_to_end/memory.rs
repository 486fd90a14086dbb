//! A handover of state that memory would not do for is refused before anything is started.

use std::fs;
use std::path::{Path, PathBuf};

use crate::native_handovers::{native, raise, reload_to};

/// A control group with a limit on memory; gone with this value.
struct Group(PathBuf);

impl Group {
    /// None where this machine does not let a test make one; the numbers have a test of their own.
    fn with(what: &str, limit: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path_of = |line: &str| line.splitn(3, ':').nth(2).unwrap().to_owned();
        let first = own.lines().find(|line| line.contains(":memory:"));
        let (parent, file) = match first {
            Some(line) => (
                format!("/sys/fs/cgroup/memory{}", path_of(line)),
                "memory.limit_in_bytes",
            ),
            None => {
                let unified = own.lines().find(|line| line.starts_with("0::"))?;
                (format!("/sys/fs/cgroup{}", path_of(unified)), "memory.max")
            }
        };
        let name = format!("heirloom-test-{}-{what}", std::process::id());
        let group = Self(Path::new(&parent).join(name));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join(file), limit.to_string()).ok()?;
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have just ended; the kernel may need a moment to see that.
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn a_handover_is_refused_where_a_second_copy_does_not_fit() {
    let Some(group) = Group::with("refused", 160 * MIB) else {
        eprintln!("no control group with a limit can be made here");
        return;
    };
    let into = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.0.display());
    let ballast = (80 * MIB).to_string();
    let setup = native(["--ballast", &ballast]).launcher(["sh", "-c", &into, "-"]);
    let mut supervisor = setup.start();
    let (_, pid) = raise(&supervisor);
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains("memory would not do"), "{said}");
    assert!(
        said.contains("are left in the supervisor's control group"),
        "{said}"
    );
    assert!(said.contains("memory_check = false"), "{said}");
    let started = supervisor.history();
    let started = started.iter().filter(|event| event["event"] == "started");
    assert_eq!(started.count(), 1, "nothing was started for it");
    assert_eq!(raise(&supervisor), (2, pid));
    supervisor.expect(1, ["reload", "--dry-run"]);
    // With less to copy there is room: the next generation is smaller, and takes over where it may.
    let setup = native(["--ballast", "1000"]).launcher(["sh", "-c", &into, "-"]);
    supervisor.settle();
    supervisor.stop();
    let supervisor = setup.start();
    raise(&supervisor);
    assert_eq!(reload_to(&supervisor, &[]).0, Some(0));
    assert_eq!(raise(&supervisor).0, 2);
    supervisor.stop();
    drop(group);
}

#[test]
fn the_check_can_be_switched_off() {
    let Some(group) = Group::with("unchecked", 160 * MIB) else {
        eprintln!("no control group with a limit can be made here");
        return;
    };
    let into = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.0.display());
    let ballast = (80 * MIB).to_string();
    let setup = native(["--ballast", &ballast]).launcher(["sh", "-c", &into, "-"]);
    let supervisor = setup.args(["--memory-check", "false"]).start();
    raise(&supervisor);
    assert_eq!(reload_to(&supervisor, &["--ballast", "1000"]).0, Some(0));
    assert_eq!(raise(&supervisor).0, 2);
    supervisor.stop();
}
