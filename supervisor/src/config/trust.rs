//! Who else has a say in a file.
//!
//! Owns telling that a file whose content decides what runs can be written, or one with secrets be
//! read, by every user of the machine. It warns and refuses nothing: such a file may have been so for
//! years, on a machine without other users, and a handover must not fail for that.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const WRITE_BY_OTHERS: u32 = 0o002;
const READ_BY_OTHERS: u32 = 0o004;
/// In such a directory nobody but its owner replaces a file.
const STICKY: u32 = 0o1000;

/// What lets every user replace or change what is at the path, if something does.
pub(crate) fn writable_by_all(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let exposed = path.ancestors().find(|part| {
        fs::metadata(part).is_ok_and(|metadata| {
            let mode = metadata.mode();
            mode & WRITE_BY_OTHERS != 0 && !(metadata.is_dir() && mode & STICKY != 0)
        })
    })?;
    Some(format!(
        "{}: every user of this machine can write {}, and so decide what runs; run chmod o-w on it",
        path.display(),
        exposed.display()
    ))
}

/// That every user can read the file, if they can.
pub(crate) fn readable_by_all(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.mode();
    (mode & READ_BY_OTHERS != 0).then(|| {
        format!(
            "{}: every user of this machine can read it; run chmod o-r on it if it holds secrets",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_every_user_can_write_or_read_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a/program");
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir(directory.path().join("a")).unwrap();
        fs::write(&file, "").unwrap();
        set(&file, 0o640);
        assert_eq!(writable_by_all(&file), None);
        assert_eq!(readable_by_all(&file), None);
        set(&file, 0o646);
        assert!(writable_by_all(&file).unwrap().contains("write /"));
        assert!(readable_by_all(&file).unwrap().contains("chmod o-r"));
        set(&file, 0o644);
        set(&directory.path().join("a"), 0o777);
        assert!(writable_by_all(&file).unwrap().contains("/a,"));
        set(&directory.path().join("a"), 0o1777);
        assert_eq!(writable_by_all(&file), None);
    }
}
