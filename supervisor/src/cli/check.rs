//! `heirloom check`.

use std::process::ExitCode;

use super::flags::Check;
use super::{complain, exit, say};
use crate::config::{file, trust};
use crate::daemon::look_up;

pub(crate) fn check(command: &Check) -> ExitCode {
    let resolved = file::read(&command.file)
        .map_err(|error| error.to_string())
        .and_then(|read| {
            let text = file::print(&read).map_err(|error| error.to_string())?;
            Ok((read, text))
        });
    match resolved {
        Ok((configuration, text)) => {
            say(text.trim_end());
            if let Some(warning) = trust::writable_by_all(&command.file) {
                complain(&format!("warning: {warning}"));
            }
            for (name, service) in &configuration.services {
                match look_up(service) {
                    Ok(plan) => {
                        for warning in &plan.warnings {
                            complain(&format!("warning: service {name}: {warning}"));
                        }
                    }
                    Err(error) => complain(&format!(
                        "warning: service {name} could not start here: {error}"
                    )),
                }
            }
            ExitCode::SUCCESS
        }
        Err(reason) => {
            complain(&reason);
            exit::USAGE.into()
        }
    }
}
