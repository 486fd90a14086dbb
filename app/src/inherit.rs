//! Everything a process was started with, as one value.
//!
//! [`environment`] says what the variables mean, [`listener`] what a socket is, `sys` takes the
//! descriptors. Reporting back is [`crate::Notifier`]'s.

mod environment;
mod listener;

use std::{env, os::fd::OwnedFd, process};

use environment::{Descriptors, Environment};
use listener::Kind;
pub use listener::Listener;
pub(crate) use listener::Socket;

use crate::{
    notify::Notifier,
    sys::{self, TakeError},
};

/// What this process was given: descriptors by name, its generation, where to report.
///
/// Descriptors that are not taken stay open as long as this value lives: a listener the program
/// does not know is thereby not lost.
#[derive(Debug)]
pub struct Inherited {
    generation: u64,
    service: Option<String>,
    notifier: Notifier,
    /// Where the handover protocol is spoken, until somebody takes it.
    supervisor: Option<OwnedFd>,
    descriptors: Vec<(String, OwnedFd)>,
    /// The process the descriptors were meant for, if it was not this one.
    meant_for: Option<u32>,
}

/// Why something inherited could not be used. The text says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InheritError {
    /// A variable holds what it must not; the fault is in whatever started this process.
    #[error(
        "the environment variable {variable} is {value:?}, but must be {expected}; \
         whatever started this process set it wrongly"
    )]
    Malformed {
        /// Its name.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// LISTEN_FDNAMES does not have one name for each descriptor.
    #[error(
        "LISTEN_FDNAMES holds {names} names for the {descriptors} descriptors of LISTEN_FDS; \
         whatever started this process must give one name to each"
    )]
    NamesDoNotMatch {
        /// How many names there are.
        names: usize,
        /// How many descriptors there are.
        descriptors: usize,
    },
    /// An announced descriptor is not open.
    #[error(
        "descriptor {0} was announced by LISTEN_FDS and is not open; \
         a wrapper between the supervisor and this program must not close it"
    )]
    NotOpen(i32),
    /// A descriptor could not be marked close-on-exec.
    #[error("descriptor {descriptor} cannot be marked close-on-exec")]
    Mark {
        /// The descriptor.
        descriptor: i32,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The descriptors have been taken before in this process.
    #[error("the inherited descriptors are taken already; call Inherited::from_env once, in main")]
    AlreadyTaken,
    /// There is nothing of that name.
    #[error("no descriptor named {name:?} was inherited, {present}")]
    NoSuchName {
        /// The name asked for.
        name: String,
        /// What there is instead, and what to do.
        present: String,
    },
    /// The descriptor is not what was asked for.
    #[error(
        "the inherited descriptor {name:?} is {actual}, not a listening stream socket; \
         let the supervisor listen for it: --listen {name}=tcp:HOST:PORT or {name}=unix:PATH"
    )]
    NotAListener {
        /// Its name.
        name: String,
        /// What it is.
        actual: &'static str,
    },
}

impl Inherited {
    /// Takes what this process was given.
    ///
    /// May be called at any time, best first thing in `main`; it does not change the environment.
    ///
    /// # Errors
    ///
    /// If a variable is damaged, if an announced descriptor is not open, or if descriptors were
    /// given and this is the second call. To have been given nothing is not an error.
    pub fn from_env() -> Result<Self, InheritError> {
        let environment = Environment::read(|name| env::var_os(name), process::id())?;
        let (names, meant_for) = match environment.descriptors {
            Descriptors::None => (Vec::new(), None),
            Descriptors::MeantFor { pid } => (Vec::new(), Some(pid)),
            Descriptors::Named(names) => (names, None),
        };
        let (descriptors, supervisor) = if names.is_empty() && environment.supervisor.is_none() {
            (Vec::new(), None)
        } else {
            // `names` holds at most DESCRIPTORS_MAX, which is a u16.
            let count = u16::try_from(names.len()).unwrap_or(u16::MAX);
            let owned = sys::take_inherited(count, environment.supervisor);
            let (owned, supervisor) = owned.map_err(|error| match error {
                TakeError::AlreadyTaken => InheritError::AlreadyTaken,
                TakeError::NotOpen(descriptor) => InheritError::NotOpen(descriptor),
                TakeError::Mark(descriptor, errno) => InheritError::Mark {
                    descriptor,
                    source: errno.into(),
                },
            })?;
            (names.into_iter().zip(owned).collect(), supervisor)
        };
        Ok(Self {
            generation: environment.generation,
            service: environment.service,
            notifier: Notifier::to(environment.notify_socket),
            supervisor,
            descriptors,
            meant_for,
        })
    }

    /// The number of this generation, from 1; 0 without a supervisor.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The name of the service in the supervisor's configuration; none without a supervisor.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }

    /// Where to report readiness and status. Does nothing without a supervisor.
    #[must_use]
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// Takes the socket on which the supervisor speaks the handover protocol, if it does.
    pub(crate) fn take_supervisor(&mut self) -> Option<OwnedFd> {
        self.supervisor.take()
    }

