//! A supervisor for one test: started in a directory of its own, watched through its events, and
//! ended with everything it started, also when the test fails.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Nothing a test waits for takes longer on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The supervisor's binary.
pub(crate) const HEIRLOOM: &str = env!("CARGO_BIN_EXE_heirloom");

/// A plain server whose behaviour a test chooses; see the file.
pub(crate) const SERVER: &str = include_str!("server.py");

/// A program of the workspace, built beside the supervisor.
pub(crate) fn built(name: &str) -> PathBuf {
    let path = Path::new(HEIRLOOM).with_file_name(name);
    assert!(
        path.exists(),
        "{name} is not built; run `cargo build --workspace` first"
    );
    path
}

/// Fails with how to get a program, if it is missing.
pub(crate) fn need(program: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    assert!(
        found,
        "{program} is not installed; run: apt-get install --yes {package}"
    );
}

/// What a supervisor is to be started with.
#[derive(Debug)]
pub(crate) struct Setup {
    directory: TempDir,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    launcher: Vec<String>,
    program: Vec<String>,
    listen: bool,
    supervisor: PathBuf,
}

impl Setup {
    /// A supervisor of the demo service, listening as `http` on a port of the system's choice.
    pub(crate) fn demo() -> Self {
        Self::program([built("heirloom-demo").to_str().unwrap()])
    }

    /// A supervisor of the plain server `server.py`, listening as `http`; its options.
    pub(crate) fn server<'a>(options: impl IntoIterator<Item = &'a str>) -> Self {
        let mut setup = Self::program([]);
        let server = setup.script("server", SERVER);
        setup.program = vec![server.to_str().unwrap().to_owned()];
        for option in options {
            setup.program.push(setup.in_directory(option));
        }
        setup
    }

    /// A supervisor of this program, listening as `http` on a port of the system's choice.
    pub(crate) fn program<'a>(program: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            directory: TempDir::with_prefix("heirloom-test-").unwrap(),
            arguments: Vec::new(),
            environment: Vec::new(),
            launcher: Vec::new(),
            program: program.into_iter().map(str::to_owned).collect(),
            listen: true,
            supervisor: HEIRLOOM.into(),
        }
    }

    /// The supervisor is a copy of the program in the test's directory, `heirloom`, which the test can
    /// replace.
    pub(crate) fn of_its_own(mut self) -> Self {
        self.supervisor = self.path("heirloom");
        fs::copy(HEIRLOOM, &self.supervisor).unwrap();
        self
    }

    /// The same with another program.
    pub(crate) fn with_program(mut self, command: &[String]) -> Self {
        self.program = command.to_vec();
        self
    }

    /// A supervisor of what a configuration says; `{dir}` in it is the test's directory.
    pub(crate) fn configuration(text: &str) -> Self {
        let mut setup = Self::program([]);
        setup.listen = false;
        setup.write("heirloom.toml", text);
        let path = setup.path("heirloom.toml");
        setup.args(["--config", path.to_str().unwrap()])
    }

    /// A supervisor of `examples/NAME`, all of whose files are copied to the test's directory with
    /// these texts replaced. Its listener is on a port of the system's choice, unless replaced.
    pub(crate) fn example(name: &str, replaced: &[(&str, &str)]) -> Self {
        let mut setup = Self::program([]);
        setup.listen = false;
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let port = [("127.0.0.1:8080", "127.0.0.1:0")];
        for entry in fs::read_dir(examples.join(name)).unwrap() {
            let from = entry.unwrap().path();
            if !from.is_file() {
                continue;
            }
            let to = setup.path(from.file_name().unwrap().to_str().unwrap());
            let mut text = fs::read_to_string(&from).unwrap();
            for (this, that) in replaced.iter().chain(&port) {
                text = text.replace(this, that);
            }
            fs::write(&to, text).unwrap();
            fs::set_permissions(&to, from.metadata().unwrap().permissions()).unwrap();
        }
        setup.args(["--config", "heirloom.toml"])
    }

    /// More arguments to `heirloom run`; `{dir}` in them is the test's directory.
    pub(crate) fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        for argument in arguments {
            self.arguments.push(self.in_directory(argument));
        }
        self
    }

    fn in_directory(&self, text: &str) -> String {
        text.replace("{dir}", self.directory.path().to_str().unwrap())
    }

    /// The demo's or program's listeners are given in `args`, or there are none.
    pub(crate) fn no_default_listener(mut self) -> Self {
        self.listen = false;
        self
    }

    /// A variable in the supervisor's environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A command that executes the supervisor, such as `prlimit --nofile=50`.
    pub(crate) fn launcher<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.launcher.extend(words.into_iter().map(str::to_owned));
        self
    }

    /// A path in the test's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file into the test's directory; `{dir}` in it is that directory.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        write(self.directory.path(), name, text)
    }

    /// Writes an executable file into the test's directory.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.write(name, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Starts it and waits until every service has come up.
    pub(crate) fn start(self) -> Supervisor {
        let mut supervisor = self.start_unwaited();
        supervisor.wait_until("every service serves", |status| {
            let services = status["services"].as_array().unwrap();
            !services.is_empty() && services.iter().all(|service| service["state"] == "serving")
        });
        supervisor
    }

    /// The same, with an empty file of this name in the test's directory.
    pub(crate) fn start_with(self, name: &str) -> Supervisor {
        self.write(name, "");
        self.start()
    }

    /// Starts it and waits until it answers.
    pub(crate) fn start_unwaited(self) -> Supervisor {
        let mut supervisor = self.spawn();
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(supervisor.control()).is_err() {
            if let Some(status) = supervisor.process.try_wait().unwrap() {
                panic!("the supervisor ended ({status}):\n{}", supervisor.log());
            }
            assert!(Instant::now() < deadline, "the supervisor does not answer");
            std::thread::sleep(Duration::from_millis(2));
        }
        supervisor
    }

    /// Starts it and waits for nothing.
    pub(crate) fn spawn(self) -> Supervisor {
        fs::File::create(self.path("log")).unwrap();
        Supervisor {
            process: self.command().spawn().unwrap(),
            setup: Arc::new(self),
            ended: false,
        }
    }

    fn command(&self) -> Command {
        let control = self.path("control.sock");
        let log = fs::OpenOptions::new().append(true).open(self.path("log"));
        let log = log.unwrap();
        // Should the test itself be killed, the supervisor is told to stop.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM"])
            .args(&self.launcher)
            .arg(&self.supervisor)
            .arg("run");
        command.args([
            "--control",
            control.to_str().unwrap(),
            "--log-format",
            "human",
        ]);
        if self.listen {
            command.args(["--listen", "http=tcp:127.0.0.1:0"]);
        }
        command.args(&self.arguments);
        if !self.program.is_empty() {
            command.arg("--").args(&self.program);
        }
        command
            .env_remove("RUNTIME_DIRECTORY")
            .env_remove("NOTIFY_SOCKET")
            .env(MARK, self.directory.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }
}

