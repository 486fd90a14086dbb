//! Holding a program to a hash or a signature.
//!
//! Owns the copy that is checked: it lies in memory, sealed, so that what was checked is what is
//! executed, whatever becomes of the file. What is asked for is in [`crate::config::pin`].

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use minisign_verify::{Error, PublicKey, Signature};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::Digest;

use super::file::FileIdentity;
use super::surroundings::working_directory;
use super::{Unusable, unusable};
use crate::config::pin::{Key, Minisign, Sha256};
use crate::config::service::Service;

/// A program that is pinned is no larger than this: it is kept in memory.
const LARGEST_PINNED_BYTES: u64 = 1 << 30;

/// A public key, or a signature with its two comments, is no longer than this.
const LARGEST_SIGNATURE_BYTES: u64 = 16 << 10;

/// So much of a program is read at once.
const PIECE_BYTES: usize = 256 << 10;

/// `MFD_EXEC`, which kernels before 6.3 do not know and later ones want to be told.
const EXECUTABLE: MFdFlags = MFdFlags::from_bits_retain(0x10);

/// What a service's settings ask of its program's file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pin<'a> {
    Hash(Sha256),
    Signature(&'a Minisign),
    Both(Sha256, &'a Minisign),
}

impl<'a> Pin<'a> {
    pub(super) fn of(service: &'a Service) -> Option<Self> {
        match (service.sha256, &service.minisign) {
            (None, None) => None,
            (Some(hash), None) => Some(Self::Hash(hash)),
            (None, Some(minisign)) => Some(Self::Signature(minisign)),
            (Some(hash), Some(minisign)) => Some(Self::Both(hash, minisign)),
        }
    }

    fn hash(self) -> Option<Sha256> {
        match self {
            Self::Hash(hash) | Self::Both(hash, _) => Some(hash),
            Self::Signature(_) => None,
        }
    }

    fn minisign(self) -> Option<&'a Minisign> {
        match self {
            Self::Signature(minisign) | Self::Both(_, minisign) => Some(minisign),
            Self::Hash(_) => None,
        }
    }
}

/// A copy of a program in memory, which nobody can change any more.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) file: File,
    pub(super) length: u64,
    /// What was found wrong with it. Told only when it is known to be whole.
    pub(super) verdict: Result<(), Unusable>,
}

/// Copies the program and checks the copy.
///
/// # Errors
///
/// It cannot be copied, or changes meanwhile.
pub(super) fn copy(resolved: &Path, mut file: &File, pin: Pin<'_>) -> Result<Copied, Unusable> {
    let about = |reason: String| unusable(format!("{}: {reason}", resolved.display()));
    let system = |error: io::Error| about(error.to_string());
    let before = file.metadata().map_err(system)?;
    if before.len() > LARGEST_PINNED_BYTES {
        return Err(about(format!(
            "it has {} bytes; a program with sha256 or minisign has at most {LARGEST_PINNED_BYTES}",
            before.len()
        )));
    }
    let signed = pin.minisign().map(|minisign| signature(resolved, minisign));
    let odd = |error: Error| about(explain(&error));
    let mut verifier = signed.as_ref().map(|signed| match signed {
        Ok((key, signature)) => key.verify_stream(signature).map_err(odd),
        Err(unusable) => Err(unusable.clone()),
    });
    let mut hash = sha2::Sha256::new();
    let mut memory = in_memory(resolved).map_err(|error| {
        about(format!(
            "it cannot be kept in memory, as sha256 and minisign need it: {error}"
        ))
    })?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut length = 0;
    // It may be a program that can be executed and not be read.
    let unreadable =
        |error: io::Error| about(format!("it cannot be read, so not checked: {error}"));
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    loop {
        let count = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(error)),
        };
        length += count as u64;
        if length > before.len() {
            break;
        }
        let piece = &piece[..count];
        hash.update(piece);
        if let Some(Ok(verifier)) = &mut verifier {
            verifier.update(piece);
        }
        memory.write_all(piece).map_err(system)?;
    }
    let after = file.metadata().map_err(system)?;
    if length != before.len() || FileIdentity::of(&after) != FileIdentity::of(&before) {
        return Err(Unusable {
            reason: format!("{} is being written", resolved.display()),
            passing: true,
        });
    }
    let found = Sha256(hash.finalize().into());
    let by_hash = match pin.hash() {
        Some(wanted) if wanted != found => Err(about(format!(
            "the program has sha256 {found}, the configuration wants {wanted}"
        ))),
        Some(_) | None => Ok(()),
    };
    let by_signature = match verifier {
        None => Ok(()),
        Some(verifier) => verifier.and_then(|mut verifier| verifier.finalize().map_err(odd)),
    };
    Ok(Copied {
        file: sealed(memory).map_err(system)?,
        length,
        verdict: by_hash.and(by_signature),
    })
}

