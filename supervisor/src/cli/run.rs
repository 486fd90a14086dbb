//! `heirloom run`: from the command line, or a file, to a running supervisor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::flags::{Run, Tuning, Which};
use super::{complain, exit};
use crate::config::file::{self, Configuration};
use crate::config::service::Service;
use crate::config::trust;
use crate::control::place;
use crate::daemon::{self, First, Inherited, Origin, Start};
use crate::log;

pub(crate) fn run(command: Run) -> ExitCode {
    let Run {
        which,
        listen,
        config,
        log_format,
        log_file,
        tuning,
        program,
    } = command;
    // A successor in place is given all the rest.
    let passed = match daemon::Passed::take() {
        Ok(passed) => passed,
        Err(reason) => {
            complain(&reason);
            return exit::FAILED.into();
        }
    };
    let origin = match passed {
        Some(passed) => Origin::Successor(Box::new(passed)),
        None => match first(which, config.clone(), listen, tuning, &program) {
            Ok(origin) => origin,
            Err((status, reason)) => {
                complain(&reason);
                return status.into();
            }
        },
    };
    // Before there is any thread, which would have them.
    let signals = match daemon::take_signals() {
        Ok(signals) => signals,
        Err(error) => {
            complain(&format!("signals cannot be taken: {error}"));
            return exit::FAILED.into();
        }
    };
    if let Err(error) = daemon::check_threads() {
        complain(&format!(
            "no threads can be started: {error}; raise the limit on processes (ulimit -u, TasksMax=)"
        ));
        return exit::FAILED.into();
    }
    let follows = matches!(origin, Origin::Successor(_));
    let log = match log::start(log_format, log_file.as_deref()) {
        Ok(log) => log,
        // Nothing of the command line may end one whose programs serve already.
        Err(error) if follows => match log::start(log::Format::Json, None) {
            Ok(log) => {
                tracing::error!("the log cannot be opened ({error}); it is written here instead");
                log
            }
            Err(error) => {
                complain(&format!("the log cannot be written: {error}"));
                return exit::FAILED.into();
            }
        },
        Err(error) => {
            complain(&format!("the log cannot be opened: {error}"));
            return exit::USAGE.into();
        }
    };
    if let Some(warning) = config.as_deref().and_then(trust::writable_by_all) {
        tracing::warn!("{warning}");
    }
    daemon::run(Start {
        origin,
        signals,
        log,
    })
}

/// What a supervisor begins with that follows none in place; or the exit status and the reason.
fn first(
    which: Which,
    config: Option<PathBuf>,
    listen: Vec<crate::config::listen::ListenSpec>,
    tuning: Tuning,
    program: &[String],
) -> Result<Origin, (u8, String)> {
    let wanted = which.wanted();
    let configuration = match &config {
        Some(path) => file::read(path).map_err(|error| error.to_string()),
        None => from_command_line(program, listen, tuning, wanted.name.as_deref()),
    };
    let mut configuration = configuration.map_err(|reason| (exit::USAGE, reason))?;
    if let Some(name) = &wanted.name {
        configuration.name.clone_from(name);
    }
    file::check(&configuration).map_err(|reason| (exit::USAGE, reason))?;
    // Before the log's thread: taking the sockets changes the environment.
    let (inherited, from_store) = Inherited::take().map_err(|error| {
        let reason = format!("the sockets systemd passed cannot be used: {error}");
        (exit::FAILED, reason)
    })?;
    let control = place::of_supervisor(&wanted, &configuration.name);
    Ok(Origin::First(Box::new(First {
        configuration,
        file: config,
        control,
        inherited,
        from_store,
    })))
}

/// The one service of the command line; it and its supervisor are called alike.
fn from_command_line(
    program: &[String],
    listen: Vec<crate::config::listen::ListenSpec>,
    tuning: Tuning,
    name: Option<&str>,
) -> Result<Configuration, String> {
    let first = program.first().ok_or("a program is missing behind --")?;
    let file_name = Path::new(first)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let name = name.unwrap_or(&file_name).to_owned();
    let service = tuning.service(&name, program.to_vec(), listen);
    Ok(Configuration {
        name: name.clone(),
        services: BTreeMap::from([(name, service)]),
    })
}

impl Tuning {
    /// The service that these settings make of a command.
    pub(super) fn service(
        self,
        name: &str,
        command: Vec<String>,
        listen: Vec<crate::config::listen::ListenSpec>,
    ) -> Service {
        let default = Service::default();
        Service {
            name: name.to_owned(),
            command,
            listen,
            strategy: self.strategy.unwrap_or(default.strategy),
            instances: self.instances.unwrap_or(default.instances),
            ready: self.ready.unwrap_or(default.ready),
            stop_signal: self.stop_signal.unwrap_or(default.stop_signal),
            ready_timeout: self.ready_timeout.unwrap_or(default.ready_timeout),
            drain_timeout: self.drain_timeout.unwrap_or(default.drain_timeout),
            probation: self.probation.unwrap_or(default.probation),
            health: self.health,
            health_every: self.health_every.unwrap_or(default.health_every),
            without_way_back: self.without_way_back.unwrap_or(default.without_way_back),
            pause: self.pause.unwrap_or(default.pause),
            freeze_timeout: self.freeze_timeout.unwrap_or(default.freeze_timeout),
            memory_check: self.memory_check.unwrap_or(default.memory_check),
            // What a path means must not depend on where a later reader of it stands.
            state_file: self
                .state_file
                .map(|path| std::path::absolute(&path).unwrap_or(path)),
            max_state: self.max_state.unwrap_or(default.max_state),
            log_rate: self.log_rate.unwrap_or(default.log_rate),
            watchdog: self.watchdog,
            most_draining: self.most_draining.unwrap_or(default.most_draining),
            directory: self.directory,
            env_file: self.env_file,
            user: self.user,
            group: self.group,
            groups: self.groups,
            no_new_privileges: self.no_new_privileges,
            capabilities: self.capabilities,
            sha256: self.sha256,
            minisign: default.minisign,
            environment: default.environment,
        }
    }
}
