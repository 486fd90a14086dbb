//! File descriptors that travel with a message (`SCM_RIGHTS`), and who sent it
//! (`SCM_CREDENTIALS`).
//!
//! Owns sending to and receiving from a unix socket that keeps message boundaries. Every
//! descriptor that arrives is closed on exec and owned by somebody before anything is decided
//! about it, so a refused message leaks none.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, UnixCredentials, sendmsg};

/// The most descriptors one message can carry (`SCM_MAX_FD` of `unix(7)`).
pub const MOST_FDS: usize = 253;

/// One message as it arrived.
#[derive(Debug)]
pub struct Received {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The descriptors it brought.
    pub fds: Vec<OwnedFd>,
    /// Who sent it, if the socket has `SO_PASSCRED`.
    pub sender: Option<Sender>,
}

/// The kernel's word on who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Process id, as seen from the receiver.
    pub pid: i32,
    /// User id.
    pub uid: u32,
}

/// Receives one message of at most `largest` bytes; an empty one is the end. What the other side said
/// before it closed its end is heard first, also if it left something unread, which the system tells
/// ahead of it as a reset.
///
/// # Errors
///
/// The system's error (`WouldBlock` on a non-blocking socket with nothing to read), or
/// `InvalidData` if the message or its descriptors did not fit: what did arrive is closed.
pub fn receive(socket: impl AsFd, largest: usize) -> io::Result<Received> {
    let mut bytes = vec![0; largest];
    let (length, fds, sender) = receive_into(socket, &mut bytes)?;
    bytes.truncate(length);
    Ok(Received { bytes, fds, sender })
}

/// As [`receive`], into room that is used again: for who receives large messages by the thousand. Returns
/// the length, the descriptors, and the sender.
///
/// # Errors
///
/// As [`receive`].
pub fn receive_into(
    socket: impl AsFd,
    room: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>, Option<Sender>)> {
    // Of words, for the kernel aligns what it writes to them.
    let mut space =
        vec![0_u64; nix::cmsg_space!([RawFd; MOST_FDS], UnixCredentials).capacity() / 8 + 1];
    let mut slice = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: a msghdr is numbers and pointers, for which zero is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = space.as_mut_ptr().cast();
    header.msg_controllen = space.len() * size_of::<u64>();
    let mut reset = false;
    let length = loop {
        // SAFETY: the header describes `room` and `space`, which outlive the call.
        let length = unsafe {
            libc::recvmsg(
                socket.as_fd().as_raw_fd(),
                &raw mut header,
                libc::MSG_CMSG_CLOEXEC,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            // Told once, and ahead of what is queued; that must not be lost.
            if error.kind() == io::ErrorKind::ConnectionReset && !reset {
                reset = true;
                continue;
            }
            return Err(error);
        };
        break length;
    };
    // SAFETY: the kernel has just filled the header in.
    let (fds, sender) = unsafe { take_control(&header) };
    if header.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message or its descriptors did not fit (is the limit on open files reached?)",
        ));
    }
    Ok((length, fds, sender))
}

