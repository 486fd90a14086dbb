//! The notation of a listener: `[NAME=]ADDRESS[,OPTION=VALUE]…`.
//!
//! Owns parsing and printing it. Binding is the daemon's.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

/// The longest name of a listener, as systemd limits `FileDescriptorName=`.
const LONGEST_NAME_BYTES: usize = 255;

/// One listener as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ListenSpec {
    /// What it is known by, in every generation.
    pub(crate) name: String,
    /// Where it is bound.
    pub(crate) address: Address,
    /// How it is set up.
    pub(crate) options: Options,
}

/// Where a listener is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A host name or address, and a port; 0 lets the system choose.
    Tcp { host: String, port: u16 },
    /// The same for datagrams.
    Udp { host: String, port: u16 },
    /// A stream socket in the file system, or in the abstract namespace.
    Unix(UnixName),
    /// The same with message boundaries.
    UnixSeqpacket(UnixName),
    /// The socket that systemd passes under this name.
    Inherited(String),
}

/// The name of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UnixName {
    /// A path, absolute once the configuration is resolved.
    Path(PathBuf),
    /// A name in the abstract namespace, written with a leading `@`.
    Abstract(String),
}

/// How a listener is set up, where that differs from the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The mode of a unix socket's file.
    pub(crate) mode: Option<u32>,
    /// How many connections may wait; the system's limit if not given.
    pub(crate) backlog: Option<u32>,
    /// Whether an IPv6 wildcard leaves IPv4 alone.
    pub(crate) v6only: Option<bool>,
    /// Whether accepting from it waits (`O_NONBLOCK`); left to the programs if not given.
    pub(crate) nonblocking: Option<bool>,
}

/// What is wrong with a listener's notation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("listener `{spec}`: {reason}")]
pub(crate) struct BadSpec {
    spec: String,
    reason: String,
}

impl FromStr for ListenSpec {
    type Err = BadSpec;

    fn from_str(spec: &str) -> Result<Self, BadSpec> {
        let bad = |reason: String| BadSpec {
            spec: spec.to_owned(),
            reason,
        };
        let (head, options) = split_options(spec).map_err(&bad)?;
        let (name, address) = split_name(head);
        let address = parse_address(address).map_err(&bad)?;
        options.fit(&address).map_err(&bad)?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => address.default_name(),
        };
        check_name(&name).map_err(&bad)?;
        Ok(Self {
            name,
            address,
            options,
        })
    }
}

impl ListenSpec {
    /// Whether the system chooses the port, so that equal notations are different listeners.
    pub(crate) fn has_port_zero(&self) -> bool {
        matches!(
            self.address,
            Address::Tcp { port: 0, .. } | Address::Udp { port: 0, .. }
        )
    }
}

impl TryFrom<String> for ListenSpec {
    type Error = BadSpec;

    fn try_from(text: String) -> Result<Self, BadSpec> {
        text.parse()
    }
}

impl Serialize for ListenSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The name ends at the first `=` that comes before any character an address begins with.
fn split_name(head: &str) -> (Option<&str>, &str) {
    match head.split_once('=') {
        Some((name, rest)) if !name.contains([':', '/', '[', '@']) => (Some(name), rest),
        Some(_) | None => (None, head),
    }
}

fn split_options(spec: &str) -> Result<(&str, Options), String> {
    let mut options = Options::default();
    let mut head = spec;
    // From behind, so that a path may contain commas.
    while let Some((rest, option)) = head.rsplit_once(',') {
        let Some((key, value)) = option.split_once('=') else {
            break;
        };
        match key {
            "mode" => {
                let mode = u32::from_str_radix(value, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o777);
                options.mode = Some(mode.ok_or_else(|| {
                    format!("mode={value} is not an octal file mode of at most 777")
                })?);
            }
            "backlog" => {
                let backlog = value.parse().ok().filter(|n| (1..=1 << 20).contains(n));
                options.backlog = Some(
                    backlog.ok_or_else(|| format!("backlog={value} is not from 1 to 1048576"))?,
                );
            }
            "v6only" => {
                options.v6only = Some(
                    value
                        .parse()
                        .map_err(|_| format!("v6only={value} is not true or false"))?,
                );
            }
            "nonblocking" => {
                options.nonblocking = Some(
                    value
                        .parse()
                        .map_err(|_| format!("nonblocking={value} is not true or false"))?,
                );
            }
            _path_with_a_comma => break,
        }
        head = rest;
    }
    Ok((head, options))
}

