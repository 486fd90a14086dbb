//! The system calls that need `unsafe`: starting a program, and a few that no library wraps.
//!
//! Everything else in the crate is safe code; each block here says why it is sound.

#![allow(unsafe_code)]

pub(crate) mod pidfd;
pub(crate) mod spawn;

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the system tell of children that end, should whoever started this process have had that ignored:
/// it would reap them itself then, and say nothing.
pub(crate) fn hear_of_children() -> io::Result<()> {
    // SAFETY: no handler is installed, so no code of ours will run in a signal's context.
    match unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _before => Ok(()),
    }
}

/// How many connections wait in a listening TCP socket; `None` if the socket cannot tell.
pub(crate) fn queued(listener: BorrowedFd<'_>) -> Option<u32> {
    // SAFETY: tcp_info is plain numbers, for which zero is a valid value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointer and the length describe `info`, which outlives the call; the kernel
    // writes at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    // For a listening socket the kernel reports the queue's length in tcpi_unacked.
    (result == 0).then_some(info.tcpi_unacked)
}

/// Whether two descriptors stand for the same open file description (`kcmp(2)`).
pub(crate) fn same_description(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    const KCMP_FILE: libc::c_long = 0;
    let pid = libc::c_long::from(nix::unistd::getpid().as_raw());
    // SAFETY: kcmp takes numbers only and changes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            pid,
            pid,
            KCMP_FILE,
            libc::c_long::from(one.as_raw_fd()),
            libc::c_long::from(other.as_raw_fd()),
        )
    };
    result == 0
}

/// Waits for events on a descriptor in the runtime.
///
/// # Errors
///
/// The descriptor cannot be polled, or the system's error.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its number and stays open for as long as the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// The numbers of all open descriptors.
///
/// # Errors
///
/// `/proc` is not there.
pub(crate) fn open_descriptors() -> io::Result<BTreeSet<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let mut numbers: BTreeSet<RawFd> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // The listing had one itself, whose number the next to be opened gets.
    numbers.retain(|number| Path::new(&format!("/proc/self/fd/{number}")).is_symlink());
    Ok(numbers)
}

/// Sets `O_NONBLOCK` on sockets that a library opened since and does not hand out.
///
/// # Errors
///
/// The system's error.
pub(crate) fn stop_waiting_on_new(before: &BTreeSet<RawFd>) -> io::Result<()> {
    for raw in open_descriptors()?.difference(before) {
        // SAFETY: borrowed for these calls only; a number that was closed meanwhile, such as the
        // listing's own, is answered with an error and changes nothing.
        let fd = unsafe { BorrowedFd::borrow_raw(*raw) };
        if socket2::SockRef::from(&fd).r#type().is_ok() {
            socket2::SockRef::from(&fd).set_nonblocking(true)?;
        }
    }
    Ok(())
}

/// Takes a descriptor that a library hands out as a number.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: called once for each number, right where the library gave its ownership up.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The value of an extended attribute of a file; none if it has none, or may not be asked for it.
pub(crate) fn attribute(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut value = vec![0; 64];
    // SAFETY: both strings end in NUL; pointer and length describe `value`.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}
