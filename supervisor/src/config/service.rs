//! The settings of one service, with every default filled in.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::listen::ListenSpec;
use super::pin::{Minisign, Sha256};
use super::privileges::Capabilities;
use super::size::Size;

/// The most processes one service may have at once.
pub(crate) const MOST_INSTANCES: usize = 256;

/// The most listeners one service may have.
pub(crate) const MOST_LISTENERS: usize = 128;

/// One service as it is to be run. The same definition reads the configuration file and prints the
/// resolved form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Service {
    /// What it is called; the name of its table in the file.
    #[serde(skip)]
    pub(crate) name: String,
    /// The program and its arguments, unresolved.
    pub(crate) command: Vec<String>,
    /// The listeners it inherits, in this order.
    pub(crate) listen: Vec<ListenSpec>,
    /// How one generation takes over from another.
    pub(crate) strategy: Strategy,
    /// How many processes serve at once; they are replaced one after the other.
    pub(crate) instances: Instances,
    /// When a new generation counts as ready.
    pub(crate) ready: Ready,
    /// What tells a generation to finish and end.
    pub(crate) stop_signal: StopSignal,
    /// How long a new generation may take to be ready.
    pub(crate) ready_timeout: Span,
    /// How long a generation may take to finish what it has begun.
    pub(crate) drain_timeout: Span,
    /// How long a new generation may still be undone by its own death.
    pub(crate) probation: Span,
    /// What is run in the probation to see whether the new generation is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<Health>,
    /// How often it is run.
    pub(crate) health_every: Span,
    /// What to do at a handover of state that could not be undone without a loss.
    pub(crate) without_way_back: WithoutWayBack,
    /// How long clients may wait at a handover of state: the copy goes on until less would do.
    pub(crate) pause: Span,
    /// The longest the state may stand still at a handover; then the old one goes on with it.
    pub(crate) freeze_timeout: Span,
    /// Whether a handover of state is refused when memory would not do for two copies.
    pub(crate) memory_check: bool,
    /// Where the state is kept while nothing runs; it is lost with the last process if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state_file: Option<PathBuf>,
    /// How often the program must send `WATCHDOG=1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) watchdog: Option<Span>,
    /// How large its state may be, as it is copied: a larger one neither moves nor is saved.
    pub(crate) max_state: Size,
    /// How much of what one process writes to its output may go into the log, in a second.
    pub(crate) log_rate: Size,
    /// How many processes of former generations may drain before a handover waits for one to end.
    pub(crate) most_draining: MostDraining,
    /// Where it runs; the supervisor's own directory if not given. Looked up for each generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) directory: Option<PathBuf>,
    /// A file of `NAME=VALUE` lines, read for each generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) env_file: Option<PathBuf>,
    /// Who it runs as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// The group it runs as; the user's own if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// Its supplementary groups; those of the user if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) groups: Option<Vec<String>>,
    /// Whether nothing it executes can give it privileges; so for every user but root if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) no_new_privileges: Option<bool>,
    /// The capabilities it has; none, or for root all that the supervisor has, if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) capabilities: Option<Capabilities>,
    /// What the program's file must hash to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<Sha256>,
    /// Who must have signed the program's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) minisign: Option<Minisign>,
    /// Variables added to its environment; those of the file win.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "variables"
    )]
    pub(crate) environment: BTreeMap<String, String>,
}

/// Reads variables without ever repeating a value: it may be a secret, and errors are logged.
fn variables<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let table = toml::Table::deserialize(from)
        .map_err(|_| D::Error::custom("environment is a table of NAME = \"VALUE\""))?;
    let text = |(name, value)| match value {
        toml::Value::String(text) => Ok((name, text)),
        _other => {
            let reason = format!("the value of `{name}` is not text; put it between quotes");
            Err(D::Error::custom(reason))
        }
    };
    table.into_iter().map(text).collect()
}

impl Default for Service {
    fn default() -> Self {
        Self {
            name: String::new(),
            command: Vec::new(),
            listen: Vec::new(),
            strategy: Strategy::Auto,
            instances: Instances(1),
            ready: Ready::Auto,
            stop_signal: StopSignal(Signal::SIGTERM),
            ready_timeout: Span(Duration::from_secs(60)),
            drain_timeout: Span(Duration::from_secs(30)),
            probation: Span(Duration::from_secs(10)),
            health: None,
            health_every: Span(Duration::from_secs(1)),
            without_way_back: WithoutWayBack::Warn,
            pause: Span(Duration::from_millis(5)),
            freeze_timeout: Span(Duration::from_secs(1)),
            memory_check: true,
            max_state: Size::MOST,
            log_rate: Size::mib(1),
            state_file: None,
            watchdog: None,
            most_draining: MostDraining(8),
            directory: None,
            env_file: None,
            user: None,
            group: None,
            groups: None,
            no_new_privileges: None,
            capabilities: None,
            sha256: None,
            minisign: None,
            environment: BTreeMap::new(),
        }
    }
}

/// How one generation takes over from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Strategy {
    /// What fits the program: handover for one that speaks the protocol, overlap for any other.
    Auto,
    /// The state moves from the old one to the new one; a program that cannot is refused.
    Handover,
    /// The new one is ready before the old one is told to stop.
    Overlap,
    /// The old one has ended before the new one starts; clients wait meanwhile.
    Sequential,
}