/// Takes what came along, also of a message that did not fit: what did arrive must be owned.
///
/// # Safety
///
/// `recvmsg` has just filled the header in, and nobody has taken its descriptors yet.
unsafe fn take_control(header: &libc::msghdr) -> (Vec<OwnedFd>, Option<Sender>) {
    let mut fds = Vec::new();
    let mut sender = None;
    // SAFETY: the macros of cmsg(3) walk what the kernel wrote, within msg_controllen; each payload
    // is as long as its length says, and is read unaligned; the kernel has just made the descriptors
    // for us, so nobody else knows them.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = control.as_ref() {
            let data = libc::CMSG_DATA(control);
            let size = found.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            match (found.cmsg_level, found.cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    let first: *const RawFd = data.cast();
                    fds.extend(
                        (0..size / size_of::<RawFd>())
                            .map(|index| OwnedFd::from_raw_fd(first.add(index).read_unaligned())),
                    );
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if size >= size_of::<libc::ucred>() => {
                    let who: libc::ucred = data.cast::<libc::ucred>().read_unaligned();
                    sender = Some(Sender {
                        pid: who.pid,
                        uid: who.uid,
                    });
                }
                _other => {}
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    (fds, sender)
}

/// Accepts a connection.
///
/// # Errors
///
/// The system's error.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: without room for an address the call takes numbers only.
    let fd = unsafe {
        libc::accept4(
            listener.as_fd().as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us, so nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends one message with descriptors, at most [`MOST_FDS`].
///
/// # Errors
///
/// The system's error; `InvalidInput` for more descriptors than one message can carry.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[impl AsFd]) -> io::Result<()> {
    if fds.len() > MOST_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{} descriptors in one message; at most {MOST_FDS} fit",
                fds.len()
            ),
        ));
    }
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    sendmsg::<UnixAddr>(
        socket.as_fd().as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::socket::sockopt::PassCred;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap()
    }

    /// How many descriptors of this process lead to the file.
    fn times_open(file: &std::fs::File) -> usize {
        let target = |fd: &str| std::fs::read_link(format!("/proc/self/fd/{fd}"));
        let wanted = target(&file.as_raw_fd().to_string()).unwrap();
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                target(&name.to_string_lossy()).is_ok_and(|link| link == wanted)
            })
            .count()
    }

    #[test]
    fn descriptors_arrive_closed_on_exec_with_their_sender() {
        let (here, there) = pair();
        setsockopt(&there, PassCred, &true).unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&here, b"FDSTORE=1", &[&file, &file]).unwrap();
        let message = receive(&there, 100).unwrap();
        assert_eq!(message.bytes, b"FDSTORE=1");
        assert_eq!(message.fds.len(), 2);
        for fd in &message.fds {
            let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
        }
        let sender = message.sender.unwrap();
        assert_eq!(sender.pid, std::process::id() as i32);
        assert_eq!(sender.uid, nix::unistd::getuid().as_raw());
    }

    /// Control data as the kernel writes it.
    fn control(parts: &[(libc::c_int, &[u8])]) -> Vec<u64> {
        let mut bytes = Vec::new();
        for (kind, payload) in parts {
            let header = size_of::<libc::cmsghdr>();
            bytes.extend((header + payload.len()).to_ne_bytes());
            bytes.extend(libc::SOL_SOCKET.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend_from_slice(payload);
            bytes.resize(bytes.len().next_multiple_of(8), 0xff);
        }
        let words = bytes.chunks_exact(8);
        words
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect()
    }

    fn taken(space: &mut [u64], length: usize) -> (Vec<OwnedFd>, Option<Sender>) {
        // SAFETY: a msghdr is numbers and pointers, for which zero is a valid value.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_control = space.as_mut_ptr().cast();
        header.msg_controllen = length;
        // SAFETY: it describes `space`, which was written as the kernel does, and whoever calls this
        // gives the descriptors in it away.
        unsafe { take_control(&header) }
    }

    /// The walk over what the kernel wrote, without a kernel, so that it runs under Miri.
    #[test]
    fn all_that_came_along_is_taken_and_nothing_beyond_it_is_read() {
        let pipe = || nix::unistd::pipe().unwrap();
        let raw = |fd: OwnedFd| std::os::fd::IntoRawFd::into_raw_fd(fd).to_ne_bytes();
        let ((one, two), (three, kept)) = (pipe(), pipe());
        let fds = [raw(one), raw(two), raw(three)].concat();
        let who = [
            7_i32.to_ne_bytes(),
            8_i32.to_ne_bytes(),
            9_i32.to_ne_bytes(),
        ]
        .concat();
        let mut space = control(&[(libc::SCM_CREDENTIALS, &who), (libc::SCM_RIGHTS, &fds)]);
        let length = space.len() * 8;
        let (fds, sender) = taken(&mut space, length);
        assert_eq!(fds.len(), 3);
        assert_eq!(sender, Some(Sender { pid: 7, uid: 8 }));
        drop(fds);
        // All reading ends of it are closed now, or it would take this.
        assert_eq!(nix::unistd::write(&kept, b"x"), Err(nix::Error::EPIPE));
        // Credentials that are cut short, a kind nobody asked for, nothing, a length of no header.
        let mut odd = control(&[
            (libc::SCM_CREDENTIALS, &who[..8]),
            (0x77, &[]),
            (libc::SCM_RIGHTS, &[]),
        ]);
        for cut in (0..=odd.len() * 8).rev() {
            let (fds, sender) = taken(&mut odd, cut);
            assert_eq!((fds.len(), sender), (0, None), "{cut}");
        }
    }

    #[test]
    fn the_last_words_of_one_that_left_messages_unread_are_heard() {
        let (here, there) = pair();
        send(&here, b"unread", &[] as &[OwnedFd]).unwrap();
        send(&there, b"last words", &[] as &[OwnedFd]).unwrap();
        drop(there);
        assert_eq!(receive(&here, 100).unwrap().bytes, b"last words");
        assert_eq!(receive(&here, 100).unwrap().bytes, b"");
        assert_eq!(receive(&here, 100).unwrap().bytes, b"");
    }

    #[test]
    fn as_many_as_fit_are_carried_and_one_more_is_refused() {
        let (here, there) = pair();
        let file = tempfile::tempfile().unwrap();
        send(&here, b"x", &vec![&file; MOST_FDS]).unwrap();
        assert_eq!(receive(&there, 10).unwrap().fds.len(), MOST_FDS);
        let error = send(&here, b"x", &vec![&file; MOST_FDS + 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn descriptors_beyond_the_limit_are_refused_and_leak_none() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (here, there) = pair();
        let file = tempfile::tempfile().unwrap();
        send(&here, b"FDSTORE=1", &[&file, &file, &file]).unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // Room for one descriptor more.
        let next = std::fs::File::open("/dev/null").unwrap();
        let room = u64::try_from(next.as_raw_fd()).unwrap() + 1;
        drop(next);
        setrlimit(Resource::RLIMIT_NOFILE, room, hard).unwrap();
        let received = receive(&there, 100);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        assert_eq!(received.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(times_open(&file), 1);
    }

    #[test]
    fn a_message_that_does_not_fit_is_refused_and_leaks_nothing() {
        let (here, there) = pair();
        let file = tempfile::tempfile().unwrap();
        send(&here, &[b'x'; 64], &[&file]).unwrap();
        assert_eq!(
            receive(&there, 16).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert_eq!(times_open(&file), 1);
    }
}
