//! Capabilities by their names.
//!
//! Owns reading and printing a set of them. What a program keeps is decided in `daemon::plan`, and
//! carried out in `sys::spawn`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// The names of `capabilities(7)` without their `CAP_`, by number.
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// A set of capabilities, a bit each, as the kernel numbers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub(crate) struct Capabilities(u64);

impl Capabilities {
    /// The one that lets its holder narrow the bounding set.
    pub(crate) const SETPCAP: Self = Self(1 << 8);

    /// The set of these bits, as `/proc/PID/status` shows them.
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// A bit each, by the kernel's numbers.
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of the other set are in this one.
    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What is in this set and not in the other.
    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn names(self) -> impl Iterator<Item = String> {
        (0..u64::BITS)
            .filter(move |number| self.0 >> number & 1 == 1)
            .map(|number| match NAMES.get(number as usize) {
                Some(name) => (*name).to_owned(),
                None => format!("capability {number}"),
            })
    }
}

impl FromIterator<Self> for Capabilities {
    fn from_iter<T: IntoIterator<Item = Self>>(sets: T) -> Self {
        Self(sets.into_iter().fold(0, |sum, one| sum | one.0))
    }
}

fn one(text: &str) -> Result<Capabilities, String> {
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_prefix("cap_").unwrap_or(&lower);
    match NAMES.iter().position(|known| *known == name) {
        Some(number) => Ok(Capabilities(1 << number)),
        None => Err(format!(
            "`{text}` is not a capability such as net_bind_service"
        )),
    }
}

impl TryFrom<Vec<String>> for Capabilities {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        names.iter().map(|name| one(name)).collect()
    }
}

impl FromStr for Capabilities {
    type Err = String;

    /// Names with commas between; nothing is the empty set.
    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(one)
            .collect()
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join(", "))
    }
}

impl Serialize for Capabilities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_as_people_write_them_and_numbered_as_the_kernel_does() {
        let read: Capabilities = "CAP_NET_BIND_SERVICE, net_raw".parse().unwrap();
        assert_eq!(read.bits(), 1 << 10 | 1 << 13);
        assert_eq!(read.to_string(), "net_bind_service, net_raw");
        assert_eq!("".parse::<Capabilities>().unwrap().bits(), 0);
        assert_eq!(
            "setpcap".parse::<Capabilities>().unwrap(),
            Capabilities::SETPCAP
        );
        let last: Capabilities = "checkpoint_restore".parse().unwrap();
        assert_eq!(last.bits(), 1 << 40);
        let error = "net_bind".parse::<Capabilities>().unwrap_err();
        assert!(error.contains("`net_bind`"), "{error}");
    }
}
