//! Taking ownership of inherited file descriptors, and watching owned ones: the only `unsafe` code of
//! this crate.
//!
//! Which descriptors there should be is decided in [`crate::inherit`].

use std::{
    io,
    os::fd::{AsFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
};
use tokio::io::unix::AsyncFd;

/// The first descriptor after stdin, stdout and stderr, where inherited ones begin.
pub(crate) const FIRST_INHERITED_FD: RawFd = 3;

/// Whether the inherited descriptors have an owner already. They can have only one.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Why the inherited descriptors could not be taken.
#[derive(Debug)]
pub(crate) enum TakeError {
    /// They have been taken before, in this process.
    AlreadyTaken,
    /// This descriptor was announced and is not open.
    NotOpen(RawFd),
    /// This descriptor could not be marked close-on-exec.
    Mark(RawFd, Errno),
}

/// Takes `count` descriptors from [`FIRST_INHERITED_FD`] on, and `supervisor`, which is none of them,
/// and marks them close-on-exec, so that a program this process starts cannot keep a port bound.
///
/// Succeeds at most once in a process.
pub(crate) fn take_inherited(
    count: u16,
    supervisor: Option<RawFd>,
) -> Result<(Vec<OwnedFd>, Option<OwnedFd>), TakeError> {
    let range = FIRST_INHERITED_FD..FIRST_INHERITED_FD + RawFd::from(count);
    if let Some(fd) = supervisor
        && (fd < FIRST_INHERITED_FD || range.contains(&fd))
    {
        return Err(TakeError::NotOpen(fd));
    }
    // All are checked before one is owned: an `OwnedFd` that is not open must never exist.
    for fd in range.clone().chain(supervisor) {
        if !is_open(fd) {
            return Err(TakeError::NotOpen(fd));
        }
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(TakeError::AlreadyTaken);
    }
    let mut owned = Vec::with_capacity(usize::from(count) + 1);
    for fd in range.clone().chain(supervisor) {
        // SAFETY: the descriptor is open, as checked above. It was announced to this very process
        // by whoever started it, so no other code here has opened it, and `TAKEN` lets only
        // one caller get here, so nothing else owns it.
        owned.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    for (fd, raw) in owned.iter().zip(range.chain(supervisor)) {
        fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|errno| TakeError::Mark(raw, errno))?;
    }
    let supervisor = supervisor.and_then(|_| owned.pop());
    Ok((owned, supervisor))
}

/// Watches a descriptor with the runtime. Must be called within a Tokio runtime.
pub(crate) fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor as long as it lives, and the `AsyncFd`
    // keeps it until it has taken it off the runtime.
    unsafe { AsyncFd::register(descriptor) }.map_err(Into::into)
}

/// Whether `fd` is open in this process.
fn is_open(fd: RawFd) -> bool {
    // SAFETY: the borrow lasts for one F_GETFD, which changes nothing and reports EBADF for a
    // descriptor that is not open.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_GETFD).is_ok()
}
