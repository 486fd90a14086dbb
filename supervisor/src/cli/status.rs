//! `heirloom status`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::flags;
use super::{complain, exit, no_reply, refused, say};
use crate::control::client;
use crate::control::protocol::{Reply, Request, Status};
use crate::log::printable;

/// How long the supervisor may take to answer.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);

/// How often `--watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

pub(crate) fn status(command: flags::Status) -> ExitCode {
    let wanted = command.which.wanted();
    loop {
        let deadline = Instant::now() + LONGEST_ANSWER;
        let reply = client::ask(&wanted, &Request::Status, Some(deadline))
            .and_then(|mut conversation| conversation.next());
        let status = match reply {
            Ok(Some(Reply::Status(status))) => status,
            Ok(Some(Reply::Refused(refusal))) => return refused(&refusal),
            Ok(_) => {
                complain("the supervisor gave no status");
                return exit::UNREACHED.into();
            }
            Err(error) => return no_reply(&error),
        };
        let text = if command.json {
            serde_json::to_string(&status).unwrap_or_default()
        } else {
            for_people(&status)
        };
        if !command.watch {
            say(&text);
            return ExitCode::SUCCESS;
        }
        if !show(&text, !command.json && std::io::stdout().is_terminal()) {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

/// Shows one look of `--watch`; on a terminal in place of the one before. Says whether anybody
/// still reads.
fn show(text: &str, in_place: bool) -> bool {
    let clear = if in_place { "\x1b[H\x1b[2J" } else { "" };
    let mut out = std::io::stdout();
    writeln!(out, "{clear}{}", printable(text))
        .and_then(|()| out.flush())
        .is_ok()
}

fn for_people(status: &Status) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ok = writeln!(
        text,
        "{} (supervisor {}, pid {})",
        status.name, status.version, status.pid
    );
    for service in &status.services {
        let _ok = writeln!(text, "\n{}: {}", service.name, service.state);
        for listener in &service.listeners {
            let queued = listener
                .queued
                .map(|n| format!(", {n} waiting"))
                .unwrap_or_default();
            let _ok = writeln!(text, "  {:<12} {}{queued}", listener.name, listener.address);
        }
        for generation in &service.generations {
            let pid = generation
                .pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let bytes = generation.memory_bytes.unwrap_or(generation.rss_bytes);
            let memory = bytes as f64 / f64::from(1 << 20);
            let said = generation
                .status
                .as_deref()
                .map(|s| format!("  \"{s}\""))
                .unwrap_or_default();
            let version = generation
                .version
                .as_deref()
                .map(|version| format!("  version {version}"))
                .unwrap_or_default();
            let _ok = writeln!(
                text,
                "  generation {:<4} {:<9} pid {:<8} {} connections, {memory:.1} MiB, since {}  {}{version}{said}",
                generation.generation,
                generation.phase,
                pid,
                generation.connections,
                generation.since,
                generation.resolved,
            );
        }
        if let Some(last) = &service.last_handover {
            let reason = last
                .reason
                .as_deref()
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            let _ok = writeln!(
                text,
                "  last handover {} -> {} {} ({:.1} ms){reason}",
                last.from,
                last.to,
                last.outcome.word(),
                last.total_ms
            );
        }
    }
    text.trim_end().to_owned()
}
