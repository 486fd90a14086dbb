//! What deploys do to files: links are turned, releases deleted, programs replaced, overwritten,
//! half written. A reload looks everything up again; what is proven works without its file.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{SERVER, Setup, Supervisor, answer, ask, built, eventually, get, is_alive};
use crate::load;

/// Puts a release into `releases/NUMBER` and turns `current` to it.
fn release(directory: &Path, number: u32) {
    let release = directory.join(format!("releases/{number}"));
    fs::create_dir_all(&release).unwrap();
    fs::write(release.join("server"), SERVER).unwrap();
    fs::set_permissions(release.join("server"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(release.join("env"), format!("RELEASE=\"{number}\"\n")).unwrap();
    let link = directory.join("current.new");
    symlink(&release, &link).unwrap();
    fs::rename(link, directory.join("current")).unwrap();
}

fn delete_release(directory: &Path, number: u32) {
    fs::remove_dir_all(directory.join(format!("releases/{number}"))).unwrap();
}

/// Six deploys, each of which deletes the release before; this one must serve, in every respect.
fn six_deploys(mut supervisor: Supervisor) {
    let directory = supervisor.path("");
    let mut turn = |number: u32| {
        release(&directory, number);
        supervisor.reload();
        delete_release(&directory, number - 1);
        let root = fs::canonicalize(&directory).unwrap();
        let here = root.join(format!("releases/{number}"));
        let said = get(supervisor.address("http"), "/");
        for line in [
            format!("release={number}"),
            format!("directory={}", here.display()),
            format!("program={}", here.join("server").display()),
            format!("PWD={}", directory.join("current").display()),
        ] {
            assert!(said.lines().any(|said| said == line), "{line} in\n{said}");
        }
        let resolved = supervisor.service()["generations"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()["resolved"]
            .clone();
        assert_eq!(resolved, here.join("server").to_str().unwrap());
    };
    (2..=7).for_each(&mut turn);
    supervisor.settle();
    supervisor.stop();
}

const CURRENT: &str = r#"
[service.web]
command = ["COMMAND"]
listen = ["http=tcp:127.0.0.1:0"]
directory = "{dir}/current"
env_file = "{dir}/current/env"
"#;

fn current(command: &str) -> Supervisor {
    let setup = Setup::configuration(&CURRENT.replace("COMMAND", command)).env("PWD", "/");
    release(&setup.path(""), 1);
    setup.start()
}

#[test]
fn a_link_is_turned_and_the_old_release_deleted_six_times() {
    six_deploys(current("{dir}/current/server"));
}

#[test]
fn a_program_relative_to_a_directory_that_is_turned() {
    six_deploys(current("./server"));
}

#[test]
fn a_supervisor_started_within_the_directory_that_is_turned() {
    // Its own directory is gone after the second deploy; where it was started from is a name.
    let setup = Setup::program(["./server"]).args(["--env-file", "env"]);
    release(&setup.path(""), 1);
    let script = "cd \"$0\" && exec \"$@\"";
    let directory = setup.path("current");
    let setup = setup.launcher(["sh", "-c", script, directory.to_str().unwrap()]);
    six_deploys(setup.start());
}

/// A supervisor of a copy of the demo, as `app` in the test's directory.
fn of_a_copy() -> Supervisor {
    // Without a probation there is nobody in reserve, so a rollback starts the proven program.
    let setup = Setup::program(["./app"]).args(["--probation", "0s"]);
    copy("heirloom-demo", &setup.path("app"));
    setup.start()
}

fn copy(program: &str, to: &Path) {
    fs::copy(built(program), to).unwrap();
}

/// What serves is of this version.
pub(crate) fn version(supervisor: &Supervisor, wanted: &str) {
    let said = get(supervisor.address("http"), "/version");
    assert!(said.contains(&format!("\"{wanted}\"")), "{said}");
}

/// Renames the second version over the program.
fn rename_over(supervisor: &Supervisor) {
    copy("heirloom-demo-v2", &supervisor.path("app.new"));
    fs::rename(supervisor.path("app.new"), supervisor.path("app")).unwrap();
}

/// Kills what serves.
pub(crate) fn crash(supervisor: &mut Supervisor) {
    supervisor.settle();
    let (_, pid) = supervisor.serving();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    eventually("it is dead", || !is_alive(pid));
}

/// A reload that must fail for this reason and leave the serving process as it is.
pub(crate) fn refused(supervisor: &mut Supervisor, reason: &str) {
    let before = supervisor.serving();
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains(reason), "{reason}\n{said}");
    supervisor.settle();
    assert_eq!(supervisor.serving(), before);
}

#[test]
fn a_program_renamed_over_is_the_new_one_at_the_next_reload() {
    let supervisor = of_a_copy();
    load::under_load(&supervisor, || {
        rename_over(&supervisor);
        version(&supervisor, "1.0.0");
        supervisor.reload();
        version(&supervisor, "2.0.0");
    });
    supervisor.stop();
}

#[test]
fn a_program_deleted_is_reported_and_comes_back() {
    let mut supervisor = of_a_copy();
    fs::remove_file(supervisor.path("app")).unwrap();
    refused(&mut supervisor, "No such file");
    version(&supervisor, "1.0.0");
    copy("heirloom-demo-v2", &supervisor.path("app"));
    supervisor.reload();
    version(&supervisor, "2.0.0");
    supervisor.stop();
}

#[test]
fn a_crash_after_the_program_was_renamed_over_respawns_what_was_proven() {
    let mut supervisor = of_a_copy();
    rename_over(&supervisor);
    crash(&mut supervisor);
    version(&supervisor, "1.0.0");
    supervisor.reload();
    version(&supervisor, "2.0.0");
    supervisor.stop();
}

#[test]
fn a_crash_after_the_program_was_deleted_respawns_what_was_proven() {
    let mut supervisor = of_a_copy();
    fs::remove_file(supervisor.path("app")).unwrap();
    for _ in 0..2 {
        crash(&mut supervisor);
        // The second time in a row there is a pause; clients wait.
        version(&supervisor, "1.0.0");
    }
    supervisor.stop();
}

#[test]
fn a_rollback_after_the_program_was_renamed_over_or_deleted() {
    let supervisor = of_a_copy();
    rename_over(&supervisor);
    supervisor.reload();
    version(&supervisor, "2.0.0");
    fs::remove_file(supervisor.path("app")).unwrap();
    supervisor.expect(0, ["rollback"]);
    version(&supervisor, "1.0.0");
    supervisor.stop();
}

#[test]
fn a_rollback_to_a_program_overwritten_in_place_is_refused() {
    let mut supervisor = of_a_copy();
    let second = built("heirloom-demo-v2");
    supervisor.expect(0, ["reload", "--", second.to_str().unwrap()]);
    supervisor.settle();
    // Nothing executes it any more, so it can be written to.
    let mut file = OpenOptions::new()
        .append(true)
        .open(supervisor.path("app"))
        .unwrap();
    file.write_all(b"!").unwrap();
    drop(file);
    let before = supervisor.serving();
    let said = supervisor.expect(1, ["rollback"]);
    assert!(said.contains("overwritten in place"), "{said}");
    assert_eq!(supervisor.serving(), before);
    version(&supervisor, "2.0.0");
    supervisor.stop();
}

/// The first half of the second version where the program is, the file open for the rest.
fn half_written(supervisor: &Supervisor) -> (File, Vec<u8>) {
    let whole = fs::read(built("heirloom-demo-v2")).unwrap();
    let app = supervisor.path("app");
    fs::remove_file(&app).unwrap();
    let mut file = File::create(&app).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o755))
        .unwrap();
    let half = whole.len() / 2;
    file.write_all(&whole[..half]).unwrap();
    (file, whole[half..].to_vec())
}