fn parse_address(text: &str) -> Result<Address, String> {
    let (scheme, rest) = match text.split_once(':') {
        Some((scheme @ ("tcp" | "udp" | "unix" | "unix-seqpacket" | "fd"), rest)) => (scheme, rest),
        Some(_) | None => ("tcp", text),
    };
    match scheme {
        "unix" => Ok(Address::Unix(unix_name(rest)?)),
        "unix-seqpacket" => Ok(Address::UnixSeqpacket(unix_name(rest)?)),
        "fd" if rest.is_empty() => Err("fd: needs the name systemd gives the socket".to_owned()),
        "fd" => Ok(Address::Inherited(rest.to_owned())),
        "udp" => host_and_port(rest).map(|(host, port)| Address::Udp { host, port }),
        _tcp => host_and_port(rest).map(|(host, port)| Address::Tcp { host, port }),
    }
}

fn unix_name(text: &str) -> Result<UnixName, String> {
    // sun_path of unix(7): 108 bytes, one of which ends a path or begins an abstract name. A path
    // needs room for the temporary name it is bound under.
    match text.strip_prefix('@') {
        Some("") => Err("an abstract socket needs a name behind @".to_owned()),
        Some(name) if name.len() > 107 => Err(format!(
            "the abstract name has {} bytes; at most 107 fit",
            name.len()
        )),
        Some(name) => Ok(UnixName::Abstract(name.to_owned())),
        None if text.is_empty() => Err("a unix socket needs a path or @NAME".to_owned()),
        None if text.contains('\0') => Err("a path cannot contain a NUL".to_owned()),
        None => Ok(UnixName::Path(PathBuf::from(text))),
    }
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let form = "it is not HOST:PORT, [IPV6]:PORT or PORT";
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port),
        None => ("0.0.0.0", text),
    };
    let port = port
        .parse()
        .map_err(|_| format!("{form} (a port is a number up to 65535)"))?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or(form)?,
        None if host.contains(':') => return Err(format!("{form} (put the IPv6 address in [ ])")),
        None => host,
    };
    let host = match host {
        "" => return Err(form.to_owned()),
        "*" => "0.0.0.0",
        named => named,
    };
    Ok((host.to_owned(), port))
}

/// Names travel in `LISTEN_FDNAMES`, where a colon separates them.
fn check_name(name: &str) -> Result<(), String> {
    let fine = !name.is_empty()
        && name.len() <= LONGEST_NAME_BYTES
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b":;=,".contains(&b));
    if fine {
        Ok(())
    } else {
        Err(format!(
            "the name `{name}` must be 1 to {LONGEST_NAME_BYTES} visible ASCII characters other than : ; = and ,"
        ))
    }
}

impl Options {
    /// Whether each option means something for the address.
    fn fit(self, address: &Address) -> Result<(), String> {
        let path = matches!(
            address,
            Address::Unix(UnixName::Path(_)) | Address::UnixSeqpacket(UnixName::Path(_))
        );
        let internet = matches!(address, Address::Tcp { .. } | Address::Udp { .. });
        let stream = !matches!(address, Address::Udp { .. });
        match self {
            Self { mode: Some(_), .. } if !path => {
                Err("mode= is for unix sockets with a path".to_owned())
            }
            Self {
                v6only: Some(_), ..
            } if !internet => Err("v6only= is for tcp and udp".to_owned()),
            Self {
                backlog: Some(_), ..
            } if !stream => Err("backlog= is for sockets that accept connections".to_owned()),
            Self { .. } => Ok(()),
        }
    }
}

