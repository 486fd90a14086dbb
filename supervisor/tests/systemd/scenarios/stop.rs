//! `systemctl restart`, `systemctl stop` and the end of the supervisor by accident.

use crate::machine::Machine;
use crate::service::{Service, UNIT};
use crate::wait::eventually;

pub(crate) fn restart_serves_again(machine: &Machine) {
    let service = Service::start(machine, "");
    let main_pid = service.property("MainPID");
    service.systemctl("reload");
    service.systemctl("restart");
    assert_ne!(service.property("MainPID"), main_pid);
    assert_eq!(
        service.property("ActiveState"),
        "active",
        "{}",
        service.story()
    );
    service
        .get("/version")
        .unwrap_or_else(|reason| panic!("{reason}\n{}", service.story()));
    assert_eq!(service.supervisors().len(), 1, "{}", service.story());
}

pub(crate) fn stop_leaves_nothing(machine: &Machine) {
    let service = Service::start(machine, "");
    service.systemctl("reload");
    service.systemctl("stop");
    assert_eq!(
        service.property("ActiveState"),
        "inactive",
        "{}",
        service.story()
    );
    assert_eq!(service.property("Result"), "success", "{}", service.story());
    assert_eq!(
        service.processes(),
        Vec::<String>::new(),
        "{}",
        service.story()
    );
    assert!(service.get("/version").is_err(), "the port is free");
    assert!(
        !machine.path("/run/heirloom/shop").exists(),
        "the runtime directory is gone"
    );
    // Free for another process, too, and for the next start.
    service.systemctl("start");
    assert_eq!(service.property("ActiveState"), "active");
    service.get("/version").expect("serves again");
}

pub(crate) fn crash_of_the_supervisor_is_recovered(machine: &Machine) {
    let service = Service::start(machine, "");
    let main_pid = service.property("MainPID");
    let before = service.processes();
    assert!(
        before.len() >= 2,
        "the supervisor and its program: {before:?}"
    );
    machine.ok(&[
        "systemctl",
        "kill",
        "--signal=KILL",
        "--kill-whom=main",
        UNIT,
    ]);
    eventually("another supervisor", || {
        let next = service.property("MainPID");
        (next != "0" && next != main_pid).then_some(())
    });
    service.await_property("ActiveState", "active");
    service
        .get("/version")
        .unwrap_or_else(|reason| panic!("{reason}\n{}", service.story()));
    assert_eq!(service.property("NRestarts"), "1", "{}", service.story());
    let after = service.processes();
    assert!(
        !before.iter().any(|pid| after.contains(pid)),
        "{before:?} and {after:?}"
    );
    assert_eq!(service.supervisors().len(), 1, "{}", service.story());
}
