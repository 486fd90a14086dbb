//! The state outlives a stop of everything, in a file that the next start takes up.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Setup, get};
use crate::native_handovers::{SAVED, field, happened, native, raise, reload_to};

const KEEP: [&str; 2] = ["--state-file", "{dir}/kept/state"];

/// A native program whose state is kept in a directory that outlives the test's supervisor.
fn kept<'a>(directory: &Path, options: impl IntoIterator<Item = &'a str>) -> Setup {
    let setup = native(options);
    setup.args(["--state-file", directory.join("state").to_str().unwrap()])
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_stop_saves_and_the_next_start_takes_up_and_only_that() {
    let directory = tempfile::tempdir().unwrap();
    let supervisor = kept(directory.path(), []).start();
    raise(&supervisor);
    supervisor.stop();
    assert_eq!(names(directory.path()), ["state"]);
    assert_eq!(
        std::fs::read(directory.path().join("state")).unwrap(),
        SAVED
    );

    // Also into a newer program.
    let mut supervisor = kept(directory.path(), ["--release", "2"]).start();
    let body = get(supervisor.address("http"), "/");
    assert_eq!(field(&body, "origin"), "a file");
    assert_eq!(field(&body, "release"), "2");
    assert_eq!(happened(&supervisor, "restored").len(), 1);
    assert_eq!(names(directory.path()), ["state.restored"]);

    // A crash later must not bring it back.
    let (_, pid) = raise(&supervisor);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    supervisor.events().wait_for_generation("ready", 2);
    let body = get(supervisor.address("http"), "/");
    assert_eq!(field(&body, "origin"), "nothing");
    supervisor.settle();

    // Handovers go on as ever, and what serves last is saved.
    assert_eq!(reload_to(&supervisor, &[]).0, Some(0));
    supervisor.settle();
    supervisor.stop();
    assert_eq!(names(directory.path()), ["state", "state.restored"]);
}

#[test]
fn a_signal_to_stop_saves_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let mut supervisor = kept(directory.path(), []).start();
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.wait(), Some(0));
    assert_eq!(names(directory.path()), ["state"]);
    assert!(
        supervisor.log().contains("was saved to"),
        "{}",
        supervisor.log()
    );
}

#[test]
fn readiness_is_awaited_after_a_state_was_taken_up() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("state"), SAVED).unwrap();
    let setup = kept(directory.path(), ["--notify-when", "{dir}/go"]);
    let mut supervisor = setup.args(["--ready", "notify"]).start_unwaited();
    supervisor.events().wait_for("restored");
    crate::harness::eventually("it is taken up", || {
        names(directory.path()) == ["state.restored"]
    });
    assert_eq!(supervisor.service()["generations"][0]["phase"], "starting");
    supervisor.write("go", "");
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_state_that_is_damaged_or_refused_stops_the_start_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("state");
    let damaged = &SAVED[..SAVED.len() - 3];
    std::fs::write(&place, damaged).unwrap();
    for options in [
        &[][..],
        &[
            "--do",
            "new:restore=say:MESSAGE=REJECT\\nMIGRATION=%d\\nREASON=too new+hang",
        ],
        &["--do", "new:restore=die"],
        &["--do", "new:restore=garbage+hang"],
        &["--do", "new:restore=deaf"],
        &[
            "--do",
            "new:restore=say:MESSAGE=YIELDED\\nMIGRATION=%d\\nAT_USEC=1+hang",
        ],
    ] {
        let mut supervisor = kept(directory.path(), options.iter().copied()).spawn();
        assert_eq!(
            supervisor.wait(),
            Some(1),
            "{options:?}\n{}",
            supervisor.log()
        );
        let log = supervisor.log();
        assert!(log.contains("no service came up"), "{log}");
        let told = log.contains("did not take the state in")
            || log.contains("SIGKILL")
            || log.contains("makes no sense")
            || log.contains("closed its socket");
        assert!(told, "{log}");
        assert_eq!(names(directory.path()), ["state"], "{options:?}");
        assert_eq!(std::fs::read(&place).unwrap(), damaged);
    }
    // The operator moves it away.
    std::fs::rename(&place, directory.path().join("aside")).unwrap();
    let supervisor = kept(directory.path(), []).start();
    assert_eq!(raise(&supervisor).0, 1);
    supervisor.stop();
}

#[test]
fn a_state_that_is_no_plain_file_is_refused_and_nothing_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("state");
    nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut supervisor = kept(directory.path(), []).spawn();
    assert_eq!(supervisor.wait(), Some(1));
    assert!(
        supervisor.log().contains("not a plain file"),
        "{}",
        supervisor.log()
    );
}

