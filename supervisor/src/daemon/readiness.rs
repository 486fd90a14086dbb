//! Seeing from outside that a program waits for connections.
//!
//! A program that knows nothing of readiness is ready when one of its processes waits on a
//! listener: registered with epoll, as `/proc/PID/fdinfo` shows, or blocked in accept, poll or
//! select on it, as `/proc/PID/syscall` shows. So a slow boot is waited for with no setting and no
//! change to the program. Owns the looking and how often it is done; what follows is decided
//! elsewhere.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::unistd::Pid;

use super::family::Family;
use super::input::{Input, Inputs, ProcessInput, ServiceInput};
use super::timer::Timer;
use crate::core::service::ProcessId;

/// The first look comes this soon.
const FIRST_LOOK: Duration = Duration::from_millis(1);

/// Looks become rarer, up to this.
const RAREST_LOOK: Duration = Duration::from_millis(20);

/// A program that cannot be looked into counts as ready after this long.
pub(crate) const ALIVE_LONG_ENOUGH: Duration = Duration::from_secs(1);

/// Every so many looks, also processes whose parents have ended are looked at.
const THOROUGH_EVERY: u32 = 8;

/// How long a program that was told to end may take until it no longer waits for connections, as
/// far as a report is held back for it.
const LONGEST_PARTING: Duration = Duration::from_millis(500);

/// How often it is looked at, once it has taken longer than most.
const PARTING_PACE: Duration = Duration::from_millis(5);

/// So many descriptors of one poll or select are looked at.
const MOST_POLLED: u64 = 4096;

/// What was seen of a starting program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It waits on a listener.
    Waiting,
    /// It has lived long enough, and nothing else can be seen of it.
    Alive,
    /// It has closed every listener it was given, so it will never serve.
    Deaf,
}

/// One look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Waiting,
    /// It holds listeners and does not wait on one yet.
    NotYet,
    /// No process of it holds a listener.
    Deaf,
    /// The system does not let us see.
    Blind,
}

/// Looks until there is something to report.
pub(crate) fn watch(
    inputs: &Inputs,
    family: Family,
    process: ProcessId,
    listeners: BTreeSet<u64>,
) -> Timer {
    let inputs = inputs.clone();
    Timer::task(async move {
        let service = family.service.clone();
        let seen = look_patiently(&family, &listeners).await;
        let input = ServiceInput::Process(process, ProcessInput::Seen(seen));
        // The queue is closed only when the supervisor ends.
        let _ended = inputs.send(Input::Service(service, input)).await;
    })
}

/// Reports once none of these programs waits on a listener any more: from then on no new connection
/// reaches them. Waits for a while at most.
pub(crate) fn watch_parting(
    inputs: &Inputs,
    service: &str,
    families: Vec<Family>,
    listeners: BTreeSet<u64>,
) -> Timer {
    let inputs = inputs.clone();
    let service = service.to_owned();
    Timer::task(async move {
        let parted = async {
            // Most stop accepting within a few milliseconds, and somebody waits for the report.
            let paces = [FIRST_LOOK; 30]
                .into_iter()
                .chain(std::iter::repeat(PARTING_PACE));
            for pace in paces {
                let waits =
                    |family: &Family| look(&family.descendants(), &listeners) == Look::Waiting;
                if !families.iter().any(waits) {
                    return;
                }
                tokio::time::sleep(pace).await;
            }
        };
        let _late = tokio::time::timeout(LONGEST_PARTING, parted).await;
        // The queue is closed only when the supervisor ends.
        let _ended = inputs
            .send(Input::Service(service, ServiceInput::Parted))
            .await;
    })
}

async fn look_patiently(family: &Family, listeners: &BTreeSet<u64>) -> Seen {
    if listeners.is_empty() {
        tokio::time::sleep(ALIVE_LONG_ENOUGH).await;
        return Seen::Alive;
    }
    let mut pause = FIRST_LOOK;
    // What was seen last, other than that it is not ready yet, and since when.
    let mut since = None;
    for number in 1_u32.. {
        tokio::time::sleep(pause).await;
        let members = match number % THOROUGH_EVERY {
            0 => family.members(),
            _ => family.descendants(),
        };
        let now = tokio::time::Instant::now();
        since = match look(&members, listeners) {
            Look::Waiting => return Seen::Waiting,
            Look::NotYet => None,
            // Between its exec and the next look it may be seen without descriptors; and a helper of
            // another user's rights may come and go.
            same @ (Look::Blind | Look::Deaf) => match since {
                Some((before, start)) if before == same => Some((before, start)),
                Some(_) | None => Some((same, now)),
            },
        };
        match since {
            Some((Look::Blind, start)) if now - start >= ALIVE_LONG_ENOUGH => return Seen::Alive,
            Some((Look::Deaf, start)) if now - start >= ALIVE_LONG_ENOUGH => return Seen::Deaf,
            Some(_) | None => {}
        }
        pause = (pause * 3 / 2).min(RAREST_LOOK);
    }
    Seen::Alive
}

