//! Processes as descriptors (`pidfd_open(2)` and its relatives), which no library wraps.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// A descriptor that stands for a process, and becomes readable when it ends.
///
/// # Errors
///
/// There is no such process, or Linux is older than 5.3.
pub(crate) fn open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    taken(fd)
}

/// A duplicate of a descriptor of another process (Linux 5.6 and later).
///
/// # Errors
///
/// `PermissionDenied` if this process may not trace the other one; otherwise the system's.
pub(crate) fn descriptor_of(pidfd: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    taken(fd)
}

/// Sends a signal to the very process.
///
/// # Errors
///
/// The system's: it has ended.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    // SAFETY: the call takes numbers and a null pointer, which stands for the usual siginfo.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn taken(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made it for us, so nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_signalled_and_its_descriptors_are_taken() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut child = Command::new("cat")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let pidfd = open(pid).unwrap();
        let taken = descriptor_of(pidfd.as_fd(), 0).unwrap();
        UnixStream::from(taken).write_all(b"hello").unwrap();
        let mut word = [0; 5];
        ours.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"hello");
        descriptor_of(pidfd.as_fd(), 9999).unwrap_err();
        signal(pidfd.as_fd(), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        signal(pidfd.as_fd(), Signal::SIGKILL).unwrap_err();
        open(pid).unwrap_err();
    }
}
