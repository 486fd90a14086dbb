//! The supervisor replaces itself: its process goes on as another program.
//!
//! Owns finding that program, trying it before anything depends on it, and the step itself. When that may
//! be is decided in [`super::supervisor`]. What is executed is the very file that was tried: it is opened
//! once. Whatever fails before the step has changed nothing, and the step either happens or does not.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::{execveat, pipe2};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use heirloom_handover::environment::HEIRLOOM_PASSAGE;

use super::input::{Input, Inputs};
use super::plan::judge;
use super::record::{
    self, Handle, LARGEST_BYTES, Passage, VERSION, handles::Found, slots::in_memory,
};
use super::timer::Timer;
use crate::sys::pidfd;
use crate::sys::spawn::{self, Command, Environment, Privileges, Program};

/// How long the program may take to say that it can follow.
const LONGEST_TRIAL: Duration = Duration::from_secs(10);

/// What it may say.
const LONGEST_ANSWER_BYTES: u64 = 4096;

/// The command by which a program is tried: it reads what it would be given from its standard input.
pub(crate) const TRY: &str = "try-record";

/// A program that may follow.
#[derive(Debug)]
pub(crate) struct Successor {
    path: PathBuf,
    file: File,
    /// Length and time of the last change when it was opened.
    as_opened: (u64, i64, i64),
}

/// Where this supervisor's program was started from: the path as it was named, so that a link in it is
/// followed anew. It may be another file by now.
pub(crate) fn own_program() -> Option<PathBuf> {
    let named = PathBuf::from(std::env::args_os().next()?);
    let found = if named.as_os_str().as_bytes().contains(&b'/') {
        std::path::absolute(named).ok()
    } else {
        let path = std::env::var_os("PATH")?;
        let found = std::env::split_paths(&path).map(|directory| directory.join(&named));
        let mut found = found.filter(|path| path.is_file());
        found.find_map(|path| std::path::absolute(path).ok())
    };
    let is_ours = |path: &PathBuf| {
        let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
        identity(path).is_some() && identity(path) == identity(Path::new("/proc/self/exe"))
    };
    // Whoever started it may have named it as it liked.
    found
        .filter(is_ours)
        .or_else(|| std::fs::read_link("/proc/self/exe").ok())
}

