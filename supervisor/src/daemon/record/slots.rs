//! The file in which a running supervisor keeps its record.
//!
//! Two slots, written in turn and in place: whoever reads takes the newer one that is whole, so a
//! supervisor that dies while it writes has lost at most the last change. The file is the supervisor's
//! user's alone, for a record holds the environment of its programs.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::LARGEST_BYTES;

/// What a slot begins with.
const MAGIC: &[u8; 8] = b"HLRECORD";

/// Magic, number, length, checksum.
const HEAD_BYTES: usize = 32;

/// Where the second slot begins; the file has holes, so it is as large as what it holds.
const SLOT_BYTES: u64 = (LARGEST_BYTES + HEAD_BYTES) as u64;

/// The file.
#[derive(Debug)]
pub(crate) struct Slots {
    file: File,
    path: PathBuf,
    number: u64,
    written: Vec<u8>,
}

impl Slots {
    /// Makes the file anew; one that is there is left to those who have it open.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        if let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self::with(file, path))
    }

    /// Goes on with a file that was passed on.
    pub(crate) fn with(file: File, path: &Path) -> Self {
        let number = newest(&file).map_or(0, |(number, _)| number);
        Self {
            file,
            path: path.to_owned(),
            number,
            written: Vec::new(),
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Writes a record, unless it is the one that was written last.
    ///
    /// # Errors
    ///
    /// The system's error, or it is too large; the record of before is whole then.
    pub(crate) fn write(&mut self, record: Vec<u8>) -> io::Result<()> {
        if record == self.written {
            return Ok(());
        }
        if record.len() > LARGEST_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let number = self.number + 1;
        let start = (number % 2) * SLOT_BYTES;
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(MAGIC);
        head[8..16].copy_from_slice(&number.to_le_bytes());
        head[16..24].copy_from_slice(&(record.len() as u64).to_le_bytes());
        head[24..].copy_from_slice(&checksum(number, &record).to_le_bytes());
        self.file
            .write_all_at(&record, start + HEAD_BYTES as u64)
            .and_then(|()| self.file.write_all_at(&head, start))?;
        self.number = number;
        self.written = record;
        Ok(())
    }

    /// Removes the file: there is nothing left to be taken over.
    pub(crate) fn remove(&self) {
        // Nobody takes a record over whose processes are gone.
        let _left_behind = std::fs::remove_file(&self.path);
    }
}

/// The newest record in a file that is whole.
pub(crate) fn newest(file: &File) -> Option<(u64, Vec<u8>)> {
    let slot = |index: u64| -> Option<(u64, Vec<u8>)> {
        let start = index * SLOT_BYTES;
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, start).ok()?;
        let number = |at: usize| {
            let bytes = head[at..at + 8].try_into();
            bytes.map(u64::from_le_bytes).unwrap_or_default()
        };
        let length = usize::try_from(number(16)).ok()?;
        if &head[..8] != MAGIC || length > LARGEST_BYTES {
            return None;
        }
        let mut record = vec![0; length];
        file.read_exact_at(&mut record, start + HEAD_BYTES as u64)
            .ok()?;
        (checksum(number(8), &record) == number(24)).then(|| (number(8), record))
    };
    let found = [slot(0), slot(1)].into_iter().flatten();
    found.max_by_key(|(number, _)| *number)
}

/// Opens the file that a supervisor has left at this path.
///
/// # Errors
///
/// The system's error; `PermissionDenied` if others could have written it.
pub(crate) fn open(path: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::MetadataExt;
    let opened = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    let own = nix::unistd::geteuid().as_raw();
    if !metadata.is_file() || metadata.uid() != own || metadata.mode() & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is not a file of this user alone",
        ));
    }
    Ok(Some(file))
}

/// A copy of a document in memory, to be passed on as a descriptor.
///
/// # Errors
///
/// The system's error.
pub(crate) fn in_memory(name: &std::ffi::CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    file.write_all_at(bytes, 0)?;
    Ok(file.into())
}

/// FNV-1a of 64 bits: against a torn write, not against an enemy.
fn checksum(number: u64, record: &[u8]) -> u64 {
    let bytes = number.to_le_bytes();
    let all = bytes.iter().chain(record);
    all.fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_newest_whole_record_is_read_whatever_was_torn() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.record");
        let mut slots = Slots::create(&path).unwrap();
        assert_eq!(newest(&slots.file), None);
        for number in 1..=5_u64 {
            slots.write(number.to_string().repeat(100).into()).unwrap();
            assert_eq!(newest(&slots.file).unwrap().0, number);
        }
        // The sixth is torn at each of its bytes: half of it is there, under the head of before.
        // It goes where the even ones go, at the beginning.
        let start = HEAD_BYTES as u64;
        for cut in [0, 1, 99] {
            slots
                .file
                .write_all_at(&vec![b'6'; cut + 1], start)
                .unwrap();
            let (number, record) = newest(&slots.file).unwrap();
            assert_eq!((number, record), (5, b"5".repeat(100)));
        }
        let reopened = open(&path).unwrap().unwrap();
        let mut slots = Slots::with(reopened, &path);
        slots.write(b"six".to_vec()).unwrap();
        assert_eq!(newest(&slots.file).unwrap(), (6, b"six".to_vec()));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        slots.remove();
        assert!(open(&path).unwrap().is_none());
    }

    #[test]
    fn a_record_that_others_could_write_is_not_read() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.record");
        Slots::create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).unwrap();
        assert!(open(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(open(&path).is_err());
    }

    #[test]
    fn what_is_too_large_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut slots = Slots::create(&directory.path().join("a")).unwrap();
        slots.write(b"one".to_vec()).unwrap();
        slots.write(vec![0; LARGEST_BYTES + 1]).unwrap_err();
        assert_eq!(newest(&slots.file).unwrap(), (1, b"one".to_vec()));
    }
}
