//! The files of `systemd/` themselves: valid, as hardened as they say, and every drop-in works.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::machine::{Machine, UNIT_FILES, both};
use crate::programs;
use crate::service::{CURRENT, Service};
use crate::version::Version;

/// Drop-ins that open something a program can try by itself, and the trial.
const TRIALS: [(&str, &str); 3] = [
    ("home.conf", "test -r /home/readable"),
    ("host-facts.conf", "test -r /proc/meminfo"),
    ("jit.conf", WRITABLE_CODE),
];

/// Memory to write and to execute: `mmap(0, 4096, READ | WRITE | EXEC, PRIVATE | ANONYMOUS)`.
#[cfg(target_arch = "x86_64")]
const WRITABLE_CODE: &str = "perl -e 'exit(syscall(9, 0, 4096, 7, 34, -1, 0) == -1)'";
#[cfg(target_arch = "aarch64")]
const WRITABLE_CODE: &str = "perl -e 'exit(syscall(222, 0, 4096, 7, 34, -1, 0) == -1)'";

/// Drop-ins with a test of their own.
const TRIED_ELSEWHERE: [&str; 3] = [
    "notify-reload.conf",
    "privileged-port.conf",
    "switch-user.conf",
];

/// Ten times the exposure that `systemd-analyze security` may give the unit.
const EXPOSURE_LIMIT: &str = "25";

pub(crate) fn verified_and_hardened(machine: &Machine) {
    verify(machine, &["heirloom@shop.service", "heirloom@shop.socket"]);
    let path = "/etc/systemd/system/heirloom@.service";
    let output = machine.run(&[
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        &format!("--threshold={EXPOSURE_LIMIT}"),
        path,
    ]);
    assert!(output.status.success(), "{}", both(&output));
    // The sandbox is in force, not only written down: the supervisor and the program have no capability and no new privileges.
    let service = Service::start(machine, "");
    for pid in service.processes() {
        let status = machine.ok(&["cat", &format!("/proc/{pid}/status")]);
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .map(str::to_owned)
        };
        assert_eq!(
            field("CapBnd:").as_deref(),
            Some("0000000000000000"),
            "{status}"
        );
        assert_eq!(field("NoNewPrivs:").as_deref(), Some("1"), "{status}");
        assert_eq!(field("Seccomp:").as_deref(), Some("2"), "{status}");
        assert_ne!(field("Uid:").as_deref(), Some("0\t0\t0\t0"), "{status}");
    }
    // The example configuration is one that this version understands.
    machine.install("example.toml", "/etc/heirloom/example.toml");
    machine.ok(&["heirloom", "check", "/etc/heirloom/example.toml"]);
}

pub(crate) fn drop_ins_are_valid_and_all_are_tried(machine: &Machine) {
    let entries = fs::read_dir(Path::new(UNIT_FILES).join("drop-ins")).expect("the drop-ins");
    let names: BTreeSet<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("plain names")
        })
        .collect();
    let tried: BTreeSet<String> = TRIALS
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .chain(TRIED_ELSEWHERE.map(str::to_owned))
        .collect();
    assert_eq!(names, tried);
    // An instance for each, so that one run of the verifier sees them all and names the one at fault.
    let mut units = Vec::new();
    for name in &names {
        if name == "notify-reload.conf" && machine.version() == Version::V252 {
            continue;
        }
        let unit = format!("heirloom@{}.service", name.replace(['.', '-'], "_"));
        machine.install(
            &format!("drop-ins/{name}"),
            &format!("/etc/systemd/system/{unit}.d/{name}"),
        );
        units.push(unit);
    }
    verify(
        machine,
        &units.iter().map(String::as_str).collect::<Vec<_>>(),
    );
}

