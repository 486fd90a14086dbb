//! `systemctl start`: active means that the service serves, and what happens when it never will.

use crate::http;
use crate::machine::{Machine, both};
use crate::programs;
use crate::service::{PORT, Service, UNIT};
use crate::wait::eventually;

pub(crate) fn active_only_when_the_service_is_ready(machine: &Machine) {
    let service = Service::configure(machine, "");
    service.deploy(programs::demo_held_back(machine));
    let starting = machine.spawn(&["systemctl", "start", UNIT]);
    let early = eventually("the listener", || machine.connect(PORT).ok());
    eventually("the program to run", || {
        (service.processes().len() >= 2).then_some(())
    });
    assert_eq!(
        service.property("ActiveState"),
        "activating",
        "{}",
        service.story()
    );
    programs::let_go(machine);
    let output = starting.wait_with_output().expect("nsenter ends");
    assert!(
        output.status.success(),
        "{}{}",
        both(&output),
        service.story()
    );
    assert_eq!(service.property("ActiveState"), "active");
    assert_eq!(service.generation(), 1);
    http::get(early, "/version").expect("who came early has waited");
}

pub(crate) fn slower_than_the_start_timeout(machine: &Machine) {
    let service = Service::configure(machine, "ready_timeout = \"20s\"");
    service.set("TimeoutStartSec=2s");
    service.deploy(programs::demo_after(machine, "sleep 5"));
    service.systemctl("start");
    service.assert_undisturbed(&service.property("MainPID"), 1);
}

pub(crate) fn never_ready_fails_and_leaves_nothing(machine: &Machine) {
    let service = Service::configure(machine, "ready = \"notify\"\nready_timeout = \"1s\"");
    service.set("Restart=no");
    service.deploy(programs::never_ready(machine));
    let output = service.try_systemctl("start");
    assert!(
        !output.status.success(),
        "started with a program that is never ready\n{}",
        service.story()
    );
    assert_eq!(
        service.property("ActiveState"),
        "failed",
        "{}",
        service.story()
    );
    assert!(service.processes().is_empty(), "{:?}", service.processes());
}

pub(crate) fn wrong_configuration_is_not_retried(machine: &Machine) {
    let service = Service::configure(machine, "no_such_setting = true");
    let output = service.try_systemctl("start");
    assert!(!output.status.success(), "{}", service.story());
    service.await_property("ActiveState", "failed");
    assert_eq!(
        service.property("ExecMainStatus"),
        "2",
        "{}",
        service.story()
    );
    assert_eq!(service.property("NRestarts"), "0", "{}", service.story());
}
