//! The `sd_notify` messages a supervised program may send.
//!
//! Owns turning a datagram into [`Notification`]s. What follows from one (a generation is ready, a
//! watchdog is fed, a descriptor is kept) is decided in the supervisor. Names and meanings are
//! those of `sd_notify(3)` and of systemd's file descriptor store.

use std::time::Duration;

use crate::datagram::{self, Malformed};

/// The longest name of a stored descriptor (`FDNAME=`), as in `sd_pid_notify_with_fds(3)`.
pub const LONGEST_FD_NAME_BYTES: usize = 255;

/// The longest status text that is kept, in bytes; the rest is cut.
pub const LONGEST_STATUS_BYTES: usize = 512;

/// What one datagram asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// `READY=1`: the program serves, or has finished reloading its resources.
    pub ready: bool,
    /// `RELOADING=1`: it is reloading its resources.
    pub reloading: bool,
    /// `STOPPING=1`: it is about to end.
    pub stopping: bool,
    /// `STATUS=`: a line for people.
    pub status: Option<String>,
    /// `ERRNO=`: it failed, with this error number.
    pub errno: Option<i32>,
    /// `EXTEND_TIMEOUT_USEC=`: what it is doing now may take this much longer.
    pub extend_timeout: Option<Duration>,
    /// `WATCHDOG=`: it is alive, or gives itself up.
    pub watchdog: Option<Watchdog>,
    /// `WATCHDOG_USEC=`: the interval it wants from now on.
    pub watchdog_interval: Option<Duration>,
    /// `FDSTORE=1` or `FDSTOREREMOVE=1`, with their `FDNAME=` and `FDPOLL=`.
    pub store: Option<Store>,
    /// `BARRIER=1`: close the descriptor that came along once everything before it is done.
    pub barrier: bool,
}

/// What a `WATCHDOG=` line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Watchdog {
    /// `1`: alive.
    Alive,
    /// `trigger`: treat me as if the watchdog had run out.
    Trigger,
}

/// A request to the descriptor store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Store {
    /// Keep the descriptors of this datagram.
    Keep {
        /// The name they are kept under; `stored` if the program gave none.
        name: String,
        /// Whether to drop one once it reports an error or a hang-up.
        poll: bool,
    },
    /// Forget all descriptors of a name.
    Remove {
        /// The name.
        name: String,
    },
}

/// Why a notification cannot be accepted. It is always the program's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadNotification {
    /// The datagram is not lines of `KEY=VALUE`.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A value is not what its key takes.
    #[error("{key}={value} is not a valid value")]
    Value {
        /// The key.
        key: &'static str,
        /// The value as sent.
        value: String,
    },
    /// `BARRIER=1` must stand alone.
    #[error("BARRIER=1 must be the only line of its message")]
    BarrierNotAlone,
    /// `FDSTOREREMOVE=1` names nothing to forget.
    #[error("FDSTOREREMOVE=1 needs an FDNAME=")]
    RemoveWithoutName,
}

/// Reads one datagram. Keys that Heirloom has no use for (`MAINPID=` among them: the supervisor
/// knows its children) are passed over, as `sd_notify(3)` demands.
///
/// # Errors
///
/// [`BadNotification`] says which line the program got wrong; nothing of the message counts then.
pub fn parse(datagram: &[u8]) -> Result<Notification, BadNotification> {
    let lines = datagram::parse(datagram)?;
    let mut notification = Notification::default();
    let (mut keep, mut remove, mut poll) = (false, false, true);
    let mut name = None;
    for line in &lines {
        match line.key {
            "READY" => notification.ready = line.value == "1",
            "RELOADING" => notification.reloading = line.value == "1",
            "STOPPING" => notification.stopping = line.value == "1",
            "STATUS" => notification.status = Some(cut(line.value, LONGEST_STATUS_BYTES)),
            "ERRNO" => notification.errno = Some(number("ERRNO", line.value)?),
            "EXTEND_TIMEOUT_USEC" => {
                notification.extend_timeout = Some(micros("EXTEND_TIMEOUT_USEC", line.value)?);
            }
            "WATCHDOG" => {
                notification.watchdog = Some(match line.value {
                    "1" => Watchdog::Alive,
                    "trigger" => Watchdog::Trigger,
                    other => return Err(bad("WATCHDOG", other)),
                });
            }
            "WATCHDOG_USEC" => {
                notification.watchdog_interval = Some(micros("WATCHDOG_USEC", line.value)?);
            }
            "FDSTORE" => keep = line.value == "1",
            "FDSTOREREMOVE" => remove = line.value == "1",
            "FDPOLL" => poll = line.value != "0",
            "FDNAME" => name = Some(fd_name(line.value)?),
            "BARRIER" => notification.barrier = line.value == "1",
            _unknown => {}
        }
    }
    if notification.barrier && lines.len() != 1 {
        return Err(BadNotification::BarrierNotAlone);
    }
    notification.store = if remove {
        Some(Store::Remove {
            name: name.ok_or(BadNotification::RemoveWithoutName)?,
        })
    } else if keep {
        Some(Store::Keep {
            name: name.unwrap_or_else(|| "stored".to_owned()),
            poll,
        })
    } else {
        None
    };
    Ok(notification)
}

