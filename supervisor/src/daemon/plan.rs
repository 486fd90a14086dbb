//! A program as it was looked up for one handover.
//!
//! Owns resolving a command, its directory, its environment and its user against the world as it is
//! now, and opening the program once: what was checked is what is executed, also later, for a
//! respawn or a rollback, when the path leads elsewhere. Starting it is [`crate::sys::spawn`]'s.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::AtFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{AccessFlags, Group, User, faccessat, getgrouplist};

use heirloom_handover::environment::OF_THE_SUPERVISOR_ALONE;

use crate::config::service::Service;
use crate::sys::spawn::{Identity, Program};

/// How long a program that is being written may take to be whole.
const LONGEST_COPY: Duration = Duration::from_secs(5);

/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Scripts up to this size are kept in memory, so that they outlive their file.
const LARGEST_SCRIPT_BYTES: u64 = 4 << 20;

/// No environment file is larger than this.
const LARGEST_ENV_FILE_BYTES: u64 = 1 << 20;

/// A program, ready to be started any number of times.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) service: Service,
    /// The program as it was asked for.
    pub(crate) program: String,
    /// The file that was found.
    pub(crate) resolved: PathBuf,
    file: File,
    /// What the file was like when it was checked.
    identity_of_file: FileIdentity,
    script: Option<Script>,
    pub(crate) directory: OwnedFd,
    pub(crate) environment: BTreeMap<OsString, OsString>,
    pub(crate) user: Option<Identity>,
}

/// A program that starts with `#!`.
#[derive(Debug)]
struct Script {
    /// The path it is started under while that leads to the same file.
    path: PathBuf,
    /// Its content, if it is small enough.
    copy: Option<OwnedFd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl FileIdentity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Why a program cannot be started. The reason says whose fault it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Unusable {
    reason: String,
    /// It may be whole in a moment: somebody seems to be writing it.
    pub(crate) passing: bool,
}

fn unusable(reason: impl Into<String>) -> Unusable {
    Unusable {
        reason: reason.into(),
        passing: false,
    }
}

/// Looks a service's program up, waiting for one that is being written.
///
/// # Errors
///
/// [`Unusable`] with the reason.
pub(crate) async fn look_up_patiently(service: &Service) -> Result<Plan, Unusable> {
    let deadline = tokio::time::Instant::now() + LONGEST_COPY;
    loop {
        match look_up(service) {
            Err(error) if error.passing && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            settled => return settled,
        }
    }
}

/// Looks a service's program up as it stands now.
///
/// # Errors
///
/// [`Unusable`] with the reason.
pub(crate) fn look_up(service: &Service) -> Result<Plan, Unusable> {
    let directory_path = working_directory(service.directory.as_deref())?;
    let directory = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(&directory_path)
        .map_err(|e| unusable(format!("directory {}: {e}", directory_path.display())))?;
    let mut environment = environment(service)?;
    if environment.contains_key(OsStr::new("PWD")) {
        environment.insert("PWD".into(), directory_path.clone().into());
    }
    let user = user(service)?;
    if let (Some(name), Some(home)) = (&service.user, home_of(service)) {
        for variable in ["USER", "LOGNAME"] {
            environment.insert(variable.into(), name.into());
        }
        environment.insert("HOME".into(), home);
    }
    let [program, ..] = &service.command[..] else {
        return Err(unusable("it has no program"));
    };
    let path = find(
        program,
        &directory_path,
        environment.get(OsStr::new("PATH")),
    )?;
    let opened = open(&path)?;
    Ok(Plan {
        service: service.clone(),
        program: program.clone(),
        resolved: opened.resolved,
        file: opened.file,
        identity_of_file: opened.identity,
        script: opened.script,
        directory: directory.into(),
        environment,
        user,
    })
}

impl Plan {
    /// The file to execute.
    ///
    /// # Errors
    ///
    /// [`Unusable`] if the file was overwritten in place since it was checked.
    pub(crate) fn program(&self) -> Result<Program, Unusable> {
        let again = |error: io::Error| unusable(format!("{}: {error}", self.program));
        let now = FileIdentity::of(&self.file.metadata().map_err(again)?);
        let unchanged = now == self.identity_of_file;
        let duplicate = |fd: &OwnedFd| fd.try_clone().map_err(again);
        match &self.script {
            None if unchanged => Ok(Program::File(self.file.try_clone().map_err(again)?.into())),
            None => Err(unusable(format!(
                "{} was overwritten in place after it had been checked; deploy under another name and rename",
                self.resolved.display()
            ))),
            Some(script) => {
                let still_there = fs::metadata(&script.path)
                    .is_ok_and(|metadata| FileIdentity::of(&metadata) == self.identity_of_file);
                let path = CString::new(script.path.as_os_str().as_bytes());
                match (path, &script.copy) {
                    (Ok(path), _) if still_there => Ok(Program::Path(path)),
                    (_, Some(copy)) => Ok(Program::Script(duplicate(copy)?)),
                    (_, None) => Err(unusable(format!(
                        "the script {} is gone and was too large to be kept",
                        script.path.display()
                    ))),
                }
            }
        }
    }