/// An empty file in memory that can be executed, under the program's name.
fn in_memory(program: &Path) -> io::Result<File> {
    let name = program.file_name().unwrap_or_default().as_bytes();
    // The system takes 249 bytes at most.
    let name = CString::new(&name[..name.len().min(249)])?;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = match memfd_create(name.as_c_str(), flags | EXECUTABLE) {
        Err(Errno::EINVAL) => memfd_create(name.as_c_str(), flags),
        made => made,
    };
    match made {
        Ok(fd) => Ok(File::from(fd)),
        Err(Errno::EACCES) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "this system lets nothing in memory be executed (vm.memfd_noexec=2)",
        )),
        Err(errno) => Err(errno.into()),
    }
}

/// The same file for reading only, never to be changed again.
fn sealed(memory: File) -> io::Result<File> {
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_SEAL;
    fcntl(memory.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    // A file that is open for writing cannot be executed.
    File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))
}

/// The key and the signature as they stand now.
fn signature(program: &Path, minisign: &Minisign) -> Result<(PublicKey, Signature), Unusable> {
    let key = match &minisign.key {
        Key::Given { text: _, key } => key.clone(),
        Key::File(path) => {
            let path = working_directory(Some(path))?;
            let about =
                |reason: String| unusable(format!("public_key_file {}: {reason}", path.display()));
            let text = small_text(&path).map_err(|error| about(error.to_string()))?;
            PublicKey::decode(&text)
                .map_err(|_| about("it is not a public key of minisign".to_owned()))?
        }
    };
    let path = working_directory(Some(&minisign.signature_of(program)))?;
    let about = |reason: String| {
        unusable(format!(
            "{}: its signature {}: {reason}",
            program.display(),
            path.display()
        ))
    };
    let text = small_text(&path).map_err(|error| about(error.to_string()))?;
    let signature = Signature::decode(&text)
        .map_err(|_| about("it is not a signature of minisign".to_owned()))?;
    Ok((key, signature))
}

fn small_text(path: &Path) -> io::Result<String> {
    let file = fs::OpenOptions::new()
        .read(true)
        // Opening a pipe must not wait for its other end.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let odd = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    if !file.metadata()?.is_file() {
        return odd("it is not a regular file");
    }
    let mut text = String::new();
    file.take(LARGEST_SIGNATURE_BYTES + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_SIGNATURE_BYTES {
        return odd("it is too long");
    }
    Ok(text)
}

fn explain(error: &Error) -> String {
    match error {
        Error::UnexpectedKeyId => {
            "its signature is by another key than the configuration's".to_owned()
        }
        Error::UnsupportedLegacyMode | Error::UnexpectedAlgorithm => {
            "its signature is of minisign's former kind; sign again with `minisign -SHm`".to_owned()
        }
        Error::InvalidSignature => {
            "its signature is for another content, or was tampered with".to_owned()
        }
        Error::InvalidEncoding | Error::UnsupportedAlgorithm | Error::IoError(_) => {
            format!("its signature cannot be checked: {error}")
        }
    }
}
