//! `heirloom upgrade`: the supervisor replaces itself; and the trial of the program that is to follow.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use super::flags::{Arguments, Upgrade};
use super::{complain, exit, no_reply, refused, say};
use crate::control::client;
use crate::control::protocol::{Reply, Request};
use crate::daemon;

/// How much longer than the supervisor waits for handovers the client waits for its answer.
const SLACK: Duration = Duration::from_secs(30);

pub(crate) fn upgrade(command: Upgrade) -> ExitCode {
    let timeout = command.timeout.0;
    let request = Request::Upgrade {
        timeout_ms: Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
    };
    let deadline = Instant::now() + timeout + SLACK;
    let mut conversation = match client::ask(&command.which.wanted(), &request, Some(deadline)) {
        Ok(conversation) => conversation,
        Err(error) => return no_reply(&error),
    };
    loop {
        match conversation.next() {
            Ok(Some(Reply::Upgraded(upgraded))) if command.json => {
                say(&serde_json::to_string(&upgraded).unwrap_or_default());
            }
            Ok(Some(Reply::Upgraded(upgraded))) => say(&format!(
                "{}: version {} runs now, as process {} as before; it is generation {} of the supervisor",
                upgraded.name, upgraded.version, upgraded.pid, upgraded.supervisor_generation
            )),
            Ok(Some(Reply::Refused(refusal))) => return refused(&refusal),
            Ok(Some(
                Reply::Event(_)
                | Reply::Status(_)
                | Reply::Report(_)
                | Reply::Saved(_)
                | Reply::Done,
            )) => {}
            Ok(None) => return ExitCode::SUCCESS,
            // It was asked; what came of it cannot be told.
            Err(error) => {
                complain(&error.to_string());
                return exit::UNKNOWN.into();
            }
        }
    }
}

/// The trial: says whether this program could go on from what it reads.
pub(crate) fn try_record(words: Vec<OsString>) -> ExitCode {
    let parsed = Arguments::try_parse_from(words).map_err(|error| error.to_string());
    match parsed.and_then(|_| daemon::try_record()) {
        Ok(answer) => {
            say(answer.trim_end());
            ExitCode::SUCCESS
        }
        Err(reason) => {
            complain(&reason);
            exit::FAILED.into()
        }
    }
}
