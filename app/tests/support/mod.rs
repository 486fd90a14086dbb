//! What the end-to-end tests share: the demo as a child process with an inherited listener, the
//! supervisor's end of its notifications, and a client that misses nothing.
//!
//! Every wait has a deadline; a child that a test leaves behind is killed with its handle.

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses a part of this"
)]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails the test")]

pub(crate) mod demo;
pub(crate) mod supervisor;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tempfile::TempDir;

/// The longest any single step of a test may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Starts a program as a supervisor does, without one: the listener comes as stdin and becomes
/// fd 3, and LISTEN_PID is the program's, as the shell becomes the program. So does the socket of the
/// handover protocol, if there is one: it comes as stdout and becomes fd 4.
const WRAPPER: &str = r#"export LISTEN_PID=$$; exec "$0" "$@" 3<&0 4<&1 </dev/null >/dev/null"#;

/// Which binary to start.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Version {
    One,
    Two,
}

impl Version {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::One => env!("CARGO_BIN_EXE_heirloom-demo"),
            Self::Two => env!("CARGO_BIN_EXE_heirloom-demo-v2"),
        }
    }
}

/// How to start a generation.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) version: Version,
    pub(crate) generation: u64,
    pub(crate) listener_name: &'a str,
    pub(crate) arguments: &'a [&'a str],
    /// What the shell does before it becomes the program.
    pub(crate) prelude: &'a str,
    /// Another program than the demo.
    pub(crate) program: Option<PathBuf>,
}

impl Default for Start<'_> {
    fn default() -> Self {
        Self {
            version: Version::One,
            generation: 1,
            listener_name: "http",
            arguments: &[],
            prelude: "",
            program: None,
        }
    }
}

/// A running demo, with the supervisor's end of its notifications.
#[derive(Debug)]
pub(crate) struct Generation {
    child: Child,
    notifications: UnixDatagram,
    stderr: Option<BufReader<std::process::ChildStderr>>,
    _directory: TempDir,
}

impl Generation {
    /// Starts the demo on a listener, without waiting for it to be ready.
    pub(crate) fn start(listener: impl Into<OwnedFd>, start: &Start<'_>) -> Self {
        Self::spawn(listener.into(), start, None)
    }

    /// The same, with a socket on which it speaks the handover protocol.
    pub(crate) fn start_native(
        listener: impl Into<OwnedFd>,
        start: &Start<'_>,
        supervisor: OwnedFd,
    ) -> Self {
        Self::spawn(listener.into(), start, Some(supervisor))
    }

    fn spawn(listener: OwnedFd, start: &Start<'_>, supervisor: Option<OwnedFd>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket: PathBuf = directory.path().join("notify");
        let notifications = UnixDatagram::bind(&socket).unwrap();
        notifications.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new("/bin/sh");
        if let Some(socket) = supervisor {
            command.stdout(Stdio::from(socket)).env("HEIRLOOM_FD", "4");
        }
        let program = start.program.clone();
        let mut child = command
            .arg("-c")
            .arg(format!("{} {WRAPPER}", start.prelude))
            .arg(program.unwrap_or_else(|| start.version.path().into()))
            .args(start.arguments)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", start.listener_name)
            .env("NOTIFY_SOCKET", &socket)
            .env("HEIRLOOM_GENERATION", start.generation.to_string())
            .env("HEIRLOOM_SERVICE", "demo")
            .stdin(Stdio::from(listener))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().map(BufReader::new);
        Self {
            child,
            notifications,
            stderr,
            _directory: directory,
        }
    }

    /// Starts the demo on a TCP listener and waits until it serves.
    pub(crate) fn serving(listener: &TcpListener, start: &Start<'_>) -> Self {
        let generation = Self::start(listener.try_clone().unwrap(), start);
        generation.wait_for("READY=1");
        generation
    }

