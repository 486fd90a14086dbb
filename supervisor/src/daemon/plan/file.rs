//! The file of a program: opening it once, and judging whether it can be one.
//!
//! Owns telling a script from a binary, and a whole binary from one that is still being copied.

use super::pin::{self, Copied, Pin};
use super::{Unusable, unusable};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{AccessFlags, faccessat};

/// Scripts up to this size are kept in memory, so that they outlive their file.
const LARGEST_SCRIPT_BYTES: u64 = 4 << 20;

/// The file of a program, as it was found to be one.
#[derive(Debug)]
pub(super) enum Content {
    /// A binary, executed from its file as long as that is what it was.
    Binary { file: File, was: FileIdentity },
    /// What starts with `#!`.
    Script {
        /// The path it is started under while that leads to the same file.
        path: PathBuf,
        was: FileIdentity,
        /// Its content, if it is small enough.
        copy: Option<OwnedFd>,
    },
    /// A binary that was held to a hash or signature: the copy that was checked.
    PinnedBinary(File),
    /// A script that was.
    PinnedScript(File),
    /// It was started by a former supervisor, and cannot be started again: why.
    Lost(Unusable),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileIdentity {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) length: u64,
    pub(super) modified: (i64, i64),
}

impl FileIdentity {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

pub(super) struct Opened {
    pub(super) resolved: PathBuf,
    pub(super) content: Content,
}

pub(super) fn open(path: &Path, pin: Option<Pin<'_>>) -> Result<Opened, Unusable> {
    let about = |reason: &str| unusable(format!("{}: {reason}", path.display()));
    let system = |error: io::Error| about(&error.to_string());
    let resolved = path.canonicalize().map_err(system)?;
    // Opening a pipe must not wait for its other end.
    let readable = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&resolved);
    let file = match readable {
        Ok(file) => file,
        // A program may be executable and not readable; then it cannot be looked into.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(&resolved)
            .map_err(system)?,
        Err(error) => return Err(system(error)),
    };
    let metadata = file.metadata().map_err(system)?;
    let kind = metadata.file_type();
    if metadata.is_dir() {
        return Err(about("it is a directory, not a program"));
    }
    if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        return Err(about("it is not a regular file"));
    }
    faccessat(
        nix::fcntl::AT_FDCWD,
        &resolved,
        AccessFlags::X_OK,
        AtFlags::AT_EACCESS,
    )
    .map_err(|_| about("it is not executable; run chmod +x on it"))?;
    let content = match pin {
        Some(pin) => {
            let Copied {
                file,
                length,
                verdict,
            } = pin::copy(&resolved, &file, pin)?;
            // A program that is still being copied is to be waited for, whatever its hash is by now.
            let kind = look_into(path, &file, length)?;
            verdict?;
            match kind {
                Kind::Binary => Content::PinnedBinary(file),
                Kind::Script => Content::PinnedScript(file),
            }
        }
        None => {
            let was = FileIdentity::of(&metadata);
            match look_into(path, &file, metadata.len())? {
                Kind::Binary => Content::Binary { file, was },
                Kind::Script => Content::Script {
                    path: path.to_owned(),
                    was,
                    copy: keep_script(path, &file, metadata.len()),
                },
            }
        }
    };
    Ok(Opened { resolved, content })
}

/// What can be a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Binary,
    /// It starts with `#!`.
    Script,
}

/// Tells a script from a binary, and a whole binary from one that is being copied.
pub(super) fn look_into(path: &Path, file: &File, length: u64) -> Result<Kind, Unusable> {
    let unfinished = |what: &str| Unusable {
        reason: format!("{} {what}; is it still being written?", path.display()),
        passing: true,
    };
    let mut file = file;
    let mut head = [0; 64];
    // Not readable: the kernel will judge it.
    let Ok(got) = read_fully(&mut file, &mut head) else {
        return Ok(Kind::Binary);
    };
    if got == 0 {
        return Err(unfinished("is empty"));
    }
    if head.starts_with(b"#!") {
        return Ok(Kind::Script);
    }
    if head.starts_with(b"\x7fELF") {
        return match elf_length(&head[..got]) {
            Some(whole) if whole <= length => Ok(Kind::Binary),
            Some(whole) => Err(unfinished(&format!(
                "has {length} of at least {whole} bytes"
            ))),
            None => Err(unfinished("ends within its header")),
        };
    }
    Err(unusable(format!(
        "{} is neither a program nor a script with a first line such as #!/bin/sh",
        path.display()
    )))
}

/// How long an ELF file must be at least: its two tables lie within it. `None` if the header is
/// not whole. (System V ABI, "ELF Header".)
pub(crate) fn elf_length(head: &[u8]) -> Option<u64> {
    let wide = *head.get(4)? == 2;
    let little = *head.get(5)? == 1;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = head.get(at..at + size)?.iter();
        let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if little {
            bytes.rev().fold(0, fold)
        } else {
            bytes.fold(0, fold)
        })
    };
    let (tables, word) = if wide { ((32, 40), 8) } else { ((28, 32), 4) };
    let sizes = if wide { 54 } else { 42 };
    let programs = number(tables.0, word)?
        .checked_add(number(sizes, 2)?.checked_mul(number(sizes + 2, 2)?)?)?;
    let sections = number(tables.1, word)?
        .checked_add(number(sizes + 4, 2)?.checked_mul(number(sizes + 6, 2)?)?)?;
    Some(programs.max(sections))
}

pub(super) fn read_fully(file: &mut &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..])? {
            0 => break,
            more => got += more,
        }
    }
    Ok(got)
}

/// A copy of a script that later changes of the file do not reach; none if that cannot be had.
pub(super) fn keep_script(path: &Path, mut file: &File, length: u64) -> Option<OwnedFd> {
    if length > LARGEST_SCRIPT_BYTES {
        return None;
    }
    let name = path
        .file_name()
        .and_then(|name| CString::new(name.as_bytes()).ok())?;
    let copy = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC).ok()?;
    file.seek(SeekFrom::Start(0)).ok()?;
    let mut content = Vec::new();
    file.take(LARGEST_SCRIPT_BYTES)
        .read_to_end(&mut content)
        .ok()?;
    let mut writer = File::from(copy.as_fd().try_clone_to_owned().ok()?);
    writer.write_all(&content).ok()?;
    drop(writer);
    // Executing a file that is open for writing fails, so what is kept is a reading descriptor.
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()))
        .ok()
        .map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_binary_is_in_its_header() {
        assert_eq!(elf_length(b"\x7fELF"), None);
        let mut head = [0_u8; 64];
        head[4] = 2;
        head[5] = 1;
        head[40..48].copy_from_slice(&1000_u64.to_le_bytes());
        head[58..60].copy_from_slice(&64_u16.to_le_bytes());
        head[60..62].copy_from_slice(&10_u16.to_le_bytes());
        assert_eq!(elf_length(&head), Some(1640));
        head[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(elf_length(&head), None);
    }
}
