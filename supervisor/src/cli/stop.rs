//! `heirloom stop`.

use std::process::ExitCode;

use super::exit;
use super::flags::Stop;
use super::{no_reply, refused};
use crate::control::client::{self, NoReply};
use crate::control::protocol::{Reply, Request};

pub(crate) fn stop(command: Stop) -> ExitCode {
    let timeout_ms = command
        .timeout
        .map(|timeout| u64::try_from(timeout.0.as_millis()).unwrap_or(u64::MAX));
    let request = Request::Stop {
        timeout_ms,
        leave_running: command.leave_running,
    };
    let asked = client::ask(&command.which.wanted(), &request, None);
    let mut conversation = match asked {
        Ok(conversation) => conversation,
        Err(error) => return no_reply(&error),
    };
    loop {
        match conversation.next() {
            Ok(Some(Reply::Refused(refusal))) => return refused(&refusal),
            Ok(Some(Reply::Upgraded(_))) => {
                eprintln!("heirloom: the supervisor has not ended: it was upgraded at that moment");
                return exit::FAILED.into();
            }
            Ok(Some(_)) => {}
            // It ended: that is what was asked for.
            Ok(None) | Err(NoReply::BrokenOff(_)) => return ExitCode::SUCCESS,
            Err(error) => return no_reply(&error),
        }
    }
}
