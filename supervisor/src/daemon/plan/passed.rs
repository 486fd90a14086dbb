//! Plans in the record of a supervisor, and back.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::file::{Content, FileIdentity};
use super::{Plan, Unusable, unusable};
use crate::daemon::record::{self, Handle, Held, Settings, Text, handles::Found};

/// What a plan's descriptors are called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handles {
    file: Handle,
    directory: Handle,
}

impl Handles {
    pub(super) fn new() -> Self {
        Self {
            file: Handle::new(),
            directory: Handle::new(),
        }
    }
}

impl From<FileIdentity> for record::FileIdentity {
    fn from(was: FileIdentity) -> Self {
        Self {
            device: was.device,
            inode: was.inode,
            length: was.length,
            modified: was.modified,
        }
    }
}

impl From<record::FileIdentity> for FileIdentity {
    fn from(was: record::FileIdentity) -> Self {
        Self {
            device: was.device,
            inode: was.inode,
            length: was.length,
            modified: was.modified,
        }
    }
}

impl Plan {
    /// What the record says of it.
    pub(crate) fn record<'a>(&'a self, held: &mut Held<'a>) -> record::Plan {
        let handle = self.handles.file;
        let content = match &self.content {
            Content::Binary { file, was } => record::Content::Binary {
                file: held.hold(handle, file.as_fd()),
                was: (*was).into(),
            },
            Content::Script { path, was, copy } => record::Content::Script {
                path: path.clone(),
                was: (*was).into(),
                copy: copy.as_ref().map(|copy| held.hold(handle, copy.as_fd())),
            },
            Content::PinnedBinary(file) => {
                record::Content::PinnedBinary(held.hold(handle, file.as_fd()))
            }
            Content::PinnedScript(file) => {
                record::Content::PinnedScript(held.hold(handle, file.as_fd()))
            }
        };
        let environment = self.environment.iter();
        record::Plan {
            settings: Settings::of(&self.service),
            program: self.program.clone(),
            resolved: self.resolved.clone(),
            content,
            directory: held.pass(self.handles.directory, self.directory.as_fd()),
            directory_path: self.directory_path.clone(),
            environment: environment
                .map(|(name, value)| (Text::of(name), Text::of(value)))
                .collect(),
            privileges: self.privileges.clone(),
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
        let lost = || {
            unusable(format!(
                "{} is not what it was when it was started, and was not kept",
                listed.resolved.display()
            ))
        };
        let image = running.map(|pid| PathBuf::from(format!("/proc/{pid}/exe")));
        let open = |path: &Path| {
            let opened = File::options()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(path);
            opened.ok()
        };
        let (handle, content) = match listed.content {
            record::Content::Binary { file: handle, was } => {
                let was = FileIdentity::from(was);
                let same = |path: &Path| {
                    let file = open(path)?;
                    let now = FileIdentity::of(&file.metadata().ok()?);
                    (now == was).then_some(file)
                };
                let file = found.take(handle).map(File::from);
                let file = file
                    .or_else(|| image.as_deref().and_then(same))
                    .or_else(|| same(&listed.resolved))
                    .ok_or_else(lost)?;
                (Some(handle), Content::Binary { file, was })
            }
            record::Content::Script { path, was, copy } => {
                let was = was.into();
                let kept = copy.and_then(|copy| found.take(copy));
                let copy_of = Content::Script {
                    path,
                    was,
                    copy: kept,
                };
                (copy, copy_of)
            }
            record::Content::PinnedBinary(handle) => {
                let file = found.take(handle).map(File::from);
                // What a process of it runs is what was checked.
                let file = file
                    .or_else(|| image.as_deref().and_then(open))
                    .ok_or_else(lost)?;
                (Some(handle), Content::PinnedBinary(file))
            }
            record::Content::PinnedScript(handle) => {
                let file = found.take(handle).map(File::from).ok_or_else(lost)?;
                (Some(handle), Content::PinnedScript(file))
            }
        };
        let directory = match found.take(listed.directory) {
            Some(directory) => directory,
            None => open_directory(&listed.directory_path)?,
        };
        let environment = listed.environment.into_iter();
        Ok(Self {
            service: listed.settings.into_service(),
            program: listed.program,
            resolved: listed.resolved,
            content,
            directory,
            directory_path: listed.directory_path,
            environment: environment
                .map(|(name, value)| (name.into_os_string(), value.into_os_string()))
                .collect(),
            privileges: listed.privileges,
            // They were told when it was looked up.
            warnings: Vec::new(),
            handles: Handles {
                file: handle.unwrap_or_else(Handle::new),
                directory: listed.directory,
            },
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
