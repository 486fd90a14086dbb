//! Fuzz targets: what a supervisor reads of its clients, its operator and its programs' files. Under
//! `cargo test` each runs some thousand inputs; `cargo bolero test -p heirloom targets::NAME` goes on from
//! there.

use std::path::Path;

use bolero::check;

use crate::config::file;
use crate::config::listen::ListenSpec;
use crate::config::pin::Sha256;
use crate::config::privileges::Capabilities;
use crate::config::service::{Ready, Span, StopSignal};
use crate::control::protocol::{Reply, Request};
use crate::daemon::plan::{elf_length, parse_env_file};

/// Enough for a smoke run of a second or two.
const ITERATIONS: usize = 10_000;

#[test]
fn any_request() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| request_reads_back(input));
}

fn request_reads_back(input: &[u8]) {
    if let Ok(request) = Request::parse(input) {
        let again = serde_json::to_vec(&request).unwrap();
        assert_eq!(Request::parse(&again).unwrap(), request);
    }
}

/// Requests of the known form, with any values in any order.
#[test]
fn any_fields_of_a_known_request() {
    const COMMANDS: [&str; 7] = [
        "status", "events", "reload", "rollback", "snapshot", "stop", "dance",
    ];
    const FIELDS: [&str; 9] = [
        "service",
        "follow",
        "dry_run",
        "program",
        "until_proven",
        "instance",
        "path",
        "timeout_ms",
        "command",
    ];
    check!()
        .with_iterations(ITERATIONS)
        .with_type::<(u8, Vec<(u8, u8, String, u64)>)>()
        .for_each(|(command, fields)| {
            let command = COMMANDS[usize::from(*command) % COMMANDS.len()];
            let mut text = format!("{{\"command\":\"{command}\"");
            for (name, form, word, number) in fields {
                let name = FIELDS[usize::from(*name) % FIELDS.len()];
                let word = serde_json::to_string(word).unwrap();
                let value = match form % 8 {
                    0 => word,
                    1 => number.to_string(),
                    2 => "true".to_owned(),
                    3 => "null".to_owned(),
                    4 => format!("[{word}]"),
                    5 => format!("{{{word}:{number}}}"),
                    6 => format!("-{number}e{number}"),
                    _ => "[".repeat(usize::from(*form) * 16),
                };
                text.push_str(&format!(",\"{name}\":{value}"));
            }
            text.push('}');
            request_reads_back(text.as_bytes());
        });
}

#[test]
fn any_reply() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| {
            let _either = serde_json::from_slice::<Reply>(input);
        });
}

fn configuration_reads_back(text: &str) {
    let path = Path::new("/etc/heirloom/fuzzed.toml");
    match file::parse(path, text) {
        Ok(read) => {
            let again = file::print(&read).unwrap();
            assert_eq!(file::parse(path, &again).unwrap(), read, "{again}");
        }
        Err(error) => assert!(error.to_string().contains("fuzzed.toml"), "{error}"),
    }
}

#[test]
fn any_configuration() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| configuration_reads_back(&String::from_utf8_lossy(input)));
}

#[test]
fn any_values_of_known_settings() {
    const SETTINGS: [&str; 28] = [
        "command",
        "listen",
        "strategy",
        "instances",
        "ready",
        "stop_signal",
        "ready_timeout",
        "drain_timeout",
        "probation",
        "most_draining",
        "pause",
        "freeze_timeout",
        "memory_check",
        "state_file",
        "watchdog",
        "directory",
        "env_file",
        "environment",
        "user",
        "group",
        "groups",
        "no_new_privileges",
        "capabilities",
        "sha256",
        "minisign",
        "environment.NAME",
        "minisign.public_key_file",
        "minisign.signature",
    ];
    check!()
        .with_iterations(ITERATIONS)
        .with_type::<Vec<(u8, u8, String, i64)>>()
        .for_each(|settings| {
            let mut text = "[service.a]\n".to_owned();
            for (name, form, word, number) in settings {
                let name = SETTINGS[usize::from(*name) % SETTINGS.len()];
                // A string of JSON is one of TOML, but for escapes that TOML refuses.
                let word = serde_json::to_string(word).unwrap();
                let value = match form % 9 {
                    0 => word,
                    1 => number.to_string(),
                    2 => "true".to_owned(),
                    3 => format!("[{word}]"),
                    4 => format!("{{ NAME = {word} }}"),
                    5 => format!("\"{}ms\"", number.unsigned_abs() % 100_000),
                    6 => "\"http=tcp:127.0.0.1:80\"".to_owned(),
                    7 => "[\"kill\"]".to_owned(),
                    _ => "[".repeat(usize::from(*form) * 16),
                };
                text.push_str(&format!("{name} = {value}\n"));
            }
            if !settings
                .iter()
                .any(|(name, ..)| usize::from(*name) % SETTINGS.len() == 0)
            {
                text.push_str("command = [\"x\"]\n");
            }
            configuration_reads_back(&text);
        });
}

#[test]
fn any_listener() {
    const BEGINNINGS: [&str; 8] = [
        "",
        "tcp:",
        "udp:",
        "unix:",
        "unix:@",
        "unix-seqpacket:",
        "fd:",
        "a=[::]:",
    ];
    check!()
        .with_iterations(ITERATIONS)
        .with_type::<(u8, String)>()
        .for_each(|(beginning, rest)| {
            let beginning = BEGINNINGS[usize::from(*beginning) % BEGINNINGS.len()];
            let spec = format!("{beginning}{rest}");
            if let Ok(read) = spec.parse::<ListenSpec>() {
                let again = read.to_string();
                assert_eq!(again.parse::<ListenSpec>().as_ref(), Ok(&read), "{again}");
            }
        });
}

#[test]
fn any_word_of_a_setting() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| {
            let text = String::from_utf8_lossy(input);
            if let Ok(read) = text.parse::<Capabilities>() {
                assert_eq!(read.to_string().parse(), Ok(read));
            }
            if let Ok(read) = text.parse::<Sha256>() {
                assert_eq!(read.to_string().parse(), Ok(read));
            }
            if let Ok(read) = text.parse::<StopSignal>() {
                assert_eq!(read.to_string().parse(), Ok(read));
            }
            if let Ok(read) = text.parse::<Span>() {
                assert_eq!(read.to_string().parse(), Ok(read));
            }
            if let Ok(read) = text.parse::<Ready>() {
                assert_eq!(read.to_string().parse(), Ok(read));
            }
        });
}

#[test]
fn any_environment_file_and_any_head_of_a_program() {
    check!()
        .with_iterations(ITERATIONS)
        .for_each(|input: &[u8]| {
            for (name, _) in parse_env_file(input).unwrap_or_default() {
                assert!(!name.is_empty());
            }
            let _any = elf_length(input);
        });
}
