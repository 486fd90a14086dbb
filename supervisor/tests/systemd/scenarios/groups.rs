//! `Delegate=yes`: a control group for each process of a generation, below the unit's.

use std::collections::BTreeSet;

use crate::machine::Machine;
use crate::programs;
use crate::service::Service;
use crate::wait::eventually;

/// Where those that hide write their pids.
const HIDDEN: &str = "/var/lib/heirloom/shop/hidden";

/// Leaves a process behind that nothing but its control group tells whose it is.
const HIDE: &str = "setsid --fork env --ignore-environment sh -c 'echo $$ >>/var/lib/heirloom/shop/hidden; exec sleep 609'\n";

pub(crate) fn each_generation_is_in_one_of_its_own_and_is_ended_with_it(machine: &Machine) {
    let service = Service::configure(machine, "");
    service.deploy(programs::demo_after(machine, HIDE));
    service.systemctl("start");
    let main_pid = service.property("MainPID");
    for generation in 1..=3 {
        // Those of the one before may still be on their way out.
        eventually("nothing but this generation, in its own group", || {
            let groups: BTreeSet<String> = service
                .processes()
                .iter()
                .filter(|pid| **pid != main_pid)
                .map(|pid| group_of(machine, pid))
                .collect();
            (groups.len() == 1)
                .then_some(groups.into_iter().next()?)
                .filter(|group| {
                    group.ends_with(&format!(
                        "heirloom@shop.service/generation-shop-{generation}-0"
                    ))
                })
        });
        let hidden = machine.ok(&["cat", HIDDEN]);
        let alive: Vec<&str> = hidden
            .lines()
            .filter(|pid| machine.path(&format!("/proc/{pid}")).exists())
            .collect();
        let last = hidden.lines().last().expect("each writes its pid");
        assert_eq!(alive, [last], "{hidden}\n{}", service.story());
        assert_eq!(hidden.lines().count(), generation, "{hidden}");
        // The last one is stopped.
        if generation < 3 {
            service.systemctl("reload");
            service.assert_undisturbed(&main_pid, generation as u64 + 1);
        }
    }
    service.systemctl("stop");
    assert_eq!(service.property("Result"), "success", "{}", service.story());
    let hidden = machine.ok(&["cat", HIDDEN]);
    for pid in hidden.lines() {
        assert!(!machine.path(&format!("/proc/{pid}")).exists(), "{pid}");
    }
}

/// `gone` once it has ended.
fn group_of(machine: &Machine, pid: &str) -> String {
    let text = std::fs::read_to_string(machine.path(&format!("/proc/{pid}/cgroup")));
    let text = text.unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.unwrap_or("gone").to_owned()
}