    /// The names of what has not been taken yet, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.descriptors.iter().map(|(name, _)| name.as_str())
    }

    /// Whether nothing is left to take.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }

    /// Takes the listening stream socket called `name`. When several have the name, each call
    /// takes the next.
    ///
    /// # Errors
    ///
    /// If there is none, or what has the name is not a listening stream socket; it then stays.
    pub fn take_listener(&mut self, name: &str) -> Result<Listener, InheritError> {
        let position = self.position(name)?;
        self.take_listener_at(position)
    }

    /// Like [`Self::take_listener`], but if nothing is called `name` and exactly one listening
    /// stream socket was inherited, that one is meant, whatever its name.
    ///
    /// # Errors
    ///
    /// As [`Self::take_listener`].
    pub fn take_listener_or_only(&mut self, name: &str) -> Result<Listener, InheritError> {
        if let Ok(position) = self.position(name) {
            return self.take_listener_at(position);
        }
        let mut listening =
            (0..self.descriptors.len()).filter(|&at| match Kind::of(&self.descriptors[at].1) {
                Kind::ListeningTcp | Kind::ListeningUnix => true,
                Kind::Other(_) => false,
            });
        match (listening.next(), listening.next()) {
            (Some(only), None) => self.take_listener_at(only),
            (None | Some(_), _) => Err(self.no_such_name(name)),
        }
    }

    /// Takes whatever descriptor is called `name`: a datagram socket, or something a former
    /// generation stored with [`Notifier::store`].
    ///
    /// # Errors
    ///
    /// If nothing is called `name`.
    pub fn take_descriptor(&mut self, name: &str) -> Result<OwnedFd, InheritError> {
        let position = self.position(name)?;
        Ok(self.descriptors.remove(position).1)
    }

    fn position(&self, name: &str) -> Result<usize, InheritError> {
        self.names()
            .position(|candidate| candidate == name)
            .ok_or_else(|| self.no_such_name(name))
    }

    fn take_listener_at(&mut self, position: usize) -> Result<Listener, InheritError> {
        let (name, descriptor) = self.descriptors.remove(position);
        Listener::from_descriptor(name.clone(), descriptor).map_err(|(descriptor, actual)| {
            self.descriptors
                .insert(position, (name.clone(), descriptor));
            InheritError::NotAListener { name, actual }
        })
    }

    fn no_such_name(&self, name: &str) -> InheritError {
        let present = if !self.descriptors.is_empty() {
            let names: Vec<&str> = self.names().collect();
            format!(
                "only {}; name the listener in the supervisor: --listen {name}=HOST:PORT",
                names.join(", ")
            )
        } else if let Some(pid) = self.meant_for {
            format!(
                "because LISTEN_PID={pid} is not this process ({}); \
                 a wrapper script must start the program with exec",
                process::id()
            )
        } else {
            format!(
                "nor anything else; start this program under a supervisor: \
                 heirloom run --listen {name}=HOST:PORT -- PROGRAM"
            )
        };
        InheritError::NoSuchName {
            name: name.to_owned(),
            present,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    fn inherited(descriptors: Vec<(&str, OwnedFd)>) -> Inherited {
        Inherited {
            generation: 1,
            service: None,
            notifier: Notifier::to(None),
            supervisor: None,
            descriptors: descriptors
                .into_iter()
                .map(|(name, descriptor)| (name.to_owned(), descriptor))
                .collect(),
            meant_for: None,
        }
    }

    fn tcp() -> OwnedFd {
        TcpListener::bind("127.0.0.1:0").unwrap().into()
    }

    fn udp() -> OwnedFd {
        UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn listeners_are_taken_by_name_and_once() {
        let mut inherited = inherited(vec![("admin", tcp()), ("http", tcp())]);
        assert_eq!(inherited.take_listener("http").unwrap().name(), "http");
        let error = inherited.take_listener("http").unwrap_err().to_string();
        assert!(error.contains("only admin"), "{error}");
        assert!(error.contains("--listen http=HOST:PORT"), "{error}");
    }

    #[test]
    fn two_of_one_name_come_one_after_the_other() {
        let mut inherited = inherited(vec![("http", tcp()), ("http", tcp())]);
        let first = inherited.take_listener("http").unwrap();
        let second = inherited.take_listener("http").unwrap();
        assert_ne!(first.tcp_address(), second.tcp_address());
        assert!(inherited.is_empty());
    }

    #[test]
    fn what_is_not_a_listener_is_named_and_stays() {
        let mut inherited = inherited(vec![("http", udp())]);
        let error = inherited.take_listener("http").unwrap_err().to_string();
        assert!(error.contains("a datagram socket"), "{error}");
        inherited.take_descriptor("http").unwrap();
    }

    #[test]
    fn the_only_listener_is_meant_whatever_its_name() {
        let mut one = inherited(vec![("unknown", tcp()), ("metrics", udp())]);
        assert_eq!(one.take_listener_or_only("http").unwrap().name(), "unknown");
        let mut two = inherited(vec![("a", tcp()), ("b", tcp())]);
        assert!(two.take_listener_or_only("http").is_err());
        let mut named = inherited(vec![("a", tcp()), ("http", tcp())]);
        assert_eq!(named.take_listener_or_only("http").unwrap().name(), "http");
    }

    #[test]
    fn a_wrapper_that_forked_is_found_out() {
        let mut inherited = inherited(vec![]);
        inherited.meant_for = Some(1);
        let error = inherited.take_listener("http").unwrap_err().to_string();
        assert!(error.contains("LISTEN_PID=1"), "{error}");
        assert!(error.contains("with exec"), "{error}");
    }
}