    /// What an error from executing the program means.
    pub(crate) fn explain(&self, errno: i32) -> Unusable {
        let error = io::Error::from_raw_os_error(errno);
        let file = self.resolved.display();
        match errno {
            libc::ETXTBSY => Unusable {
                reason: format!("{file} is still being written"),
                passing: true,
            },
            libc::ENOENT if self.script.is_some() => unusable(format!(
                "{file}: the interpreter its first line names does not exist"
            )),
            libc::ENOENT => unusable(format!("{file}: the loader it asks for does not exist")),
            libc::ENOEXEC => unusable(format!("{file} is not a program this system can execute")),
            _other => unusable(format!("cannot execute {file}: {error}")),
        }
    }
}

impl Plan {
    /// What an error of the system, short of something, means.
    pub(crate) fn explain_system(&self, error: &io::Error) -> Unusable {
        unusable(format!("cannot start {}: {error}", self.program))
    }

    /// What an error on the way to the program means.
    pub(crate) fn explain_step(&self, step: &str, error: &io::Error) -> Unusable {
        unusable(format!(
            "cannot start {}: it could not {step}: {error}",
            self.program
        ))
    }
}

struct Opened {
    file: File,
    resolved: PathBuf,
    identity: FileIdentity,
    script: Option<Script>,
}

fn open(path: &Path) -> Result<Opened, Unusable> {
    let about = |reason: &str| unusable(format!("{}: {reason}", path.display()));
    let system = |error: io::Error| about(&error.to_string());
    let resolved = path.canonicalize().map_err(system)?;
    // Opening a pipe must not wait for its other end.
    let readable = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&resolved);
    let file = match readable {
        Ok(file) => file,
        // A program may be executable and not readable; then it cannot be looked into.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(&resolved)
            .map_err(system)?,
        Err(error) => return Err(system(error)),
    };
    let metadata = file.metadata().map_err(system)?;
    let kind = metadata.file_type();
    if metadata.is_dir() {
        return Err(about("it is a directory, not a program"));
    }
    if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        return Err(about("it is not a regular file"));
    }
    faccessat(
        nix::fcntl::AT_FDCWD,
        &resolved,
        AccessFlags::X_OK,
        AtFlags::AT_EACCESS,
    )
    .map_err(|_| about("it is not executable; run chmod +x on it"))?;
    let identity = FileIdentity::of(&metadata);
    let script = look_into(path, &file, metadata.len())?;
    Ok(Opened {
        file,
        resolved,
        identity,
        script,
    })
}