/// A running supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) process: Child,
    setup: Arc<Setup>,
    ended: bool,
}

/// The variable by which a test's programs are known should their supervisor be gone.
pub(crate) const MARK: &str = "HEIRLOOM_TEST_DIRECTORY";

impl Supervisor {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed())
    }

    /// Kills it, and nothing else.
    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
        self.await_end();
    }

    /// Ends it, and nothing else.
    pub(crate) fn leave_running(&self) {
        self.expect(0, ["stop", "--leave-running"]);
        self.await_end();
    }

    fn await_end(&self) {
        // With all its threads: only then are its sockets closed.
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.pid()), ended).unwrap();
    }

    /// Starts another with the same command line, after this one has been killed, and waits until it
    /// answers.
    pub(crate) fn start_again(&self) -> Self {
        self.await_answer(self.spawn_again())
    }

    /// The same, without a variable in its environment.
    pub(crate) fn start_again_without(&self, variable: &str) -> Self {
        let mut command = self.setup.command();
        command.env_remove(variable);
        self.await_answer(self.another(command))
    }

    fn await_answer(&self, mut next: Self) -> Self {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(next.control()).is_err() {
            let ended = next.process.try_wait().unwrap();
            assert!(ended.is_none(), "it ended ({ended:?}):\n{}", self.log());
            assert!(Instant::now() < deadline, "it does not answer");
            std::thread::sleep(Duration::from_millis(2));
        }
        next
    }

    /// The same, and waits for nothing.
    pub(crate) fn spawn_again(&self) -> Self {
        self.another(self.setup.command())
    }

    fn another(&self, mut command: Command) -> Self {
        Self {
            process: command.spawn().unwrap(),
            setup: Arc::clone(&self.setup),
            ended: false,
        }
    }

    /// A path in the test's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.setup.path(name)
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.path("control.sock")
    }

    /// Writes a file into the test's directory; `{dir}` in it is that directory.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        self.setup.write(name, text)
    }

    /// Writes an executable file into the test's directory.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        self.setup.script(name, text)
    }

    /// The path of `server.py`, for another command line of it.
    pub(crate) fn server(&self) -> String {
        self.path("server").to_str().unwrap().to_owned()
    }

    /// All it and its programs have written so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Runs a command of `heirloom` against it.
    pub(crate) fn heirloom<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Output {
        let mut words = words.into_iter();
        let command = words.next().unwrap();
        Command::new(HEIRLOOM)
            .args([command, "--control", self.control().to_str().unwrap()])
            .args(words)
            .output()
            .unwrap()
    }

    /// Begins a command whose end is not waited for here; its output is kept.
    pub(crate) fn begin<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Child {
        let mut words = words.into_iter();
        let command = words.next().unwrap();
        Command::new(HEIRLOOM)
            .args([command, "--control", self.control().to_str().unwrap()])
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Waits for the end of a command that was begun; its status and standard error.
    pub(crate) fn finish(&self, begun: Child) -> (Option<i32>, String) {
        let output = begun.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), error)
    }

    /// Hands over; panics unless the new generation serves.
    pub(crate) fn reload(&self) -> Value {
        let output = self.heirloom(["reload", "--json"]);
        assert!(output.status.success(), "{output:?}\n{}", self.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a command that must end with this status; what it wrote to its standard error.
    pub(crate) fn expect<'a>(
        &self,
        status: i32,
        words: impl IntoIterator<Item = &'a str>,
    ) -> String {
        let output = self.heirloom(words);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(status),
            "{error}\n{}",
            self.log()
        );
        error
    }

    /// All that has happened so far.
    pub(crate) fn history(&self) -> Vec<Value> {
        let output = self.heirloom(["events", "--json"]);
        assert!(output.status.success(), "{output:?}\n{}", self.log());
        let lines = String::from_utf8(output.stdout).unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// `heirloom status --json`.
    pub(crate) fn status(&self) -> Value {
        let output = self.heirloom(["status", "--json"]);
        assert!(output.status.success(), "{output:?}\n{}", self.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The only service's status.
    pub(crate) fn service(&self) -> Value {
        self.status()["services"][0].clone()
    }

    /// The generation that serves, of the only service, and its pid.
    pub(crate) fn serving(&self) -> (u64, i32) {
        let service = self.service();
        let serving = service["generations"].as_array().unwrap().iter();
        let serving: Vec<&Value> = serving.filter(|one| one["phase"] == "serving").collect();
        assert_eq!(serving.len(), 1, "{service}");
        let pid = serving[0]["pid"].as_i64().unwrap();
        (
            serving[0]["generation"].as_u64().unwrap(),
            i32::try_from(pid).unwrap(),
        )
    }

    /// Where a listener of any service is bound: what stands behind the scheme.
    pub(crate) fn bound(&self, name: &str) -> String {
        let status = self.status();
        let services = status["services"].as_array().unwrap().iter();
        let listeners: Vec<&Value> = services
            .flat_map(|service| service["listeners"].as_array().unwrap())
            .collect();
        let listener = listeners.iter().find(|listener| listener["name"] == name);
        let address = listener.unwrap_or_else(|| panic!("no listener {name}: {status}"));
        address["address"]
            .as_str()
            .unwrap()
            .split_once(':')
            .unwrap()
            .1
            .to_owned()
    }

    /// The address of a tcp listener.
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        self.bound(name).parse().unwrap()
    }

    /// What happens, from now on, and what happened before.
    pub(crate) fn events(&self) -> Events {
        let mut stream = UnixStream::connect(self.control()).unwrap();
        stream
            .write_all(b"{\"command\":\"events\",\"follow\":true}\n")
            .unwrap();
        Events {
            lines: BufReader::new(stream),
        }
    }

    /// Waits, event by event, until the status is as wanted; returns it.
    pub(crate) fn wait_until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut events = self.events();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Some of what a status holds changes without an event.
            let pause = left.min(Duration::from_millis(200));
            assert!(
                !pause.is_zero(),
                "waited for: {what}\n{status}\n{}",
                self.log()
            );
            events.next_within(pause);
        }
    }

    /// Waits until the only service has settled: nothing but serving generations.
    pub(crate) fn settle(&mut self) -> Value {
        self.wait_until("nothing goes on any more", |status| {
            let services = status["services"].as_array().unwrap();
            services.iter().all(|service| {
                let generations = service["generations"].as_array().unwrap();
                // One in reserve stays as long as the probation lasts.
                let rests = |one: &Value| one["phase"] == "serving" || one["phase"] == "reserve";
                service["state"] == "serving" && generations.iter().all(rests)
            })
        })
    }

    /// Sends the supervisor a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the supervisor's end and returns its exit status.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                self.ended = true;
                return status.code();
            }
            assert!(
                Instant::now() < deadline,
                "the supervisor does not end\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops it and checks that it ends well.
    pub(crate) fn stop(mut self) {
        self.expect(0, ["stop"]);
        assert_eq!(self.wait(), Some(0), "{}", self.log());
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if self.process.try_wait().ok().flatten().is_some() {
            // It was killed, or has failed. Unless another follows, nobody ends what it has left.
            if Arc::strong_count(&self.setup) == 1 {
                kill_marked(self.setup.directory.path());
            }
            return;
        }
        // Everything must be gone, whatever state the test left it in: a stop without patience,
        // then force, first against the programs, which the supervisor would outlive.
        let _asked = Command::new("timeout")
            .args(["10", HEIRLOOM, "stop", "--timeout", "0s", "--control"])
            .arg(self.control())
            .output();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.process.try_wait().ok().flatten().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for child in children_of(self.pid()) {
            let _gone = killpg(child, Signal::SIGKILL);
        }
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
        kill_marked(self.setup.directory.path());
    }
}

