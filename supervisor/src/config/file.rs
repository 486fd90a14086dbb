//! The configuration file.
//!
//! Owns reading it whole, and the errors that name line and column. An unknown key is an error: a
//! mistyped `drain_timout` must not silently mean the default.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::service::{self, MOST_LISTENERS, Service};

/// No configuration is larger than this.
const LARGEST_BYTES: u64 = 1 << 20;

/// No supervisor runs more services than this.
const MOST_SERVICES: usize = 256;

/// Why a configuration cannot be used: its author's fault, or the file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadConfiguration {
    /// It cannot be read.
    #[error("cannot read the configuration {path}: {error}")]
    Unreadable {
        path: PathBuf,
        error: std::io::Error,
    },
    /// It is not TOML of the expected form. The line itself is not repeated: it may hold a secret, and
    /// errors are logged.
    #[error("{path}: {place}{reason}")]
    Malformed {
        path: PathBuf,
        place: Place,
        reason: String,
    },
    /// It contradicts itself.
    #[error("{path}: {reason}")]
    Contradictory { path: PathBuf, reason: String },
}

/// Where in a text something is wrong; nowhere in particular if it is not known.
#[derive(Debug)]
pub(crate) struct Place(Option<(usize, usize)>);

impl Place {
    fn of(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start));
        Self(before.map(|before| {
            let line_begins = before.rfind('\n').map_or(0, |at| at + 1);
            let line = before.matches('\n').count() + 1;
            (line, before[line_begins..].chars().count() + 1)
        }))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((line, column)) => write!(f, "line {line}, column {column}: "),
            None => Ok(()),
        }
    }
}

/// A configuration with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Configuration {
    /// The supervisor's name; the file's own, without its ending, if it gives none.
    #[serde(default)]
    pub(crate) name: String,
    /// Its services, by name.
    #[serde(rename = "service", default)]
    pub(crate) services: BTreeMap<String, Service>,
}

/// Reads and checks a configuration file.
///
/// # Errors
///
/// [`BadConfiguration`] says what is wrong, with line and column where there is one.
pub(crate) fn read(path: &Path) -> Result<Configuration, BadConfiguration> {
    let unreadable = |error| BadConfiguration::Unreadable {
        path: path.to_owned(),
        error,
    };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > LARGEST_BYTES {
        let error = format!("it has {length} bytes, more than {LARGEST_BYTES}");
        return Err(unreadable(std::io::Error::other(error)));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(path, &text)
}

/// Checks the text of a configuration file.
///
/// # Errors
///
/// As [`read`].
pub(crate) fn parse(path: &Path, text: &str) -> Result<Configuration, BadConfiguration> {
    let mut configuration: Configuration =
        toml::from_str(text).map_err(|error| BadConfiguration::Malformed {
            path: path.to_owned(),
            place: Place::of(text, &error),
            reason: error.message().to_owned(),
        })?;
    if configuration.name.is_empty() {
        let stem = path.file_stem().unwrap_or_default();
        configuration.name = stem.to_string_lossy().into_owned();
    }
    for (name, service) in &mut configuration.services {
        service.name.clone_from(name);
    }
    check(&configuration).map_err(|reason| BadConfiguration::Contradictory {
        path: path.to_owned(),
        reason,
    })?;
    Ok(configuration)
}

/// Checks what the form alone does not: names, limits, and what two services cannot share.
pub(crate) fn check(configuration: &Configuration) -> Result<(), String> {
    service::check_name(&configuration.name)?;
    if configuration.services.is_empty() {
        return Err("it has no service; add a table such as [service.web]".to_owned());
    }
    if configuration.services.len() > MOST_SERVICES {
        return Err(format!("it has more than {MOST_SERVICES} services"));
    }
    let mut addresses = BTreeSet::new();
    for (name, service) in &configuration.services {
        let of_service = |reason: String| format!("service {name}: {reason}");
        service::check_name(name).map_err(of_service)?;
        service.check().map_err(of_service)?;
        for spec in &service.listen {
            if !spec.has_port_zero() && !addresses.insert(spec.address.to_string()) {
                return Err(format!(
                    "service {name}: {} is listened on twice",
                    spec.address
                ));
            }
        }
    }
    Ok(())
}

impl Service {
    fn check(&self) -> Result<(), String> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err("it has no program; set command = [\"/path/to/program\"]".to_owned());
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return Err("a command cannot contain a NUL".to_owned());
        }
        if self.listen.len() > MOST_LISTENERS {
            return Err(format!("it has more than {MOST_LISTENERS} listeners"));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = self.listen.iter().find(|spec| !names.insert(&spec.name)) {
            return Err(format!(
                "two listeners are named {0}; give one another name, as in other={1}",
                twice.name, twice.address
            ));
        }
        self.check_state()?;
        if self.user.is_none() && (self.group.is_some() || self.groups.is_some()) {
            return Err("group or groups without user; set user as well".to_owned());
        }
        let odd = |text: &str| text.is_empty() || text.contains(['=', '\0']);
        if let Some(name) = self.environment.keys().find(|name| odd(name)) {
            return Err(format!("`{name}` cannot be the name of a variable"));
        }
        Ok(())
    }
}

