//! The names of the environment variables a supervised program is given or must not inherit.
//!
//! Their values are made in the supervisor and read in the app; this file only keeps both from
//! spelling them differently.

/// Number of inherited sockets, which start at [`FIRST_FD`] (systemd, `sd_listen_fds(3)`).
pub const LISTEN_FDS: &str = "LISTEN_FDS";
/// The pid the sockets are meant for: the program's own.
pub const LISTEN_PID: &str = "LISTEN_PID";
/// The sockets' names, separated by colons, in the order of their numbers.
pub const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// `ADDRESS=FD;ADDRESS=FD…`, the form `Server::Starter` uses for the same sockets.
pub const SERVER_STARTER_PORT: &str = "SERVER_STARTER_PORT";
/// The generation's number, under the name `Server::Starter` gives it.
pub const SERVER_STARTER_GENERATION: &str = "SERVER_STARTER_GENERATION";
/// Where `sd_notify(3)` messages go: a socket of this one generation.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// How often a `WATCHDOG=1` is expected, in microseconds.
pub const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
/// The pid that `WATCHDOG_USEC` is meant for.
pub const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// The generation's number, from 1.
pub const HEIRLOOM_GENERATION: &str = "HEIRLOOM_GENERATION";
/// Which of a service's instances it is, from 0.
pub const HEIRLOOM_INSTANCE: &str = "HEIRLOOM_INSTANCE";
/// The service's name.
pub const HEIRLOOM_SERVICE: &str = "HEIRLOOM_SERVICE";

/// The number of the descriptor on which the handover protocol is spoken: a socket of
/// `SOCK_SEQPACKET`.
pub const HEIRLOOM_FD: &str = "HEIRLOOM_FD";

/// The abstract name, behind `@`, under which a program that speaks the handover protocol listens once its
/// supervisor is gone, for the next one.
pub const HEIRLOOM_RENDEZVOUS: &str = "HEIRLOOM_RENDEZVOUS";

/// Marks a supervisor that follows another in place: the number of the descriptor that holds the record.
pub const HEIRLOOM_PASSAGE: &str = "HEIRLOOM_PASSAGE";

/// The number of the first inherited socket (`SD_LISTEN_FDS_START` of `sd_listen_fds(3)`).
pub const FIRST_FD: i32 = 3;

/// Variables that speak of the supervisor itself and would mislead a program that inherits them.
///
/// `LISTEN_PIDFDID` is among them because libsystemd from version 259 ignores every inherited
/// socket when it names another process.
pub const OF_THE_SUPERVISOR_ALONE: &[&str] = &[
    LISTEN_FDS,
    LISTEN_PID,
    LISTEN_FDNAMES,
    "LISTEN_PIDFDID",
    "LISTEN_FDS_FIRST_FD",
    SERVER_STARTER_PORT,
    SERVER_STARTER_GENERATION,
    NOTIFY_SOCKET,
    WATCHDOG_USEC,
    WATCHDOG_PID,
    HEIRLOOM_GENERATION,
    HEIRLOOM_INSTANCE,
    HEIRLOOM_SERVICE,
    HEIRLOOM_FD,
    HEIRLOOM_RENDEZVOUS,
    HEIRLOOM_PASSAGE,
    "FDSTORE",
    "JOURNAL_STREAM",
    "MAINPID",
    "MANAGERPID",
    "SYSTEMD_EXEC_PID",
];
