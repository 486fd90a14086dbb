//! A program that is held to a hash or a signature: what was checked is what is executed, whatever
//! becomes of the file meanwhile.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::deploys::{crash, refused, version};
use crate::harness::{HEIRLOOM, SERVER, Setup, Supervisor, answer, ask, begun, built, get, need};

/// The hash, by a tool that is not ours.
fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

fn copy(program: &str, to: &Path) {
    fs::copy(built(program), to).unwrap();
}

/// Puts a program in the place of another, as a deploy does.
fn deploy(program: &str, to: &Path) {
    let beside = to.with_extension("new");
    copy(program, &beside);
    fs::rename(beside, to).unwrap();
}

fn pinned(settings: &str) -> String {
    format!(
        "[service.shop]\ncommand = [\"{{dir}}/app\"]\nlisten = [\"http=tcp:127.0.0.1:0\"]\n{settings}\n"
    )
}

/// A supervisor of a copy of the demo as `app`, pinned to its hash.
fn of_the_first_version() -> Supervisor {
    let hash = sha256(&built("heirloom-demo"));
    let setup = Setup::configuration(&pinned(&format!("sha256 = \"{hash}\"")));
    copy("heirloom-demo", &setup.path("app"));
    setup.start()
}

#[test]
fn another_program_is_refused_with_both_hashes() {
    let mut supervisor = of_the_first_version();
    deploy("heirloom-demo-v2", &supervisor.path("app"));
    let [first, second] = ["heirloom-demo", "heirloom-demo-v2"].map(|name| sha256(&built(name)));
    let reason = format!("the program has sha256 {second}, the configuration wants {first}");
    refused(&mut supervisor, &reason);
    version(&supervisor, "1.0.0");
    // A program of the command line is held to it as well.
    let path = built("heirloom-demo-v2");
    let said = supervisor.expect(1, ["reload", "--", path.to_str().unwrap()]);
    assert!(said.contains(&reason), "{said}");
    let said = supervisor.expect(1, ["reload", "--dry-run"]);
    assert!(said.contains(&reason), "{said}");
    supervisor.stop();
}

#[test]
fn a_new_program_and_its_hash_come_in_one_reload_and_a_rollback_brings_the_old_one_back() {
    let supervisor = of_the_first_version();
    deploy("heirloom-demo-v2", &supervisor.path("app"));
    let hash = sha256(&built("heirloom-demo-v2"));
    supervisor.write(
        "heirloom.toml",
        &pinned(&format!("sha256 = \"{}\"", hash.to_uppercase())),
    );
    supervisor.reload();
    version(&supervisor, "2.0.0");
    fs::remove_file(supervisor.path("app")).unwrap();
    supervisor.expect(0, ["rollback"]);
    version(&supervisor, "1.0.0");
    supervisor.stop();
}

#[test]
fn what_is_executed_is_a_copy_that_nobody_can_change() {
    let mut supervisor = of_the_first_version();
    let (_, pid) = supervisor.serving();
    let executed = format!("/proc/{pid}/exe");
    let name = fs::read_link(&executed).unwrap();
    assert_eq!(name.to_str(), Some("/memfd:app (deleted)"));
    assert_eq!(
        sha256(Path::new(&executed)),
        sha256(&built("heirloom-demo"))
    );
    let open = OpenOptions::new().write(true).open(&executed);
    assert!(open.is_err(), "it could be opened for writing");
    // The file itself is nobody's program any more, so it can be overwritten in place.
    fs::copy(built("heirloom-demo-v2"), supervisor.path("app")).unwrap();
    crash(&mut supervisor);
    version(&supervisor, "1.0.0");
    fs::remove_file(supervisor.path("app")).unwrap();
    crash(&mut supervisor);
    version(&supervisor, "1.0.0");
    supervisor.stop();
}

