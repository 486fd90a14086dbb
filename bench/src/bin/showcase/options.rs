//! The showcase's command line, and where its programs are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

/// Replaces a running service again and again under load, and shows what its clients notice.
///
/// Exit status: 0 nothing was lost, refused or closed, 1 something was, 2 it could not run.
#[derive(Debug, Parser)]
#[command(name = "showcase")]
pub(crate) struct Options {
    /// How long to go on
    #[arg(long, default_value = "20s", value_parser = positive)]
    pub(crate) duration: Duration,
    /// How often to hand over
    #[arg(long, default_value = "2s", value_parser = positive)]
    pub(crate) every: Duration,
    /// How many clients; one in five opens a new connection for each request
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=400))]
    pub(crate) clients: u16,
    /// How many connections to leave idle meanwhile
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=400))]
    pub(crate) idle: u16,
    /// Requests a second of each client
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rate: u32,
    /// Entries of about 100 bytes that the service holds besides
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(0..=5_000_000))]
    pub(crate) entries: u32,
    /// Directory of heirloom, heirloom-demo and heirloom-demo-v2 [default: that of this program]
    #[arg(long)]
    pub(crate) programs: Option<PathBuf>,
}

/// The programs that take part.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) heirloom: PathBuf,
    pub(crate) versions: [String; 2],
}

impl Options {
    /// Clients that open a connection for each request.
    pub(crate) fn fresh_clients(&self) -> u16 {
        self.clients.div_ceil(5).min(self.clients)
    }

    /// Clients that keep their connection.
    pub(crate) fn keep_alive_clients(&self) -> u16 {
        self.clients - self.fresh_clients()
    }

    /// # Errors
    /// If a program is missing.
    pub(crate) fn programs(&self) -> Result<Programs> {
        let directory = match &self.programs {
            Some(directory) => directory.clone(),
            None => std::env::current_exe()?
                .parent()
                .map(Path::to_owned)
                .context("this program has no directory")?,
        };
        let find = |name: &str| {
            let path = directory.join(name);
            if !path.is_file() {
                bail!(
                    "{} is missing: build it, or run scripts/showcase",
                    path.display()
                );
            }
            Ok(path)
        };
        let text = |path: PathBuf| {
            path.into_os_string().into_string().map_err(|path| {
                anyhow::anyhow!("{} is not UTF-8: move the tree elsewhere", path.display())
            })
        };
        Ok(Programs {
            heirloom: find("heirloom")?,
            versions: [
                text(find("heirloom-demo")?)?,
                text(find("heirloom-demo-v2")?)?,
            ],
        })
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    let limit = Duration::from_secs(3600);
    match humantime::parse_duration(text) {
        Ok(duration) if duration < Duration::from_millis(100) => Err("at least 100ms".to_owned()),
        Ok(duration) if duration > limit => Err("at most 1h".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_clients_is_split_without_loss() {
        for clients in 1..=400 {
            let clients = clients.to_string();
            let options = Options::parse_from(["showcase", "--clients", &clients]);
            let both = options.fresh_clients() + options.keep_alive_clients();
            assert_eq!(both, options.clients);
            assert!(options.fresh_clients() > 0);
        }
    }

    #[test]
    fn an_unending_or_instant_showcase_is_refused() {
        for text in ["0s", "2h", "soon"] {
            assert!(
                Options::try_parse_from(["showcase", "--duration", text]).is_err(),
                "{text}"
            );
        }
    }
}