impl Successor {
    /// Opens the program, and looks whether it can be one.
    ///
    /// # Errors
    ///
    /// Why it cannot.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let file = judge(path).map_err(|error| error.to_string())?;
        let about = |error: io::Error| format!("{}: {error}", path.display());
        Ok(Self {
            path: path.to_owned(),
            as_opened: state_of(&file).map_err(about)?,
            file,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts it to see whether it understands what it would be given; says so as an input.
    ///
    /// # Errors
    ///
    /// Why it cannot be started.
    pub(crate) fn try_out(&self, passage: &[u8], inputs: &Inputs) -> Result<Timer, String> {
        let path = self.path.display().to_string();
        let short = |error: io::Error| format!("cannot try {path}: {error}");
        let document = in_memory(c"heirloom-record", passage).map_err(short)?;
        let (output, their_output) = pipe2(OFlag::O_CLOEXEC).map_err(|e| short(e.into()))?;
        let (error, their_error) = pipe2(OFlag::O_CLOEXEC).map_err(|e| short(e.into()))?;
        let mut environment = Environment::default();
        for (name, value) in std::env::vars_os() {
            environment.set(name.as_bytes(), value.as_bytes());
        }
        let started = spawn::spawn(Command {
            program: Program::File(self.file.try_clone().map_err(short)?.into()),
            arguments: [c"heirloom".to_owned(), c_string(TRY), c"--".to_owned()]
                .into_iter()
                .chain(std::env::args_os().map(|word| c_string(OsString::into_vec(word))))
                .collect(),
            environment,
            directory: File::open(".").map_err(short)?.into(),
            standard: [document, their_output, their_error],
            inherited: Vec::new(),
            privileges: Privileges::default(),
            expendable: true,
            group: None,
            open_files: (1024, 4096),
        });
        let started = started.map_err(|failure| {
            let error = io::Error::from_raw_os_error(failure.errno);
            format!("{path} cannot be executed: {error}")
        })?;
        // It is not reaped before the next turn of the loop.
        let pidfd = pidfd::open(started.pid).ok();
        let output = pipe::Receiver::from_owned_fd(output).map_err(short)?;
        let error = pipe::Receiver::from_owned_fd(error).map_err(short)?;
        let inputs = inputs.clone();
        Ok(Timer::task(async move {
            let _killed_with_it = Tried(pidfd);
            let result = match tokio::time::timeout(LONGEST_TRIAL, hear(output, error)).await {
                Ok((said, complaint)) => judge_answer(&path, &said, &complaint),
                Err(_) => Err(format!(
                    "{path} did not say within {LONGEST_TRIAL:?} whether it can follow"
                )),
            };
            // The queue is closed only when the supervisor ends.
            let _ended = inputs.send(Input::Tried(result)).await;
        }))
    }

    /// Becomes the program. Returns only if that failed, and nothing has changed then.
    pub(crate) fn follow(&self, passage: &[u8], passed: &[BorrowedFd<'_>]) -> String {
        let path = self.path.display();
        match self.try_to_follow(passage, passed) {
            Ok(never) => match never {},
            Err(error) => format!("{path} could not be executed: {error}"),
        }
    }

    fn try_to_follow(
        &self,
        passage: &[u8],
        passed: &[BorrowedFd<'_>],
    ) -> io::Result<std::convert::Infallible> {
        if state_of(&self.file)? != self.as_opened {
            return Err(io::Error::other(
                "it was overwritten in place after it had been tried; deploy under another name and rename",
            ));
        }
        let document = in_memory(c"heirloom-record", passage)?;
        let inherit = |fd: BorrowedFd<'_>, flags| fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop);
        let all = || passed.iter().copied().chain([document.as_fd()]);
        let arguments = std::env::args_os().map(|word| c_string(OsString::into_vec(word)));
        let marked = (
            OsString::from(HEIRLOOM_PASSAGE),
            OsString::from(document.as_raw_fd().to_string()),
        );
        let environment = std::env::vars_os()
            .filter(|(name, _)| name != HEIRLOOM_PASSAGE)
            .chain([marked]);
        let environment = environment
            .map(|(name, value)| c_string([name.as_bytes(), b"=", value.as_bytes()].concat()));
        let (arguments, environment): (Vec<_>, Vec<_>) =
            (arguments.collect(), environment.collect());
        for fd in all() {
            inherit(fd, FdFlag::empty())?;
        }
        let failed = execveat(
            &self.file,
            c"",
            &arguments,
            &environment,
            AtFlags::AT_EMPTY_PATH,
        );
        for fd in all() {
            // It was set before.
            let _set = inherit(fd, FdFlag::FD_CLOEXEC);
        }
        failed.map_err(io::Error::from)
    }
}

/// A program that is being tried: it is not left behind.
struct Tried(Option<OwnedFd>);

impl Drop for Tried {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.0 {
            // It has ended already, unless it hangs.
            let _ended = pidfd::signal(pidfd.as_fd(), Signal::SIGKILL);
        }
    }
}

/// Both outputs to their ends.
async fn hear(output: pipe::Receiver, error: pipe::Receiver) -> (String, String) {
    let read = |pipe: pipe::Receiver| async move {
        let mut text = Vec::new();
        // What cannot be read was not said.
        let _broken = pipe.take(LONGEST_ANSWER_BYTES).read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    };
    tokio::join!(read(output), read(error))
}

fn judge_answer(path: &str, said: &str, complaint: &str) -> Result<(), String> {
    if said == answer() {
        return Ok(());
    }
    let complaint = complaint.trim().lines().next_back().unwrap_or_default();
    let why = match (said.trim().lines().next(), complaint) {
        (_, complaint) if !complaint.is_empty() => complaint.to_owned(),
        (Some(line), _) => format!("it said {line:?}"),
        (None, _) => "it said nothing".to_owned(),
    };
    Err(format!(
        "{path} cannot follow this supervisor ({why}); nothing has changed"
    ))
}

/// What a program says that understood everything.
fn answer() -> String {
    format!("heirloom record {VERSION}\n")
}

/// The program's side of the trial: reads what it would be given.
///
/// # Errors
///
/// Why it could not go on from it.
pub(crate) fn try_record() -> Result<String, String> {
    let mut document = Vec::new();
    let limit = LARGEST_BYTES as u64 + 1;
    let read = io::stdin().take(limit).read_to_end(&mut document);
    read.map_err(|error| format!("the record cannot be read: {error}"))?;
    record::read_passage(&document).map_err(|error| error.to_string())?;
    Ok(answer())
}

/// What a predecessor in place has handed over.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) passage: Passage,
    pub(crate) found: Found,
}

impl Passed {
    /// Takes what was handed over, if this process was a supervisor before. To be called first: nothing
    /// else may open or close descriptors before.
    ///
    /// # Errors
    ///
    /// It was announced and is not there, or not understood.
    pub(crate) fn take() -> Result<Option<Self>, String> {
        let Ok(number) = std::env::var(HEIRLOOM_PASSAGE) else {
            return Ok(None);
        };
        let wrong = |why: &str| format!("{HEIRLOOM_PASSAGE}={number} {why}; remove the variable");
        let raw = number
            .parse::<i32>()
            .map_err(|_| wrong("is not a number"))?;
        let link = std::fs::read_link(format!("/proc/self/fd/{raw}")).unwrap_or_default();
        if !link.to_string_lossy().contains("heirloom-record") {
            return Err(wrong("does not lead to a record"));
        }
        let document = File::from(crate::sys::own(raw));
        let mut bytes = Vec::new();
        (&document)
            .take(LARGEST_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| wrong(&format!("cannot be read: {error}")))?;
        let passage = record::read_passage(&bytes)
            .map_err(|error| wrong(&format!("is not understood: {error}")))?;
        let mut found = Found::default();
        for (handle, raw) in &passage.descriptors {
            let fd = crate::sys::own(*raw);
            fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
                .map_err(|errno| wrong(&format!("names descriptor {raw}: {errno}")))?;
            found.insert(*handle, fd);
        }
        Handle::begin_after(passage.record.last_handle);
        Ok(Some(Self { passage, found }))
    }
}

fn state_of(file: &File) -> io::Result<(u64, i64, i64)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Words of a running process have no NUL.
fn c_string(word: impl Into<Vec<u8>>) -> CString {
    CString::new(word).unwrap_or_default()
}