#[test]
fn what_is_not_saved_in_time_replaces_nothing_and_is_told() {
    for deed in [
        "hang",
        "die",
        "deaf",
        "say:MESSAGE=FAILED\\nMIGRATION=%d\\nREASON=no room+hang",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let deed = format!("old:stop={deed}");
        let setup = kept(directory.path(), ["--do", &deed]);
        let mut supervisor = setup.args(["--drain-timeout", "1s"]).start();
        let place = directory.path().join("state");
        std::fs::write(&place, "of before").unwrap();
        let said = supervisor.expect(1, ["stop"]);
        assert!(said.contains("the state was not saved"), "{deed}: {said}");
        assert_eq!(supervisor.wait(), Some(0));
        assert_eq!(std::fs::read(&place).unwrap(), b"of before", "{deed}");
        assert_eq!(names(directory.path()), ["state"], "{deed}");
    }
}

#[test]
fn a_file_cut_short_replaces_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let supervisor = kept(directory.path(), []).env("SAVE_ALL_BUT", "5").start();
    let said = supervisor.expect(1, ["stop"]);
    assert!(said.contains("not a whole state"), "{said}");
    assert_eq!(names(directory.path()), Vec::<String>::new());
}

#[test]
fn a_directory_that_is_gone_does_not_keep_a_stop_from_ending() {
    let supervisor = native([]).args(KEEP).start();
    let said = supervisor.expect(1, ["stop"]);
    assert!(said.contains("cannot write beside"), "{said}");
}

#[test]
fn a_sequential_handover_goes_by_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let setup = kept(directory.path(), []).args(["--strategy", "sequential"]);
    let mut supervisor = setup.start();
    raise(&supervisor);
    assert_eq!(
        reload_to(&supervisor, &["--release", "2"]).0,
        Some(0),
        "{}",
        supervisor.log()
    );
    let body = get(supervisor.address("http"), "/");
    assert_eq!(field(&body, "origin"), "a file", "{}", supervisor.log());
    assert_eq!(field(&body, "release"), "2");
    supervisor.settle();
    // One that refuses the state: the program before it takes it up again.
    let refusal = "new:restore=say:MESSAGE=REJECT\\nMIGRATION=%d\\nREASON=too old+hang";
    let (status, said) = reload_to(&supervisor, &["--release", "3", "--do", refusal]);
    assert_eq!(status, Some(5), "{said}");
    let body = get(supervisor.address("http"), "/");
    assert_eq!(field(&body, "origin"), "a file");
    assert_eq!(field(&body, "release"), "2");
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn without_a_file_a_stop_is_as_for_any_program() {
    let supervisor = native([]).start();
    raise(&supervisor);
    let mut events = supervisor.events();
    supervisor.expect(0, ["stop"]);
    let told = events.wait_for("draining");
    assert!(told["text"].as_str().unwrap().contains("TERM"), "{told}");
}

#[test]
fn a_handover_that_comes_while_a_state_is_taken_up_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("state"), SAVED).unwrap();
    let setup = kept(directory.path(), ["--notify-when", "{dir}/go"]).args(["--ready", "notify"]);
    let supervisor = setup.start_unwaited();
    supervisor.events().wait_for("restored");
    let reload = supervisor.begin(["reload"]);
    supervisor.events().wait_for_generation("started", 2);
    supervisor.write("go", "");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(0), "{said}\n{}", supervisor.log());
    assert_eq!(
        happened(&supervisor, "restored").len(),
        1,
        "{}",
        supervisor.log()
    );
    let body = get(supervisor.address("http"), "/");
    assert_eq!(field(&body, "generation"), "2");
    assert_eq!(
        field(&body, "origin"),
        "generation 1",
        "{}",
        supervisor.log()
    );
    supervisor.stop();
}

#[test]
fn a_program_that_closed_its_socket_cannot_save_and_that_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let setup = kept(directory.path(), ["--do", "old:send=deaf"]);
    let supervisor = setup.start();
    raise(&supervisor);
    supervisor.expect(1, ["reload"]);
    let said = supervisor.expect(1, ["stop"]);
    assert!(said.contains("closed its socket"), "{said}");
    assert_eq!(names(directory.path()), Vec::<String>::new());
}

#[test]
fn a_state_goes_where_the_next_program_looks_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let setup = native([]).no_default_listener();
    let program = setup.path("native").to_str().unwrap().to_owned();
    let text = |file: &str| {
        let place = directory.path().join(file);
        format!(
            "[service.shop]\ncommand = [\"{program}\"]\nlisten = [\"http=tcp:127.0.0.1:0\"]\n\
             strategy = \"sequential\"\nstate_file = \"{}\"\n",
            place.display()
        )
    };
    setup.write("heirloom.toml", &text("one"));
    let config = setup.path("heirloom.toml");
    let setup = setup
        .with_program(&[])
        .args(["--config", config.to_str().unwrap()]);
    let supervisor = setup.start();
    raise(&supervisor);
    supervisor.write("heirloom.toml", &text("two"));
    supervisor.reload();
    let body = get(supervisor.address("http"), "/");
    assert_eq!(field(&body, "origin"), "a file", "{}", supervisor.log());
    assert_eq!(names(directory.path()), ["two.restored"]);
    supervisor.stop();
}