/// Tells a script from a binary, and a whole binary from one that is being copied.
fn look_into(path: &Path, file: &File, length: u64) -> Result<Option<Script>, Unusable> {
    let unfinished = |what: &str| Unusable {
        reason: format!("{} {what}; is it still being written?", path.display()),
        passing: true,
    };
    let mut file = file;
    let mut head = [0; 64];
    // Not readable: the kernel will judge it.
    let Ok(got) = read_fully(&mut file, &mut head) else {
        return Ok(None);
    };
    if got == 0 {
        return Err(unfinished("is empty"));
    }
    if head.starts_with(b"#!") {
        let copy = keep_script(path, file, length);
        return Ok(Some(Script {
            path: path.to_owned(),
            copy,
        }));
    }
    if head.starts_with(b"\x7fELF") {
        return match elf_length(&head[..got]) {
            Some(whole) if whole <= length => Ok(None),
            Some(whole) => Err(unfinished(&format!(
                "has {length} of at least {whole} bytes"
            ))),
            None => Err(unfinished("ends within its header")),
        };
    }
    Err(unusable(format!(
        "{} is neither a program nor a script with a first line such as #!/bin/sh",
        path.display()
    )))
}

/// How long an ELF file must be at least: its two tables lie within it. `None` if the header is
/// not whole. (System V ABI, "ELF Header".)
fn elf_length(head: &[u8]) -> Option<u64> {
    let wide = *head.get(4)? == 2;
    let little = *head.get(5)? == 1;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = head.get(at..at + size)?.iter();
        let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if little {
            bytes.rev().fold(0, fold)
        } else {
            bytes.fold(0, fold)
        })
    };
    let (tables, word) = if wide { ((32, 40), 8) } else { ((28, 32), 4) };
    let sizes = if wide { 54 } else { 42 };
    let programs = number(tables.0, word)?
        .checked_add(number(sizes, 2)?.checked_mul(number(sizes + 2, 2)?)?)?;
    let sections = number(tables.1, word)?
        .checked_add(number(sizes + 4, 2)?.checked_mul(number(sizes + 6, 2)?)?)?;
    Some(programs.max(sections))
}

fn read_fully(file: &mut &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..])? {
            0 => break,
            more => got += more,
        }
    }
    Ok(got)
}

/// A copy of a script that later changes of the file do not reach; none if that cannot be had.
fn keep_script(path: &Path, mut file: &File, length: u64) -> Option<OwnedFd> {
    if length > LARGEST_SCRIPT_BYTES {
        return None;
    }
    let name = path
        .file_name()
        .and_then(|name| CString::new(name.as_bytes()).ok())?;
    let copy = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC).ok()?;
    file.seek(SeekFrom::Start(0)).ok()?;
    let mut content = Vec::new();
    file.take(LARGEST_SCRIPT_BYTES)
        .read_to_end(&mut content)
        .ok()?;
    let mut writer = File::from(copy.as_fd().try_clone_to_owned().ok()?);
    writer.write_all(&content).ok()?;
    drop(writer);
    // Executing a file that is open for writing fails, so what is kept is a reading descriptor.
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()))
        .ok()
        .map(OwnedFd::from)
}

/// The directory a service runs in. The supervisor's own is taken as its shell named it, so that a
/// symbolic link in it leads where it leads now.
fn working_directory(wanted: Option<&Path>) -> Result<PathBuf, Unusable> {
    let own = || -> io::Result<PathBuf> {
        let named = std::env::var_os("PWD")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        match named {
            Some(named) if OWN_DIRECTORY_IS_NAMED.with(|named| *named) => Ok(named),
            // A deploy may have deleted it; only who goes by it fails for that.
            Some(_) | None => std::env::current_dir(),
        }
    };
    let own = || own().map_err(|error| unusable(format!("the supervisor's directory: {error}")));
    match wanted {
        Some(wanted) if wanted.is_absolute() => Ok(wanted.to_owned()),
        Some(wanted) => Ok(own()?.join(wanted)),
        None => own(),
    }
}

thread_local! {
    /// Whether `$PWD` led to the working directory when this was first asked, which is before any
    /// link in it can have been turned by a deploy the supervisor is told of.
    static OWN_DIRECTORY_IS_NAMED: bool = std::env::var_os("PWD").is_some_and(|named| {
        match (fs::metadata(named), fs::metadata(".")) {
            (Ok(named), Ok(real)) => (named.dev(), named.ino()) == (real.dev(), real.ino()),
            (Err(_), _) | (_, Err(_)) => false,
        }
    });
}

