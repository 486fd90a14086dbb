//! `heirloom torture`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::flags::Torture;
use super::{complain, exit, say};
use crate::config::file::{self, Configuration};
use crate::config::listen::ListenSpec;
use crate::torture::{self, Crowd, Failed, Plan, Until, Work};

/// How long it goes on if nothing is said.
const USUALLY: Duration = Duration::from_secs(30);

pub(crate) fn torture(command: Torture) -> ExitCode {
    let (json, plan) = (command.json, plan(command));
    let plan = match plan {
        Ok(plan) => plan,
        Err(reason) => {
            complain(&reason);
            return exit::USAGE.into();
        }
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // A second one ends it at once.
        let registered =
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&interrupted))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupted)));
        if let Err(error) = registered {
            complain(&format!("signals cannot be waited for: {error}"));
            return exit::FAILED.into();
        }
    }
    let tell = |text: &str| {
        if !json {
            complain(text);
        }
    };
    match torture::run(&plan, &interrupted, &tell) {
        Ok(report) => {
            if json {
                match serde_json::to_string(&report) {
                    Ok(line) => say(&line),
                    Err(error) => complain(&error.to_string()),
                }
            } else {
                say(&report.to_string());
            }
            for problem in report.problems() {
                complain(problem);
            }
            if report.is_clean() {
                ExitCode::SUCCESS
            } else {
                exit::FAILED.into()
            }
        }
        Err(Failed::NotUp(reason)) => {
            complain(&reason);
            exit::UNREACHED.into()
        }
        Err(Failed::System(reason)) => {
            complain(&reason);
            exit::FAILED.into()
        }
    }
}

fn plan(command: Torture) -> Result<Plan, String> {
    let first = command
        .program
        .first()
        .ok_or("a program is missing behind --")?;
    let name = Path::new(first).file_name().unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    let listen = if command.listen.is_empty() {
        let default = "http=tcp:127.0.0.1:0".parse::<ListenSpec>();
        vec![default.map_err(|error| error.to_string())?]
    } else {
        command.listen
    };
    let service = command.tuning.service(&name, command.program, listen);
    let configuration = Configuration {
        name: name.clone(),
        services: [(name, service.clone())].into(),
    };
    file::check(&configuration)?;
    let until = match (command.lasting, command.handovers) {
        (Some(time), _) => Until::For(time.0),
        (None, Some(count)) => Until::Handovers(count),
        (None, None) => Until::For(USUALLY),
    };
    let work = match (command.counter, command.connect_only) {
        (Some(path), _) => Work::Count(path),
        (None, true) => Work::Connect,
        (None, false) => Work::Get(command.path),
    };
    let seed = command.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        // Short, so that it can be said.
        since.map_or(1, |since| u64::from(since.subsec_micros()))
    });
    Ok(Plan {
        service,
        alternate: command.alternate,
        until,
        every: command.every.0,
        kill: command.kill,
        stall: command.stall,
        stall_for: command.stall_for.0,
        share: command.share,
        seed,
        work,
        crowd: Crowd {
            keeping: command.keeping,
            fresh: command.fresh,
            idle: command.idle,
            pace: command.pace.0,
        },
        strict: command.strict,
    })
}
