//! Where a supervisor's control socket is.
//!
//! Owns the rule that turns a name into a path, finding the one supervisor that runs when no name
//! is given, and binding so that a second supervisor of the same name leaves the first alone.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::stat::{Mode, umask};
use nix::unistd::getuid;

/// How a client or a supervisor was told where to look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// `--control`.
    pub(crate) path: Option<PathBuf>,
    /// `--name`.
    pub(crate) name: Option<String>,
}

/// Why no supervisor can be reached, or none can be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    /// Nothing answers there.
    #[error("no supervisor answers at {}: {error}", path.display())]
    Silent { path: PathBuf, error: io::Error },
    /// None is running that this user could reach.
    #[error("no supervisor is running (looked in {0})")]
    None(String),
    /// Several are running.
    #[error("several supervisors are running: {0}; say which with --name or --control")]
    Several(String),
}

/// The directory that holds the control sockets of this user's supervisors.
fn directory() -> PathBuf {
    if getuid().is_root() {
        return PathBuf::from("/run/heirloom");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
        Some(runtime) => PathBuf::from(runtime).join("heirloom"),
        None => shared_fallback(),
    }
}

/// Where sockets go without a runtime directory: beside what other users make, so it is looked at
/// closely before it is used.
fn shared_fallback() -> PathBuf {
    std::env::temp_dir().join(format!("heirloom-{}", getuid()))
}

/// Makes the fallback directory, or refuses one that is not this user's alone.
fn claim_fallback(directory: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let metadata = fs::symlink_metadata(directory)?;
    let own = metadata.is_dir() && metadata.uid() == getuid().as_raw();
    if own && metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    let reason = format!(
        "{} is not a directory of this user alone",
        directory.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

/// systemd makes one directory a unit and names it to every command of the unit.
fn of_the_unit() -> Option<PathBuf> {
    let directories = std::env::var_os("RUNTIME_DIRECTORY")?;
    let first = directories
        .to_str()?
        .split(':')
        .next()
        .filter(|first| !first.is_empty())?;
    Some(Path::new(first).join("control.sock"))
}

/// Where the supervisor of this name binds.
pub(crate) fn of_supervisor(wanted: &Wanted, name: &str) -> PathBuf {
    match &wanted.path {
        Some(path) => path.clone(),
        None => of_the_unit().unwrap_or_else(|| directory().join(format!("{name}.sock"))),
    }
}

/// Connects to the supervisor that was asked for, or to the only one there is.
///
/// # Errors
///
/// [`Unreachable`].
pub(crate) fn connect(wanted: &Wanted) -> Result<UnixStream, Unreachable> {
    let unit = of_the_unit().filter(|path| path.exists());
    let path = match (&wanted.path, &wanted.name, unit) {
        (Some(path), _, _) => path.clone(),
        (None, Some(_), Some(unit)) => unit,
        (None, Some(name), None) => {
            let [own, of_unit] = by_name(&directory(), name);
            if own.exists() || !of_unit.exists() {
                own
            } else {
                of_unit
            }
        }
        (None, None, Some(unit)) => unit,
        (None, None, None) => return connect_to_only_one(&directory()),
    };
    connect_to_own(&path).map_err(|error| Unreachable::Silent { path, error })
}

/// Connects to a supervisor that another user cannot have put there.
fn connect_to_own(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    let peer = getsockopt(&stream, PeerCredentials)?.uid();
    if peer == 0 || peer == getuid().as_raw() || getuid().is_root() {
        return Ok(stream);
    }
    let reason = format!("it belongs to user {peer}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

/// Where a supervisor of this name may be: one started by hand, and one whose unit has
/// `RuntimeDirectory=heirloom/NAME`.
fn by_name(directory: &Path, name: &str) -> [PathBuf; 2] {
    [
        directory.join(format!("{name}.sock")),
        directory.join(name).join("control.sock"),
    ]
}

fn connect_to_only_one(directory: &Path) -> Result<UnixStream, Unreachable> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(name) = path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
        else {
            continue;
        };
        let socket = match path.extension() {
            Some(ending) if ending == "sock" => path,
            Some(_) | None => path.join("control.sock"),
        };
        if let Ok(stream) = connect_to_own(&socket) {
            found.push((name, stream));
        }
    }
    match found.len() {
        0 => Err(Unreachable::None(directory.display().to_string())),
        1 => Ok(found.swap_remove(0).1),
        _ => {
            let mut names: Vec<String> = found.into_iter().map(|(name, _)| name).collect();
            names.sort();
            Err(Unreachable::Several(names.join(", ")))
        }
    }
}

/// A bound control socket; its path goes with it, if it is still the one that was bound.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if inode_of(&self.path).is_ok_and(|inode| inode == self.inode) {
            // Whoever comes next replaces a path that nobody answers on.
            let _left_behind = fs::remove_file(&self.path);
        }
    }
}

