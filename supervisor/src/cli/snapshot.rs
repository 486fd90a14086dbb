//! `heirloom snapshot`.

use std::process::ExitCode;
use std::time::Instant;

use super::flags::Snapshot;
use super::{complain, exit, no_reply, refused, say};
use crate::control::client;
use crate::control::protocol::{Reply, Request, Saved};
use crate::daemon::size;

pub(crate) fn snapshot(command: Snapshot) -> ExitCode {
    // The supervisor stands in another directory.
    let path = match std::path::absolute(&command.output) {
        Ok(path) => path,
        Err(error) => {
            complain(&format!("{}: {error}", command.output.display()));
            return exit::USAGE.into();
        }
    };
    let request = Request::Snapshot {
        service: command.service,
        instance: command.instance,
        path,
    };
    let deadline = command.timeout.map(|timeout| Instant::now() + timeout.0);
    let mut conversation = match client::ask(&command.which.wanted(), &request, deadline) {
        Ok(conversation) => conversation,
        Err(error) => return no_reply(&error),
    };
    loop {
        match conversation.next() {
            Ok(Some(Reply::Saved(saved))) => tell(&saved, command.json),
            Ok(Some(Reply::Refused(refusal))) => return refused(&refusal),
            Ok(Some(
                Reply::Event(_)
                | Reply::Status(_)
                | Reply::Report(_)
                | Reply::Upgraded(_)
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

fn tell(saved: &Saved, json: bool) {
    if json {
        match serde_json::to_string(saved) {
            Ok(line) => say(&line),
            Err(error) => complain(&error.to_string()),
        }
        return;
    }
    let Saved {
        service,
        generation,
        path,
        bytes,
        entries,
        pause_ms,
        ..
    } = saved;
    say(&format!(
        "{service}: the state of generation {generation} was saved to {} ({entries} entries, {}, paused {pause_ms:.1} ms)",
        path.display(),
        size(*bytes)
    ));
}
