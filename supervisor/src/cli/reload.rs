//! `heirloom reload` and `heirloom rollback`: ask for a handover, tell how it goes, and end with
//! the status a pipeline can branch on.

use std::process::ExitCode;
use std::time::Instant;

use super::flags::{Reload, Rollback};
use super::{complain, exit, no_reply, refused, remark, say};
use crate::config::service::Span;
use crate::control::client;
use crate::control::place::Wanted;
use crate::control::protocol::{Event, Outcome, Reply, Report, Request};
use crate::daemon::size;

pub(crate) fn reload(command: Reload) -> ExitCode {
    let request = Request::Reload {
        service: command.service,
        dry_run: command.dry_run,
        program: Some(command.program).filter(|program| !program.is_empty()),
        until_proven: command.until_proven,
    };
    hand_over(
        &command.which.wanted(),
        &request,
        command.timeout,
        command.json,
    )
}

pub(crate) fn rollback(command: Rollback) -> ExitCode {
    let request = Request::Rollback {
        service: command.service,
    };
    hand_over(
        &command.which.wanted(),
        &request,
        command.timeout,
        command.json,
    )
}

fn hand_over(wanted: &Wanted, request: &Request, timeout: Option<Span>, json: bool) -> ExitCode {
    let started = Instant::now();
    let deadline = timeout.map(|timeout| started + timeout.0);
    let mut conversation = match client::ask(wanted, request, deadline) {
        Ok(conversation) => conversation,
        Err(error) => return no_reply(&error),
    };
    let mut worst = 0;
    loop {
        match conversation.next() {
            Ok(Some(Reply::Event(event))) if !json => progress(&event, started),
            Ok(Some(Reply::Report(report))) => {
                tell(&report, json);
                worst = worse(worst, status_of(report.outcome));
            }
            Ok(Some(Reply::Refused(refusal))) => return refused(&refusal),
            Ok(Some(
                Reply::Event(_)
                | Reply::Status(_)
                | Reply::Saved(_)
                | Reply::Upgraded(_)
                | Reply::Done,
            )) => {}
            Ok(None) => return worst.into(),
            // It was asked; what came of it cannot be told.
            Err(error) => {
                complain(&error.to_string());
                return exit::UNKNOWN.into();
            }
        }
    }
}

fn status_of(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Committed | Outcome::Rehearsed => 0,
        Outcome::Aborted => exit::FAILED,
        Outcome::RolledBack => exit::ROLLED_BACK,
    }
}

/// Of several services' outcomes, the one to act on: a failure before a rollback before success.
fn worse(one: u8, other: u8) -> u8 {
    if one == exit::FAILED || other == exit::FAILED {
        exit::FAILED
    } else {
        one.max(other)
    }
}

fn progress(event: &Event, started: Instant) {
    let Event { service, text, .. } = event;
    let elapsed = started.elapsed().as_secs_f64() * 1e3;
    let who = match event.generation {
        Some(generation) => format!("{service}/{generation}"),
        None => service.clone(),
    };
    remark(&format!("{elapsed:9.1} ms  {who}: {text}"));
}

fn tell(report: &Report, json: bool) {
    if json {
        match serde_json::to_string(report) {
            Ok(line) => say(&line),
            Err(error) => complain(&error.to_string()),
        }
        return;
    }
    let Report {
        service,
        from,
        to,
        total_ms,
        ..
    } = report;
    match report.outcome {
        Outcome::Committed => {
            if let Some(warning) = &report.warning {
                eprintln!("{service}: warning: {warning}");
            }
            let state = state_of(report);
            say(&format!(
                "{service}: generation {to} serves (before: {from}; {total_ms:.1} ms{state})"
            ));
        }
        Outcome::Rehearsed => {
            let reason = report
                .reason
                .as_deref()
                .unwrap_or("the new program became ready");
            say(&format!(
                "{service}: dry run passed: {reason}; generation {from} serves on"
            ));
        }
        Outcome::Aborted | Outcome::RolledBack => {
            let what = match report.outcome {
                Outcome::RolledBack => format!("generation {to} was rolled back"),
                Outcome::Aborted | Outcome::Committed | Outcome::Rehearsed => match from {
                    0 => "the new generation failed, none serves".to_owned(),
                    _ => format!("the new generation failed, generation {from} serves on"),
                },
            };
            let reason = report.reason.as_deref().unwrap_or("no reason is known");
            complain(&format!("{service}: {what}: {reason}"));
            for line in &report.stderr {
                remark(&format!("  | {line}"));
            }
        }
    }
}

/// What a handover of state came to; nothing if there was none.
fn state_of(report: &Report) -> String {
    let Report {
        pause_ms,
        snapshot_bytes,
        delta_rounds,
        connections_moved,
        ..
    } = report;
    if report.strategy != "handover" {
        return String::new();
    }
    let rounds = match delta_rounds {
        1 => "1 round".to_owned(),
        more => format!("{more} rounds"),
    };
    let bytes = size(*snapshot_bytes);
    let connections = match connections_moved {
        0 => String::new(),
        1 => ", 1 connection moved".to_owned(),
        more => format!(", {more} connections moved"),
    };
    format!(", paused {pause_ms:.1} ms, {bytes} of state in {rounds}{connections}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_outcome_of_several_services_counts() {
        assert_eq!(worse(0, 0), 0);
        assert_eq!(worse(0, exit::ROLLED_BACK), exit::ROLLED_BACK);
        assert_eq!(worse(exit::ROLLED_BACK, exit::FAILED), exit::FAILED);
        assert_eq!(worse(exit::FAILED, 0), exit::FAILED);
    }
}
