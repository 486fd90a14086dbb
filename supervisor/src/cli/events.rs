//! `heirloom events`.

use std::io::Write;
use std::process::ExitCode;

use super::flags::Events;
use super::{no_reply, refused};
use crate::control::client;
use crate::control::protocol::{Event, Reply, Request};
use crate::log::printable;

pub(crate) fn events(command: Events) -> ExitCode {
    let request = Request::Events {
        follow: command.follow,
    };
    let mut conversation = match client::ask(&command.which.wanted(), &request, None) {
        Ok(conversation) => conversation,
        Err(error) => return no_reply(&error),
    };
    loop {
        match conversation.next() {
            Ok(Some(Reply::Event(event))) => {
                let line = line(&event, command.json);
                // Whoever reads may have seen enough.
                if writeln!(std::io::stdout(), "{}", printable(&line)).is_err() {
                    return ExitCode::SUCCESS;
                }
            }
            Ok(Some(Reply::Refused(refusal))) => return refused(&refusal),
            Ok(Some(
                Reply::Status(_)
                | Reply::Report(_)
                | Reply::Saved(_)
                | Reply::Upgraded(_)
                | Reply::Done,
            )) => {}
            Ok(None) => return ExitCode::SUCCESS,
            Err(error) => return no_reply(&error),
        }
    }
}

fn line(event: &Event, json: bool) -> String {
    if json {
        return serde_json::to_string(event).unwrap_or_default();
    }
    let Event {
        time,
        service,
        text,
        ..
    } = event;
    match event.generation {
        Some(generation) => format!("{time} {service}/{generation}: {text}"),
        None => format!("{time} {service}: {text}"),
    }
}