fn look(members: &[Pid], listeners: &BTreeSet<u64>) -> Look {
    let mut held = false;
    let mut blind = false;
    for member in members {
        match look_at(Path::new(&format!("/proc/{member}")), listeners) {
            Ok(Look::Waiting) => return Look::Waiting,
            Ok(Look::NotYet) => held = true,
            Ok(Look::Blind) => blind = true,
            Ok(Look::Deaf) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => blind = true,
            // It has ended meanwhile.
            Err(_) => {}
        }
    }
    match (blind, held) {
        (_, true) => Look::NotYet,
        (true, false) => Look::Blind,
        (false, false) => Look::Deaf,
    }
}

fn look_at(process: &Path, listeners: &BTreeSet<u64>) -> io::Result<Look> {
    let mut holding = BTreeSet::new();
    let mut epolls = Vec::new();
    let mut io_uring = false;
    for entry in fs::read_dir(process.join("fd"))? {
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        let number = entry.file_name();
        let Some(number) = number.to_str().and_then(|text| text.parse::<u64>().ok()) else {
            continue;
        };
        if socket_inode(&target).is_some_and(|inode| listeners.contains(&inode)) {
            holding.insert(number);
        } else if target == "anon_inode:[eventpoll]" {
            epolls.push(number);
        } else if target == "anon_inode:[io_uring]" {
            io_uring = true;
        }
    }
    for epoll in &epolls {
        let info = fs::read_to_string(process.join(format!("fdinfo/{epoll}"))).unwrap_or_default();
        if info.lines().any(|line| epoll_waits_on(line, listeners)) {
            return Ok(Look::Waiting);
        }
    }
    if holding.is_empty() {
        return Ok(Look::Deaf);
    }
    for task in fs::read_dir(process.join("task"))? {
        let text = fs::read_to_string(task?.path().join("syscall"));
        match text {
            Ok(text) if blocked_on(&text, process, &holding) => return Ok(Look::Waiting),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(Look::Blind);
            }
            // The thread has ended, or the kernel does not tell.
            Err(_) => {}
        }
    }
    // What waits in an io_uring cannot be seen; a program that also uses epoll will show there.
    Ok(if io_uring && epolls.is_empty() {
        Look::Blind
    } else {
        Look::NotYet
    })
}

