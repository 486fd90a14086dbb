//! One listening stream socket: what it is, and that it really is one.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixSocketAddr, UnixListener},
    },
};

use socket2::{Domain, SockRef, Type};

/// A bound and listening stream socket, TCP or Unix, with the name it was given.
///
/// The socket may be shared with other generations: it is accepted from, never configured, apart
/// from O_NONBLOCK, which serving sets.
#[derive(Debug)]
pub struct Listener {
    name: String,
    socket: Socket,
}

/// The socket itself, by family.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What a descriptor is that should have been a listening stream socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ListeningTcp,
    ListeningUnix,
    /// Anything else, in words.
    Other(&'static str),
}

impl Kind {
    /// Asks the kernel what `descriptor` is.
    pub(super) fn of(descriptor: &OwnedFd) -> Self {
        let socket = SockRef::from(descriptor);
        let (Ok(domain), Ok(kind)) = (socket.domain(), socket.r#type()) else {
            return Self::Other("not a socket");
        };
        if kind == Type::DGRAM {
            return Self::Other("a datagram socket");
        }
        if kind == Type::SEQPACKET {
            return Self::Other("a seqpacket socket");
        }
        if kind != Type::STREAM {
            return Self::Other("a socket of a type other than stream");
        }
        // A stray connected socket at fd 3 must not be taken for a listener (SO_ACCEPTCONN).
        if !socket.is_listener().unwrap_or(false) {
            return Self::Other("a stream socket that is not listening");
        }
        if domain == Domain::IPV4 || domain == Domain::IPV6 {
            Self::ListeningTcp
        } else if domain == Domain::UNIX {
            Self::ListeningUnix
        } else {
            Self::Other("a listening socket of a family other than IPv4, IPv6 and Unix")
        }
    }
}

impl Listener {
    /// Binds and listens on a TCP address, for a process that inherited nothing.
    ///
    /// # Errors
    ///
    /// The system's, if the address cannot be bound.
    pub fn bind_tcp(name: &str, address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            socket: Socket::Tcp(TcpListener::bind(address)?),
        })
    }

    /// Wraps an inherited descriptor, or gives it back together with what it really is.
    pub(crate) fn from_descriptor(
        name: String,
        descriptor: OwnedFd,
    ) -> Result<Self, (OwnedFd, &'static str)> {
        let socket = match Kind::of(&descriptor) {
            Kind::ListeningTcp => Socket::Tcp(TcpListener::from(descriptor)),
            Kind::ListeningUnix => Socket::Unix(UnixListener::from(descriptor)),
            Kind::Other(what) => return Err((descriptor, what)),
        };
        Ok(Self { name, socket })
    }

    /// The name the supervisor, or the caller, gave it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bound TCP address; none for a Unix socket.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(socket) => socket.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    pub(crate) fn into_socket(self) -> Socket {
        self.socket
    }
}

/// The address in the form of the supervisor's `--listen`: `http=tcp:127.0.0.1:8080`.
impl fmt::Display for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}=", self.name)?;
        match &self.socket {
            Socket::Tcp(socket) => match socket.local_addr() {
                Ok(address) => write!(formatter, "tcp:{address}"),
                Err(_) => formatter.write_str("tcp:?"),
            },
            Socket::Unix(socket) => match socket.local_addr() {
                Ok(address) => write_unix(formatter, &address),
                Err(_) => formatter.write_str("unix:?"),
            },
        }
    }
}

fn write_unix(formatter: &mut fmt::Formatter<'_>, address: &UnixSocketAddr) -> fmt::Result {
    if let Some(path) = address.as_pathname() {
        write!(formatter, "unix:{}", path.display())
    } else if let Some(name) = address.as_abstract_name() {
        write!(formatter, "unix:@{}", name.escape_ascii())
    } else {
        formatter.write_str("unix:?")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpStream, UdpSocket},
        os::unix::net::UnixDatagram,
    };

    use super::*;

    #[test]
    fn only_listening_stream_sockets_are_listeners() {
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(listening.local_addr().unwrap()).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (datagram, _other) = UnixDatagram::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let unix = UnixListener::bind_addr(&UnixSocketAddr::from_abstract_name(unique()).unwrap())
            .unwrap();
        for (descriptor, kind) in [
            (OwnedFd::from(listening), Kind::ListeningTcp),
            (OwnedFd::from(unix), Kind::ListeningUnix),
            (
                OwnedFd::from(connected),
                Kind::Other("a stream socket that is not listening"),
            ),
            (OwnedFd::from(udp), Kind::Other("a datagram socket")),
            (OwnedFd::from(datagram), Kind::Other("a datagram socket")),
            (OwnedFd::from(file), Kind::Other("not a socket")),
        ] {
            assert_eq!(Kind::of(&descriptor), kind);
        }
    }

    #[test]
    fn a_listener_names_its_address_as_the_command_line_does() {
        let listener = Listener::bind_tcp("http", "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.tcp_address().unwrap();
        assert_eq!(listener.to_string(), format!("http=tcp:{address}"));

        let name = unique();
        let socket =
            UnixListener::bind_addr(&UnixSocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let listener =
            Listener::from_descriptor("admin".to_owned(), OwnedFd::from(socket)).unwrap();
        assert_eq!(listener.to_string(), format!("admin=unix:@{name}"));
    }

    fn unique() -> String {
        format!("heirloom-listener-{}", std::process::id())
    }
}