#[test]
fn what_is_put_into_the_file_between_the_check_and_the_start_is_not_executed() {
    // The old one has to end first, and a request holds it: so long the new one is checked, not started.
    let setup = Setup::configuration(&pinned("strategy = \"sequential\"\nsha256 = \"HASH\""));
    let app = setup.script("app", SERVER);
    let text = fs::read_to_string(setup.path("heirloom.toml")).unwrap();
    fs::write(
        setup.path("heirloom.toml"),
        text.replace("HASH", &sha256(&app)),
    )
    .unwrap();
    let mut supervisor = setup.start();
    let other = SERVER.replace("os.environ.get(\"RELEASE\", \"\")", "\"smuggled\"");
    assert_ne!(other, SERVER);
    for rename in [false, true] {
        let mut events = supervisor.events();
        let (generation, _) = supervisor.serving();
        let door = supervisor.path(&format!("door-{generation}"));
        let held = ask(
            supervisor.address("http"),
            &format!("/until/{}", door.display()),
        );
        begun(&held);
        let reload = supervisor.begin(["reload"]);
        events.wait_for_generation("begun", generation + 1);
        if rename {
            supervisor.script("app.new", &other);
            fs::rename(supervisor.path("app.new"), &app).unwrap();
        } else {
            fs::write(&app, &other).unwrap();
        }
        fs::write(&door, "").unwrap();
        let (status, said) = supervisor.finish(reload);
        assert_eq!(status, Some(0), "{said}");
        assert!(answer(held).contains(&format!("generation={generation}")));
        let said = get(supervisor.address("http"), "/");
        assert!(
            said.contains(&format!("generation={}", generation + 1)),
            "{said}"
        );
        assert!(said.contains("release=\n"), "{said}");
        // As it was, for the next reload to be taken on.
        supervisor.script("app", SERVER);
        supervisor.settle();
    }
    supervisor.script("app", &other);
    refused(&mut supervisor, "the configuration wants");
    supervisor.stop();
}

#[test]
fn a_file_that_changes_all_the_time_is_never_executed_as_anything_else() {
    let mut supervisor = of_the_first_version();
    let app = supervisor.path("app");
    let [first, second] = ["heirloom-demo", "heirloom-demo-v2"].map(|name| {
        let kept = supervisor.path(name);
        copy(name, &kept);
        fs::read(kept).unwrap()
    });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _also_if_this_fails = AtItsEnd(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // In place and with the same length, so that nothing but the content tells.
                for content in [&second, &first] {
                    let mut padded = content.clone();
                    padded.resize(first.len().max(second.len()), 0);
                    let mut file = OpenOptions::new().write(true).open(&app).unwrap();
                    file.write_all(&padded).unwrap();
                }
                deploy("heirloom-demo-v2", &app);
                deploy("heirloom-demo", &app);
            }
        });
        for _ in 0..8 {
            let output = supervisor.heirloom(["reload", "--timeout", "30s"]);
            assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
            version(&supervisor, "1.0.0");
        }
    });
    let (_, pid) = supervisor.serving();
    let executed = format!("/proc/{pid}/exe");
    assert_eq!(
        sha256(Path::new(&executed)),
        sha256(&built("heirloom-demo"))
    );
    supervisor.reload();
    supervisor.settle();
    supervisor.stop();
}

/// Set when this goes.
struct AtItsEnd<'a>(&'a AtomicBool);

impl Drop for AtItsEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A pair of keys, made by minisign itself.
struct Keys {
    public: String,
    secret: String,
    /// What stands in the public file.
    text: String,
}

