//! The sockets a supervisor holds for a service.
//!
//! Owns binding them and the rule by which a listener of one handover is the same as one before; what
//! systemd passes is [`inherited`]'s, what a record lists [`returning`]'s. A [`Listener`] is shared by whoever needs it and closed when
//! nobody does: giving up a set that was prepared undoes all that was bound for it.

mod inherited;
mod returning;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{self, Backlog};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::config::listen::{Address, ListenSpec, Options, UnixName, join};
use crate::control::place::{bind_replacing, inode_of};
use crate::daemon::record::{self, Handle, Held};
pub(crate) use inherited::Inherited;
pub(crate) use returning::Returning;

/// The mode of a unix socket that was given none: a service's clients are seldom of its own user.
const DEFAULT_MODE: u32 = 0o666;

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Listener {
    /// One socket has one, however often it is listed.
    handle: Handle,
    pub(crate) spec: ListenSpec,
    pub(crate) fd: OwnedFd,
    /// Where it is bound, as notation, with the real port.
    pub(crate) bound: String,
    /// The address as `SERVER_STARTER_PORT` names it.
    pub(crate) starter_key: String,
    /// The socket's inode, by which a process that waits on it is known.
    pub(crate) inode: u64,
    path: Option<Arc<SocketPath>>,
}

/// The path of a unix socket, removed with its last listener if it still leads to it.
#[derive(Debug)]
struct SocketPath {
    path: PathBuf,
    inode: (u64, u64),
    /// Not while a supervisor only tries to take it over: should that fail, programs serve on behind the
    /// path, and another supervisor takes both over.
    goes_with_us: AtomicBool,
}

impl SocketPath {
    fn new(path: PathBuf, inode: (u64, u64), goes_with_us: bool) -> Arc<Self> {
        Arc::new(Self {
            path,
            inode,
            goes_with_us: AtomicBool::new(goes_with_us),
        })
    }

    fn is_ours(&self) -> bool {
        inode_of(&self.path).is_ok_and(|there| there == self.inode)
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        // A supervisor that panics leaves its programs behind as well.
        let goes = self.goes_with_us.load(Ordering::Relaxed) && !std::thread::panicking();
        if goes && self.is_ours() {
            // Whoever comes next replaces a path that nobody answers on.
            let _left_behind = std::fs::remove_file(&self.path);
        }
    }
}

/// The listeners of one service, in the order it inherits them.
pub(crate) type Set = Vec<Arc<Listener>>;

/// Why a set could not be prepared; nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[error("listener {spec}: {reason}")]
pub(crate) struct CannotListen {
    spec: String,
    reason: String,
}

/// Makes the set for `specs`, taking from `before` what stays the same.
///
/// # Errors
///
/// [`CannotListen`]; everything bound on the way is closed again.
pub(crate) fn prepare(
    specs: &[ListenSpec],
    before: &Set,
    inherited: &Inherited,
) -> Result<Set, CannotListen> {
    let mut set = Set::new();
    for spec in specs {
        let same_name = before.iter().find(|old| old.spec.name == spec.name);
        let kept = same_name
            .filter(|old| old.spec.address == spec.address)
            .or_else(|| {
                // The same address under a name it did not have: the socket goes on.
                let renamed = |old: &&Arc<Listener>| {
                    old.spec.address == spec.address
                        && !spec.has_port_zero()
                        && !specs.iter().any(|other| other.name == old.spec.name)
                };
                before.iter().find(renamed)
            });
        let listener = match kept {
            Some(old) if old.spec == *spec => Ok(Arc::clone(old)),
            Some(old) => old.with(spec),
            // Nobody uses it yet.
            None => Listener::bind(spec, before, inherited).and_then(|listener| {
                listener.apply_nonblocking()?;
                Ok(listener)
            }),
        }
        .map_err(|error| CannotListen {
            spec: spec.to_string(),
            reason: explain(&error, spec),
        })?;
        set.push(listener);
    }
    Ok(set)
}

