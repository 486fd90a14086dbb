//! One instance of `heirloom@.service`: its configuration, what systemd says of it, and what it answers.

use std::process::Output;

use serde_json::Value;

use crate::http;
use crate::machine::{DEMO, Machine, both};
use crate::wait::eventually;

/// Each root has one service under test, so one name and one port are enough.
pub(crate) const UNIT: &str = "heirloom@shop.service";
/// The port of the listener `http`.
pub(crate) const PORT: u16 = 8080;
/// The symlink a deployment flips.
pub(crate) const CURRENT: &str = "/srv/shop/current";

/// The service `shop` in a root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service<'a> {
    machine: &'a Machine,
}

impl<'a> Service<'a> {
    /// Configures the demo service; it is not started. `settings` are further lines of its table.
    pub(crate) fn configure(machine: &'a Machine, settings: &str) -> Self {
        let service = Self { machine };
        service.deploy(DEMO);
        service.configure_text(&format!(
            "name = \"shop\"\n[service.shop]\ncommand = [\"{CURRENT}\"]\nlisten = [\"http=tcp:127.0.0.1:{PORT}\"]\nprobation = \"0s\"\n{settings}\n"
        ));
        service
    }

    /// The same, started and serving its first generation.
    pub(crate) fn start(machine: &'a Machine, settings: &str) -> Self {
        let service = Self::configure(machine, settings);
        service.systemctl("start");
        service
    }

    /// Writes the whole configuration.
    pub(crate) fn configure_text(self, text: &str) {
        self.machine.write("/etc/heirloom/shop.toml", text);
    }

    /// Makes `program` the current one; the next generation runs it.
    pub(crate) fn deploy(self, program: &str) {
        self.machine.link(program, CURRENT);
    }

    /// Installs a drop-in of the tree.
    pub(crate) fn drop_in(self, name: &str) {
        self.machine.install(
            &format!("drop-ins/{name}"),
            &format!("/etc/systemd/system/heirloom@shop.service.d/{name}"),
        );
        self.machine.ok(&["systemctl", "daemon-reload"]);
    }

    /// Sets directives of `[Service]` for this test.
    pub(crate) fn set(self, directives: &str) {
        self.machine.write(
            "/etc/systemd/system/heirloom@shop.service.d/test.conf",
            &format!("[Service]\n{directives}\n"),
        );
        self.machine.ok(&["systemctl", "daemon-reload"]);
    }

    /// `systemctl VERB` on the unit, which must succeed.
    pub(crate) fn systemctl(self, verb: &str) {
        let output = self.try_systemctl(verb);
        assert!(
            output.status.success(),
            "systemctl {verb}: {}\n{}{}",
            output.status,
            both(&output),
            self.story()
        );
    }

    /// `systemctl VERB` on the unit, whatever comes of it.
    pub(crate) fn try_systemctl(self, verb: &str) -> Output {
        self.machine.run(&["systemctl", verb, UNIT])
    }

    /// A property as `systemctl show` gives it.
    pub(crate) fn property(self, name: &str) -> String {
        self.machine
            .ok(&["systemctl", "show", "--value", "--property", name, UNIT])
            .trim()
            .to_owned()
    }

    /// Waits until a property has a value.
    pub(crate) fn await_property(self, name: &str, value: &str) {
        eventually(&format!("{name}={value}"), || {
            (self.property(name) == value).then_some(())
        });
    }

    /// The number of the generation that answers now.
    pub(crate) fn generation(self) -> u64 {
        let body = self
            .get("/version")
            .unwrap_or_else(|reason| panic!("no answer: {reason}\n{}", self.story()));
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        answer["generation"].as_u64().expect("a number")
    }

    /// The body of a GET, on a connection of its own.
    pub(crate) fn get(self, path: &str) -> Result<String, String> {
        http::get(
            self.machine
                .connect(PORT)
                .map_err(|error| error.to_string())?,
            path,
        )
    }

    /// What `heirloom status --json` says, found by name as from a shell.
    pub(crate) fn status(self) -> Value {
        let text = self
            .machine
            .ok(&["heirloom", "status", "--json", "--name", "shop"]);
        serde_json::from_str(&text).expect("JSON")
    }

    /// Fails unless the unit is active with this main process and was never restarted, one supervisor runs, and
    /// `generation` answers: at once or, while an overlapped old one still accepts, in a moment.
    pub(crate) fn assert_undisturbed(self, main_pid: &str, generation: u64) {
        let properties = "--property=ActiveState,MainPID,NRestarts";
        let shown = self.machine.ok(&["systemctl", "show", properties, UNIT]);
        let mut shown: Vec<&str> = shown.lines().collect();
        shown.sort_unstable();
        let main = format!("MainPID={main_pid}");
        assert_eq!(
            shown,
            ["ActiveState=active", &main, "NRestarts=0"],
            "{}",
            self.story()
        );
        assert_eq!(self.supervisors(), [main_pid], "{}", self.story());
        eventually(&format!("generation {generation}"), || {
            (self.generation() == generation).then_some(())
        });
    }

    /// The pids, as the root counts, of every supervisor in it.
    pub(crate) fn supervisors(self) -> Vec<String> {
        let processes = std::fs::read_dir(self.machine.path("/proc")).expect("/proc of the root");
        processes
            .filter_map(|process| {
                let process = process.ok()?;
                let command = std::fs::read(process.path().join("cmdline")).ok()?;
                let mut words = command.split(|byte| *byte == 0);
                let runs = words.next()?.ends_with(b"heirloom") && words.next()? == b"run";
                runs.then(|| process.file_name().to_string_lossy().into_owned())
            })
            .filter(|name| name.parse::<u32>().is_ok())
            .collect()
    }

    /// The pids, as the root counts, of everything in the unit's cgroup.
    pub(crate) fn processes(self) -> Vec<String> {
        let path = "/sys/fs/cgroup/system.slice/system-heirloom.slice/heirloom@shop.service";
        let listing = self.machine.run(&[
            "sh",
            "-c",
            &format!("find {path} -name cgroup.procs -exec cat {{}} + 2>/dev/null"),
        ]);
        String::from_utf8_lossy(&listing.stdout)
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// The journal's entries of the unit, oldest first.
    pub(crate) fn journal(self) -> Vec<Value> {
        self.machine.ok(&["journalctl", "--sync"]);
        let text = self
            .machine
            .ok(&["journalctl", "--unit", UNIT, "--output", "json", "--all"]);
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// What happened, for the message of a failed test.
    pub(crate) fn story(self) -> String {
        let status = self
            .machine
            .run(&["systemctl", "status", "--no-pager", "--lines=0", UNIT]);
        let journal = self.machine.run(&[
            "journalctl",
            "--no-pager",
            "--unit",
            UNIT,
            "--output",
            "short-monotonic",
        ]);
        format!(
            "--- systemctl status\n{}--- journal\n{}",
            both(&status),
            both(&journal)
        )
    }
}