fn minisign(arguments: &[&str]) {
    need("minisign", "minisign");
    let output = Command::new("minisign")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

fn keys(directory: &Path, name: &str) -> Keys {
    let [public, secret] = ["pub", "key"].map(|ending| {
        let path = directory.join(format!("{name}.{ending}"));
        path.to_str().unwrap().to_owned()
    });
    minisign(&["-G", "-W", "-p", &public, "-s", &secret]);
    let text = fs::read_to_string(&public).unwrap();
    let text = text.lines().nth(1).unwrap().to_owned();
    Keys {
        public,
        secret,
        text,
    }
}

fn sign(keys: &Keys, file: &Path, more: &[&str]) {
    let file = file.to_str().unwrap();
    minisign(&[&["-S", "-W", "-s", &keys.secret, "-m", file], more].concat());
}

#[test]
fn only_what_the_owner_of_the_key_signed_is_run() {
    let setup = Setup::configuration("");
    let [own, other] = ["own", "other"].map(|name| keys(&setup.path(""), name));
    setup.write(
        "heirloom.toml",
        &pinned(&format!("minisign = {{ public_key = \"{}\" }}", own.text)),
    );
    copy("heirloom-demo", &setup.path("app"));
    sign(&own, &setup.path("app"), &[]);
    let mut supervisor = setup.start();
    version(&supervisor, "1.0.0");
    let app = supervisor.path("app");
    let signature = supervisor.path("app.minisig");
    deploy("heirloom-demo-v2", &app);

    refused(&mut supervisor, "its signature is for another content");
    fs::remove_file(&signature).unwrap();
    refused(&mut supervisor, "app.minisig: No such file");
    fs::write(&signature, "hello").unwrap();
    refused(&mut supervisor, "not a signature of minisign");
    fs::remove_file(&signature).unwrap();
    nix::unistd::mkfifo(&signature, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&mut supervisor, "not a regular file");
    fs::remove_file(&signature).unwrap();
    fs::write(&signature, "x".repeat(100_000)).unwrap();
    refused(&mut supervisor, "too long");
    sign(&other, &app, &[]);
    refused(&mut supervisor, "by another key");
    sign(&own, &app, &["-l"]);
    refused(&mut supervisor, "minisign's former kind");
    sign(&own, &app, &["-t", "built on monday"]);
    let good = fs::read_to_string(&signature).unwrap();
    fs::write(&signature, good.replace("monday", "sunday")).unwrap();
    refused(&mut supervisor, "tampered with");
    // Of the owner's, and of another file.
    sign(
        &own,
        &built("heirloom-demo"),
        &["-x", signature.to_str().unwrap()],
    );
    refused(&mut supervisor, "for another content");
    fs::write(&signature, &good).unwrap();
    let mut file = OpenOptions::new().append(true).open(&app).unwrap();
    file.write_all(b"!").unwrap();
    drop(file);
    refused(&mut supervisor, "for another content");
    version(&supervisor, "1.0.0");

    deploy("heirloom-demo-v2", &app);
    supervisor.reload();
    version(&supervisor, "2.0.0");
    supervisor.expect(0, ["rollback"]);
    version(&supervisor, "1.0.0");
    supervisor.stop();
}

#[test]
fn the_key_may_be_in_a_file_and_the_signature_elsewhere_and_a_hash_may_be_asked_for_too() {
    let setup = Setup::configuration("");
    let own = keys(&setup.path(""), "own");
    let hash = sha256(&built("heirloom-demo"));
    let text = pinned(&format!(
        "sha256 = \"{hash}\"\n\
         minisign = {{ public_key_file = \"{}\", signature = \"{{dir}}/signatures{{program}}\" }}",
        own.public
    ));
    setup.write("heirloom.toml", &text);
    let app = setup.path("app");
    copy("heirloom-demo", &app);
    let app = fs::canonicalize(app).unwrap();
    let beside = format!("{}/signatures{}", setup.path("").display(), app.display());
    fs::create_dir_all(Path::new(&beside).parent().unwrap()).unwrap();
    sign(&own, &app, &["-x", &beside]);
    let mut supervisor = setup.start();
    supervisor.reload();
    // Signed, and not the one that is asked for.
    deploy("heirloom-demo-v2", &app);
    sign(&own, &app, &["-x", &beside]);
    refused(&mut supervisor, "the configuration wants");
    fs::write(&own.public, "hello").unwrap();
    deploy("heirloom-demo", &app);
    refused(&mut supervisor, "not a public key of minisign");
    supervisor.stop();
}

#[test]
fn a_pin_that_cannot_be_one_is_refused_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shop.toml");
    for (settings, reason) in [
        (
            "sha256 = \"abc\"",
            "line 4, column 10: `abc` is not a SHA-256",
        ),
        (
            "minisign = { public_key = \"RW\" }",
            "not a public key of minisign",
        ),
        ("minisign = { }", "needs public_key or public_key_file"),
    ] {
        fs::write(&file, pinned(settings)).unwrap();
        let output = Command::new(HEIRLOOM)
            .arg("check")
            .arg(&file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn a_script_is_held_to_its_hash_and_what_tests_readiness_is_not() {
    let setup = Setup::configuration("");
    let app = setup.script("app", SERVER);
    let text = format!(
        "sha256 = \"{}\"\nready = \"exec:{{dir}}/test\"",
        sha256(&app)
    );
    setup.write("heirloom.toml", &pinned(&text));
    setup.script("test", "#!/bin/sh\nexit 0\n");
    let mut supervisor = setup.start();
    supervisor.reload();
    supervisor.script("app", &format!("{SERVER}\n"));
    refused(&mut supervisor, "the configuration wants");
    fs::set_permissions(&app, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&mut supervisor, "run chmod +x");
    supervisor.stop();
}

#[test]
fn a_program_that_is_being_copied_is_waited_for_though_its_hash_is_another_yet() {
    let supervisor = of_the_first_version();
    let app = supervisor.path("app");
    let whole = fs::read(built("heirloom-demo")).unwrap();
    fs::remove_file(&app).unwrap();
    let mut file = fs::File::create(&app).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o755))
        .unwrap();
    file.write_all(&whole[..whole.len() / 2]).unwrap();
    let mut events = supervisor.events();
    let reload = supervisor.begin(["reload"]);
    events.wait_for("asked");
    file.write_all(&whole[whole.len() / 2..]).unwrap();
    drop(file);
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    supervisor.stop();
}
