//! The command line.
//!
//! [`flags`] defines it, once, for parsing, `--help`, man pages and completions. Each command has a
//! file; [`exit`] holds the exit statuses they share.

pub(crate) mod exit;
pub(crate) mod flags;

mod check;
mod events;
mod generate;
mod inspect;
mod reload;
mod run;
mod snapshot;
mod status;
mod stop;
mod torture;
mod upgrade;

use std::process::ExitCode;

use clap::Parser;

use crate::control::client::NoReply;
use crate::control::place::Unreachable;
use crate::control::protocol::{Fault, Refusal};
use crate::log::printable;
use flags::{Arguments, Command};

/// Parses the command line and carries the command out.
pub(crate) fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(command) => run::run(*command),
        Command::Reload(command) => reload::reload(command),
        Command::Rollback(command) => reload::rollback(command),
        Command::Status(command) => status::status(command),
        Command::Events(command) => events::events(command),
        Command::Stop(command) => stop::stop(command),
        Command::Upgrade(command) => upgrade::upgrade(command),
        Command::TryRecord { words } => upgrade::try_record(words),
        Command::Snapshot(command) => snapshot::snapshot(command),
        Command::Inspect(command) => inspect::inspect(&command),
        Command::Check(command) => check::check(&command),
        Command::Torture(command) => torture::torture(*command),
        Command::Generate(command) => generate::generate(&command),
    }
}

/// Says why there is no reply; the exit status for it.
fn no_reply(error: &NoReply) -> ExitCode {
    complain(&error.to_string());
    match error {
        NoReply::Unreachable(Unreachable::Several(_)) => exit::USAGE.into(),
        NoReply::Unreachable(_) | NoReply::BrokenOff(_) => exit::UNREACHED.into(),
        NoReply::TimedOut => exit::UNKNOWN.into(),
    }
}

/// Says why a request was refused; the exit status for it.
fn refused(refusal: &Refusal) -> ExitCode {
    complain(&refusal.reason);
    match refusal.fault {
        Fault::Usage => exit::USAGE.into(),
        Fault::State => exit::FAILED.into(),
    }
}

fn complain(text: &str) {
    remark(&format!("heirloom: {text}"));
}

/// Prints a line to standard error. What it says of a program may be the program's own words.
fn remark(text: &str) {
    eprintln!("{}", printable(text));
}

/// Prints a line to standard output; a reader that has gone is no error.
fn say(text: &str) {
    use std::io::Write;
    let _reader_gone = writeln!(std::io::stdout(), "{}", printable(text));
}
