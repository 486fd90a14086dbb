//! The state of a running service, saved to a file and read without it.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::harness::{HEIRLOOM, SERVER, Setup, Supervisor};
use crate::native_handovers::{SAVED, happened, native, raise};

fn snapshot(supervisor: &Supervisor, more: &[&str]) -> (Option<i32>, String, String) {
    let output = supervisor.heirloom([&["snapshot"], more].concat());
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn inspect(words: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(HEIRLOOM)
        .arg("inspect")
        .args(words)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// The names in the test's directory that a snapshot may have left.
fn left(supervisor: &Supervisor) -> Vec<String> {
    let entries = std::fs::read_dir(supervisor.path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn a_snapshot_is_whole_and_the_service_serves_on() {
    let supervisor = native([]).start();
    let (_, pid) = raise(&supervisor);
    let file = supervisor.path("out.state");
    let path = file.to_str().unwrap();
    let (status, line, said) = snapshot(&supervisor, &["-o", path]);
    assert_eq!(status, Some(0), "{said}");
    assert!(
        line.contains("the state of generation 1 was saved to"),
        "{line}"
    );
    assert!(line.contains("7 entries"), "{line}");
    assert!(line.contains("paused 1.5 ms"), "{line}");
    assert_eq!(std::fs::read(&file).unwrap(), SAVED);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(raise(&supervisor), (2, pid));
    let (status, line, _) = snapshot(&supervisor, &["native", "--json", "-o", path]);
    assert_eq!(status, Some(0));
    let saved: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(saved["bytes"], SAVED.len());
    assert_eq!(saved["path"], path);
    assert_eq!(saved["generation"], 1);
    assert_eq!(left(&supervisor), Vec::<String>::new());
    assert_eq!(happened(&supervisor, "saved").len(), 2);
    supervisor.reload();
    assert_eq!(raise(&supervisor).0, 3);
    supervisor.stop();
}

#[test]
fn what_cannot_be_saved_costs_nothing_and_says_why() {
    let supervisor = native([]).start();
    let (_, pid) = raise(&supervisor);
    let file = supervisor.write("out.state", "of before");
    let path = file.to_str().unwrap();
    let (status, _, said) = snapshot(&supervisor, &["-o", "/nonexistent/x/state"]);
    assert_eq!(status, Some(1));
    assert!(said.contains("/nonexistent/x"), "{said}");
    let directory = supervisor.path("");
    let (status, _, said) = snapshot(&supervisor, &["-o", directory.to_str().unwrap()]);
    assert_eq!(status, Some(1));
    assert!(said.contains("is a directory"), "{said}");
    let (status, _, said) = snapshot(&supervisor, &["other", "-o", path]);
    assert_eq!(status, Some(2));
    assert!(said.contains("no service other"), "{said}");
    let (status, _, said) = snapshot(&supervisor, &["--instance", "4", "-o", path]);
    assert_eq!(status, Some(1));
    assert!(said.contains("no instance 4"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), b"of before");
    assert_eq!(raise(&supervisor), (2, pid));
    supervisor.stop();
}

#[test]
fn a_program_that_fails_to_save_leaves_the_file_as_it_was() {
    let cases = [
        (
            "garbage+hang",
            "the program sent a message that makes no sense",
        ),
        (
            "say:MESSAGE=FAILED\\nMIGRATION=%d\\nREASON=the disk is full+hang",
            "the program cannot save its state: the disk is full",
        ),
        ("die", "the program ended before it had saved it"),
        ("deaf", "closed its socket"),
        (
            "say:MESSAGE=SAVED\\nMIGRATION=%d\\nENTRIES=1\\nBYTES=1\\nROUNDS=1\\nPAUSE_USEC=1+hang",
            "not a whole state",
        ),
        (
            "say:MESSAGE=YIELDED\\nMIGRATION=%d\\nAT_USEC=1+hang",
            "instead of SAVED",
        ),
    ];
    for (deed, reason) in cases {
        let mut supervisor = native(["--do", &format!("old:save={deed}")]).start();
        let file = supervisor.write("out.state", "of before");
        let (status, _, said) = snapshot(&supervisor, &["-o", file.to_str().unwrap()]);
        assert_eq!(status, Some(1), "{deed}: {said}");
        assert!(said.contains("the state was not saved"), "{deed}: {said}");
        assert!(said.contains(reason), "{deed}: {said}");
        assert_eq!(std::fs::read(&file).unwrap(), b"of before", "{deed}");
        assert_eq!(left(&supervisor), Vec::<String>::new(), "{deed}");
        supervisor.settle();
        raise(&supervisor);
        supervisor.stop();
    }
}

#[test]
fn a_file_cut_short_by_the_program_is_not_put_in_place() {
    let supervisor = native([]).env("SAVE_ALL_BUT", "1").start();
    let file = supervisor.write("out.state", "of before");
    let (status, _, said) = snapshot(&supervisor, &["-o", file.to_str().unwrap()]);
    assert_eq!(status, Some(1));
    assert!(said.contains("not a whole state"), "{said}");
    assert!(said.contains("byte"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), b"of before");
    assert_eq!(left(&supervisor), Vec::<String>::new());
    supervisor.stop();
}

#[test]
fn a_handover_is_more_important_than_a_snapshot() {
    let supervisor = native(["--do", "old:save=hang"]).start();
    raise(&supervisor);
    let path = supervisor.path("out.state");
    let begun = supervisor.begin(["snapshot", "-o", path.to_str().unwrap()]);
    crate::harness::eventually("the file is made", || !left(&supervisor).is_empty());
    let (status, _, said) = snapshot(&supervisor, &["-o", path.to_str().unwrap()]);
    assert_eq!(status, Some(1));
    assert!(said.contains("being saved already"), "{said}");
    supervisor.reload();
    let (status, said) = supervisor.finish(begun);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("a handover needs the state"), "{said}");
    assert_eq!(raise(&supervisor).0, 2);
    assert!(!path.exists());
    assert_eq!(left(&supervisor), Vec::<String>::new());
    supervisor.stop();
}

#[test]
fn a_snapshot_during_a_handover_is_refused() {
    let supervisor = native(["--do", "old:send=hang"])
        .args(["--ready-timeout", "4s"])
        .start();
    raise(&supervisor);
    let reload = supervisor.begin(["reload"]);
    supervisor.events().wait_for("copying");
    let path = supervisor.path("out.state");
    let (status, _, said) = snapshot(&supervisor, &["-o", path.to_str().unwrap()]);
    assert_eq!(status, Some(1));
    assert!(said.contains("being handed over"), "{said}");
    assert_eq!(supervisor.finish(reload).0, Some(1));
    supervisor.stop();
}

#[test]
fn each_instance_has_a_state_of_its_own() {
    let supervisor = native([]).args(["--instances", "2"]).start();
    let path = supervisor.path("out.state");
    let path = path.to_str().unwrap();
    let (status, _, said) = snapshot(&supervisor, &["-o", path]);
    assert_eq!(status, Some(2));
    assert!(said.contains("--instance"), "{said}");
    let (status, _, said) = snapshot(&supervisor, &["--instance", "1", "-o", path]);
    assert_eq!(status, Some(0), "{said}");
    supervisor.stop();
}

#[test]
fn a_plain_program_has_no_state_to_save() {
    let setup = Setup::program([]);
    let server = setup.script("server", SERVER).to_str().unwrap().to_owned();
    let supervisor = setup.with_program(&[server]).start();
    let path = supervisor.path("out.state");
    let (status, _, said) = snapshot(&supervisor, &["-o", path.to_str().unwrap()]);
    assert_eq!(status, Some(1));
    assert!(
        said.contains("does not speak the handover protocol"),
        "{said}"
    );
    supervisor.stop();
}

#[test]
fn a_sound_file_is_inspected_without_anything_else() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state");
    std::fs::write(&file, SAVED).unwrap();
    let path = file.to_str().unwrap();
    let (status, text, said) = inspect(&[path]);
    assert_eq!(status, Some(0), "{said}");
    for word in [
        "sound",
        "generation",
        "build",
        "SECTION",
        "required",
        "bytes",
    ] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    let (status, text, _) = inspect(&["--json", path]);
    assert_eq!(status, Some(0));
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["sound"], true);
    assert_eq!(document["bytes"], SAVED.len());
    assert!(!document["sections"].as_array().unwrap().is_empty());
    let (_, text, _) = inspect(&["--shapes", path]);
    assert!(text.contains("    value: "), "{text}");
}

#[test]
fn a_damaged_file_is_told_with_its_byte() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state");
    let path = file.to_str().unwrap();
    let mut bytes = SAVED.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    for bytes in [&bytes[..], &SAVED[..SAVED.len() - 1], b"nonsense", b""] {
        std::fs::write(&file, bytes).unwrap();
        let (status, text, said) = inspect(&[path]);
        assert_eq!(status, Some(1), "{text}");
        assert!(said.contains("at byte"), "{said}");
        let (status, text, _) = inspect(&["--json", path]);
        assert_eq!(status, Some(1));
        let document: Value = serde_json::from_str(&text).unwrap();
        assert!(document["damaged_at"].is_u64(), "{document}");
    }
    let (status, _, said) = inspect(&["/nonexistent/state"]);
    assert_eq!(status, Some(2));
    assert!(said.contains("/nonexistent/state"), "{said}");
}
