//! Descriptors a service keeps across its generations (`FDSTORE=1` of `sd_notify(3)`).
//!
//! Owns the rules of systemd's file descriptor store: a name for each, duplicates dropped, a limit,
//! and dropping one that reports an error or a hang-up unless `FDPOLL=0`. What is stored comes back
//! by name in the next generation's `LISTEN_FDS`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::input::{Input, Inputs, ServiceInput};
use super::record::{self, Handle, Held, handles::Found};
use super::timer::Timer;
use crate::sys::same_description;

/// No service keeps more descriptors than this.
const MOST: usize = 512;

/// The descriptors of one service.
#[derive(Debug, Default)]
pub(crate) struct Store {
    stored: Vec<Stored>,
    last_key: u64,
}

#[derive(Debug)]
struct Stored {
    key: u64,
    handle: Handle,
    name: String,
    polled: bool,
    fd: OwnedFd,
    _watch: Option<Timer>,
}

impl Store {
    /// Keeps descriptors under a name; says how many there was no room for.
    pub(crate) fn keep(
        &mut self,
        inputs: &Inputs,
        service: &str,
        name: &str,
        poll: bool,
        fds: Vec<OwnedFd>,
    ) -> usize {
        let mut refused = 0;
        for fd in fds {
            if self
                .stored
                .iter()
                .any(|old| same_description(old.fd.as_fd(), fd.as_fd()))
            {
                continue;
            }
            if self.stored.len() == MOST {
                refused += 1;
                continue;
            }
            self.put(inputs, service, name, poll, Handle::new(), fd);
        }
        refused
    }

    fn put(
        &mut self,
        inputs: &Inputs,
        service: &str,
        name: &str,
        polled: bool,
        handle: Handle,
        fd: OwnedFd,
    ) {
        self.last_key += 1;
        let key = self.last_key;
        let watch = polled.then(|| watch(inputs, service, key, &fd)).flatten();
        self.stored.push(Stored {
            key,
            handle,
            name: name.to_owned(),
            polled,
            fd,
            _watch: watch,
        });
    }

    /// What the record says of them.
    pub(crate) fn record<'a>(&'a self, held: &mut Held<'a>) -> Vec<record::Stored> {
        let each = self.stored.iter().map(|stored| record::Stored {
            handle: held.hold(stored.handle, stored.fd.as_fd()),
            name: stored.name.clone(),
            polled: stored.polled,
        });
        each.collect()
    }

    /// Takes those of a record back; says how many were not found.
    pub(crate) fn restore(
        &mut self,
        inputs: &Inputs,
        service: &str,
        listed: &[record::Stored],
        found: &mut Found,
    ) -> usize {
        let mut missing = 0;
        for one in listed {
            match found.take(one.handle) {
                Some(fd) => self.put(inputs, service, &one.name, one.polled, one.handle, fd),
                None => missing += 1,
            }
        }
        missing
    }

    /// Forgets all descriptors of a name; says how many there were.
    pub(crate) fn remove(&mut self, name: &str) -> usize {
        let before = self.stored.len();
        self.stored.retain(|stored| stored.name != name);
        before - self.stored.len()
    }

    /// Forgets a descriptor that reported an error or a hang-up.
    pub(crate) fn closed(&mut self, key: u64) {
        self.stored.retain(|stored| stored.key != key);
    }

    /// Names and descriptors, in the order they were stored.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.stored
            .iter()
            .map(|stored| (stored.name.as_str(), stored.fd.as_fd()))
    }
}

/// Waits for an error or a hang-up. A descriptor that cannot be polled (a file, a memfd) never
/// reports one.
fn watch(inputs: &Inputs, service: &str, key: u64, fd: &OwnedFd) -> Option<Timer> {
    let duplicate = fd.try_clone().ok()?;
    let fd = crate::sys::watch(duplicate, Interest::READABLE).ok()?;
    let inputs = inputs.clone();
    let service = service.to_owned();
    Some(Timer::task(async move {
        if closed(&fd).await.is_ok() {
            let input = Input::Service(service, ServiceInput::StoredClosed(key));
            // The queue is closed only when the supervisor ends.
            let _ended = inputs.send(input).await;
        }
    }))
}

async fn closed(fd: &AsyncFd<OwnedFd>) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        let mut ready = fd.ready(Interest::READABLE).await?;
        let mut polled = [PollFd::new(fd.get_ref().as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO)?;
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        if polled[0]
            .revents()
            .is_some_and(|events| events.intersects(gone))
        {
            return Ok(());
        }
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn names(store: &Store) -> Vec<&str> {
        store.iter().map(|(name, _)| name).collect()
    }

    #[tokio::test]
    async fn duplicates_are_dropped_and_names_forgotten() {
        let (inputs, _queue) = tokio::sync::mpsc::channel(8);
        let mut store = Store::default();
        let file = tempfile::tempfile().unwrap();
        let same = file.try_clone().unwrap();
        let other = tempfile::tempfile().unwrap();
        store.keep(&inputs, "shop", "a", true, vec![file.into(), same.into()]);
        store.keep(&inputs, "shop", "b", true, vec![other.into()]);
        assert_eq!(names(&store), ["a", "b"]);
        assert_eq!(store.remove("a"), 1);
        assert_eq!(store.remove("a"), 0);
        assert_eq!(names(&store), ["b"]);
    }

    #[tokio::test]
    async fn there_is_a_limit() {
        let (inputs, _queue) = tokio::sync::mpsc::channel(8);
        let mut store = Store::default();
        let files: Vec<OwnedFd> = (0..MOST + 2)
            .map(|_| std::fs::File::open("/dev/null").unwrap().into())
            .collect();
        assert_eq!(store.keep(&inputs, "shop", "a", false, files), 2);
        assert_eq!(store.iter().count(), MOST);
    }

    #[tokio::test]
    async fn a_connection_whose_peer_is_gone_is_reported_unless_it_is_not_polled() {
        let (inputs, mut queue) = tokio::sync::mpsc::channel(8);
        let mut store = Store::default();
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let (kept, kept_there) = std::os::unix::net::UnixStream::pair().unwrap();
        store.keep(&inputs, "shop", "c", true, vec![here.into()]);
        store.keep(&inputs, "shop", "d", false, vec![kept.into()]);
        drop((there, kept_there));
        let input = tokio::time::timeout(Duration::from_secs(10), queue.recv())
            .await
            .unwrap();
        let Some(Input::Service(_, ServiceInput::StoredClosed(key))) = input else {
            panic!("{input:?}")
        };
        store.closed(key);
        assert_eq!(names(&store), ["d"]);
    }
}
