//! Fuzz targets: what a supervisor reads of its clients, its operator and its programs' files. Under
//! `cargo test` each runs some thousand inputs; `cargo bolero test -p heirloom targets::NAME` goes on from
//! there.

use std::collections::BTreeMap;
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
    /// Each with the fields it has, by their place.
    const COMMANDS: [(&str, &[usize]); 7] = [
        ("status", &[]),
        ("events", &[1]),
        ("reload", &[0, 2, 3, 4]),
        ("rollback", &[0]),
        ("snapshot", &[0, 5, 6]),
        ("stop", &[7]),
        ("dance", &[]),
    ];
    /// Each with a value of its kind.
    const FIELDS: [(&str, &str); 8] = [
        ("service", "\"web\""),
        ("follow", "true"),
        ("dry_run", "false"),
        ("program", "[\"x\"]"),
        ("until_proven", "true"),
        ("instance", "1"),
        ("path", "\"/x\""),
        ("timeout_ms", "5"),
    ];
    check!()
        .with_iterations(ITERATIONS)
        .with_type::<(u8, Vec<(u8, u8, String, u64)>)>()
        .for_each(|(command, fields)| {
            let (command, own) = COMMANDS[usize::from(*command) % COMMANDS.len()];
            let mut text = format!("{{\"command\":\"{command}\"");
            // Twice the same field is an error, so this is rarely it.
            let fields: BTreeMap<usize, _> = fields
                .iter()
                .take(6)
                .map(|(field, form, word, number)| {
                    let field = usize::from(*field);
                    let field = match own.get(field % 16) {
                        Some(own) => *own,
                        None if field >= 240 || own.is_empty() => field % FIELDS.len(),
                        None => own[field % own.len()],
                    };
                    (field, (form, word, number))
                })
                .collect();
            for (field, (form, word, number)) in fields {
                let (name, fit) = FIELDS[field];
                let word = serde_json::to_string(word).unwrap();
                let value = match form % 32 {
                    0 => word,
                    1 => number.to_string(),
                    2 => "true".to_owned(),
                    3 => "null".to_owned(),
                    4 => format!("[{word}]"),
                    5 => format!("{{{word}:{number}}}"),
                    6 => format!("-{number}e{number}"),
                    7 => "[".repeat(usize::from(*form) * 16),
                    _ => fit.to_owned(),
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
    /// Each with a value of its kind.
    const SETTINGS: [(&str, &str); 29] = [
        ("command", "[\"x\", \"y\"]"),
        ("listen", "[\"http=tcp:127.0.0.1:80\"]"),
        ("strategy", "\"overlap\""),
        ("instances", "3"),
        ("ready", "\"exec:a b\""),
        ("stop_signal", "\"QUIT\""),
        ("ready_timeout", "\"1m 2s\""),
        ("drain_timeout", "\"250ms\""),
        ("probation", "\"0s\""),
        ("most_draining", "2"),
        ("pause", "\"1ms\""),
        ("freeze_timeout", "\"3s\""),
        ("memory_check", "false"),
        ("state_file", "\"/var/state\""),
        ("watchdog", "\"2s\""),
        ("directory", "\"/srv\""),
        ("env_file", "\"env\""),
        ("environment", "{ A = \"1\" }"),
        ("user", "\"shop\""),
        ("group", "\"shop\""),
        ("groups", "[\"adm\"]"),
        ("no_new_privileges", "false"),
        ("capabilities", "[\"kill\"]"),
        ("sha256", HASH),
        ("minisign", "{ public_key_file = \"/k\" }"),
        ("environment.NAME", "\"1\""),
        ("minisign.public_key_file", "\"/k\""),
        ("minisign.signature", "\"{program}.sig\""),
        ("of_a_later_version", "1"),
    ];
    const HASH: &str = "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"";
    check!()
        .with_iterations(ITERATIONS)
        .with_type::<Vec<(u8, u8, String, i64)>>()
        .for_each(|settings| {
            // Twice the same key is an error, so this is rarely it.
            let settings: BTreeMap<usize, _> = settings
                .iter()
                .map(|(setting, form, word, number)| {
                    (usize::from(*setting) % SETTINGS.len(), (form, word, number))
                })
                .collect();
            let mut text = "[service.a]\n".to_owned();
            if !settings.contains_key(&0) {
                text.push_str("command = [\"x\"]\n");
            }
            for (setting, (form, word, number)) in settings {
                let (name, fit) = SETTINGS[setting];
                // A string of JSON is one of TOML, but for escapes that TOML refuses.
                let word = serde_json::to_string(word).unwrap();
                let value = match form % 64 {
                    0 => word,
                    1 => number.to_string(),
                    2 => "true".to_owned(),
                    3 => format!("[{word}]"),
                    4 => format!("{{ NAME = {word} }}"),
                    5 => format!("\"{}ms\"", number.unsigned_abs() % 100_000),
                    6 => "[".repeat(usize::from(*form) * 16),
                    _ => fit.to_owned(),
                };
                text.push_str(&format!("{name} = {value}\n"));
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