#[test]
fn a_program_being_copied_when_the_reload_comes_is_waited_for() {
    let supervisor = of_a_copy();
    let (mut file, rest) = half_written(&supervisor);
    let mut events = supervisor.events();
    let reload = supervisor.begin(["reload"]);
    events.wait_for("asked");
    // In pieces, and still open for writing when all of it is there: then executing it fails.
    for piece in rest.chunks(rest.len() / 8) {
        file.write_all(piece).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    events.wait_for_generation("begun", 2);
    version(&supervisor, "1.0.0");
    drop(file);
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    version(&supervisor, "2.0.0");
    supervisor.stop();
}

#[test]
fn a_program_that_stays_half_written_is_reported() {
    let mut supervisor = of_a_copy();
    let (mut file, rest) = half_written(&supervisor);
    refused(&mut supervisor, "is it still being written?");
    version(&supervisor, "1.0.0");
    file.write_all(&rest).unwrap();
    drop(file);
    supervisor.reload();
    version(&supervisor, "2.0.0");
    supervisor.stop();
}

#[test]
fn a_program_that_stays_open_for_writing_is_reported() {
    let mut supervisor = of_a_copy();
    rename_over(&supervisor);
    let writer = OpenOptions::new()
        .append(true)
        .open(supervisor.path("app"))
        .unwrap();
    refused(&mut supervisor, "still being written");
    drop(writer);
    supervisor.reload();
    version(&supervisor, "2.0.0");
    supervisor.stop();
}

#[test]
fn a_program_whose_tail_is_still_missing_when_it_is_checked() {
    // What a header promises is there; what some programs carry behind that is not yet. Only the
    // open file tells that somebody still writes.
    let supervisor = of_a_copy();
    rename_over(&supervisor);
    let mut writer = OpenOptions::new()
        .append(true)
        .open(supervisor.path("app"))
        .unwrap();
    let reload = supervisor.begin(["reload"]);
    supervisor.events().wait_for_generation("begun", 2);
    writer.write_all(b"a payload behind the program").unwrap();
    drop(writer);
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    version(&supervisor, "2.0.0");
    supervisor.stop();
}

#[test]
fn an_empty_program_is_waited_for() {
    let supervisor = of_a_copy();
    fs::remove_file(supervisor.path("app")).unwrap();
    supervisor.script("app", "");
    let mut events = supervisor.events();
    let reload = supervisor.begin(["reload"]);
    events.wait_for("asked");
    rename_over(&supervisor);
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}");
    version(&supervisor, "2.0.0");
    supervisor.stop();
}

