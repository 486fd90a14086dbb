//! Files that hold a saved state.
//!
//! Owns that such a file is whole or not there: it is written under a name of its own beside its
//! place, read back, put onto the disk and then renamed. The supervisor makes it with its own rights,
//! readable by nobody else; a program gets its descriptor only. All of this may wait for a disk, so
//! it belongs into a thread of its own, except where a path is the operator's. When a state is saved and
//! taken up is decided in [`super::runner`].

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use heirloom_state_codec::{Limits, SnapshotReader};

/// So many names are tried for a file that is being written; taken ones are left over from a crash.
const MOST_NAMES: u32 = 100;

/// Why a state could not be saved, or a saved one not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsaved {
    #[error("cannot write beside {path}: {error}")]
    NoPlace { path: PathBuf, error: io::Error },
    #[error("{path} is a directory; name a file")]
    Directory { path: PathBuf },
    #[error("what the program wrote is not a whole state ({defect}); it is at fault")]
    Unsound { defect: String },
    #[error("what the program wrote cannot be read back: {0}")]
    Unreadable(io::Error),
    #[error("{path} cannot be put in place: {error}")]
    NotPlaced { path: PathBuf, error: io::Error },
}

/// A file that is being written; removed with this value, unless it was put in place.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    temporary: PathBuf,
    place: PathBuf,
    bytes_max: u64,
    placed: bool,
}

impl Draft {
    /// Makes an empty file beside `place`, which nobody else can have opened, for a state of so many
    /// bytes at most.
    ///
    /// # Errors
    ///
    /// [`Unsaved`]; nothing was made then.
    pub(crate) fn create(place: &Path, bytes_max: u64) -> Result<Self, Unsaved> {
        let no_place = |error| Unsaved::NoPlace {
            path: place.to_owned(),
            error,
        };
        let name = place
            .file_name()
            .ok_or_else(|| no_place(io::ErrorKind::InvalidInput.into()))?;
        if place.is_dir() {
            let path = place.to_owned();
            return Err(Unsaved::Directory { path });
        }
        let pid = std::process::id();
        for number in 0..MOST_NAMES {
            let mut hidden = OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{pid}-{number}"));
            let temporary = place.with_file_name(hidden);
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&temporary);
            match opened {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        temporary,
                        place: place.to_owned(),
                        bytes_max,
                        placed: false,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(no_place(error)),
            }
        }
        Err(no_place(io::ErrorKind::AlreadyExists.into()))
    }

    /// What the program writes to.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How long it may become.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Where it will be.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Reads back what was written and, if it is whole, puts it onto the disk and in its place.
    /// Returns its length in bytes.
    ///
    /// # Errors
    ///
    /// [`Unsaved`]; what was in its place is as it was then.
    pub(crate) fn keep(mut self) -> Result<u64, Unsaved> {
        // Opened anew: the program shares the position of the other one.
        let again = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = File::open(again).map_err(Unsaved::Unreadable)?;
        let length = check(file, self.bytes_max)?;
        let not_placed = |error| Unsaved::NotPlaced {
            path: self.place.clone(),
            error,
        };
        self.file.sync_all().map_err(not_placed)?;
        fs::rename(&self.temporary, &self.place).map_err(not_placed)?;
        self.placed = true;
        sync_directory_of(&self.place).map_err(|error| Unsaved::NotPlaced {
            path: self.place.clone(),
            error,
        })?;
        Ok(length)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed {
            // Whatever is wrong there was told before; a file that stays is only litter.
            let _gone = fs::remove_file(&self.temporary);
        }
    }
}

/// Reads a state to its end, in constant memory: every checksum, the order of its frames, the digest
/// over all of it and its end mark. Whether its entries make sense, the program says that takes it up.
fn check(mut file: File, bytes_max: u64) -> Result<u64, Unsaved> {
    let unsound = |error: &dyn std::fmt::Display| Unsaved::Unsound {
        defect: error.to_string(),
    };
    let limits = Limits::default();
    let mut reader = SnapshotReader::new(Limits {
        stream_bytes_max: bytes_max.min(limits.stream_bytes_max),
        ..limits
    });
    let mut length = 0;
    loop {
        match reader.poll() {
            Ok(Some(_)) => {}
            Ok(None) => {
                let count = match file.read(reader.space()) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(Unsaved::Unreadable(error)),
                };
                reader.filled(count);
                length += count as u64;
                if count == 0 {
                    reader.finish().map_err(|error| unsound(&error))?;
                    return Ok(length);
                }
            }
            Err(error) => return Err(unsound(&error)),
        }
    }
}

