//! A booted root as the tests use it: commands, files and connections inside.

use std::fs;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::keeper::Keeper;
use crate::version::{self, Version};

/// The unit files of the tree, which every root is given.
pub(crate) const UNIT_FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd");
/// Where the demo service is in every root.
pub(crate) const DEMO: &str = "/usr/local/bin/heirloom-demo";

/// The limit of every command inside, in seconds, as `timeout` takes it.
const COMMAND_LIMIT: &str = "60";
const CONNECTION_LIMIT: Duration = Duration::from_secs(20);

/// A root with systemd, the daemon, the demo service and the unit files of the tree, installed as docs/systemd.md says.
#[derive(Debug)]
pub(crate) struct Machine {
    keeper: Keeper,
    version: Version,
}

impl Machine {
    /// Boots and installs.
    pub(crate) fn boot(version: Version) -> Self {
        let files = [
            (
                Path::new(env!("CARGO_BIN_EXE_heirloom")),
                "/usr/local/bin/heirloom",
            ),
            (&version::demo(), DEMO),
        ];
        let machine = Self {
            keeper: Keeper::boot(version, &files),
            version,
        };
        let running = machine.ok(&["systemctl", "--version"]);
        assert!(
            running.starts_with(&format!("systemd {}", version.number())),
            "{running}"
        );
        machine.install("heirloom@.service", "/etc/systemd/system/heirloom@.service");
        machine.install("heirloom@.socket", "/etc/systemd/system/heirloom@.socket");
        machine.install("sysusers.d/heirloom.conf", "/etc/sysusers.d/heirloom.conf");
        machine.ok(&["systemd-sysusers"]);
        machine.ok(&["systemctl", "daemon-reload"]);
        machine
    }

    /// Which systemd this is.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Copies a file of the tree's `systemd/` to an absolute path inside.
    pub(crate) fn install(&self, file: &str, path: &str) {
        let text =
            fs::read_to_string(Path::new(UNIT_FILES).join(file)).expect("a file of systemd/");
        self.write(path, &text);
    }

    /// The path, as this machine sees it, of an absolute path inside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.keeper.leader_pid()))
    }

    /// Writes a file, and the directories above it.
    pub(crate) fn write(&self, inside: &str, text: &str) {
        let path = self.path(inside);
        fs::create_dir_all(path.parent().expect("an absolute path")).expect("directories above it");
        fs::write(path, text).expect(inside);
    }

    /// Writes a program: a script with its first line.
    pub(crate) fn write_program(&self, inside: &str, text: &str) {
        self.write(inside, text);
        fs::set_permissions(self.path(inside), fs::Permissions::from_mode(0o755)).expect(inside);
    }

    /// Makes `link` a symlink to `target`, replacing another in one step, as deployments do.
    pub(crate) fn link(&self, target: &str, link: &str) {
        let path = self.path(link);
        let staged = path.with_extension("staged");
        fs::create_dir_all(path.parent().expect("an absolute path")).expect("directories above it");
        std::os::unix::fs::symlink(target, &staged).expect("a fresh name");
        fs::rename(staged, path).expect(link);
    }

    /// Runs a command inside to its end.
    pub(crate) fn run(&self, command: &[&str]) -> Output {
        self.command(command).output().expect("nsenter starts")
    }

    /// Runs a command that must succeed; what it printed.
    pub(crate) fn ok(&self, command: &[&str]) -> String {
        let output = self.run(command);
        assert!(
            output.status.success(),
            "{command:?} failed, {}\n{}",
            output.status,
            both(&output)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts a command inside; its output is collected by `wait_with_output`.
    pub(crate) fn spawn(&self, command: &[&str]) -> Child {
        self.command(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter starts")
    }

    /// Connects to an address inside, which has a loopback of its own.
    pub(crate) fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.keeper.leader_pid()))?;
        // A namespace is entered by a thread, and a socket stays in the one it was made in.
        let connecting = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), CONNECTION_LIMIT)
        });
        let stream = connecting.join().expect("connecting does not panic")?;
        stream.set_read_timeout(Some(CONNECTION_LIMIT))?;
        stream.set_write_timeout(Some(CONNECTION_LIMIT))?;
        Ok(stream)
    }

    fn command(&self, inside: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.keeper.leader_pid().to_string(),
                "--mount",
                "--uts",
                "--ipc",
                "--net",
                "--pid",
                "--",
            ])
            .args(["timeout", "--kill-after=1", COMMAND_LIMIT])
            .args(inside)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }
}

/// All that a command printed, for a message.
pub(crate) fn both(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