/// Finds a program the way a shell does, from the service's directory and its own `PATH`.
fn find(program: &str, directory: &Path, path: Option<&OsString>) -> Result<PathBuf, Unusable> {
    if program.contains('/') {
        return Ok(directory.join(program));
    }
    let path = match path {
        Some(path) => path.as_os_str(),
        None => OsStr::new("/usr/local/bin:/usr/bin:/bin"),
    };
    let executable = |path: &Path| {
        path.is_file()
            && faccessat(
                nix::fcntl::AT_FDCWD,
                path,
                AccessFlags::X_OK,
                AtFlags::AT_EACCESS,
            )
            .is_ok()
    };
    std::env::split_paths(path)
        .map(|entry| directory.join(entry).join(program))
        .find(|candidate| executable(candidate))
        .ok_or_else(|| {
            unusable(format!(
                "{program}: no such program in PATH ({})",
                path.to_string_lossy()
            ))
        })
}

/// The supervisor's environment without what speaks of itself, then the service's own variables,
/// then those of its file.
fn environment(service: &Service) -> Result<BTreeMap<OsString, OsString>, Unusable> {
    let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os()
        .filter(|(name, _)| !OF_THE_SUPERVISOR_ALONE.iter().any(|own| name == own))
        .collect();
    for (name, value) in &service.environment {
        environment.insert(name.into(), value.into());
    }
    if let Some(file) = &service.env_file {
        let path = working_directory(Some(file))?;
        let about = |reason: String| unusable(format!("env_file {}: {reason}", path.display()));
        let mut text = Vec::new();
        let opened = File::open(&path).map_err(|error| about(error.to_string()))?;
        opened
            .take(LARGEST_ENV_FILE_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|error| about(error.to_string()))?;
        if text.len() as u64 > LARGEST_ENV_FILE_BYTES {
            return Err(about(format!(
                "it has more than {LARGEST_ENV_FILE_BYTES} bytes"
            )));
        }
        for (name, value) in parse_env_file(&text).map_err(about)? {
            environment.insert(name, value);
        }
    }
    Ok(environment)
}

/// `NAME=VALUE` lines; blank lines and those that begin with `#` or `;` are passed over, quotes
/// around a value are taken off. A subset of what systemd's `EnvironmentFile=` reads.
fn parse_env_file(text: &[u8]) -> Result<Vec<(OsString, OsString)>, String> {
    let mut variables = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") || line.starts_with(b";") {
            continue;
        }
        let bad = |reason: &str| format!("line {}: {reason}", index + 1);
        let equals = line.iter().position(|byte| *byte == b'=');
        let Some(equals) = equals else {
            return Err(bad("it is not NAME=VALUE"));
        };
        let name = line[..equals].trim_ascii();
        let fine = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        if name.is_empty() || !name.iter().all(fine) || name[0].is_ascii_digit() {
            return Err(bad("a variable's name is letters, digits and _"));
        }
        let value = unquote(line[equals + 1..].trim_ascii());
        if value.contains(&0) {
            return Err(bad("a value cannot contain a NUL"));
        }
        variables.push((
            OsString::from_vec(name.to_vec()),
            OsString::from_vec(value.to_vec()),
        ));
    }
    Ok(variables)
}

fn unquote(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner,
        bare => bare,
    }
}