impl Address {
    /// The name of a listener that was given none.
    fn default_name(&self) -> String {
        let of_unix = |kind: &str, name: &UnixName| match name {
            UnixName::Path(path) => {
                let stem = path
                    .file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned());
                plain(&stem.unwrap_or_else(|| kind.to_owned()))
            }
            UnixName::Abstract(name) => plain(name),
        };
        match self {
            Self::Tcp { port, .. } => format!("tcp-{port}"),
            Self::Udp { port, .. } => format!("udp-{port}"),
            Self::Unix(name) => of_unix("unix", name),
            Self::UnixSeqpacket(name) => of_unix("unix-seqpacket", name),
            Self::Inherited(name) => name.clone(),
        }
    }
}

fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect()
}

/// Host and port as they are written together.
pub(crate) fn join(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp:{}", join(host, *port)),
            Self::Udp { host, port } => write!(f, "udp:{}", join(host, *port)),
            Self::Unix(name) => write!(f, "unix:{name}"),
            Self::UnixSeqpacket(name) => write!(f, "unix-seqpacket:{name}"),
            Self::Inherited(name) => write!(f, "fd:{name}"),
        }
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

impl fmt::Display for ListenSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.address)?;
        if let Some(mode) = self.options.mode {
            write!(f, ",mode={mode:04o}")?;
        }
        if let Some(backlog) = self.options.backlog {
            write!(f, ",backlog={backlog}")?;
        }
        if let Some(v6only) = self.options.v6only {
            write!(f, ",v6only={v6only}")?;
        }
        if let Some(nonblocking) = self.options.nonblocking {
            write!(f, ",nonblocking={nonblocking}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(text: &str) -> ListenSpec {
        text.parse().unwrap()
    }

    #[test]
    fn every_notation_is_understood_and_printed_in_full() {
        let cases = [
            ("http=tcp:0.0.0.0:8080", "http=tcp:0.0.0.0:8080"),
            ("127.0.0.1:80", "tcp-80=tcp:127.0.0.1:80"),
            ("8080", "tcp-8080=tcp:0.0.0.0:8080"),
            ("web=8080", "web=tcp:0.0.0.0:8080"),
            ("*:81", "tcp-81=tcp:0.0.0.0:81"),
            ("[::]:80,v6only=true", "tcp-80=tcp:[::]:80,v6only=true"),
            ("localhost:0", "tcp-0=tcp:localhost:0"),
            ("dns=udp:[::1]:53", "dns=udp:[::1]:53"),
            (
                "unix:/run/a,b.sock,mode=660",
                "a-b=unix:/run/a,b.sock,mode=0660",
            ),
            ("unix:@shop", "shop=unix:@shop"),
            ("q=unix-seqpacket:/run/q", "q=unix-seqpacket:/run/q"),
            ("fd:web", "web=fd:web"),
            ("http=fd:web", "http=fd:web"),
            ("1,backlog=16", "tcp-1=tcp:0.0.0.0:1,backlog=16"),
            ("w=fd:w,nonblocking=true", "w=fd:w,nonblocking=true"),
        ];
        for (text, full) in cases {
            assert_eq!(spec(text).to_string(), full, "{text}");
            assert_eq!(spec(full), spec(text), "{text}");
        }
    }

    #[test]
    fn a_bad_one_says_what_is_wrong() {
        let cases = [
            ("", "not HOST:PORT"),
            ("tcp:host", "not HOST:PORT"),
            ("70000", "up to 65535"),
            ("::1:80", "in [ ]"),
            ("a b=80", "visible ASCII"),
            ("unix:", "needs a path"),
            ("unix:@", "needs a name"),
            ("unix:/x,mode=8", "octal"),
            ("80,mode=600", "for unix sockets"),
            ("udp:80,backlog=5", "accept connections"),
            ("unix:/x,v6only=true", "for tcp and udp"),
            ("80,nonblocking=1", "true or false"),
            ("fd:", "systemd"),
        ];
        for (text, part) in cases {
            let error = text.parse::<ListenSpec>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered_and_what_parses_prints_back(text in "\\PC{0,60}") {
            if let Ok(spec) = text.parse::<ListenSpec>() {
                prop_assert_eq!(spec.to_string().parse::<ListenSpec>().unwrap(), spec);
            }
        }
    }
}
