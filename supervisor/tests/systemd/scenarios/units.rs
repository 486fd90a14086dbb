//! The files of `systemd/` themselves: valid, as hardened as they say, and every drop-in works.

use std::fs;
use std::path::Path;

use crate::machine::{Machine, UNIT_FILES, both};
use crate::service::Service;
use crate::version::Version;

/// Ten times the exposure that `systemd-analyze security` may give the unit.
const EXPOSURE_LIMIT: &str = "25";

pub(crate) fn verified_and_hardened(machine: &Machine) {
    for unit in ["heirloom@shop.service", "heirloom@shop.socket"] {
        let output = machine.run(&["systemd-analyze", "verify", "--man=no", unit]);
        assert!(
            output.status.success() && both(&output).is_empty(),
            "{unit}: {}",
            both(&output)
        );
    }
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

pub(crate) fn drop_ins_run(machine: &Machine) {
    let service = Service::configure(machine, "");
    let mut names: Vec<_> = fs::read_dir(Path::new(UNIT_FILES).join("drop-ins"))
        .expect("the drop-ins")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("plain names")
        })
        .collect();
    names.sort();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        if name == "notify-reload.conf" && machine.version() == Version::V252 {
            continue;
        }
        service.drop_in(&name);
        let output = machine.run(&[
            "systemd-analyze",
            "verify",
            "--man=no",
            "heirloom@shop.service",
        ]);
        assert!(
            output.status.success() && both(&output).is_empty(),
            "{name}: {}",
            both(&output)
        );
        // So many starts in a row are not an accident here.
        service.systemctl("reset-failed");
        service.systemctl("restart");
        service.systemctl("reload");
        service
            .get("/version")
            .unwrap_or_else(|reason| panic!("{name}: {reason}\n{}", service.story()));
        fs::remove_dir_all(machine.path("/etc/systemd/system/heirloom@shop.service.d"))
            .expect("was installed");
    }
}
