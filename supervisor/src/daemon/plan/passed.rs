//! Plans in the record of a supervisor, and back.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::unistd::Pid;

use super::file::{FileIdentity, Script};
use super::{Plan, Unusable, unusable};
use crate::daemon::record::{self, Handle, Held, Settings, Text, handles::Found};

/// What a plan's descriptors are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handles {
    file: Handle,
    directory: Handle,
    copy: Handle,
}

impl Handles {
    pub(super) fn new() -> Self {
        Self {
            file: Handle::new(),
            directory: Handle::new(),
            copy: Handle::new(),
        }
    }
}

impl Plan {
    /// What the record says of it.
    pub(crate) fn record<'a>(&'a self, held: &mut Held<'a>) -> record::Plan {
        let FileIdentity {
            device,
            inode,
            length,
            modified,
        } = self.identity_of_file;
        let script = self.script.as_ref().map(|script| record::Script {
            path: script.path.clone(),
            copy: script
                .copy
                .as_ref()
                .map(|copy| held.hold(self.handles.copy, copy.as_fd())),
        });
        let environment = self.environment.iter();
        record::Plan {
            settings: Settings::of(&self.service),
            program: self.program.clone(),
            resolved: self.resolved.clone(),
            file: held.hold(self.handles.file, self.file.as_fd()),
            identity: record::FileIdentity {
                device,
                inode,
                length,
                modified,
            },
            script,
            directory: held.pass(self.handles.directory, self.directory.as_fd()),
            directory_path: self.directory_path.clone(),
            environment: environment
                .map(|(name, value)| (Text::of(name), Text::of(value)))
                .collect(),
            user: self.user.clone(),
        }
    }

    /// Takes one of a record back. A program that was not passed on is opened as a process that runs it
    /// has it, or at its path, if that still leads to the same file.
    ///
    /// # Errors
    ///
    /// [`Unusable`]: the program is not to be had any more.
    pub(crate) fn restore(
        listed: record::Plan,
        found: &mut Found,
        running: Option<Pid>,
    ) -> Result<Self, Unusable> {
        let record::FileIdentity {
            device,
            inode,
            length,
            modified,
        } = listed.identity;
        let identity = FileIdentity {
            device,
            inode,
            length,
            modified,
        };
        let script = listed.script;
        let file = match found.take(listed.file) {
            Some(file) => File::from(file),
            None => {
                let image = running
                    .filter(|_| script.is_none())
                    .map(|pid| format!("/proc/{pid}/exe"));
                let ways = image
                    .iter()
                    .map(Path::new)
                    .chain([listed.resolved.as_path()]);
                let same = |path: &Path| {
                    let file = File::options()
                        .read(true)
                        .custom_flags(libc::O_NONBLOCK)
                        .open(path)
                        .ok()?;
                    let now = FileIdentity::of(&file.metadata().ok()?);
                    (now == identity).then_some(file)
                };
                ways.filter_map(same).next().ok_or_else(|| {
                    unusable(format!(
                        "{} is not what it was when it was started, and was not kept",
                        listed.resolved.display()
                    ))
                })?
            }
        };
        let directory = match found.take(listed.directory) {
            Some(directory) => directory,
            None => open_directory(&listed.directory_path)?,
        };
        let copy = script.as_ref().and_then(|script| script.copy);
        let handles = Handles {
            file: listed.file,
            directory: listed.directory,
            copy: copy.unwrap_or_else(Handle::new),
        };
        let environment = listed.environment.into_iter();
        Ok(Self {
            service: listed.settings.into_service(),
            program: listed.program,
            resolved: listed.resolved,
            file,
            identity_of_file: identity,
            script: script.map(|script| Script {
                path: script.path,
                copy: copy.and_then(|copy| found.take(copy)),
            }),
            directory,
            directory_path: listed.directory_path,
            environment: environment
                .map(|(name, value)| (name.into_os_string(), value.into_os_string()))
                .collect(),
            user: listed.user,
            handles,
        })
    }
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd, Unusable> {
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(path);
    opened
        .map(OwnedFd::from)
        .map_err(|error| unusable(format!("directory {}: {error}", path.display())))
}