fn bad(key: &'static str, value: &str) -> BadNotification {
    BadNotification::Value {
        key,
        value: cut(value, 64),
    }
}

fn number<T: std::str::FromStr>(key: &'static str, value: &str) -> Result<T, BadNotification> {
    value.parse().map_err(|_| bad(key, value))
}

fn micros(key: &'static str, value: &str) -> Result<Duration, BadNotification> {
    number(key, value).map(Duration::from_micros)
}

/// A name ends up in `LISTEN_FDNAMES`, where a colon separates names.
fn fd_name(value: &str) -> Result<String, BadNotification> {
    let fine = !value.is_empty()
        && value.len() <= LONGEST_FD_NAME_BYTES
        && value
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b':' || b == b' ');
    if fine {
        Ok(value.to_owned())
    } else {
        Err(bad("FDNAME", value))
    }
}

fn cut(text: &str, limit: usize) -> String {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn everything_a_program_may_say_is_understood() {
        let all = parse(
            b"READY=1\nRELOADING=1\nMONOTONIC_USEC=12\nSTOPPING=1\nSTATUS=busy\nERRNO=13\n\
              EXTEND_TIMEOUT_USEC=5000000\nWATCHDOG=1\nWATCHDOG_USEC=2000000\nMAINPID=4\nX_OTHER=1",
        )
        .unwrap();
        assert_eq!(
            all,
            Notification {
                ready: true,
                reloading: true,
                stopping: true,
                status: Some("busy".to_owned()),
                errno: Some(13),
                extend_timeout: Some(Duration::from_secs(5)),
                watchdog: Some(Watchdog::Alive),
                watchdog_interval: Some(Duration::from_secs(2)),
                store: None,
                barrier: false,
            }
        );
        assert_eq!(
            parse(b"WATCHDOG=trigger").unwrap().watchdog,
            Some(Watchdog::Trigger)
        );
        assert!(parse(b"BARRIER=1").unwrap().barrier);
    }

    #[test]
    fn descriptors_are_kept_under_a_name() {
        let keep = |name: &str, poll| {
            Some(Store::Keep {
                name: name.to_owned(),
                poll,
            })
        };
        assert_eq!(parse(b"FDSTORE=1").unwrap().store, keep("stored", true));
        assert_eq!(
            parse(b"FDSTORE=1\nFDNAME=db conn\nFDPOLL=0").unwrap().store,
            keep("db conn", false)
        );
        assert_eq!(
            parse(b"FDSTOREREMOVE=1\nFDNAME=x").unwrap().store,
            Some(Store::Remove {
                name: "x".to_owned()
            })
        );
        assert_eq!(
            parse(b"FDSTOREREMOVE=1"),
            Err(BadNotification::RemoveWithoutName)
        );
        assert_eq!(parse(b"FDSTORE=1\nFDNAME=a:b"), Err(bad("FDNAME", "a:b")));
        assert_eq!(parse(b"FDSTORE=1\nFDNAME="), Err(bad("FDNAME", "")));
    }

    #[test]
    fn a_wrong_value_is_the_programs_fault_and_nothing_counts() {
        assert_eq!(parse(b"READY=1\nERRNO=many"), Err(bad("ERRNO", "many")));
        assert_eq!(
            parse(b"READY=1\nBARRIER=1"),
            Err(BadNotification::BarrierNotAlone)
        );
        assert_eq!(
            parse(b"EXTEND_TIMEOUT_USEC=-1"),
            Err(bad("EXTEND_TIMEOUT_USEC", "-1"))
        );
        assert!(!parse(b"READY=0").unwrap().ready);
    }

    #[test]
    fn a_long_status_is_cut_between_characters() {
        let status = parse(format!("STATUS={}", "ä".repeat(400)).as_bytes())
            .unwrap()
            .status;
        assert_eq!(status.unwrap().len(), LONGEST_STATUS_BYTES);
        let odd = parse(format!("STATUS=a{}", "ä".repeat(400)).as_bytes())
            .unwrap()
            .status;
        assert_eq!(odd.unwrap().len(), LONGEST_STATUS_BYTES - 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
        }
    }
}
