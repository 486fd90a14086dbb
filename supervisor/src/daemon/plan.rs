//! A program as it was looked up for one handover.
//!
//! Owns resolving a command, its directory, its environment and its user against the world as it is
//! now, and opening the program once: what was checked is what is executed, also later, for a
//! respawn or a rollback, when the path leads elsewhere. A program that is pinned is executed from a
//! copy that nobody can change. Starting it is [`crate::sys::spawn`]'s.

mod file;
mod passed;
mod pin;
mod privileges;
mod surroundings;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::service::Service;
use crate::config::trust;
use crate::sys::spawn::{Privileges, Program};
#[cfg(test)]
pub(crate) use file::elf_length;
use file::{Content, FileIdentity, open};
use passed::{Handles, open_directory, path_of};
use pin::Pin;
use privileges::privileges;
#[cfg(test)]
pub(crate) use surroundings::parse_env_file;
use surroundings::{environment, find, home_of, working_directory};

/// How long a program that is being written may take to be whole.
const LONGEST_COPY: Duration = Duration::from_secs(5);

/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A program, ready to be started any number of times.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) service: Service,
    /// The program as it was asked for.
    pub(crate) program: String,
    /// The file that was found.
    pub(crate) resolved: PathBuf,
    content: Content,
    pub(crate) directory: OwnedFd,
    /// Where that is, whatever links led to it.
    directory_path: PathBuf,
    pub(crate) environment: BTreeMap<OsString, OsString>,
    pub(crate) privileges: Privileges,
    /// What is not as it should be, and refuses nothing.
    pub(crate) warnings: Vec<String>,
    handles: Handles,
}

/// Why a program cannot be started. The reason says whose fault it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Unusable {
    reason: String,
    /// It may be whole in a moment: somebody seems to be writing it.
    pub(crate) passing: bool,
}

fn unusable(reason: impl Into<String>) -> Unusable {
    Unusable {
        reason: reason.into(),
        passing: false,
    }
}

/// Looks a service's program up, waiting for one that is being written. A large program that is
/// hashed, or a slow disk, holds nobody up.
///
/// # Errors
///
/// [`Unusable`] with the reason.
pub(crate) async fn look_up_patiently(service: &Service) -> Result<Plan, Unusable> {
    let deadline = tokio::time::Instant::now() + LONGEST_COPY;
    loop {
        let service = service.clone();
        let looked = tokio::task::spawn_blocking(move || look_up(&service)).await;
        let looked = looked.unwrap_or_else(|error| Err(unusable(format!("it failed: {error}"))));
        match looked {
            Err(error) if error.passing && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            settled => return settled,
        }
    }
}

/// Opens the file of a program that is to be executed by itself, whatever its path leads to later.
///
/// # Errors
///
/// [`Unusable`] with the reason: it is no program, is not whole, or is a script.
pub(crate) fn judge(path: &Path) -> Result<File, Unusable> {
    match open(path, None)?.content {
        Content::Binary { file, .. } | Content::PinnedBinary(file) => Ok(file),
        Content::Script { .. } | Content::PinnedScript(_) => {
            Err(unusable(format!("{} is a script", path.display())))
        }
        Content::Lost(unusable) => Err(unusable),
    }
}

/// Looks a service's program up as it stands now.
///
/// # Errors
///
/// [`Unusable`] with the reason.
pub(crate) fn look_up(service: &Service) -> Result<Plan, Unusable> {
    let directory_path = working_directory(service.directory.as_deref())?;
    let directory = open_directory(&directory_path)?;
    let mut environment = environment(service)?;
    if environment.contains_key(OsStr::new("PWD")) {
        environment.insert("PWD".into(), directory_path.clone().into());
    }
    let privileges = privileges(service)?;
    if let (Some(name), Some(home)) = (&service.user, home_of(service)) {
        for variable in ["USER", "LOGNAME"] {
            environment.insert(variable.into(), name.into());
        }
        environment.insert("HOME".into(), home);
    }
    let [program, ..] = &service.command[..] else {
        return Err(unusable("it has no program"));
    };
    let path = find(
        program,
        &directory_path,
        environment.get(OsStr::new("PATH")),
    )?;
    let pin = Pin::of(service);
    let opened = open(&path, pin)?;
    let warnings = warnings(service, &opened.resolved);
    Ok(Plan {
        service: service.clone(),
        program: program.clone(),
        resolved: opened.resolved,
        content: opened.content,
        directory_path: path_of(&directory).unwrap_or(directory_path),
        directory,
        environment,
        privileges,
        warnings,
        handles: Handles::new(),
    })
}

/// Who else has a say in what this service runs.
fn warnings(service: &Service, resolved: &Path) -> Vec<String> {
    let env_file = service.env_file.as_deref();
    let env_file = env_file.and_then(|path| working_directory(Some(path)).ok());
    // What is checked may be changed by anybody.
    let program = Pin::of(service).is_none().then_some(resolved);
    let state_file = service.state_file.as_deref();
    let relied_on = [
        program,
        env_file.as_deref(),
        state_file.and_then(Path::parent),
    ];
    relied_on
        .into_iter()
        .flatten()
        .filter_map(trust::writable_by_all)
        .chain(env_file.as_deref().and_then(trust::readable_by_all))
        .collect()
}