/// The inode of a socket, from what a link in `/proc/PID/fd` leads to.
pub(super) fn socket_inode(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// Whether a line of an epoll's fdinfo waits for input on a listener:
/// `tfd:  5 events:       19 data: … pos:0 ino:3f2 sdev:8`, numbers in hexadecimal.
fn epoll_waits_on(line: &str, listeners: &BTreeSet<u64>) -> bool {
    const EPOLLIN: u64 = 1;
    let number = |label: &str| -> Option<u64> {
        let rest = &line[line.find(label)? + label.len()..];
        u64::from_str_radix(rest.split_ascii_whitespace().next()?, 16).ok()
    };
    number("events:").is_some_and(|events| events & EPOLLIN != 0)
        && number("ino:").is_some_and(|inode| listeners.contains(&inode))
}

/// Whether a thread is blocked on one of the descriptors, by the line the kernel gives of its
/// system call: the number in decimal, then the arguments in hexadecimal. `running` otherwise.
fn blocked_on(line: &str, process: &Path, holding: &BTreeSet<u64>) -> bool {
    let mut fields = line.split_ascii_whitespace();
    let Some(call) = fields
        .next()
        .and_then(|number| number.parse::<libc::c_long>().ok())
    else {
        return false;
    };
    let arguments: Vec<u64> = fields
        .take(6)
        .filter_map(|field| u64::from_str_radix(field.trim_start_matches("0x"), 16).ok())
        .collect();
    let [first, second, ..] = arguments[..] else {
        return false;
    };
    match Waits::of(call) {
        Some(Waits::One) => holding.contains(&first),
        Some(Waits::PollList) => polled(process, first, second).is_some_and(|polled| {
            polled.chunks_exact(8).any(|entry| {
                let [a, b, c, d, events, ..] = *entry else {
                    return false;
                };
                const POLLIN: u8 = 1;
                let fd = i32::from_ne_bytes([a, b, c, d]);
                events & POLLIN != 0 && u64::try_from(fd).is_ok_and(|fd| holding.contains(&fd))
            })
        }),
        Some(Waits::Set) => {
            let bytes = first.min(MOST_POLLED).div_ceil(8);
            read_memory(process, second, bytes).is_some_and(|set| {
                holding.iter().any(|fd| {
                    let at = usize::try_from(fd / 8).unwrap_or(usize::MAX);
                    set.get(at).is_some_and(|byte| byte & (1 << (fd % 8)) != 0)
                })
            })
        }
        None => false,
    }
}

/// How a system call names what it waits on.
#[derive(Clone, Copy, Debug)]
enum Waits {
    /// The first argument is the descriptor.
    One,
    /// The first argument points to a `pollfd` array of as many entries as the second says.
    PollList,
    /// The second argument points to an `fd_set` of as many bits as the first says.
    Set,
}

impl Waits {
    fn of(call: libc::c_long) -> Option<Self> {
        match call {
            libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg => Some(Self::One),
            libc::SYS_ppoll => Some(Self::PollList),
            libc::SYS_pselect6 => Some(Self::Set),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_poll => Some(Self::PollList),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_select => Some(Self::Set),
            _other => None,
        }
    }
}

fn polled(process: &Path, at: u64, entries: u64) -> Option<Vec<u8>> {
    read_memory(process, at, entries.min(MOST_POLLED) * 8)
}

fn read_memory(process: &Path, at: u64, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    File::open(process.join("mem"))
        .ok()?
        .read_exact_at(&mut bytes, at)
        .ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    fn inode_of(fd: &impl AsRawFd) -> u64 {
        let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        socket_inode(&link.to_string_lossy()).unwrap()
    }

    /// Looks at this very process until it is seen to wait, while `wait` runs in a thread.
    fn seen_while(listener: TcpListener, wait: impl FnOnce(TcpListener) + Send + 'static) {
        let address = listener.local_addr().unwrap();
        let listeners = BTreeSet::from([inode_of(&listener)]);
        let own = Path::new("/proc/self");
        assert_eq!(look_at(own, &listeners).unwrap(), Look::NotYet);
        let waiting = std::thread::spawn(move || wait(listener));
        let deadline = Instant::now() + Duration::from_secs(10);
        while look_at(own, &listeners).unwrap() != Look::Waiting {
            assert!(Instant::now() < deadline, "never seen");
            std::thread::yield_now();
        }
        std::net::TcpStream::connect(address).unwrap();
        waiting.join().unwrap();
        assert_eq!(look_at(own, &listeners).unwrap(), Look::Deaf);
    }

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn a_thread_blocked_in_accept_is_seen() {
        seen_while(listener(), |listener| drop(listener.accept().unwrap()));
    }

    #[test]
    fn a_thread_blocked_in_poll_is_seen() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        seen_while(listener(), |listener| {
            poll(
                &mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)],
                PollTimeout::NONE,
            )
            .unwrap();
        });
    }

    #[test]
    fn a_thread_blocked_in_select_is_seen() {
        use nix::sys::select::{FdSet, select};
        use std::os::fd::AsFd;
        seen_while(listener(), |listener| {
            let mut set = FdSet::new();
            set.insert(listener.as_fd());
            select(None, &mut set, None, None, None).unwrap();
        });
    }

    #[test]
    fn a_listener_in_epoll_is_seen() {
        use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
        seen_while(listener(), |listener| {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
            epoll
                .add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, 0))
                .unwrap();
            epoll
                .wait(&mut [EpollEvent::empty()], EpollTimeout::NONE)
                .unwrap();
        });
    }

    #[test]
    fn only_input_on_a_listener_counts() {
        let listeners = BTreeSet::from([0x3f2]);
        let line = |events: &str, inode: &str| {
            format!("tfd:        5 events: {events} data: 5  pos:0 ino:{inode} sdev:8")
        };
        assert!(epoll_waits_on(&line("      19", "3f2"), &listeners));
        assert!(epoll_waits_on(&line("10000001", "3f2"), &listeners));
        assert!(!epoll_waits_on(&line("       4", "3f2"), &listeners));
        assert!(!epoll_waits_on(&line("      19", "3f3"), &listeners));
        assert!(!epoll_waits_on("pos:\t0", &listeners));
        assert!(!blocked_on(
            "running\n",
            Path::new("/proc/self"),
            &BTreeSet::from([3])
        ));
    }
}