/// A rename is on the disk when its directory is.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    File::open(directory)?.sync_all()
}

/// Opens a saved state to be taken up; none if there is none.
///
/// # Errors
///
/// The system's; `InvalidInput` for what is no plain file, or another user's: whoever can put a file there
/// must not give the service its state.
pub(crate) fn open(path: &Path) -> io::Result<Option<File>> {
    let opened = OpenOptions::new()
        .read(true)
        // A pipe or a device in its place must not hold the supervisor up.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let unfit = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    match opened {
        Ok(file) => {
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(unfit("it is not a plain file".to_owned()));
            }
            let (owner, own) = (metadata.uid(), nix::unistd::geteuid().as_raw());
            if owner != own && owner != 0 {
                return Err(unfit(format!(
                    "it belongs to user {owner}; if it is to be trusted, run chown {own} on it"
                )));
            }
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where a state is put once it was taken up: a later start must not bring it back.
pub(crate) fn restored_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".restored");
    path.with_file_name(name)
}

/// Marks a state as taken up.
///
/// # Errors
///
/// The system's; it may be taken up once more then.
pub(crate) fn mark_restored(path: &Path) -> io::Result<()> {
    fs::rename(path, restored_name(path))?;
    sync_directory_of(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    const SOUND: &[u8] = include_bytes!("../../../state-codec/tests/golden/format-1.0.hls");

    const MOST: u64 = 1 << 40;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn draft(place: &Path, bytes: &[u8]) -> Draft {
        let draft = Draft::create(place, MOST).unwrap();
        (&draft.file).write_all(bytes).unwrap();
        draft
    }

    #[test]
    fn a_whole_state_is_put_in_place_and_nobody_else_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("state");
        fs::write(&place, "of before").unwrap();
        assert_eq!(draft(&place, SOUND).keep().unwrap(), SOUND.len() as u64);
        assert_eq!(fs::read(&place).unwrap(), SOUND);
        assert_eq!(
            fs::metadata(&place).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(names(directory.path()), ["state"]);
    }

    #[test]
    fn a_state_that_is_not_whole_never_replaces_one() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("state");
        fs::write(&place, "of before").unwrap();
        let longer = [SOUND, b"x"].concat();
        for bytes in [&SOUND[..SOUND.len() - 1], &longer, b"", b"something else"] {
            let error = draft(&place, bytes).keep().unwrap_err();
            assert!(error.to_string().contains("byte"), "{error}");
        }
        drop(draft(&place, SOUND));
        let long = Draft::create(&place, SOUND.len() as u64 - 1).unwrap();
        (&long.file).write_all(SOUND).unwrap();
        let error = long.keep().unwrap_err();
        assert!(error.to_string().contains("limit"), "{error}");
        assert_eq!(fs::read(&place).unwrap(), b"of before");
        assert_eq!(names(directory.path()), ["state"]);
    }

    #[test]
    fn a_name_that_is_taken_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("state");
        let taken = format!(".state.{}-0", std::process::id());
        std::os::unix::fs::symlink("/nonexistent/x", directory.path().join(taken)).unwrap();
        draft(&place, SOUND).keep().unwrap();
        assert_eq!(fs::read(&place).unwrap(), SOUND);
        let missing = Draft::create(Path::new("/nonexistent/x/state"), MOST).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/x"), "{missing}");
        let error = Draft::create(directory.path(), MOST).unwrap_err();
        assert!(error.to_string().contains("directory"), "{error}");
    }

    #[test]
    fn a_state_that_another_user_put_there_is_not_taken_up() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("state");
        fs::write(&place, SOUND).unwrap();
        std::os::unix::fs::chown(&place, Some(65534), None).unwrap();
        let error = open(&place).unwrap_err().to_string();
        assert!(error.contains("user 65534"), "{error}");
    }

    #[test]
    fn only_a_plain_file_is_taken_up_and_only_once() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("state");
        assert!(open(&place).unwrap().is_none());
        fs::write(&place, SOUND).unwrap();
        assert!(open(&place).unwrap().is_some());
        mark_restored(&place).unwrap();
        assert!(open(&place).unwrap().is_none());
        assert_eq!(names(directory.path()), ["state.restored"]);
        std::os::unix::fs::symlink("state.restored", &place).unwrap();
        assert!(open(&place).is_err());
        fs::remove_file(&place).unwrap();
        nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open(&place).is_err());
    }
}