#[test]
fn what_is_no_program_is_refused_with_its_reason() {
    let mut supervisor = of_a_copy();
    let app = supervisor.path("app");
    let put = |content: &str, mode: u32| {
        fs::remove_file(&app).unwrap();
        fs::write(&app, content).unwrap();
        fs::set_permissions(&app, fs::Permissions::from_mode(mode)).unwrap();
    };
    put("#!/bin/sh\nexit 0\n", 0o644);
    refused(&mut supervisor, "not executable; run chmod +x");
    put("#!/nonexistent/interpreter\n", 0o755);
    refused(&mut supervisor, "the interpreter its first line names");
    put("no program at all", 0o755);
    refused(&mut supervisor, "neither a program nor a script");
    fs::remove_file(&app).unwrap();
    fs::create_dir(&app).unwrap();
    refused(&mut supervisor, "is a directory");
    fs::remove_dir(&app).unwrap();
    nix::unistd::mkfifo(&app, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&mut supervisor, "not a regular file");
    fs::remove_file(&app).unwrap();
    symlink("app", &app).unwrap();
    refused(&mut supervisor, "symbolic links");
    fs::remove_file(&app).unwrap();
    copy("heirloom-demo-v2", &app);
    supervisor.reload();
    version(&supervisor, "2.0.0");
    supervisor.stop();
}

#[test]
fn a_program_for_another_machine_is_refused_with_its_reason() {
    let mut supervisor = of_a_copy();
    let mut whole = fs::read(built("heirloom-demo-v2")).unwrap();
    // The architecture, in the header of an ELF file.
    whole[18..20].copy_from_slice(&[0xff, 0x7f]);
    fs::remove_file(supervisor.path("app")).unwrap();
    fs::write(supervisor.path("app"), whole).unwrap();
    fs::set_permissions(supervisor.path("app"), fs::Permissions::from_mode(0o755)).unwrap();
    refused(&mut supervisor, "not a program this system can execute");
    version(&supervisor, "1.0.0");
    supervisor.stop();
}

#[test]
fn a_deploy_that_leaves_no_directory_or_environment_is_refused() {
    let mut supervisor = current("{dir}/current/server");
    fs::remove_file(supervisor.path("current/env")).unwrap();
    refused(&mut supervisor, "env_file");
    fs::write(supervisor.path("current/env"), "nonsense\n").unwrap();
    refused(&mut supervisor, "line 1: it is not NAME=VALUE");
    fs::remove_file(supervisor.path("current")).unwrap();
    refused(&mut supervisor, "directory");
    release(&supervisor.path(""), 2);
    supervisor.reload();
    assert!(get(supervisor.address("http"), "/").contains("release=2"));
    supervisor.stop();
}

#[test]
fn a_variable_that_left_the_environment_file_is_gone_from_the_next_generation() {
    let supervisor = current("{dir}/current/server");
    assert!(get(supervisor.address("http"), "/").contains("release=1"));
    fs::write(supervisor.path("current/env"), "OTHER=1\n").unwrap();
    supervisor.reload();
    let said = get(supervisor.address("http"), "/");
    assert!(said.lines().any(|line| line == "release="), "{said}");
    supervisor.stop();
}

#[test]
fn a_script_deleted_or_overwritten_in_place_is_respawned_as_it_was() {
    let mut supervisor = Setup::server(["--release", "proven"]).start();
    fs::write(supervisor.path("server"), "#!/bin/sh\nexit 9\n").unwrap();
    crash(&mut supervisor);
    let client = ask(supervisor.address("http"), "/");
    assert!(answer(client).contains("release=proven"));
    let said = supervisor.expect(1, ["reload"]);
    assert!(said.contains("status 9"), "{said}");
    fs::remove_file(supervisor.path("server")).unwrap();
    crash(&mut supervisor);
    assert!(get(supervisor.address("http"), "/").contains("release=proven"));
    supervisor.stop();
}
