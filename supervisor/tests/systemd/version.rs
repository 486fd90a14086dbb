//! The systemd versions the tests run on, where their roots are, and what the machine needs for them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A systemd version, by the Debian release that ships it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Debian 12: no `Type=notify-reload`, no preserved descriptor store.
    V252,
    /// Debian 13.
    V257,
}

impl Version {
    /// What the first line of `systemctl --version` says.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::V252 => 252,
            Self::V257 => 257,
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V252 => "bookworm",
            Self::V257 => "trixie",
        }
    }

    /// The directory to boot from. It is only read: the machine's own root is good enough if it has the version.
    pub(crate) fn root(self) -> PathBuf {
        let made = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("../test-roots")
            .join(self.suite());
        if made.is_dir() {
            return made
                .canonicalize()
                .expect("a directory that exists has a path");
        }
        if number_on_this_machine() == Some(self.number()) {
            return PathBuf::from("/");
        }
        panic!(
            "the root with systemd {} is missing; make it: scripts/systemd-root {}",
            self.number(),
            self.suite()
        );
    }
}

/// Fails with the command to run if the machine cannot boot a root at all.
pub(crate) fn require_tools() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "booting systemd in a root of its own needs root; run: sudo -E cargo nextest run -p heirloom"
    );
    for (tool, package) in [
        ("systemd-nspawn", "systemd-container"),
        ("nsenter", "util-linux"),
        ("setpriv", "util-linux"),
        ("bash", "bash"),
    ] {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$0\"", tool])
            .output()
            .is_ok_and(|output| output.status.success());
        assert!(found, "{tool} is missing; run: apt-get install {package}");
    }
}

/// The demo service beside the daemon under test.
pub(crate) fn demo() -> PathBuf {
    let demo = Path::new(env!("CARGO_BIN_EXE_heirloom")).with_file_name("heirloom-demo");
    assert!(
        demo.exists(),
        "{} is missing; build it: cargo build -p heirloom-app --bins",
        demo.display()
    );
    demo
}

fn number_on_this_machine() -> Option<u32> {
    let output = Command::new("systemctl").arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}