impl Service {
    /// What is said of its state.
    fn check_state(&self) -> Result<(), String> {
        if self.freeze_timeout.0.is_zero() {
            return Err("freeze_timeout must be longer than nothing; 1s is the default".to_owned());
        }
        if self.pause.0 > self.freeze_timeout.0 {
            return Err(format!(
                "pause ({}) is longer than freeze_timeout ({}), which would end it",
                self.pause, self.freeze_timeout
            ));
        }
        let Some(path) = &self.state_file else {
            return Ok(());
        };
        if self.instances.0 > 1 {
            return Err(format!(
                "state_file needs instances = 1: each of {} instances has a state of its own",
                self.instances.0
            ));
        }
        if !path.is_absolute() || path.file_name().is_none() {
            return Err(format!(
                "state_file = \"{}\" must be the whole path of a file, from /",
                path.display()
            ));
        }
        Ok(())
    }
}

/// The resolved form, as `check` prints it.
pub(crate) fn print(configuration: &Configuration) -> Result<String, toml::ser::Error> {
    toml::to_string_pretty(configuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Configuration, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.toml");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_filled_in_and_the_print_out_reads_back() {
        let minimal = read_text("[service.web]\ncommand = [\"/srv/web\"]").unwrap();
        assert_eq!(minimal.name, "shop");
        let web = &minimal.services["web"];
        assert_eq!(
            web,
            &Service {
                name: "web".to_owned(),
                command: vec!["/srv/web".to_owned()],
                ..Service::default()
            }
        );
        assert_eq!(read_text(&print(&minimal).unwrap()).unwrap(), minimal);
    }

    #[test]
    fn every_key_is_understood() {
        let full = read_text(
            r#"
            name = "all"
            [service.web]
            command = ["web", "--verbose"]
            listen = ["http=tcp:0.0.0.0:8080", "admin=unix:/run/shop/admin.sock,mode=600"]
            strategy = "handover"
            instances = 1
            ready = "exec:curl -f http://127.0.0.1:8080"
            stop_signal = "QUIT"
            ready_timeout = "5s"
            drain_timeout = "1m"
            probation = "0s"
            pause = "2ms"
            freeze_timeout = "3s"
            memory_check = false
            state_file = "/var/lib/shop/state"
            watchdog = "2s"
            most_draining = 2
            directory = "/srv"
            env_file = "/etc/shop/env"
            user = "shop"
            group = "www"
            groups = ["www", "adm"]
            no_new_privileges = false
            capabilities = ["net_bind_service", "CAP_NET_RAW"]
            sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
            minisign = { public_key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3", signature = "/s/{program}" }
            environment = { A = "1" }
            "#,
        )
        .unwrap();
        assert_eq!(read_text(&print(&full).unwrap()).unwrap(), full);
    }

    #[test]
    fn errors_name_line_and_column_or_the_service() {
        let cases = [
            (
                "[service.web]\ncommand = [\"x\"]\ndrain_timout = \"1s\"",
                "line 3, column 1",
            ),
            (
                "[service.web]\ncommand = [\"x\"]\nprobation = \"10\"",
                "line 3, column 13",
            ),
            (
                "[service.web]\ncommand = [\"x\"]\nlisten = [\"::1:80\"]",
                "line 3",
            ),
            ("nonsense", "line 1"),
            ("", "no service"),
            ("[service.web]", "no program"),
            ("[service.\"../x\"]\ncommand=[\"x\"]", "letters, digits"),
            (
                "[service.web]\ncommand=[\"x\"]\nlisten=[\"80\",\"tcp-80=81\"]",
                "named tcp-80",
            ),
            (
                "[service.a]\ncommand=[\"x\"]\nlisten=[\"80\"]\n[service.b]\ncommand=[\"x\"]\nlisten=[\"80\"]",
                "listened on twice",
            ),
            ("[service.a]\ncommand=[\"x\"]\ninstances=0", "from 1 to 256"),
            (
                "[service.a]\ncommand=[\"x\"]\ninstances=2\nstate_file=\"/s\"",
                "instances = 1",
            ),
            (
                "[service.a]\ncommand=[\"x\"]\nstate_file=\"s\"",
                "the whole path",
            ),
            (
                "[service.a]\ncommand=[\"x\"]\npause=\"2s\"",
                "longer than freeze_timeout",
            ),
            (
                "[service.a]\ncommand=[\"x\"]\nfreeze_timeout=\"0s\"",
                "longer than nothing",
            ),
            (
                "[service.a]\ncommand=[\"x\"]\nsha256=\"12\"",
                "line 3, column 8: `12` is not a SHA-256",
            ),
            (
                "[service.a]\ncommand=[\"x\"]\ncapabilities=[\"net_bind\"]",
                "line 3, column 14: `net_bind` is not a capability",
            ),
            (
                "[service.a]\ncommand=[\"x\"]\nminisign={}",
                "line 3, column 10: minisign needs public_key",
            ),
            (
                "[service.a]\ncommand=[\"x\"]\ngroups=[]",
                "set user as well",
            ),
        ];
        for (text, part) in cases {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(part), "{text}\n{error}");
        }
    }

    #[test]
    fn an_error_never_repeats_what_may_be_a_secret() {
        let head = "[service.a]\ncommand=[\"x\"]\n";
        for rest in [
            "environment = { KEY = \"hunter2\", }}",
            "environment = { KEY = \"hunter2 }",
            "environment = { KEY = hunter2 }",
            "environment = { KEY = \"\\hunter2\" }",
            "environment = { KEY = 1177235 }",
            "environment = { KEY = [\"hunter2\"] }",
            "environment = { KEY = { a = \"hunter2\" } }",
            "environment = { KEY = 1979-05-27T07:32:00Z }",
            "environment = \"hunter2\"",
            "environment = [\"hunter2\"]",
            "environment = 1177235",
            "[service.a.environment]\nKEY = \"hunter2\"\nKEY = \"hunter2\"",
            "[service.a.environment]\nKEY = \"\"\"hunter2\n\"",
            "environment = { \"=\" = \"hunter2\" }",
        ] {
            let error = read_text(&format!("{head}{rest}")).unwrap_err();
            for secret in ["hunter2", "1177235", "1979"] {
                assert!(!error.contains(secret), "{rest}\n{error}");
            }
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = read(Path::new("/nonexistent/x.toml"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/x.toml"), "{error}");
    }
}