fn user(service: &Service) -> Result<Option<Identity>, Unusable> {
    let group = match &service.group {
        None => None,
        Some(name) => Some(
            Group::from_name(name)
                .map_err(|error| unusable(format!("group {name}: {error}")))?
                .ok_or_else(|| unusable(format!("there is no group {name}")))?
                .gid,
        ),
    };
    let Some(name) = &service.user else {
        return match group {
            None => Ok(None),
            Some(_) => Err(unusable("group without user: set both")),
        };
    };
    let user = User::from_name(name)
        .map_err(|error| unusable(format!("user {name}: {error}")))?
        .ok_or_else(|| unusable(format!("there is no user {name}")))?;
    let own = nix::unistd::geteuid();
    if !own.is_root() && own != user.uid {
        return Err(unusable(format!(
            "only root can run a service as {name}; drop `user`"
        )));
    }
    if !own.is_root() {
        return Ok(None);
    }
    let gid = group.unwrap_or(user.gid);
    let plain = CString::new(name.as_str()).map_err(|_| unusable("a user name with a NUL"))?;
    let groups = getgrouplist(&plain, gid)
        .map_err(|error| unusable(format!("groups of {name}: {error}")))?;
    Ok(Some(Identity {
        user: user.uid.as_raw(),
        group: gid.as_raw(),
        groups: groups.iter().map(|gid| gid.as_raw()).collect(),
    }))
}

fn home_of(service: &Service) -> Option<OsString> {
    let user = User::from_name(service.user.as_deref()?).ok()??;
    Some(user.dir.into_os_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn executable(path: &Path, content: &[u8]) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn service(program: &Path) -> Service {
        Service {
            command: vec![program.to_str().unwrap().to_owned()],
            ..Service::default()
        }
    }

    #[test]
    fn a_binary_cut_anywhere_is_seen_to_be_unfinished() {
        let directory = tempfile::tempdir().unwrap();
        let whole = fs::read("/proc/self/exe").unwrap();
        let path = directory.path().join("program");
        for part in [0, 3, 40, 63, 64, 4096, whole.len() / 2, whole.len() - 1] {
            executable(&path, &whole[..part]);
            let error = look_up(&service(&path)).unwrap_err();
            assert!(error.passing || part == 3, "{part}: {error}");
        }
        executable(&path, &whole);
        look_up(&service(&path)).unwrap();
    }

    #[test]
    fn what_cannot_be_a_program_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        let reason = |path: &Path| look_up(&service(path)).unwrap_err().to_string();
        assert!(reason(&path).contains("No such file"));
        assert!(reason(directory.path()).contains("directory"));
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(reason(&path).contains("chmod +x"));
        executable(&path, b"hello");
        assert!(reason(&path).contains("neither"));
        let missing = Service {
            command: vec!["no-such-program-here".to_owned()],
            ..Service::default()
        };
        assert!(
            look_up(&missing)
                .unwrap_err()
                .to_string()
                .contains("in PATH")
        );
    }

    #[test]
    fn a_script_outlives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("script");
        executable(&path, b"#!/bin/sh\nexit 0\n");
        let plan = look_up(&service(&path)).unwrap();
        assert!(matches!(plan.program().unwrap(), Program::Path(_)));
        fs::remove_file(&path).unwrap();
        assert!(matches!(plan.program().unwrap(), Program::Script(_)));
    }

    #[test]
    fn an_environment_file_is_read_as_people_write_it() {
        let text = b"# comment\n\nA=1\n B = two words \nC=\"quoted\"\nD='single'\nE=\n";
        let read = parse_env_file(text).unwrap();
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "quoted"),
            ("D", "single"),
            ("E", ""),
        ];
        let expected: Vec<(OsString, OsString)> = expected
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        assert_eq!(read, expected);
        assert_eq!(
            parse_env_file(b"A=1\nnonsense").unwrap_err(),
            "line 2: it is not NAME=VALUE"
        );
        assert!(parse_env_file(b"2A=1").is_err());
    }

    #[test]
    fn the_length_of_a_binary_is_in_its_header() {
        assert_eq!(elf_length(b"\x7fELF"), None);
        let mut head = [0_u8; 64];
        head[4] = 2;
        head[5] = 1;
        head[40..48].copy_from_slice(&1000_u64.to_le_bytes());
        head[58..60].copy_from_slice(&64_u16.to_le_bytes());
        head[60..62].copy_from_slice(&10_u16.to_le_bytes());
        assert_eq!(elf_length(&head), Some(1640));
        head[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(elf_length(&head), None);
    }
}
