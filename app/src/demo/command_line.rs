//! The demo's command line.

use std::{net::SocketAddr, time::Duration};

use clap::{CommandFactory, FromArgMatches, Parser};
use tracing::level_filters::LevelFilter;

/// A small stateful HTTP service, to see restarts that nobody notices.
///
/// Under a supervisor it serves on the inherited listener named "http", or on the only one there
/// is. SIGTERM drains it; a second SIGTERM, or SIGINT, ends it at once.
#[derive(Debug, Parser)]
pub(super) struct CommandLine {
    /// Listen here if no listener is inherited
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) listen: Option<SocketAddr>,

    /// Threads that serve
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = workers)]
    pub(super) workers: usize,

    /// Take this long to boot, before accepting and reporting ready
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(super) slow_start: Duration,

    /// How long running requests may take to finish once the drain has begun
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub(super) drain_timeout: Duration,

    /// How long a connection without a request stays open once the drain has begun
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    pub(super) linger: Duration,

    /// Connections served at a time; further ones wait in the listener's queue
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = connections)]
    pub(super) connections_max: usize,

    /// What to log to stderr: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value_t = LevelFilter::INFO)]
    pub(super) log_level: LevelFilter,
}

impl CommandLine {
    /// Reads the arguments of this process, as that version of the program. Ends the process with
    /// a text for the user if there is nothing else to do.
    pub(super) fn read(version: &'static str) -> Self {
        let matches = Self::command().version(version).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

fn workers(text: &str) -> Result<usize, String> {
    within(text, 1..=64)
}

fn connections(text: &str) -> Result<usize, String> {
    within(text, 1..=1_000_000)
}

fn within(text: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("give a number from {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn limits_are_kept() {
        for bad in [
            ["demo", "--workers=0"],
            ["demo", "--workers=65"],
            ["demo", "--connections-max=0"],
            ["demo", "--linger=soon"],
            ["demo", "--listen=8080"],
        ] {
            assert!(CommandLine::try_parse_from(bad).is_err(), "{bad:?}");
        }
        let parsed =
            CommandLine::try_parse_from(["demo", "--linger=150ms", "--workers=64"]).unwrap();
        assert_eq!(parsed.linger, Duration::from_millis(150));
        assert_eq!(parsed.workers, 64);
    }
}