impl Plan {
    /// The file to execute.
    ///
    /// # Errors
    ///
    /// [`Unusable`] if the file was overwritten in place since it was checked.
    pub(crate) fn program(&self) -> Result<Program, Unusable> {
        let again = |error: io::Error| unusable(format!("{}: {error}", self.program));
        let duplicate = |file: &File| file.try_clone().map(OwnedFd::from).map_err(again);
        match &self.content {
            Content::PinnedBinary(copy) => Ok(Program::File(duplicate(copy)?)),
            Content::PinnedScript(copy) => Ok(Program::Script(duplicate(copy)?)),
            Content::Lost(unusable) => Err(unusable.clone()),
            Content::Binary { file, was } => {
                if FileIdentity::of(&file.metadata().map_err(again)?) == *was {
                    return Ok(Program::File(duplicate(file)?));
                }
                Err(Unusable {
                    reason: format!(
                        "{} was overwritten in place after it had been checked; deploy under another name and rename",
                        self.resolved.display()
                    ),
                    passing: true,
                })
            }
            Content::Script { path, was, copy } => {
                let still_there =
                    fs::metadata(path).is_ok_and(|metadata| FileIdentity::of(&metadata) == *was);
                match (CString::new(path.as_os_str().as_bytes()), copy) {
                    (Ok(path), _) if still_there => Ok(Program::Path(path)),
                    (_, Some(copy)) => Ok(Program::Script(copy.try_clone().map_err(again)?)),
                    (_, None) => Err(unusable(format!(
                        "the script {} is gone and was too large to be kept",
                        path.display()
                    ))),
                }
            }
        }
    }

    fn is_script(&self) -> bool {
        match self.content {
            Content::Script { .. } | Content::PinnedScript(_) => true,
            Content::Binary { .. } | Content::PinnedBinary(_) | Content::Lost(_) => false,
        }
    }

    /// Why it cannot be started again, if a former supervisor has started it and it is lost.
    pub(crate) fn lost(&self) -> Option<&Unusable> {
        match &self.content {
            Content::Lost(unusable) => Some(unusable),
            Content::Binary { .. }
            | Content::PinnedBinary(_)
            | Content::Script { .. }
            | Content::PinnedScript(_) => None,
        }
    }

    /// What an error from executing the program means.
    pub(crate) fn explain(&self, errno: i32) -> Unusable {
        let error = io::Error::from_raw_os_error(errno);
        let file = self.resolved.display();
        match errno {
            libc::ETXTBSY => Unusable {
                reason: format!("{file} is still being written"),
                passing: true,
            },
            libc::ENOENT if self.is_script() => unusable(format!(
                "{file}: the interpreter its first line names does not exist"
            )),
            libc::ENOENT => unusable(format!("{file}: the loader it asks for does not exist")),
            libc::ENOEXEC => unusable(format!("{file} is not a program this system can execute")),
            _other => unusable(format!("cannot execute {file}: {error}")),
        }
    }
}

impl Plan {
    /// What an error of the system, short of something, means.
    pub(crate) fn explain_system(&self, error: &io::Error) -> Unusable {
        unusable(format!("cannot start {}: {error}", self.program))
    }

    /// What an error on the way to the program means.
    pub(crate) fn explain_step(&self, step: &str, error: &io::Error) -> Unusable {
        unusable(format!(
            "cannot start {}: it could not {step}: {error}",
            self.program
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn executable(path: &Path, content: &[u8]) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn service(program: &Path) -> Service {
        Service {
            command: vec![program.to_str().unwrap().to_owned()],
            ..Service::default()
        }
    }

    #[test]
    fn a_binary_cut_anywhere_is_seen_to_be_unfinished() {
        let directory = tempfile::tempdir().unwrap();
        let whole = fs::read("/proc/self/exe").unwrap();
        let path = directory.path().join("program");
        for part in [0, 3, 40, 63, 64, 4096, whole.len() / 2, whole.len() - 1] {
            executable(&path, &whole[..part]);
            let error = look_up(&service(&path)).unwrap_err();
            assert!(error.passing || part == 3, "{part}: {error}");
        }
        executable(&path, &whole);
        look_up(&service(&path)).unwrap();
    }

    #[test]
    fn what_cannot_be_a_program_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        let reason = |path: &Path| look_up(&service(path)).unwrap_err().to_string();
        assert!(reason(&path).contains("No such file"));
        assert!(reason(directory.path()).contains("directory"));
        fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(reason(&path).contains("chmod +x"));
        executable(&path, b"hello");
        assert!(reason(&path).contains("neither"));
        let missing = Service {
            command: vec!["no-such-program-here".to_owned()],
            ..Service::default()
        };
        assert!(
            look_up(&missing)
                .unwrap_err()
                .to_string()
                .contains("in PATH")
        );
    }

    #[test]
    fn a_script_outlives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("script");
        executable(&path, b"#!/bin/sh\nexit 0\n");
        let plan = look_up(&service(&path)).unwrap();
        assert!(matches!(plan.program().unwrap(), Program::Path(_)));
        fs::remove_file(&path).unwrap();
        assert!(matches!(plan.program().unwrap(), Program::Script(_)));
    }
}
