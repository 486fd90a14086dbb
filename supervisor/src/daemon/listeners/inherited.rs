//! Sockets, and what a supervisor of before left, that systemd passes in (`sd_listen_fds(3)`).
//!
//! Owns telling the ones from the others by name, and which socket a service's notation takes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::{CannotListen, Listener, Returning};
use crate::config::listen::{Address, ListenSpec};
use crate::daemon::adoption::{FromStore, HANDLE_PREFIX, RECORD_NAME};
use crate::daemon::record::{self, Handle, Held, handles::Found};

/// Sockets that systemd passed in and no service has taken yet, by name.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    sockets: BTreeMap<String, Arc<Listener>>,
}

impl Inherited {
    /// Takes over what was passed to this process, once, before it has threads.
    ///
    /// # Errors
    ///
    /// A descriptor that is not a socket, or not one that listens.
    pub(crate) fn take() -> io::Result<(Self, FromStore)> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').filter(|name| !name.is_empty()).collect();
        // `from_env` also removes the variables; the process has one thread so far.
        let mut passed = listenfd::ListenFd::from_env();
        let mut sockets = BTreeMap::new();
        let mut store = FromStore::default();
        for index in 0..passed.len() {
            let Some(raw) = passed.take_raw_fd(index)? else {
                continue;
            };
            let given = names.get(index).copied();
            if let Some(kept) = given.and_then(Kept::named) {
                let fd = crate::sys::own(raw);
                fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
                match kept {
                    Kept::Record => store.record = Some(fd),
                    Kept::Handle(handle) => {
                        store.handles.insert(handle);
                        store.found.insert(handle, fd);
                    }
                }
                continue;
            }
            // A number that means something else, or nothing, is not ours to close.
            let link = std::fs::read_link(format!("/proc/self/fd/{raw}")).unwrap_or_default();
            if !link.to_string_lossy().starts_with("socket:") {
                let text = format!("descriptor {raw} is not a socket");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            let fd = crate::sys::own(raw);
            // systemd calls a socket without FileDescriptorName= after its unit, or `unknown`.
            let given = given.unwrap_or("unknown");
            let mut name = given.to_owned();
            for number in 2.. {
                if !sockets.contains_key(&name) {
                    break;
                }
                name = format!("{given}-{number}");
            }
            let listener = Listener::inherited(&name, fd)?;
            sockets.insert(name, Arc::new(listener));
        }
        Ok((Self { sockets }, store))
    }

    /// What the record says of them.
    pub(crate) fn record<'a>(&'a self, held: &mut Held<'a>) -> Vec<record::Listener> {
        let each = self.sockets.values();
        each.map(|listener| listener.record(held)).collect()
    }

    /// Goes on with those of a predecessor.
    ///
    /// # Errors
    ///
    /// One of them is not there.
    pub(crate) fn restore(
        listed: &[record::Listener],
        returning: &mut Returning,
        found: &mut Found,
    ) -> Result<Self, CannotListen> {
        let set = returning.set(listed, found)?;
        let named = set.into_iter().map(|one| (one.spec.name.clone(), one));
        Ok(Self {
            sockets: named.collect(),
        })
    }

    /// The socket that systemd passed under this name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn named(&self, name: &str) -> io::Result<&Arc<Listener>> {
        self.sockets.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.sockets.keys().map(String::as_str).collect();
            let names = names.join(", ");
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("systemd passed no socket named {name} (it passed: {names})"),
            )
        })
    }

    /// The socket of the same kind that systemd passed under this name: so one configuration serves
    /// with and without a socket unit. The unit's address counts then, however it is written.
    pub(super) fn matching(&self, spec: &ListenSpec) -> Option<&Arc<Listener>> {
        let asked = spec.address.to_string();
        let kind = |address: &str| address.split(':').next().map(str::to_owned);
        let passed = self.sockets.get(&spec.name)?;
        if kind(&passed.bound) != kind(&asked) {
            return None;
        }
        if passed.bound != asked {
            let name = &spec.name;
            tracing::info!(
                "{name}: systemd's socket on {} counts, not {asked}",
                passed.bound
            );
        }
        Some(passed)
    }

    /// The names of those that no notation in `specs` takes.
    pub(crate) fn unclaimed<'a>(
        &'a self,
        specs: impl Iterator<Item = &'a ListenSpec>,
    ) -> Vec<String> {
        let claimed: Vec<&str> = specs
            .filter_map(|spec| match &spec.address {
                Address::Inherited(name) => Some(name.as_str()),
                Address::Tcp { .. }
                | Address::Udp { .. }
                | Address::Unix(_)
                | Address::UnixSeqpacket(_) => {
                    self.matching(spec).map(|passed| passed.spec.name.as_str())
                }
            })
            .collect();
        self.sockets
            .keys()
            .filter(|name| !claimed.contains(&name.as_str()))
            .cloned()
            .collect()
    }
}

/// A descriptor that systemd keeps for supervisors.
#[derive(Debug, PartialEq, Eq)]
enum Kept {
    Record,
    Handle(Handle),
}

impl Kept {
    /// What a name means; none if it is that of a socket unit, which may be called after Heirloom as well.
    fn named(name: &str) -> Option<Self> {
        if name == RECORD_NAME {
            return Some(Self::Record);
        }
        let number = name.strip_prefix(HANDLE_PREFIX)?.parse().ok()?;
        Some(Self::Handle(Handle(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_unit_called_after_heirloom_is_no_part_of_the_store() {
        assert_eq!(Kept::named("heirloom.record"), Some(Kept::Record));
        assert_eq!(Kept::named("heirloom.7"), Some(Kept::Handle(Handle(7))));
        for unit in ["heirloom.socket", "heirloom.7.socket", "heirloom", "http"] {
            assert_eq!(Kept::named(unit), None, "{unit}");
        }
    }
}
