//! Starting a program: `fork`, a few system calls, `execveat`.
//!
//! Everything the child needs is made before the fork. Between fork and exec only calls that
//! `signal-safety(7)` allows run, on memory that was allocated before; this is also how
//! `LISTEN_PID` becomes the child's own pid. Which program, arguments and descriptors, is decided
//! elsewhere.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Pid, pipe2};

use heirloom_handover::environment::FIRST_FD;

/// How long a child may take from fork to exec.
const LONGEST_START_MS: u16 = 10_000;

/// `CLONE_INTO_CGROUP` of `clone(2)`, from Linux 5.7 on.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Room for the decimal digits of a pid and the NUL behind them.
const PID_ROOM: usize = 11;

/// What is to be started.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) program: Program,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Environment,
    /// The working directory.
    pub(crate) directory: OwnedFd,
    /// Standard input, output and error.
    pub(crate) standard: [OwnedFd; 3],
    /// What the child finds from [`FIRST_FD`] on.
    pub(crate) inherited: Vec<OwnedFd>,
    pub(crate) privileges: Privileges,
    /// Soft and hard limit on open files.
    pub(crate) open_files: (u64, u64),
    /// Whether it is the first to be killed where memory runs out.
    pub(crate) expendable: bool,
    /// The control group it belongs to from its first instant; the supervisor's own if none.
    pub(crate) group: Option<Group>,
}

/// An open control group of version 2.
#[derive(Debug)]
pub(crate) struct Group {
    /// Its directory.
    pub(crate) directory: OwnedFd,
    /// Its `cgroup.procs`, open for writing.
    pub(crate) members: OwnedFd,
}

/// The file that is executed.
#[derive(Debug)]
pub(crate) enum Program {
    /// This very file, whatever its path leads to by now.
    File(OwnedFd),
    /// A path; scripts need it, for their interpreter opens them once more.
    Path(CString),
    /// A script without a path: the interpreter reads it from this descriptor, which stays open.
    Script(OwnedFd),
}

/// Who the child runs as.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Identity {
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) groups: Vec<u32>,
}

/// What the child may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Privileges {
    /// The supervisor's own if not given.
    pub(crate) identity: Option<Identity>,
    /// Its capabilities stay what the system makes of them if not given.
    pub(crate) limits: Option<Limits>,
    /// Whether nothing it executes can give it more (`PR_SET_NO_NEW_PRIVS`).
    pub(crate) no_new_privileges: bool,
}

/// How the capabilities of the child are limited; a bit each, by the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Limits {
    /// What it has; the supervisor has it as well.
    pub(crate) kept: u64,
    /// What leaves its bounding set, for which the supervisor has `CAP_SETPCAP`.
    pub(crate) dropped: u64,
    /// Whether its own sets must be set for that.
    pub(crate) set: bool,
}

/// The child's environment, with places for its pid.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// `NAME=VALUE\0` each.
    entries: Vec<Vec<u8>>,
    /// Which entry takes the pid, and where in it.
    pids: Vec<(usize, usize)>,
}

impl Environment {
    /// Adds a variable. One with a NUL cannot exist and is left out.
    pub(crate) fn set(&mut self, name: &[u8], value: &[u8]) {
        if !name.contains(&0) && !value.contains(&0) {
            self.entries.push([name, b"=", value, b"\0"].concat());
        }
    }

    /// Adds a variable whose value is the child's pid.
    pub(crate) fn set_to_pid(&mut self, name: &str) {
        self.pids.push((self.entries.len(), name.len() + 1));
        self.entries
            .push([name.as_bytes(), b"=", &[0; PID_ROOM]].concat());
    }
}

/// Why a program could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What the child was doing.
    pub(crate) stage: Stage,
    /// The error it met.
    pub(crate) errno: i32,
}

/// What a child does before it becomes the program; as the child says it, a byte each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// In the supervisor: too many processes, no memory.
    Fork,
    /// Descriptors, signals, limits.
    Prepare,
    /// Changing to the directory.
    Directory,
    /// Changing to the user and group.
    Identity,
    /// Limiting capabilities and what can be gained.
    Privileges,
    /// Executing the program.
    Execute,
}

impl Stage {
    /// All that a child can fail in.
    const OF_A_CHILD: [Self; 5] = [
        Self::Prepare,
        Self::Directory,
        Self::Identity,
        Self::Privileges,
        Self::Execute,
    ];