fn explain(error: &io::Error, spec: &ListenSpec) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => match &spec.address {
            Address::Tcp { host, .. } if host == "0.0.0.0" || host == "::" => {
                " (somebody else listens there; a dual-stack [::] also takes IPv4 unless ,v6only=true)"
            }
            Address::Tcp { .. }
            | Address::Udp { .. }
            | Address::Unix(_)
            | Address::UnixSeqpacket(_)
            | Address::Inherited(_) => " (somebody else listens there)",
        },
        io::ErrorKind::PermissionDenied => {
            " (a port below 1024 needs root or CAP_NET_BIND_SERVICE; or let systemd pass the socket)"
        }
        _other => "",
    };
    format!("{error}{hint}")
}

impl Listener {
    fn bind(spec: &ListenSpec, before: &Set, inherited: &Inherited) -> io::Result<Arc<Self>> {
        if let Some(passed) = inherited.matching(spec) {
            return passed.with(spec);
        }
        match &spec.address {
            Address::Tcp { host, port } => {
                let address = resolve(host, *port)?;
                let domain = Domain::for_address(address);
                let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
                // A port with connections in TIME_WAIT is free for a listener.
                socket.set_reuse_address(true)?;
                set_v6only(&socket, address, spec.options)?;
                beside(address, before, &socket, || {
                    socket.bind(&address.into())?;
                    listen(&socket, spec.options)
                })?;
                Self::internet(spec, socket.into(), "tcp")
            }
            Address::Udp { host, port } => {
                let address = resolve(host, *port)?;
                let domain = Domain::for_address(address);
                let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
                set_v6only(&socket, address, spec.options)?;
                beside(address, before, &socket, || socket.bind(&address.into()))?;
                Self::internet(spec, socket.into(), "udp")
            }
            Address::Unix(name) => Self::unix(spec, name, Type::STREAM),
            Address::UnixSeqpacket(name) => Self::unix(spec, name, Type::SEQPACKET),
            Address::Inherited(name) => inherited.named(name)?.with(spec),
        }
    }

    fn internet(spec: &ListenSpec, fd: OwnedFd, scheme: &str) -> io::Result<Arc<Self>> {
        let address = socket2::SockRef::from(&fd).local_addr()?;
        let address = address.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let key = join(&address.ip().to_string(), address.port());
        Self::new(spec, fd, format!("{scheme}:{key}"), key, None)
    }

    fn unix(spec: &ListenSpec, name: &UnixName, kind: Type) -> io::Result<Arc<Self>> {
        let open = |address: &SockAddr| -> io::Result<OwnedFd> {
            let socket = Socket::new(Domain::UNIX, kind, None)?;
            socket.bind(address)?;
            listen(&socket, spec.options)?;
            Ok(socket.into())
        };
        match name {
            UnixName::Abstract(name) => {
                // std and socket2 know an abstract name by its leading NUL.
                let fd = open(&SockAddr::unix(format!("\0{name}"))?)?;
                Self::new(spec, fd, spec.address.to_string(), format!("@{name}"), None)
            }
            UnixName::Path(path) => {
                let path = std::path::absolute(path)?;
                let mode = spec.options.mode.unwrap_or(DEFAULT_MODE);
                let fd = bind_replacing(&path, mode, |first| open(&SockAddr::unix(first)?))?;
                let inode = inode_of(&path)?;
                let bound = format!("{}:{}", unix_scheme(kind), path.display());
                let key = path.display().to_string();
                let place = SocketPath::new(path, inode, true);
                Self::new(spec, fd, bound, key, Some(place))
            }
        }
    }

