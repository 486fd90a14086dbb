//! A handover of state that memory would not do for is refused before anything is started.

use crate::confined::Confined;
use crate::native_handovers::{native, raise, reload_to};

const MIB: u64 = 1 << 20;

#[test]
fn a_handover_is_refused_where_a_second_copy_does_not_fit() {
    let group = Confined::by_memory("refused", 160 * MIB);
    let into = group.launcher();
    let into = into.each_ref().map(String::as_str);
    let ballast = (80 * MIB).to_string();
    let setup = native(["--ballast", &ballast]).launcher(into);
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
    let setup = native(["--ballast", "1000"]).launcher(into);
    supervisor.settle();
    supervisor.stop();
    let supervisor = setup.start();
    raise(&supervisor);
    assert_eq!(reload_to(&supervisor, &[]).0, Some(0));
    assert_eq!(raise(&supervisor).0, 2);
    supervisor.stop();
    drop(group);
}

/// How readily the kernel kills a process where memory runs out.
fn adjustment(pid: i32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    text.trim().parse().unwrap()
}

#[test]
fn where_memory_runs_out_in_a_handover_the_new_program_is_killed_and_not_the_one_that_serves() {
    let group = Confined::by_memory("outofmemory", 160 * MIB);
    let into = group.launcher();
    let into = into.each_ref().map(String::as_str);
    let ballast = (100 * MIB).to_string();
    let setup = native(["--ballast", &ballast]).launcher(into);
    let mut supervisor = setup.args(["--memory-check", "false"]).start();
    let (_, pid) = raise(&supervisor);
    let own = adjustment(supervisor.pid().as_raw());
    assert_eq!(adjustment(pid), own);
    for _ in 0..3 {
        let said = supervisor.expect(1, ["reload"]);
        assert!(said.contains("was killed by SIGKILL"), "{said}");
        assert_eq!(raise(&supervisor).1, pid, "{}", supervisor.log());
    }
    // One for which there is room serves, and is worth as much as any other from then on.
    assert_eq!(reload_to(&supervisor, &["--ballast", "1000"]).0, Some(0));
    let (_, pid) = raise(&supervisor);
    assert_eq!(adjustment(pid), own);
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn the_check_can_be_switched_off() {
    let group = Confined::by_memory("unchecked", 160 * MIB);
    let into = group.launcher();
    let into = into.each_ref().map(String::as_str);
    let ballast = (80 * MIB).to_string();
    let setup = native(["--ballast", &ballast]).launcher(into);
    let supervisor = setup.args(["--memory-check", "false"]).start();
    raise(&supervisor);
    assert_eq!(reload_to(&supervisor, &["--ballast", "1000"]).0, Some(0));
    assert_eq!(raise(&supervisor).0, 2);
    supervisor.stop();
}
