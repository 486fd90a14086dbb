//! The recipe of `examples/deploy`: the link says what serves, whatever becomes of a release.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::harness::{HEIRLOOM, Setup, Supervisor, built, get, need};

/// A supervisor of a service deployed with releases 1 and 2, of which 1 serves.
struct Deployed {
    supervisor: Supervisor,
}

impl Deployed {
    fn new(probation: &str) -> Self {
        let replaced = [("/srv/shop/current", "current"), ("10s", probation)];
        let setup = Setup::example("deploy", &replaced);
        for (release, program) in [("1", "heirloom-demo"), ("2", "heirloom-demo-v2")] {
            let directory = setup.path("releases").join(release);
            fs::create_dir_all(&directory).unwrap();
            symlink(built(program), directory.join("shop")).unwrap();
        }
        symlink("releases/1", setup.path("current")).unwrap();
        Self {
            supervisor: setup.start(),
        }
    }

    /// A release that is a script of the shell.
    fn add_release(&self, release: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let directory = self.supervisor.path("releases").join(release);
        fs::create_dir_all(&directory).unwrap();
        let program = self
            .supervisor
            .write(&format!("releases/{release}/shop"), script);
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The deploy's command line, up to the options of `heirloom reload`.
    fn command(&self, release: &str) -> Vec<String> {
        let path = |name| self.supervisor.path(name).to_str().unwrap().to_owned();
        vec![path("deploy"), path(""), release.to_owned()]
    }

    fn run(&self, words: &[String]) -> Output {
        Command::new(&words[0])
            .args(&words[1..])
            .env("HEIRLOOM", HEIRLOOM)
            .output()
            .unwrap()
    }

    /// Deploys; it must end with this status and leave the link and the service like this.
    fn deploy(&self, release: &str, options: &[&str], ends: (i32, &str, &str)) -> String {
        let (status, link, version) = ends;
        let mut words = self.command(release);
        let control = self.supervisor.control().to_str().unwrap().to_owned();
        words.extend(["--control".to_owned(), control]);
        words.extend(options.iter().map(|&option| option.to_owned()));
        let output = self.run(&words);
        let log = self.supervisor.log();
        assert_eq!(output.status.code(), Some(status), "{output:?}\n{log}");
        assert_eq!(self.link(), PathBuf::from(link), "{output:?}");
        let answer = get(self.supervisor.address("http"), "/version");
        assert!(answer.contains(version), "{answer} {output:?}\n{log}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn link(&self) -> PathBuf {
        fs::read_link(self.supervisor.path("current")).unwrap()
    }

    /// Stops the service; nothing but the link may have been made.
    fn stop(self) {
        let names = fs::read_dir(self.supervisor.path("")).unwrap().flatten();
        let stray: Vec<_> = names
            .map(|entry| entry.file_name())
            .filter(|name| name.to_str().unwrap().starts_with("current."))
            .collect();
        assert!(stray.is_empty(), "{stray:?}");
        self.supervisor.stop();
    }
}

#[test]
fn a_good_release_is_what_the_link_says() {
    let deployed = Deployed::new("100ms");
    deployed.deploy("2", &[], (0, "releases/2", "2.0.0"));
    deployed.deploy("1", &[], (0, "releases/1", "1.0.0"));
    deployed.stop();
}

#[test]
fn a_release_that_does_not_come_up_leaves_link_and_service_alone() {
    let deployed = Deployed::new("100ms");
    deployed.add_release("3", "#!/bin/sh\necho no luck >&2\nexit 7\n");
    let said = deployed.deploy("3", &[], (1, "releases/1", "1.0.0"));
    assert!(said.contains("no luck"), "{said}");
    assert!(said.contains("3 failed and releases/1 serves on"), "{said}");
    let said = deployed.deploy("4", &[], (2, "releases/1", "1.0.0"));
    assert!(said.contains("releases/4 does not exist"), "{said}");
    deployed.stop();
}

#[test]
fn a_release_that_dies_in_its_first_seconds_takes_the_link_back_with_it() {
    need("perl", "perl-base");
    let deployed = Deployed::new("30s");
    // Waits on the listener, so that it is ready, and dies a second later.
    let script =
        "#!/bin/sh\nexec perl -e 'vec($r, 3, 1) = 1; select($r, undef, undef, 1); exit 9'\n";
    deployed.add_release("5", script);
    let said = deployed.deploy("5", &[], (5, "releases/1", "1.0.0"));
    assert!(said.contains("rolled back to releases/1"), "{said}");
    deployed.stop();
}

#[test]
fn an_outcome_nobody_waited_for_leaves_the_link_as_it_is() {
    let deployed = Deployed::new("30s");
    let said = deployed.deploy("2", &["--timeout", "3s"], (4, "releases/2", "2.0.0"));
    assert!(said.contains("see heirloom status"), "{said}");
    deployed.stop();
}

#[test]
fn without_a_supervisor_nothing_is_deployed() {
    let deployed = Deployed::new("100ms");
    let mut words = deployed.command("2");
    words.extend([
        "--control".to_owned(),
        "/nonexistent/control.sock".to_owned(),
    ]);
    let output = deployed.run(&words);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(deployed.link(), PathBuf::from("releases/1"));
    deployed.stop();
}

#[test]
fn two_deploys_do_not_run_at_once() {
    let deployed = Deployed::new("100ms");
    let lock = deployed.supervisor.path("deploy.lock");
    let mut words = vec!["flock".to_owned(), lock.to_str().unwrap().to_owned()];
    words.extend(deployed.command("2"));
    let output = deployed.run(&words);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(deployed.link(), PathBuf::from("releases/1"));
    deployed.stop();
}
