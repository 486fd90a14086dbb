//! What a program runs in: its directory, its environment, and the way to it.

use super::{Unusable, unusable};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, User, faccessat};

use heirloom_handover::environment::OF_THE_SUPERVISOR_ALONE;

use crate::config::service::Service;

/// No environment file is larger than this.
const LARGEST_ENV_FILE_BYTES: u64 = 1 << 20;

/// The directory a service runs in. The supervisor's own is taken as its shell named it, so that a
/// symbolic link in it leads where it leads now.
pub(super) fn working_directory(wanted: Option<&Path>) -> Result<PathBuf, Unusable> {
    let own = || -> io::Result<PathBuf> {
        let named = std::env::var_os("PWD")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        match named {
            Some(named) if *OWN_DIRECTORY_IS_NAMED => Ok(named),
            // A deploy may have deleted it; only who goes by it fails for that.
            Some(_) | None => std::env::current_dir(),
        }
    };
    let own = || own().map_err(|error| unusable(format!("the supervisor's directory: {error}")));
    match wanted {
        Some(wanted) if wanted.is_absolute() => Ok(wanted.to_owned()),
        Some(wanted) => Ok(own()?.join(wanted)),
        None => own(),
    }
}

/// Whether `$PWD` led to the working directory when this was first asked, which is before any link in
/// it can have been turned by a deploy the supervisor is told of.
static OWN_DIRECTORY_IS_NAMED: LazyLock<bool> = LazyLock::new(|| {
    std::env::var_os("PWD").is_some_and(|named| match (fs::metadata(named), fs::metadata(".")) {
        (Ok(named), Ok(real)) => (named.dev(), named.ino()) == (real.dev(), real.ino()),
        (Err(_), _) | (_, Err(_)) => false,
    })
});

/// Finds a program the way a shell does, from the service's directory and its own `PATH`.
pub(super) fn find(
    program: &str,
    directory: &Path,
    path: Option<&OsString>,
) -> Result<PathBuf, Unusable> {
    if program.contains('/') {
        return Ok(directory.join(program));
    }
    let path = match path {
        Some(path) => path.as_os_str(),
        None => OsStr::new("/usr/local/bin:/usr/bin:/bin"),
    };
    let executable = |path: &Path| {
        path.is_file()
            && faccessat(
                nix::fcntl::AT_FDCWD,
                path,
                AccessFlags::X_OK,
                AtFlags::AT_EACCESS,
            )
            .is_ok()
    };
    std::env::split_paths(path)
        .map(|entry| directory.join(entry).join(program))
        .find(|candidate| executable(candidate))
        .ok_or_else(|| {
            unusable(format!(
                "{program}: no such program in PATH ({})",
                path.to_string_lossy()
            ))
        })
}

/// The supervisor's environment without what speaks of itself, then the service's own variables,
/// then those of its file.
pub(super) fn environment(service: &Service) -> Result<BTreeMap<OsString, OsString>, Unusable> {
    let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os()
        .filter(|(name, _)| !OF_THE_SUPERVISOR_ALONE.iter().any(|own| name == own))
        .collect();
    for (name, value) in &service.environment {
        environment.insert(name.into(), value.into());
    }
    if let Some(file) = &service.env_file {
        let path = working_directory(Some(file))?;
        let about = |reason: String| unusable(format!("env_file {}: {reason}", path.display()));
        let mut text = Vec::new();
        // Opening a pipe must not wait for its other end.
        let opened = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .map_err(|error| about(error.to_string()))?;
        if !opened.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(about("it is not a regular file".to_owned()));
        }
        opened
            .take(LARGEST_ENV_FILE_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|error| about(error.to_string()))?;
        if text.len() as u64 > LARGEST_ENV_FILE_BYTES {
            return Err(about(format!(
                "it has more than {LARGEST_ENV_FILE_BYTES} bytes"
            )));
        }
        for (name, value) in parse_env_file(&text).map_err(about)? {
            environment.insert(name, value);
        }
    }
    Ok(environment)
}

/// `NAME=VALUE` lines; blank lines and those that begin with `#` or `;` are passed over, quotes
/// around a value are taken off. A subset of what systemd's `EnvironmentFile=` reads.
pub(crate) fn parse_env_file(text: &[u8]) -> Result<Vec<(OsString, OsString)>, String> {
    let mut variables = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") || line.starts_with(b";") {
            continue;
        }
        let bad = |reason: &str| format!("line {}: {reason}", index + 1);
        let equals = line.iter().position(|byte| *byte == b'=');
        let Some(equals) = equals else {
            return Err(bad("it is not NAME=VALUE"));
        };
        let name = line[..equals].trim_ascii();
        let fine = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        if name.is_empty() || !name.iter().all(fine) || name[0].is_ascii_digit() {
            return Err(bad("a variable's name is letters, digits and _"));
        }
        let value = unquote(line[equals + 1..].trim_ascii());
        if value.contains(&0) {
            return Err(bad("a value cannot contain a NUL"));
        }
        variables.push((
            OsString::from_vec(name.to_vec()),
            OsString::from_vec(value.to_vec()),
        ));
    }
    Ok(variables)
}

pub(super) fn unquote(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner,
        bare => bare,
    }
}

pub(super) fn home_of(service: &Service) -> Option<OsString> {
    let user = User::from_name(service.user.as_deref()?).ok()??;
    Some(user.dir.into_os_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_file_is_read_as_people_write_it() {
        let text = b"# comment\n\nA=1\n B = two words \nC=\"quoted\"\nD='single'\nE=\n";
        let read = parse_env_file(text).unwrap();
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "quoted"),
            ("D", "single"),
            ("E", ""),
        ];
        let expected: Vec<(OsString, OsString)> = expected
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        assert_eq!(read, expected);
        assert_eq!(
            parse_env_file(b"A=1\nnonsense").unwrap_err(),
            "line 2: it is not NAME=VALUE"
        );
        assert!(parse_env_file(b"2A=1").is_err());
    }
}
