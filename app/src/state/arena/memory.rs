//! Memory files: made, sealed, and checked when they come from another process.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

/// What it is called in `/proc/PID/fd`.
const NAME: &str = "heirloom-arena";

/// A file that cannot shrink: whoever reads from it within its size gets what is there.
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK;

/// A new file of this many bytes.
///
/// # Errors
///
/// The system's.
pub(super) fn create(bytes: u64) -> io::Result<File> {
    let file = growing()?;
    seal(&file, bytes)?;
    Ok(file)
}

/// A new file without bytes, whose size is not fixed yet.
///
/// # Errors
///
/// The system's.
pub(super) fn growing() -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    Ok(File::from(memfd_create(NAME, flags)?))
}

/// Fixes the size of a file.
///
/// # Errors
///
/// The system's.
pub(super) fn seal(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)?;
    fcntl(file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(())
}

/// The seals of the files that are made here, as they stand in a stream.
pub(super) fn seals() -> u32 {
    SEALS.bits().unsigned_abs()
}

/// A file from another process, if it is what was promised.
///
/// # Errors
///
/// The system's, and `InvalidData` if it is not.
pub(super) fn check(descriptor: OwnedFd, seals: u32, bytes: u64) -> io::Result<File> {
    let found = fcntl(descriptor.as_fd(), FcntlArg::F_GET_SEALS)?.unsigned_abs();
    let file = File::from(descriptor);
    let wanted = seals | self::seals();
    if found & wanted != wanted || file.metadata()?.len() < bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a memory file is smaller than was said, or could become so; \
             the generation that sent it is at fault",
        ));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn what_could_shrink_is_not_taken() {
        let file = growing().unwrap();
        file.set_len(10).unwrap();
        let copy = || OwnedFd::from(file.try_clone().unwrap());
        assert!(check(copy(), 0, 10).is_err());
        seal(&file, 10).unwrap();
        assert!(check(copy(), seals(), 10).is_ok());
        assert!(check(copy(), seals(), 11).is_err());
        assert!(file.set_len(9).is_err());
    }
}