pub(crate) fn drop_ins_open_what_they_say(machine: &Machine) {
    let service = Service::configure(machine, "");
    machine.write("/home/readable", "");
    let trials: String = TRIALS
        .iter()
        .map(|(name, trial)| {
            format!("if {trial}; then echo open; else echo closed; fi >$STATE_DIRECTORY/{name}\n")
        })
        .collect();
    service.deploy(programs::demo_after(machine, &trials));
    service.systemctl("start");
    for (name, _) in TRIALS {
        assert_eq!(
            found(machine, name),
            "closed",
            "{name} is needed\n{}",
            service.story()
        );
        service.drop_in(name);
    }
    // The supervisor is in the new sandbox at once, and what it starts then.
    service.systemctl("restart");
    assert_eq!(service.generation(), 1);
    service.systemctl("reload");
    for (name, _) in TRIALS {
        assert_eq!(
            found(machine, name),
            "open",
            "{name} helps\n{}",
            service.story()
        );
    }
    service.systemctl("reload");
    service.assert_undisturbed(&service.property("MainPID"), 3);
}

pub(crate) fn privileged_port_is_bound_with_its_drop_in_only(machine: &Machine) {
    let service = Service::configure(machine, "");
    service.configure_text(&format!(
        "[service.shop]\ncommand = [\"{CURRENT}\"]\nlisten = [\"http=tcp:127.0.0.1:80\"]\n"
    ));
    service.set("Restart=no");
    let refused = service.try_systemctl("start");
    assert!(
        !refused.status.success(),
        "bound without a capability\n{}",
        service.story()
    );
    service.drop_in("privileged-port.conf");
    service.systemctl("start");
    let stream = machine.connect(80).expect("the port is bound");
    crate::http::get(stream, "/version").expect("it serves");
    let main_pid = service.property("MainPID");
    let own = machine.ok(&["cat", &format!("/proc/{main_pid}/status")]);
    assert!(own.contains("CapEff:\t0000000000000400\n"), "{own}");
    let processes = service.processes();
    assert!(processes.len() >= 2, "{processes:?}");
    for pid in processes.iter().filter(|pid| **pid != main_pid) {
        let status = machine.ok(&["cat", &format!("/proc/{pid}/status")]);
        for set in ["Inh", "Prm", "Eff", "Amb"] {
            let none = format!("Cap{set}:\t0000000000000000\n");
            assert!(status.contains(&none), "{status}");
        }
    }
}

pub(crate) fn user_is_switched_with_its_drop_in(machine: &Machine) {
    let service = Service::configure(machine, "user = \"daemon\"");
    service.drop_in("switch-user.conf");
    service.systemctl("start");
    service.systemctl("reload");
    let main_pid = service.property("MainPID");
    service.assert_undisturbed(&main_pid, 2);
    let processes = service.processes();
    assert!(processes.len() >= 2, "{processes:?}");
    for pid in processes.iter().filter(|pid| **pid != main_pid) {
        let owner = machine.ok(&["stat", "--format=%U", &format!("/proc/{pid}")]);
        assert_eq!(owner.trim(), "daemon", "{}", service.story());
        let status = machine.ok(&["cat", &format!("/proc/{pid}/status")]);
        assert!(status.contains("CapPrm:\t0000000000000000\n"), "{status}");
        assert!(status.contains("CapAmb:\t0000000000000000\n"), "{status}");
    }
    service.systemctl("stop");
    assert_eq!(service.property("Result"), "success", "{}", service.story());
}

/// What a program found when it tried, in its state directory.
fn found(machine: &Machine, name: &str) -> String {
    let path = machine.path(&format!("/var/lib/heirloom/shop/{name}"));
    fs::read_to_string(path)
        .expect("the program has tried")
        .trim()
        .to_owned()
}

fn verify(machine: &Machine, units: &[&str]) {
    let command = ["systemd-analyze", "verify", "--man=no"];
    let output = machine.run(&[&command[..], units].concat());
    let silent = output.status.success() && both(&output).is_empty();
    assert!(silent, "{units:?}: {}", both(&output));
}