/// Kills every process that was started in this test.
fn kill_marked(directory: &Path) {
    let mark = format!("{MARK}={}", directory.display());
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let marked = environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == mark.as_bytes());
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(pid) = pid.filter(|_| marked) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The events of a supervisor.
#[derive(Debug)]
pub(crate) struct Events {
    lines: BufReader<UnixStream>,
}

impl Events {
    /// The next event, if there is one in time.
    pub(crate) fn next_within(&mut self, patience: Duration) -> Option<Value> {
        self.lines
            .get_ref()
            .set_read_timeout(Some(patience))
            .unwrap();
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_str::<Value>(&line).unwrap()["content"].clone()),
        }
    }

    /// Waits for an event of a kind, such as `committed`; also one that happened before.
    pub(crate) fn wait_for(&mut self, kind: &str) -> Value {
        self.wait_where(kind, |event| event["event"] == kind)
    }

    /// Waits for an event of a kind that concerns this generation.
    pub(crate) fn wait_for_generation(&mut self, kind: &str, generation: u64) -> Value {
        self.wait_where(kind, |event| {
            event["event"] == kind && event["generation"] == generation
        })
    }

    fn wait_where(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited for an event {what}");
            match self.next_within(left) {
                Some(event) if wanted(&event) => return event,
                Some(_) | None => {}
            }
        }
    }
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text.replace("{dir}", directory.to_str().unwrap())).unwrap();
    path
}

/// The processes a process has started and not reaped.
pub(crate) fn children_of(pid: Pid) -> Vec<Pid> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .map(|child| Pid::from_raw(child.parse().unwrap()))
        .collect()
}

/// How many descriptors a process has open.
pub(crate) fn open_descriptors(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Waits until `check` holds, for what no event tells.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is there and has not merely not been reaped yet.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
    state.is_some_and(|state| state != "Z" && state != "X")
}

/// One request on a connection of its own; the answer's body.
pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    answer(ask(address, path))
}

/// Sends a request on a connection of its own.
pub(crate) fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Waits until an answer has begun: somebody has accepted the connection.
pub(crate) fn begun(stream: &TcpStream) {
    assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
}

/// The answer's body.
pub(crate) fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    body.to_owned()
}
