//! `systemctl reload` and SIGHUP: a handover that succeeded, and one that did not.

use crate::machine::{DEMO, Machine, both};
use crate::programs;
use crate::service::{Service, UNIT};
use crate::wait::eventually;

pub(crate) fn ten_times(machine: &Machine) {
    let service = Service::start(machine, "");
    let main_pid = service.property("MainPID");
    for count in 1..=10 {
        service.systemctl("reload");
        service.assert_undisturbed(&main_pid, count + 1);
    }
}

pub(crate) fn by_signal_to_the_main_process(machine: &Machine) {
    let service = Service::start(machine, "");
    let main_pid = service.property("MainPID");
    machine.ok(&[
        "systemctl",
        "kill",
        "--signal=HUP",
        "--kill-whom=main",
        UNIT,
    ]);
    eventually("generation 2", || (service.generation() == 2).then_some(()));
    service.await_property("ActiveState", "active");
    service.assert_undisturbed(&main_pid, 2);
}

/// Not what anybody should do, and what everybody does once: the programs get the signal too, and may die of it.
pub(crate) fn by_signal_to_every_process(machine: &Machine) {
    let service = Service::start(machine, "");
    let main_pid = service.property("MainPID");
    machine.ok(&["systemctl", "kill", "--signal=HUP", UNIT]);
    eventually("another generation", || {
        service
            .get("/version")
            .ok()
            .filter(|answer| !answer.contains("\"generation\":1,"))
    });
    service.await_property("ActiveState", "active");
    assert_eq!(service.property("MainPID"), main_pid, "{}", service.story());
    assert_eq!(service.property("NRestarts"), "0", "{}", service.story());
    assert_eq!(service.supervisors(), [main_pid], "{}", service.story());
}

pub(crate) fn shown_as_reloading_and_in_the_status_text(machine: &Machine) {
    let service = Service::start(machine, "");
    let main_pid = service.property("MainPID");
    let before = service.property("StatusText");
    assert!(
        before.contains("generation 1"),
        "STATUS= names the generation: {before:?}"
    );
    service.deploy(programs::demo_held_back(machine));
    // By signal: with ExecReload= the unit would be shown as reloading without a word from the supervisor.
    machine.ok(&[
        "systemctl",
        "kill",
        "--signal=HUP",
        "--kill-whom=main",
        UNIT,
    ]);
    service.await_property("ActiveState", "reloading");
    assert_eq!(
        service.generation(),
        1,
        "the old generation serves meanwhile"
    );
    programs::let_go(machine);
    service.await_property("ActiveState", "active");
    service.assert_undisturbed(&main_pid, 2);
    let after = service.property("StatusText");
    assert!(
        after.contains("generation 2"),
        "STATUS= names the generation: {after:?}"
    );
    let shown = machine.ok(&["systemctl", "status", "--no-pager", "--lines=0", UNIT]);
    assert!(shown.contains(&after), "{shown}");
}

pub(crate) fn reported_as_failed_when_the_program_exits(machine: &Machine) {
    let service = Service::start(machine, "");
    let output = failing_reload(machine, service, programs::exits(machine));
    let told = service.journal().iter().any(|entry| {
        entry["MESSAGE"]
            .as_str()
            .is_some_and(|line| line.contains("the configuration is missing"))
    });
    assert!(
        told,
        "the journal has the program's last words\n{output}{}",
        service.story()
    );
}

pub(crate) fn reported_as_failed_when_the_program_cannot_run(machine: &Machine) {
    let service = Service::start(machine, "");
    failing_reload(machine, service, programs::not_executable(machine));
    service.deploy(DEMO);
    failing_reload(machine, service, "/srv/shop/no-such-program");
}

pub(crate) fn reported_as_failed_when_the_program_is_never_ready(machine: &Machine) {
    let service = Service::start(machine, "ready = \"notify\"\nready_timeout = \"2s\"");
    failing_reload(machine, service, programs::never_ready(machine));
}

pub(crate) fn refused_when_the_configuration_is_wrong(machine: &Machine) {
    let service = Service::start(machine, "");
    let main_pid = service.property("MainPID");
    Service::configure(machine, "no_such_setting = true");
    let output = service.try_systemctl("reload");
    assert!(
        !output.status.success(),
        "systemctl reload said success\n{}",
        service.story()
    );
    service.assert_undisturbed(&main_pid, 1);
    let told = service.journal().iter().any(|entry| {
        entry["MESSAGE"]
            .as_str()
            .is_some_and(|line| line.contains("no_such_setting"))
    });
    assert!(told, "the journal says what is wrong\n{}", service.story());
    Service::configure(machine, "");
    service.systemctl("reload");
    // Nothing was attempted, so no number was used up.
    service.assert_undisturbed(&main_pid, 2);
}

/// Deploys a bad program: the reload fails, nothing else changes, and the next deployment works. What `systemctl` printed.
fn failing_reload(machine: &Machine, service: Service<'_>, program: &str) -> String {
    let main_pid = service.property("MainPID");
    let generation = service.generation();
    service.deploy(program);
    let output = machine.run(&["systemctl", "reload", UNIT]);
    assert!(
        !output.status.success(),
        "systemctl reload said success\n{}",
        service.story()
    );
    service.assert_undisturbed(&main_pid, generation);
    service.deploy(DEMO);
    service.systemctl("reload");
    // A failed attempt has used up a number; one refused before it began has not.
    let next = eventually("the next generation", || {
        Some(service.generation()).filter(|next| *next > generation)
    });
    service.assert_undisturbed(&main_pid, next);
    both(&output)
}