    fn from_byte(byte: u8) -> Self {
        let stage = Self::OF_A_CHILD
            .into_iter()
            .find(|stage| *stage as u8 == byte);
        stage.unwrap_or(Self::Fork)
    }
}

/// A program that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    /// Why it is not in its control group, if it is not.
    pub(crate) outside: Option<i32>,
}

/// Starts the program in a process group of its own. A control group that it cannot join does not keep
/// it from running.
///
/// # Errors
///
/// [`Failure`]; no process is left then.
pub(crate) fn spawn(mut command: Command) -> Result<Started, Failure> {
    let in_fork = |errno: nix::Error| Failure {
        stage: Stage::Fork,
        errno: errno as i32,
    };
    // The child moves descriptors to fixed numbers; its sources must lie above all of them.
    let first_free = FIRST_FD + RawFd::try_from(command.inherited.len()).unwrap_or(RawFd::MAX);
    let raise = |fd: BorrowedFd<'_>| -> Result<OwnedFd, Failure> {
        let raised = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(first_free)).map_err(in_fork)?;
        Ok(super::own(raised))
    };
    for fd in command.standard.iter_mut().chain(&mut command.inherited) {
        *fd = raise(fd.as_fd())?;
    }
    command.directory = raise(command.directory.as_fd())?;
    command.program = match command.program {
        Program::File(file) => Program::File(raise(file.as_fd())?),
        Program::Script(file) => Program::Script(raise(file.as_fd())?),
        path @ Program::Path(_) => path,
    };
    let (news, low) = pipe2(OFlag::O_CLOEXEC).map_err(in_fork)?;
    let to_news = raise(low.as_fd())?;
    drop(low);

    let mut arguments: Vec<*const libc::c_char> = command
        .arguments
        .iter()
        .map(|argument| argument.as_ptr())
        .collect();
    arguments.push(std::ptr::null());
    let mut environment: Vec<*mut libc::c_char> = command
        .environment
        .entries
        .iter_mut()
        .map(|entry| entry.as_mut_ptr().cast())
        .collect();
    environment.push(std::ptr::null_mut());

    // A signal between fork and exec would run the supervisor's handlers in the child.
    let mut before = SigSet::empty();
    sigprocmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut before),
    )
    .map_err(in_fork)?;
    // SAFETY: the child calls nothing but `become_program`, which keeps to async-signal-safe calls.
    let (forked, is_member) = unsafe { fork(command.group.as_ref()) };
    if forked == 0 {
        let joins = command.group.as_ref().filter(|_| !is_member);
        let joins = joins.map(|group| group.members.as_raw_fd());
        // SAFETY: we are the child of the fork above, and the only user of its memory.
        unsafe {
            become_program(
                &command,
                &arguments,
                &environment,
                to_news.as_raw_fd(),
                joins,
            )
        }
    }
    let errno = nix::Error::last();
    // Restoring a mask that was in force cannot fail.
    let _restored = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    if forked < 0 {
        return Err(in_fork(errno));
    }
    drop(to_news);
    let child = Pid::from_raw(forked);
    match read_news(&news) {
        Ok(News::Executed { outside }) => Ok(Started {
            pid: child,
            outside,
        }),
        Ok(News::Failed(failure)) => {
            reap(child);
            Err(failure)
        }
        Err(error) => {
            let _gone_already = nix::sys::signal::kill(child, nix::sys::signal::SIGKILL);
            // It may be stuck in the kernel; it is reaped like any orphan once it is not.
            let errno = error.raw_os_error().unwrap_or(libc::ETIMEDOUT);
            Err(Failure {
                stage: Stage::Execute,
                errno,
            })
        }
    }
}

/// Forks, straight into the control group where the system lets us, which costs nothing; joining it
/// later makes the child wait for all processors. Returns what `fork` does, and whether the child is in
/// the group.
///
/// # Safety
///
/// As for `fork` in a process of several threads: the child may only make async-signal-safe calls.
unsafe fn fork(group: Option<&Group>) -> (libc::pid_t, bool) {
    if let Some(group) = group {
        // SAFETY: clone_args is plain numbers, for which zero means not wanted.
        let mut wanted: libc::clone_args = unsafe { std::mem::zeroed() };
        wanted.flags = CLONE_INTO_CGROUP;
        wanted.exit_signal = libc::SIGCHLD as u64;
        wanted.cgroup = group.directory.as_raw_fd() as u64;
        // SAFETY: without CLONE_VM this is a fork: the child has a copy of memory and stack. The
        // pointer and the size describe `wanted`. What the C library does beyond the system call
        // concerns calls that the child does not make.
        let forked = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw const wanted,
                size_of::<libc::clone_args>(),
            )
        };
        if forked >= 0 {
            return (forked as libc::pid_t, true);
        }
        // A sandbox may hide the call, a kernel may not know it, and what is wrong with the group
        // itself is told by the child. Of a shortage the fork below would die as well.
    }
    // SAFETY: the caller's promise.
    (unsafe { libc::fork() }, false)
}