/// When a new generation counts as ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Ready {
    /// When it says `READY=1`, or is seen waiting on a listener, whichever is first.
    Auto,
    /// When it says `READY=1`.
    Notify,
    /// When it has lived this long.
    After(Span),
    /// When this command succeeds.
    Exec(Vec<String>),
}

impl TryFrom<String> for Ready {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Ready {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "notify" => Ok(Self::Notify),
            Some(("after", time)) => Ok(Self::After(time.parse()?)),
            Some(("exec", command)) => {
                let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
                if words.is_empty() {
                    return Err("exec: needs a command".to_owned());
                }
                Ok(Self::Exec(words))
            }
            Some(_) | None => Err(format!(
                "`{text}` is not auto, notify, after:TIME or exec:COMMAND"
            )),
        }
    }
}

impl From<Ready> for String {
    fn from(ready: Ready) -> Self {
        ready.to_string()
    }
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Notify => f.write_str("notify"),
            Self::After(time) => write!(f, "after:{time}"),
            Self::Exec(words) => write!(f, "exec:{}", words.join(" ")),
        }
    }
}

/// A command that tells whether a new generation is well: `exec:COMMAND`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Health(Vec<String>);

impl Health {
    /// The command and its arguments.
    pub(crate) fn words(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for Health {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(Ready::Exec(words)) => Ok(Self(words)),
            Err(error) if text.starts_with("exec:") => Err(error),
            Ok(Ready::Auto | Ready::Notify | Ready::After(_)) | Err(_) => {
                Err(format!("`{text}` is not exec:COMMAND"))
            }
        }
    }
}

impl TryFrom<String> for Health {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Health> for String {
    fn from(health: Health) -> Self {
        Ready::Exec(health.0).to_string()
    }
}

/// What to do when a generation that fails in its probation would take some of the state with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WithoutWayBack {
    /// Hand over, and say what would be lost.
    Warn,
    /// Do not hand over.
    Refuse,
}

/// A length of time as people write it: `30s`, `1m 30s`, `250ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    /// No wait is longer than this.
    const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = humantime::parse_duration(text)
            .map_err(|error| format!("`{text}` is not a time such as 30s or 250ms: {error}"))?;
        if span > Self::LONGEST {
            return Err(format!("`{text}` is longer than a week"));
        }
        Ok(Self(span))
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A signal by its name, with or without `SIG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct StopSignal(pub(crate) Signal);

impl FromStr for StopSignal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        match format!("SIG{name}").parse() {
            Ok(Signal::SIGSTOP | Signal::SIGCONT | Signal::SIGCHLD) | Err(_) => Err(format!(
                "`{text}` is not a signal that can end a program, such as TERM or QUIT"
            )),
            Ok(signal) => Ok(Self(signal)),
        }
    }
}

impl TryFrom<String> for StopSignal {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_start_matches("SIG"))
    }
}

impl Serialize for StopSignal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident, $what:literal, $most:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "i64")]
        pub(crate) struct $name(pub(crate) usize);

        impl TryFrom<i64> for $name {
            type Error = String;

            fn try_from(number: i64) -> Result<Self, String> {
                match usize::try_from(number) {
                    Ok(fine @ 1..=$most) => Ok(Self(fine)),
                    Ok(_) | Err(_) => Err(format!("{} must be from 1 to {}", $what, $most)),
                }
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                text.parse::<i64>().map_err(|error| error.to_string())?.try_into()
            }
        }
    };
}

bounded!(
    /// How many processes serve at once.
    Instances, "instances", MOST_INSTANCES
);
bounded!(
    /// How many processes may drain.
    MostDraining, "most_draining", 1024
);

/// Checks the name of a service or supervisor: it becomes part of file names.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let fine = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b))
        && !name.starts_with(['.', '-']);
    if fine {
        Ok(())
    } else {
        Err(format!(
            "the name `{name}` must be 1 to 64 letters, digits, - _ . or @"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_reads_back_what_it_prints() {
        for text in [
            "auto",
            "notify",
            "after:2s",
            "exec:curl -f http://127.0.0.1/",
        ] {
            assert_eq!(text.parse::<Ready>().unwrap().to_string(), text);
        }
        assert!("after:soon".parse::<Ready>().is_err());
        assert!("exec: ".parse::<Ready>().is_err());
        assert!("never".parse::<Ready>().is_err());
    }

    #[test]
    fn signals_that_cannot_end_a_program_are_refused() {
        assert_eq!("sigquit".parse::<StopSignal>().unwrap().to_string(), "QUIT");
        assert_eq!("TERM".parse::<StopSignal>().unwrap().0, Signal::SIGTERM);
        for text in ["STOP", "CONT", "HELLO", ""] {
            assert!(text.parse::<StopSignal>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_and_times_are_bounded() {
        assert!("0".parse::<Instances>().is_err());
        assert!("257".parse::<Instances>().is_err());
        assert!("30".parse::<Span>().is_err(), "a time needs its unit");
        assert!("8days".parse::<Span>().is_err());
        assert_eq!("1m 30s".parse::<Span>().unwrap().0, Duration::from_secs(90));
    }

    #[test]
    fn names_are_safe_in_paths() {
        assert!(check_name("shop-1@a").is_ok());
        for name in ["", "../x", ".hidden", "a/b", "a b", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