impl ControlSocket {
    /// Binds the socket with mode 0600, replacing one that nobody answers on.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if a supervisor answers there; otherwise the system's error.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent().filter(|parent| *parent == shared_fallback()) {
            claim_fallback(directory)?;
        }
        let listener = bind_replacing(path, 0o600, |path| UnixListener::bind(path))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode: inode_of(path)?,
        })
    }

    /// Goes on with a socket that a predecessor has bound.
    pub(crate) fn resume(listener: UnixListener, path: PathBuf, inode: (u64, u64)) -> Self {
        Self {
            listener,
            path,
            inode,
        }
    }

    /// Where it is bound, and what that led to.
    pub(crate) fn place(&self) -> (&Path, (u64, u64)) {
        (&self.path, self.inode)
    }
}

/// The identity of what a path leads to.
pub(crate) fn inode_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Binds a unix socket at `path` so that at no instant the path is missing or leads to a socket
/// nobody answers on: it is bound under another name beside it and renamed over it. A path on which
/// somebody answers, and anything that is not a socket, is left alone.
///
/// # Errors
///
/// `AddrInUse` with the reason if the path is taken; otherwise the system's error.
pub(crate) fn bind_replacing<T>(
    path: &Path,
    mode: u32,
    bind: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)?;
    // Two that start at once must not both find the path free. The lock goes with the descriptor.
    let lock = lock_for_a_moment(parent)?;
    let stale = !is_free(path)?;
    // A socket remembers the path it was bound to, so the detour is for the stale case alone.
    let first = match stale {
        true => parent.join(format!(".hl-{:x}", std::process::id())),
        false => path.to_owned(),
    };
    if stale
        && let Err(error) = fs::remove_file(&first)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    // It is made with its mode. To change that later would mean to trust that the path still leads to it.
    let before = umask(Mode::from_bits_truncate(0o777 & !mode));
    let bound = bind(&first);
    umask(before);
    let bound = bound?;
    if stale && let Err(error) = fs::rename(&first, path) {
        let _first_error_counts = fs::remove_file(&first);
        return Err(error);
    }
    drop(lock);
    Ok(bound)
}

/// How often, and how far apart, a lock is tried: whoever holds it must not hold up a supervisor.
const LOCK_TRIES: u32 = 20;
const LOCK_TRY_EVERY: Duration = Duration::from_millis(5);

fn lock_for_a_moment(directory: &Path) -> io::Result<Flock<fs::File>> {
    let mut file = fs::File::open(directory)?;
    for _ in 0..LOCK_TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(errno.into()),
        }
        std::thread::sleep(LOCK_TRY_EVERY);
    }
    let reason = format!("{} is locked by somebody", directory.display());
    Err(io::Error::new(io::ErrorKind::WouldBlock, reason))
}

/// Whether nothing is at the path; an error if what is there must stay.
fn is_free(path: &Path) -> io::Result<bool> {
    let taken = |reason: &str| {
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("{}: {reason}", path.display()),
        ))
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            taken("it exists and is not a socket; move it away")
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => taken("somebody answers on it"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
            // A socket of another type refuses a stream with EPROTOTYPE, alive or not.
            Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
                if seqpacket_answers(path) {
                    taken("somebody answers on it")
                } else {
                    Ok(false)
                }
            }
            Err(error) => Err(error),
        },
    }
}

fn seqpacket_answers(path: &Path) -> bool {
    let connect = || -> io::Result<()> {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)?;
        socket.connect(&socket2::SockAddr::unix(path)?)
    };
    connect().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_supervisor_leaves_the_first_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/shop.sock");
        let first = ControlSocket::bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = ControlSocket::bind(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_path_is_replaced_and_never_unlinked_by_the_loser() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.sock");
        drop(UnixListener::bind(&path).unwrap());
        let stale = inode_of(&path).unwrap();
        let first = ControlSocket::bind(&path).unwrap();
        assert_ne!(inode_of(&path).unwrap(), stale);
        // Somebody else takes the path: the first one's end must not remove it.
        fs::remove_file(&path).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.sock");
        fs::write(&path, "precious").unwrap();
        let error = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_only_one_that_answers_is_found() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            connect_to_only_one(directory.path()),
            Err(Unreachable::None(_))
        ));
        drop(UnixListener::bind(directory.path().join("stale.sock")).unwrap());
        let _one = UnixListener::bind(directory.path().join("one.sock")).unwrap();
        connect_to_only_one(directory.path()).unwrap();
        let unit = directory.path().join("two");
        fs::create_dir(&unit).unwrap();
        let _two = UnixListener::bind(unit.join("control.sock")).unwrap();
        match connect_to_only_one(directory.path()) {
            Err(Unreachable::Several(names)) => assert_eq!(names, "one, two"),
            other => panic!("{other:?}"),
        }
    }
}