/// What becomes of a child.
enum News {
    /// It is the program.
    Executed {
        outside: Option<i32>,
    },
    Failed(Failure),
}

/// What the child writes first, with an error, where it goes on without its control group. No stage's.
const OUTSIDE: u8 = u8::MAX;

/// Waits for the child to become the program, which closes the pipe, or to say why it could not.
fn read_news(news: &OwnedFd) -> io::Result<News> {
    let mut outside = None;
    loop {
        let mut polled = [PollFd::new(news.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::from(LONGEST_START_MS)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let mut bytes = [0; 5];
        match nix::unistd::read(news, &mut bytes) {
            Ok(0) => return Ok(News::Executed { outside }),
            Ok(_) => {
                let [stage, errno @ ..] = bytes;
                let errno = i32::from_ne_bytes(errno);
                if stage == OUTSIDE {
                    outside = Some(errno);
                    continue;
                }
                let stage = Stage::from_byte(stage);
                return Ok(News::Failed(Failure { stage, errno }));
            }
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn reap(child: Pid) {
    while nix::sys::wait::waitpid(child, None) == Err(nix::Error::EINTR) {}
}

/// The child's side: never returns.
///
/// # Safety
///
/// Only for the child of a fork. Every descriptor of `command` lies above those it is moved to.
unsafe fn become_program(
    command: &Command,
    arguments: &[*const libc::c_char],
    environment: &[*mut libc::c_char],
    news: RawFd,
    joins: Option<RawFd>,
) -> ! {
    // SAFETY: every call below is async-signal-safe by signal-safety(7) or a bare system call, and
    // works on memory the parent prepared: the pointer arrays end in NULL, the strings in NUL, the
    // entries that take the pid have PID_ROOM bytes behind their `=`.
    unsafe {
        let tell = |stage: u8| {
            let errno = (*libc::__errno_location()).to_ne_bytes();
            let bytes = [stage, errno[0], errno[1], errno[2], errno[3]];
            libc::write(news, bytes.as_ptr().cast(), bytes.len());
        };
        let fail = |stage: Stage| -> ! {
            tell(stage as u8);
            libc::_exit(127)
        };
        if libc::setpgid(0, 0) != 0 {
            fail(Stage::Prepare);
        }
        // Zero is the writer itself.
        if let Some(members) = joins
            && libc::write(members, c"0".as_ptr().cast(), 1) != 1
        {
            tell(OUTSIDE);
        }
        // Ignored signals stay ignored over an exec; handlers do not.
        // The bare system call, for the C library hides the two signals it uses itself. All zeros is
        // the default action, no flags and an empty mask (sigaction(2)).
        let default = [0_u64; 4];
        for signal in 1..=64 {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal as libc::c_long,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
        if command.expendable {
            // Where it cannot be said, the kernel chooses.
            let adjustment = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY);
            libc::write(adjustment, c"1000".as_ptr().cast(), 4);
            libc::close(adjustment);
        }
        for (number, fd) in command.standard.iter().enumerate() {
            if libc::dup2(fd.as_raw_fd(), number as RawFd) < 0 {
                fail(Stage::Prepare);
            }
        }
        for (index, fd) in command.inherited.iter().enumerate() {
            if libc::dup2(fd.as_raw_fd(), FIRST_FD + index as RawFd) < 0 {
                fail(Stage::Prepare);
            }
        }
        let first_free = FIRST_FD + command.inherited.len() as RawFd;
        // Before Linux 5.11 there is no such call; the supervisor's own are closed on exec anyway.
        libc::syscall(
            libc::SYS_close_range,
            first_free as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        let (soft, hard) = command.open_files;
        let limit = libc::rlimit {
            rlim_cur: soft,
            rlim_max: hard,
        };
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_NOFILE,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit>(),
        );
        let Privileges {
            identity,
            limits,
            no_new_privileges,
        } = &command.privileges;
        if let Some(limits) = limits
            && !narrow(limits)
        {
            fail(Stage::Privileges);
        }
        if let Some(identity) = identity
            && (libc::syscall(
                libc::SYS_setgroups,
                identity.groups.len(),
                identity.groups.as_ptr(),
            ) != 0
                || libc::syscall(libc::SYS_setgid, identity.group) != 0
                || libc::syscall(libc::SYS_setuid, identity.user) != 0)
        {
            fail(Stage::Identity);
        }
        if let Some(limits) = limits
            && !keep(limits)
        {
            fail(Stage::Privileges);
        }
        if *no_new_privileges && !control(libc::PR_SET_NO_NEW_PRIVS, 1, 0) {
            fail(Stage::Privileges);
        }
        if libc::fchdir(command.directory.as_raw_fd()) != 0 {
            fail(Stage::Directory);
        }
        let pid = libc::getpid();
        for (entry, at) in &command.environment.pids {
            write_decimal(environment[*entry].add(*at).cast(), pid);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        match &command.program {
            Program::Path(path) => {
                libc::execve(
                    path.as_ptr(),
                    arguments.as_ptr(),
                    environment.as_ptr().cast(),
                );
            }
            Program::File(file) | Program::Script(file) => {
                if let Program::Script(_) = command.program {
                    libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0);
                }
                libc::syscall(
                    libc::SYS_execveat,
                    file.as_raw_fd(),
                    c"".as_ptr(),
                    arguments.as_ptr(),
                    environment.as_ptr(),
                    libc::AT_EMPTY_PATH,
                );
            }
        }
        fail(Stage::Execute)
    }
}

/// `prctl(2)`; whether it succeeded.
fn control(operation: libc::c_int, first: libc::c_int, second: libc::c_int) -> bool {
    let none: libc::c_ulong = 0;
    // SAFETY: a bare system call that takes numbers only; those used here change what the caller may
    // do, and nothing in memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prctl,
            libc::c_long::from(operation),
            libc::c_long::from(first),
            libc::c_long::from(second),
            none,
            none,
        )
    };
    result == 0
}

/// The numbers of the bits that are set.
fn numbers(bits: u64) -> impl Iterator<Item = libc::c_int> {
    (0..64).filter(move |number| bits >> number & 1 == 1)
}

/// Before the change of user, which takes the right to it away. Async-signal-safe.
fn narrow(limits: &Limits) -> bool {
    numbers(limits.dropped).all(|number| control(libc::PR_CAPBSET_DROP, number, 0))
        && (limits.kept == 0 || control(libc::PR_SET_KEEPCAPS, 1, 0))
}

/// Behind the change of user, which has cleared the effective and the ambient set. What is ambient is
/// what a program that is not root's has after its exec. Async-signal-safe.
fn keep(limits: &Limits) -> bool {
    (!limits.set || set_capabilities(limits.kept))
        && control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)
        && numbers(limits.kept)
            .all(|number| control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number))
}

/// Makes the effective, permitted and inheritable sets of this thread this one (`capset(2)`).
fn set_capabilities(bits: u64) -> bool {
    /// `_LINUX_CAPABILITY_VERSION_3`: two times three words of 32 bits.
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    let (low, high) = (bits as u32, (bits >> 32) as u32);
    let sets = [low, low, low, high, high, high];
    // SAFETY: both arrays have the layout that the version asks for, and the call only reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    result == 0
}

/// Writes a pid and a NUL.
///
/// # Safety
///
/// `to` has [`PID_ROOM`] writable bytes.
unsafe fn write_decimal(to: *mut u8, pid: libc::pid_t) {
    let mut digits = [0_u8; PID_ROOM];
    let mut rest = pid.unsigned_abs();
    let mut at = digits.len() - 1;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    // SAFETY: from `at` to the end are at most PID_ROOM bytes, the last of them NUL.
    unsafe { std::ptr::copy_nonoverlapping(digits[at..].as_ptr(), to, digits.len() - at) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_understood_as_it_is_said() {
        for stage in Stage::OF_A_CHILD {
            assert_eq!(Stage::from_byte(stage as u8), stage);
            assert_ne!(stage as u8, OUTSIDE);
        }
    }

    #[test]
    fn every_pid_is_written_in_full() {
        for pid in [1, 9, 10, 4_194_304, i32::MAX] {
            let mut room = [b'x'; PID_ROOM];
            // SAFETY: `room` has PID_ROOM bytes.
            unsafe { write_decimal(room.as_mut_ptr(), pid) };
            let end = room.iter().position(|byte| *byte == 0).unwrap();
            assert_eq!(std::str::from_utf8(&room[..end]).unwrap(), pid.to_string());
        }
    }
}