    /// A socket that systemd passed: what it is must be found out, and that it can be used.
    fn inherited(name: &str, fd: OwnedFd) -> io::Result<Self> {
        let wrong = |what: &str| {
            let text = format!("the descriptor systemd passed as {name} {what}");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let socket = socket2::SockRef::from(&fd);
        let kind = socket.r#type().map_err(|_| wrong("is not a socket"))?;
        if kind != Type::DGRAM && !socket.is_listener()? {
            return Err(wrong("is a socket that does not listen"));
        }
        socket.set_cloexec(true)?;
        let local = socket.local_addr()?;
        let (bound, key) = match (local.as_socket(), local.as_pathname()) {
            (Some(address), _) => {
                let key = join(&address.ip().to_string(), address.port());
                let scheme = if kind == Type::DGRAM { "udp" } else { "tcp" };
                (format!("{scheme}:{key}"), key)
            }
            (None, Some(path)) => (
                format!("{}:{}", unix_scheme(kind), path.display()),
                path.display().to_string(),
            ),
            (None, None) => match local.as_abstract_namespace() {
                Some(name) => {
                    let name = String::from_utf8_lossy(name);
                    (format!("{}:@{name}", unix_scheme(kind)), format!("@{name}"))
                }
                None => (format!("fd:{name}"), format!("fd:{name}")),
            },
        };
        let spec = ListenSpec {
            name: name.to_owned(),
            address: Address::Inherited(name.to_owned()),
            options: Options::default(),
        };
        let inode = nix::sys::stat::fstat(&fd)?.st_ino;
        Ok(Self {
            handle: Handle::new(),
            spec,
            fd,
            bound,
            starter_key: key,
            inode,
            path: None,
        })
    }

    fn new(
        spec: &ListenSpec,
        fd: OwnedFd,
        bound: String,
        starter_key: String,
        path: Option<Arc<SocketPath>>,
    ) -> io::Result<Arc<Self>> {
        let inode = nix::sys::stat::fstat(&fd)?.st_ino;
        Ok(Arc::new(Self {
            handle: Handle::new(),
            spec: spec.clone(),
            fd,
            bound,
            starter_key,
            inode,
            path,
        }))
    }

    /// The same socket under another name or with other options, as far as those can change.
    fn with(self: &Arc<Self>, spec: &ListenSpec) -> io::Result<Arc<Self>> {
        if self.spec.options.v6only != spec.options.v6only {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "v6only of a bound socket cannot change; give the listener another address, or restart",
            ));
        }
        Ok(Arc::new(Self {
            handle: self.handle,
            spec: spec.clone(),
            fd: self.fd.try_clone()?,
            bound: self.bound.clone(),
            starter_key: self.starter_key.clone(),
            inode: self.inode,
            path: self.path.clone(),
        }))
    }

    /// What the record says of it.
    pub(crate) fn record<'a>(&'a self, held: &mut Held<'a>) -> record::Listener {
        record::Listener {
            handle: held.hold(self.handle, self.fd.as_fd()),
            spec: self.spec.clone(),
            bound: self.bound.clone(),
            starter_key: self.starter_key.clone(),
            inode: self.inode,
            path: self
                .path
                .as_ref()
                .map(|place| (place.path.clone(), place.inode)),
        }
    }

    /// Brings the options into force that can change on a bound socket. Called once a set is the
    /// one that counts, so that a failed handover has changed nothing.
    pub(crate) fn apply_options(&self) -> io::Result<()> {
        self.apply_nonblocking()?;
        let socket = socket2::SockRef::from(&self.fd);
        if self.spec.options.backlog.is_some() && socket.r#type()? != Type::DGRAM {
            // Listening again changes the length of the queue and nothing else.
            listen(&self.fd, self.spec.options)?;
        }
        if let Some(place) = self.path.as_ref().filter(|place| place.is_ours()) {
            let mode = self.spec.options.mode.unwrap_or(DEFAULT_MODE);
            std::fs::set_permissions(&place.path, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// The flag is one for all who have the socket, so it is touched only if asked for.
    fn apply_nonblocking(&self) -> io::Result<()> {
        match self.spec.options.nonblocking {
            Some(wanted) => socket2::SockRef::from(&self.fd).set_nonblocking(wanted),
            None => Ok(()),
        }
    }

    /// Whether calls on the socket wait. Every process that has the socket can change it for all.
    pub(crate) fn is_nonblocking(&self) -> io::Result<bool> {
        socket2::SockRef::from(&self.fd).nonblocking()
    }

    /// Undoes what a process has changed that is not to count.
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        socket2::SockRef::from(&self.fd).set_nonblocking(nonblocking)
    }

    /// How many connections wait to be accepted, where the system tells.
    pub(crate) fn queued(&self) -> Option<u32> {
        if self.bound.starts_with("tcp:") {
            crate::sys::queued(self.fd.as_fd())
        } else {
            None
        }
    }
}

/// How the notation calls a unix socket of this kind.
fn unix_scheme(kind: Type) -> &'static str {
    match kind {
        Type::SEQPACKET => "unix-seqpacket",
        Type::DGRAM => "unix-dgram",
        _stream => "unix",
    }
}

fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    (host, port)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))
}

fn set_v6only(socket: &Socket, address: SocketAddr, options: Options) -> io::Result<()> {
    match (address, options.v6only) {
        (SocketAddr::V6(_), wanted) => socket.set_only_v6(wanted.unwrap_or(false)),
        (SocketAddr::V4(_), None | Some(false)) => Ok(()),
        (SocketAddr::V4(_), Some(true)) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "v6only=true on an IPv4 address",
        )),
    }
}

fn listen(socket: &impl AsFd, options: Options) -> io::Result<()> {
    let backlog = match options.backlog {
        Some(wanted) => Backlog::new(i32::try_from(wanted).unwrap_or(i32::MAX))?,
        // The system's limit: net.core.somaxconn.
        None => Backlog::MAXALLOWABLE,
    };
    Ok(socket::listen(socket, backlog)?)
}

/// Binds, also where only our own listener of before stands in the way: a wildcard that becomes a
/// specific address, or the other way round. Both must allow it, and only meanwhile; what connects
/// goes to the more specific one.
fn beside(
    address: SocketAddr,
    before: &Set,
    socket: &Socket,
    bind: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let error = match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        settled => return settled,
    };
    let same_port = |listener: &&Arc<Listener>| {
        let local = socket2::SockRef::from(&listener.fd).local_addr();
        let local = local.ok().and_then(|local| local.as_socket());
        local.is_some_and(|local| local.port() == address.port() && local.ip() != address.ip())
    };
    let ours: Vec<&Arc<Listener>> = before.iter().filter(same_port).collect();
    if ours.is_empty() {
        return Err(error);
    }
    let allow = |allowed: bool| -> io::Result<()> {
        for listener in &ours {
            socket2::SockRef::from(&listener.fd).set_reuse_port(allowed)?;
        }
        Ok(())
    };
    allow(true)?;
    socket.set_reuse_port(true)?;
    let bound = bind();
    socket.set_reuse_port(false)?;
    allow(false)?;
    bound
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use crate::daemon::record::handles::Found;

    fn specs(texts: &[&str]) -> Vec<ListenSpec> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn set(texts: &[&str], before: &Set) -> Result<Set, String> {
        prepare(&specs(texts), before, &Inherited::default()).map_err(|error| error.to_string())
    }

    fn port(listener: &Listener) -> u16 {
        listener.bound.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    #[test]
    fn a_listener_is_the_same_by_its_name_and_port_zero_keeps_its_port() {
        let first = set(&["http=127.0.0.1:0"], &Vec::new()).unwrap();
        let again = set(&["http=127.0.0.1:0", "other=127.0.0.1:0"], &first).unwrap();
        assert_eq!(again[0].bound, first[0].bound);
        assert_eq!(again[0].inode, first[0].inode);
        assert_ne!(again[1].inode, first[0].inode);
        let renamed = set(&["web=127.0.0.1:0"], &first).unwrap();
        assert_ne!(
            renamed[0].inode, first[0].inode,
            "another name is another port 0"
        );
    }

    #[test]
    fn a_named_address_may_take_another_name() {
        let free = set(&["x=127.0.0.1:0"], &Vec::new()).unwrap();
        let port = port(&free[0]);
        drop(free);
        let first = set(&[&format!("a=127.0.0.1:{port}")], &Vec::new()).unwrap();
        let second = set(&[&format!("b=127.0.0.1:{port}")], &first).unwrap();
        assert_eq!(second[0].inode, first[0].inode);
        assert_eq!(second[0].spec.name, "b");
    }

    #[test]
    fn a_path_outlives_a_supervisor_that_fails_to_take_it_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let bound = set(&[&format!("u=unix:{}", path.display())], &Vec::new()).unwrap();
        let mut held = Held::for_(record::handles::Purpose::Pass);
        let listed = [bound[0].record(&mut held)];
        drop(held);
        let taken_over = |returning: &mut Returning| {
            let mut found = Found::default();
            found.insert(listed[0].handle, bound[0].fd.try_clone().unwrap());
            returning.set(&listed, &mut found).unwrap()
        };
        let mut failing = Returning::default();
        drop(taken_over(&mut failing));
        drop(failing);
        assert!(path.exists());
        let mut returning = Returning::default();
        let again = taken_over(&mut returning);
        returning.were_taken_over();
        drop((again, returning));
        assert!(!path.exists(), "it goes with the service that is stopped");
    }

    #[test]
    fn a_failed_set_leaves_nothing_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let unix = format!("u=unix:{}", path.display());
        let blocked = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let busy = format!("t=127.0.0.1:{}", blocked.local_addr().unwrap().port());
        let error = set(&[&unix, &busy], &Vec::new()).unwrap_err();
        assert!(error.contains("somebody else listens there"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_wildcard_becomes_specific_and_back_without_closing_first() {
        let wildcard = set(&["http=0.0.0.0:0"], &Vec::new()).unwrap();
        let port = port(&wildcard[0]);
        let specific = set(&[&format!("http=127.0.0.1:{port}")], &wildcard).unwrap();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        drop(wildcard);
        let back = set(&[&format!("http=0.0.0.0:{port}")], &specific).unwrap();
        drop(specific);
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(
            set(&[&format!("x=0.0.0.0:{port}")], &Vec::new()).is_err(),
            "not for strangers"
        );
        drop(back);
    }

    #[test]
    fn both_stacks_and_one_alone() {
        let dual = set(&["http=[::]:0"], &Vec::new()).unwrap();
        TcpStream::connect(("127.0.0.1", port(&dual[0]))).unwrap();
        TcpStream::connect(("::1", port(&dual[0]))).unwrap();
        let six = set(&["http=[::]:0,v6only=true"], &Vec::new()).unwrap();
        TcpStream::connect(("127.0.0.1", port(&six[0]))).unwrap_err();
        let both = format!("four=0.0.0.0:{}", port(&six[0]));
        let both = set(&[&both], &six).unwrap();
        TcpStream::connect(("127.0.0.1", port(&both[0]))).unwrap();
        let error = set(&["http=[::]:0"], &six).unwrap_err();
        assert!(
            error.contains("v6only of a bound socket cannot change"),
            "{error}"
        );
    }

    #[test]
    fn unix_sockets_of_every_kind_and_their_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let stream = format!("s=unix:{},mode=600", path.display());
        let seqpacket = format!("q=unix-seqpacket:{}", directory.path().join("q").display());
        let name = format!("n=unix:@heirloom-test-{}", std::process::id());
        let first = set(&[&stream, &seqpacket, &name], &Vec::new()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(
            set(&[&name], &Vec::new()).is_err(),
            "an abstract name is taken"
        );
        let wider = set(&[&format!("s=unix:{},mode=660", path.display())], &first).unwrap();
        assert_eq!(mode(&path), 0o600, "not before it counts");
        wider[0].apply_options().unwrap();
        assert_eq!(mode(&path), 0o660);
        drop(first);
        UnixStream::connect(&path).unwrap();
        assert_eq!(wider.len(), 1);
    }

    #[test]
    fn waiting_in_accept_is_the_programs_matter_unless_asked_for() {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let waits = |set: &Set| {
            let flags = fcntl(&set[0].fd, FcntlArg::F_GETFL).unwrap();
            !OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK)
        };
        let first = set(&["http=127.0.0.1:0"], &Vec::new()).unwrap();
        assert!(waits(&first));
        let second = set(&["http=127.0.0.1:0,nonblocking=true"], &first).unwrap();
        assert!(waits(&first), "not before it counts");
        second[0].apply_options().unwrap();
        assert!(!waits(&first), "one socket, one flag");
        set(&["http=127.0.0.1:0"], &second).unwrap()[0]
            .apply_options()
            .unwrap();
        assert!(!waits(&second), "left alone");
        let fresh = set(&["x=127.0.0.1:0,nonblocking=true"], &Vec::new()).unwrap();
        assert!(!waits(&fresh));
    }

    #[test]
    fn the_queue_of_a_tcp_listener_is_counted() {
        let set = set(&["http=127.0.0.1:0"], &Vec::new()).unwrap();
        assert_eq!(set[0].queued(), Some(0));
        let _one = TcpStream::connect(("127.0.0.1", port(&set[0]))).unwrap();
        let _two = TcpStream::connect(("127.0.0.1", port(&set[0]))).unwrap();
        assert_eq!(set[0].queued(), Some(2));
    }
}
