//! What the environment says about the inherited descriptors, as typed values.
//!
//! Pure: variables come in through a function, nothing is opened or owned here.

use std::{env::VarError, ffi::OsString};

use heirloom_handover::environment::HEIRLOOM_FD;

use super::InheritError;

/// The most descriptors one process is given. Far above any use; it bounds what is believed.
const DESCRIPTORS_MAX: u16 = 4096;

/// The name of a descriptor to which nobody gave one, as sd_listen_fds_with_names(3) has it.
const UNNAMED: &str = "unknown";

/// What the environment of a process says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Environment {
    /// The number of this generation; 0 when no supervisor gave one.
    pub(super) generation: u64,
    /// The service's name in the supervisor's configuration.
    pub(super) service: Option<String>,
    /// Where to report, if anywhere.
    pub(super) notify_socket: Option<OsString>,
    /// The descriptor on which the supervisor speaks the handover protocol, if it does.
    pub(super) supervisor: Option<i32>,
    /// The inherited descriptors.
    pub(super) descriptors: Descriptors,
}

/// What the environment says about inherited descriptors.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Descriptors {
    /// Nothing was announced.
    None,
    /// They were announced to another process: this one was started through a wrapper that forked.
    MeantFor {
        /// The process they were announced to.
        pid: u32,
    },
    /// The names of those at 3 and up, in order.
    Named(Vec<String>),
}

impl Environment {
    /// Reads the variables through `lookup` for the process `own_pid`.
    pub(super) fn read(
        lookup: impl Fn(&str) -> Option<OsString>,
        own_pid: u32,
    ) -> Result<Self, InheritError> {
        let text = |variable: &'static str| match lookup(variable) {
            None => Ok(None),
            Some(value) if value.is_empty() => Ok(None),
            Some(value) => value
                .into_string()
                .map(Some)
                .map_err(|value| InheritError::Malformed {
                    variable,
                    value: VarError::NotUnicode(value).to_string(),
                    expected: "text in UTF-8",
                }),
        };
        let generation = match text("HEIRLOOM_GENERATION")? {
            None => 0,
            Some(value) => number(
                "HEIRLOOM_GENERATION",
                value,
                "the number of a generation, 1 or more",
            )?,
        };
        Ok(Self {
            generation,
            service: text("HEIRLOOM_SERVICE")?,
            notify_socket: lookup("NOTIFY_SOCKET").filter(|path| !path.is_empty()),
            supervisor: match text(HEIRLOOM_FD)? {
                None => None,
                Some(value) => Some(number(HEIRLOOM_FD, value, "the number of a descriptor")?),
            },
            descriptors: Descriptors::read(
                text("LISTEN_FDS")?,
                text("LISTEN_PID")?,
                text("LISTEN_FDNAMES")?,
                own_pid,
            )?,
        })
    }
}

impl Descriptors {
    fn read(
        count: Option<String>,
        pid: Option<String>,
        names: Option<String>,
        own_pid: u32,
    ) -> Result<Self, InheritError> {
        let Some(count) = count else {
            return Ok(Self::None);
        };
        // Without LISTEN_PID the descriptors may be anybody's: sd_listen_fds(3) ignores them too.
        let Some(pid) = pid else {
            return Ok(Self::None);
        };
        let pid = number("LISTEN_PID", pid, "a process id")?;
        if pid != own_pid {
            return Ok(Self::MeantFor { pid });
        }
        let count: u16 = number("LISTEN_FDS", count, "a count of at most 4096")?;
        if count > DESCRIPTORS_MAX {
            return Err(InheritError::Malformed {
                variable: "LISTEN_FDS",
                value: count.to_string(),
                expected: "a count of at most 4096",
            });
        }
        let Some(names) = names else {
            return Ok(Self::Named(vec![UNNAMED.to_owned(); usize::from(count)]));
        };
        let named: Vec<String> = names.split(':').map(str::to_owned).collect();
        if named.len() == usize::from(count) {
            Ok(Self::Named(named))
        } else {
            Err(InheritError::NamesDoNotMatch {
                names: named.len(),
                descriptors: usize::from(count),
            })
        }
    }
}

/// Parses a variable that holds a number.
fn number<N: std::str::FromStr>(
    variable: &'static str,
    value: String,
    expected: &'static str,
) -> Result<N, InheritError> {
    value.parse().map_err(|_| InheritError::Malformed {
        variable,
        value,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN_PID: u32 = 77;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, InheritError> {
        Environment::read(
            |wanted| {
                variables
                    .iter()
                    .find(|(name, _)| *name == wanted)
                    .map(|(_, value)| OsString::from(value))
            },
            OWN_PID,
        )
    }

    #[test]
    fn an_empty_environment_means_run_by_hand() {
        let environment = read(&[]).unwrap();
        assert_eq!(environment.generation, 0);
        assert_eq!(environment.service, None);
        assert_eq!(environment.notify_socket, None);
        assert_eq!(environment.descriptors, Descriptors::None);
    }

    #[test]
    fn names_come_in_the_order_of_the_descriptors() {
        let environment = read(&[
            ("LISTEN_FDS", "2"),
            ("LISTEN_PID", "77"),
            ("LISTEN_FDNAMES", "http:chat"),
            ("HEIRLOOM_GENERATION", "12"),
            ("HEIRLOOM_SERVICE", "web"),
            ("NOTIFY_SOCKET", "@private"),
        ])
        .unwrap();
        assert_eq!(
            environment.descriptors,
            Descriptors::Named(vec!["http".to_owned(), "chat".to_owned()])
        );
        assert_eq!(environment.generation, 12);
        assert_eq!(environment.service.as_deref(), Some("web"));
        assert_eq!(environment.notify_socket, Some(OsString::from("@private")));
    }

    #[test]
    fn descriptors_without_names_are_unknown() {
        let environment = read(&[("LISTEN_FDS", "1"), ("LISTEN_PID", "77")]).unwrap();
        assert_eq!(
            environment.descriptors,
            Descriptors::Named(vec!["unknown".to_owned()])
        );
    }

    #[test]
    fn descriptors_for_another_process_are_left_alone() {
        let environment = read(&[("LISTEN_FDS", "1"), ("LISTEN_PID", "76")]).unwrap();
        assert_eq!(environment.descriptors, Descriptors::MeantFor { pid: 76 });
        let environment = read(&[("LISTEN_FDS", "1")]).unwrap();
        assert_eq!(environment.descriptors, Descriptors::None);
    }

    #[test]
    fn damaged_variables_are_named_in_the_error() {
        for (variables, named) in [
            (
                vec![("LISTEN_FDS", "two"), ("LISTEN_PID", "77")],
                "LISTEN_FDS",
            ),
            (
                vec![("LISTEN_FDS", "5000"), ("LISTEN_PID", "77")],
                "LISTEN_FDS",
            ),
            (
                vec![("LISTEN_FDS", "-1"), ("LISTEN_PID", "77")],
                "LISTEN_FDS",
            ),
            (
                vec![("LISTEN_FDS", "1"), ("LISTEN_PID", "me")],
                "LISTEN_PID",
            ),
            (vec![("HEIRLOOM_GENERATION", "new")], "HEIRLOOM_GENERATION"),
            (
                vec![
                    ("LISTEN_FDS", "2"),
                    ("LISTEN_PID", "77"),
                    ("LISTEN_FDNAMES", "http"),
                ],
                "LISTEN_FDNAMES",
            ),
        ] {
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
