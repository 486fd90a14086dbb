//! Who may say what: programs do not speak to systemd, and the journal knows whose line is whose.

use serde_json::Value;

use crate::machine::Machine;
use crate::programs;
use crate::service::{Service, UNIT};
use crate::wait::eventually;

pub(crate) fn a_program_cannot_speak_for_the_unit(machine: &Machine) {
    let service = Service::configure(machine, "");
    // Once on the socket it was given, once on systemd's own, whose path everybody knows.
    service.deploy(programs::demo_with(
        machine,
        "for socket in \"$NOTIFY_SOCKET\" /run/systemd/notify; do
            for message in READY=1 MAINPID=$$ MAINPID=1 RELOADING=1 'STATUS=taken over' STOPPING=1; do
                NOTIFY_SOCKET=$socket systemd-notify \"$message\"
            done
        done
        touch \"$STATE_DIRECTORY/spoke\"",
    ));
    service.systemctl("start");
    let main_pid = service.property("MainPID");
    programs::let_go(machine);
    eventually("the program to have said all of it", || {
        machine
            .path("/var/lib/heirloom/shop/spoke")
            .exists()
            .then_some(())
    });
    service.assert_undisturbed(&main_pid, 1);
    let text = service.property("StatusText");
    assert!(!text.starts_with("taken over"), "{text}");
    // Not only spared for a moment: systemd still takes the supervisor at its word.
    service.systemctl("reload");
    service.assert_undisturbed(&main_pid, 2);
}

pub(crate) fn a_dying_program_does_not_stop_the_unit(machine: &Machine) {
    let service = Service::start(machine, "");
    let main_pid = service.property("MainPID");
    let pid = service.status()["services"][0]["generations"][0]["pid"]
        .as_u64()
        .expect("a pid");
    machine.ok(&["sh", "-c", &format!("kill -KILL {pid}")]);
    eventually("the program to be respawned", || {
        service
            .get("/version")
            .ok()
            .filter(|answer| !answer.contains(&format!("\"pid\":{pid}}}")))
    });
    assert_eq!(
        service.property("ActiveState"),
        "active",
        "{}",
        service.story()
    );
    assert_eq!(service.property("MainPID"), main_pid, "{}", service.story());
    assert_eq!(service.property("NRestarts"), "0", "{}", service.story());
}

pub(crate) fn the_watchdog_is_answered_if_it_is_asked_for(machine: &Machine) {
    let service = Service::configure(machine, "");
    service.set("WatchdogSec=1s");
    service.systemctl("start");
    let main_pid = service.property("MainPID");
    let answered = || -> u64 {
        let microseconds = service.property("WatchdogTimestampMonotonic");
        microseconds.parse().expect("microseconds")
    };
    let first = answered();
    eventually("answers for three intervals", || {
        (answered() > first + 3_000_000).then_some(())
    });
    service.assert_undisturbed(&main_pid, 1);
}

pub(crate) fn log_lines_carry_service_and_generation(machine: &Machine) {
    let service = Service::configure(machine, "");
    service.deploy(programs::demo_after(
        machine,
        "echo \"out of $HEIRLOOM_GENERATION\"; echo \"err of $HEIRLOOM_GENERATION\" >&2",
    ));
    service.systemctl("start");
    service.systemctl("reload");
    let journal = service.journal();
    for generation in ["1", "2"] {
        for stream in ["out", "err"] {
            let line = format!("{stream} of {generation}");
            let entry = journal
                .iter()
                .find(|entry| entry["MESSAGE"] == line.as_str());
            let entry = entry.unwrap_or_else(|| {
                panic!("no entry whose MESSAGE is {line:?}\n{}", service.story())
            });
            assert_eq!(entry["HEIRLOOM_SERVICE"], "shop", "{entry}");
            assert_eq!(entry["HEIRLOOM_GENERATION"], generation, "{entry}");
            assert_eq!(entry["_SYSTEMD_UNIT"], UNIT, "{entry}");
        }
    }
    let of_two = machine.ok(&[
        "journalctl",
        "--output=json",
        "HEIRLOOM_SERVICE=shop",
        "HEIRLOOM_GENERATION=2",
    ]);
    let of_two: Vec<Value> = of_two
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert!(
        of_two.iter().any(|entry| entry["MESSAGE"] == "out of 2"),
        "the fields can be searched for"
    );
    assert!(of_two.iter().all(|entry| entry["MESSAGE"] != "out of 1"));
}

pub(crate) fn a_journal_that_stalls_stops_no_handover(machine: &Machine) {
    let flood = "{ for number in {1..20000}; do echo flood $number; done; echo >$STATE_DIRECTORY/written; } &";
    let service = Service::configure(machine, "");
    service.deploy(programs::demo_after(machine, flood));
    service.systemctl("start");
    let main_pid = service.property("MainPID");
    let journal = machine.ok(&[
        "systemctl",
        "show",
        "--value",
        "--property=MainPID",
        "systemd-journald",
    ]);
    let journal = journal.trim();
    machine.ok(&["sh", "-c", &format!("kill -STOP {journal}")]);
    let written = machine.path("/var/lib/heirloom/shop/written");
    for generation in 2..=4 {
        // The generation before has written all it has, and was not held up in it.
        eventually("the flood is over", || std::fs::remove_file(&written).ok());
        machine.ok(&[
            "heirloom",
            "reload",
            "--control",
            "/run/heirloom/shop/control.sock",
        ]);
        eventually(&format!("generation {generation}"), || {
            (service.generation() == generation).then_some(())
        });
    }
    machine.ok(&["sh", "-c", &format!("kill -CONT {journal}")]);
    service.systemctl("reload");
    service.assert_undisturbed(&main_pid, 5);
}