    /// Waits for a notification that has this line and gives all of it.
    pub(crate) fn wait_for(&self, line: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            let length = self
                .notifications
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("waiting for {line}: {error}"));
            let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
            if message.lines().any(|candidate| candidate == line) {
                return message;
            }
        }
        panic!("{line} did not come in {PATIENCE:?}");
    }

    /// Whether a notification is waiting.
    pub(crate) fn has_notified(&self) -> bool {
        self.notifications.set_nonblocking(true).unwrap();
        let result = self.notifications.recv(&mut [0; 4096]);
        self.notifications.set_nonblocking(false).unwrap();
        result.is_ok()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Stops it, as a debugger does, and waits until none of its threads runs.
    pub(crate) fn halt(&self) {
        self.signal(Signal::SIGSTOP);
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let stopped = WaitStatus::Stopped(pid, Signal::SIGSTOP);
        assert_eq!(waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap(), stopped);
    }

    /// Sends SIGTERM and waits until the drain has begun.
    pub(crate) fn drain(&self) {
        self.signal(Signal::SIGTERM);
        self.wait_for("STOPPING=1");
    }

    /// Waits for the end, and gives its status and what was written to stderr.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        // stderr ends when the process does, or at a deadline which a watchdog thread keeps.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if is_done.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                kill(pid, Signal::SIGKILL).unwrap();
                true
            } else {
                false
            }
        });
        let mut text = String::new();
        if let Some(mut stderr) = self.stderr.take() {
            stderr.read_to_string(&mut text).unwrap();
        }
        // Waiting comes after, so that the watchdog's pid is still this child's.
        drop(done);
        assert!(!watchdog.join().unwrap(), "it did not end:\n{text}");
        (self.child.wait().unwrap(), text)
    }

    /// Waits until the program itself handles a signal, that is until it has got that far.
    pub(crate) fn wait_until_handled(&self, signal: Signal) {
        let deadline = Instant::now() + PATIENCE;
        let status = format!("/proc/{}/status", self.pid());
        while Instant::now() < deadline {
            let text = std::fs::read_to_string(&status).unwrap();
            let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
            if caught & (1 << (signal as u32 - 1)) != 0 {
                return;
            }
            std::thread::yield_now();
        }
        panic!("{signal} was not handled in {PATIENCE:?}");
    }

    /// Ticks of processor time used so far.
    pub(crate) fn processor_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        // utime and stime are fields 14 and 15 of proc(5); the state is field 3.
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// A listening socket as a supervisor holds it.
pub(crate) fn tcp_listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// A listening Unix socket in a directory that goes with it.
pub(crate) fn unix_listener() -> (UnixListener, TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("http.sock");
    (UnixListener::bind(&path).unwrap(), directory, path)
}

/// What a client got.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    /// Whether the server said that this is the connection's last answer.
    pub(crate) closes: bool,
}

/// A socket of either family.
pub(crate) trait Socket: Read + Write {}
impl<T: Read + Write> Socket for T {}

/// An HTTP/1.1 client on one connection. It never retries.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Socket + Send>>,
    tcp: Option<TcpStream>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            tcp: Some(stream.try_clone()?),
            stream: BufReader::new(Box::new(stream)),
        })
    }

    pub(crate) fn connect_unix(path: &std::path::Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            tcp: None,
            stream: BufReader::new(Box::new(stream)),
        })
    }

    /// Sends a request and reads its answer.
    pub(crate) fn ask(&mut self, method: &str, target: &str) -> io::Result<Answer> {
        self.send(&format!("{method} {target} HTTP/1.1\r\nhost: demo\r\n\r\n"))?;
        self.answer()
    }

    pub(crate) fn get(&mut self, target: &str) -> io::Result<Answer> {
        self.ask("GET", target)
    }

    /// Posts a body and reads the answer.
    pub(crate) fn post(&mut self, target: &str, body: &str) -> io::Result<Answer> {
        let length = body.len();
        self.send(&format!(
            "POST {target} HTTP/1.1\r\nhost: demo\r\ncontent-length: {length}\r\n\r\n{body}"
        ))?;
        self.answer()
    }

    pub(crate) fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes())
    }

    /// Says that nothing more will be sent.
    pub(crate) fn end_sending(&mut self) {
        self.tcp
            .as_ref()
            .unwrap()
            .shutdown(Shutdown::Write)
            .unwrap();
    }

    /// Reads one answer. An answer that is cut short is an error.
    pub(crate) fn answer(&mut self) -> io::Result<Answer> {
        let status_line = self.line()?;
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| io::Error::other(format!("not a status line: {status_line:?}")))?;
        let mut length = 0;
        let mut closes = false;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            match line.split_once(": ") {
                Some(("content-length", value)) => {
                    length = value.parse().map_err(io::Error::other)?;
                }
                Some(("connection", value)) => closes = value == "close",
                Some(_) | None => {}
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer {
            status,
            body: String::from_utf8(body).map_err(io::Error::other)?,
            closes,
        })
    }

    /// Waits for the server to close, and fails if it sends something instead.
    pub(crate) fn wait_for_close(&mut self) -> io::Result<()> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        if rest.is_empty() {
            Ok(())
        } else {
            Err(io::Error::other(
                String::from_utf8_lossy(&rest).into_owned(),
            ))
        }
    }

    /// Whether the server has closed, as a connection pool checks before it reuses a connection.
    pub(crate) fn is_closed(&self) -> bool {
        let tcp = self.tcp.as_ref().unwrap();
        tcp.set_nonblocking(true).unwrap();
        let peeked = tcp.peek(&mut [0]);
        tcp.set_nonblocking(false).unwrap();
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the connection ended after {line:?}"),
            )),
        }
    }
}
