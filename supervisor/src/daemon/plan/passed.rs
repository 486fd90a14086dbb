//! Plans in the record of a supervisor, and back.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::file::{Content, FileIdentity};
use super::pin::{self, Pin};
use super::{Plan, Unusable, unusable};
use crate::config::service::Service;
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
            Content::Lost(unusable) => record::Content::Lost(unusable.to_string()),
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

    /// Takes one of a record back. A program that was not passed on is opened as one of these processes has
    /// it, or at its path, if it is still the same. One that is not to be had any more is lost: what runs of
    /// it goes on, and it cannot be started again.
    ///
    /// # Errors
    ///
    /// [`Unusable`]: not even a directory can be opened.
    pub(crate) fn restore(
        listed: record::Plan,
        found: &mut Found,
        running: &[Pid],
    ) -> Result<Self, Unusable> {
        let service = listed.settings.into_service();
        let images = running.iter();
        let mut images: Vec<PathBuf> = images
            .map(|pid| PathBuf::from(format!("/proc/{pid}/exe")))
            .collect();
        let resolved = listed.resolved;
        let (handle, content) = match listed.content {
            record::Content::Binary { file: handle, was } => {
                let was = FileIdentity::from(was);
                images.push(resolved.clone());
                let file = found.take(handle).map(File::from);
                let file = file.or_else(|| images.iter().find_map(|path| same(path, was)));
                let content = file.map(|file| Content::Binary { file, was });
                (Some(handle), content.ok_or_else(|| lost(&resolved)))
            }
            record::Content::Script { path, was, copy } => {
                let was = was.into();
                let kept = copy.and_then(|copy| found.take(copy));
                let copy_of = Content::Script {
                    path,
                    was,
                    copy: kept,
                };
                (copy, Ok(copy_of))
            }
            record::Content::PinnedBinary(handle) => {
                let file = found.take(handle).map(File::from);
                let file = file.map_or_else(|| checked(&resolved, &images, &service), Ok);
                (Some(handle), file.map(Content::PinnedBinary))
            }
            record::Content::PinnedScript(handle) => {
                let file = found.take(handle).map(File::from);
                // What its processes run is its interpreter.
                let file = file.map_or_else(|| checked(&resolved, &[], &service), Ok);
                (Some(handle), file.map(Content::PinnedScript))
            }
            record::Content::Lost(reason) => (None, Err(unusable(reason))),
        };
        let directory = match found.take(listed.directory) {
            Some(directory) => Ok(directory),
            None => open_directory(&listed.directory_path),
        };
        let (directory, content) = match directory {
            Ok(directory) => (directory, content),
            // Nothing is started in the one that stands for it.
            Err(error) => (open_directory(Path::new("/"))?, Err(error)),
        };
        let environment = listed.environment.into_iter();
        Ok(Self {
            service,
            program: listed.program,
            resolved,
            content: content.unwrap_or_else(Content::Lost),
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

fn lost(resolved: &Path) -> Unusable {
    unusable(format!(
        "{} is not what it was when it was started, and was not kept; a reload looks it up anew",
        resolved.display()
    ))
}

/// The file at this path, if it can be read.
fn open(path: &Path) -> Option<File> {
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    opened.ok()
}

/// The file at this path, if it is this one.
fn same(path: &Path, was: FileIdentity) -> Option<File> {
    let file = open(path)?;
    let now = FileIdentity::of(&file.metadata().ok()?);
    (now == was).then_some(file)
}

/// A copy of a pinned program that is the one that was started: of one of these images of it, or, where a
/// hash says that it is the same, of what is at its path. Each is held to its hash or signature again.
fn checked(resolved: &Path, images: &[PathBuf], service: &Service) -> Result<File, Unusable> {
    let pin = Pin::of(service).ok_or_else(|| lost(resolved))?;
    let at_its_path = service.sha256.is_some().then_some(resolved);
    let paths = images.iter().map(PathBuf::as_path).chain(at_its_path);
    let mut files = paths.filter_map(open).filter_map(|file| {
        let copied = pin::copy(resolved, &file, pin).ok()?;
        copied.verdict.is_ok().then_some(copied.file)
    });
    files.next().ok_or_else(|| lost(resolved))
}

/// Where a directory is now, whatever path it was opened by.
pub(super) fn path_of(directory: &OwnedFd) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    path.ok().filter(|path| path.is_absolute())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::plan::look_up;
    use crate::daemon::record::handles::Purpose;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    const SCRIPT: &str = "#!/bin/sh\nexit 0\n";

    fn executable(path: &Path, content: &[u8]) {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn recorded(service: &Service) -> record::Plan {
        let plan = look_up(service).unwrap();
        plan.record(&mut Held::for_(Purpose::Keep))
    }

    fn restored(listed: record::Plan, running: &[Pid]) -> Plan {
        Plan::restore(listed, &mut Found::default(), running).unwrap()
    }

    fn service(program: &Path) -> Service {
        Service {
            command: vec![program.to_str().unwrap().to_owned()],
            ..Service::default()
        }
    }

    fn hash_of(content: &[u8]) -> crate::config::pin::Sha256 {
        use sha2::Digest;
        crate::config::pin::Sha256(sha2::Sha256::digest(content).into())
    }

    #[test]
    fn a_program_replaced_by_rename_is_had_from_any_process_that_runs_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::copy("/bin/cat", &path).unwrap();
        let binary = fs::read(&path).unwrap();
        let listed = recorded(&service(&path));
        let pinned = Service {
            sha256: Some(hash_of(&binary)),
            ..service(&path)
        };
        let [listed_pinned, not_to_be_had] = [(); 2].map(|()| recorded(&pinned));
        let mut child = Command::new(&path).stdin(Stdio::piped()).spawn().unwrap();
        let other = directory.path().join("other");
        executable(&other, SCRIPT.as_bytes());
        fs::rename(&other, &path).unwrap();
        // The first of them runs something else.
        let running = [
            nix::unistd::getpid(),
            Pid::from_raw(child.id().cast_signed()),
        ];
        restored(listed, &running).program().unwrap();
        restored(listed_pinned, &running).program().unwrap();
        // What another runs is not taken for what was pinned.
        let lost = restored(not_to_be_had, &running[..1]);
        assert!(lost.program().is_err());
        let again = lost.record(&mut Held::for_(Purpose::Keep));
        assert!(restored(again, &running).program().is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_pinned_script_is_had_from_its_path_as_long_as_it_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("script");
        executable(&path, SCRIPT.as_bytes());
        let pinned = Service {
            sha256: Some(hash_of(SCRIPT.as_bytes())),
            ..service(&path)
        };
        let [same, changed] = [(); 2].map(|()| recorded(&pinned));
        restored(same, &[]).program().unwrap();
        executable(&path, b"#!/bin/sh\nexit 1\n");
        let lost = restored(changed, &[]);
        assert!(lost.lost().is_some() && lost.program().is_err());
    }

    #[test]
    fn the_directory_is_the_one_of_then_and_a_program_whose_directory_is_gone_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second, current] =
            ["first", "second", "current"].map(|name| directory.path().join(name));
        for release in [&first, &second] {
            fs::create_dir(release).unwrap();
        }
        std::os::unix::fs::symlink(&first, &current).unwrap();
        let service = Service {
            directory: Some(current.clone()),
            ..service(Path::new("/bin/cat"))
        };
        let [kept, lost] = [(); 2].map(|()| recorded(&service));
        fs::remove_file(&current).unwrap();
        std::os::unix::fs::symlink(&second, &current).unwrap();
        let kept = restored(kept, &[]);
        let resolved = first.canonicalize().unwrap();
        assert_eq!(path_of(&kept.directory), Some(resolved));
        fs::remove_dir(&first).unwrap();
        let reason = restored(lost, &[]).program().unwrap_err().to_string();
        assert!(reason.contains("first"), "{reason}");
    }
}
