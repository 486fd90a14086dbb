//! The drop-in `notify-reload.conf`: systemd signals and waits for messages. From systemd 253.

use crate::machine::{DEMO, Machine, both};
use crate::programs;
use crate::service::{Service, UNIT};
use crate::wait::eventually;

pub(crate) fn waits_for_the_new_generation(machine: &Machine) {
    let service = Service::configure(machine, "");
    service.drop_in("notify-reload.conf");
    service.systemctl("start");
    let main_pid = service.property("MainPID");
    service.deploy(programs::demo_after(machine, "sleep 1"));
    for generation in 2..=4 {
        // Exactly one handover, and it is over when the command returns.
        service.systemctl("reload");
        service.assert_undisturbed(&main_pid, generation);
    }
}

pub(crate) fn says_success_when_the_handover_failed(machine: &Machine) {
    let service = Service::configure(machine, "");
    service.drop_in("notify-reload.conf");
    service.systemctl("start");
    let main_pid = service.property("MainPID");
    service.deploy(programs::exits(machine));
    service.systemctl("reload");
    service.assert_undisturbed(&main_pid, 1);
    let outcome = service.status()["services"][0]["last_handover"]["outcome"].clone();
    assert_eq!(outcome, "aborted", "{}", service.story());
    assert!(
        service.property("StatusText").contains("failed"),
        "STATUS= tells: {:?}",
        service.property("StatusText")
    );
    service.deploy(DEMO);
    service.systemctl("reload");
    service.assert_undisturbed(&main_pid, 3);
}

pub(crate) fn returns_when_the_configuration_is_wrong(machine: &Machine) {
    let service = Service::configure(machine, "");
    service.drop_in("notify-reload.conf");
    service.systemctl("start");
    let main_pid = service.property("MainPID");
    Service::configure(machine, "no_such_setting = true");
    // Without a word from the supervisor systemd would wait for its timeout, and fail.
    service.systemctl("reload");
    service.assert_undisturbed(&main_pid, 1);
    assert!(
        service.property("StatusText").contains("reload failed"),
        "{}",
        service.story()
    );
}

pub(crate) fn returns_when_a_handover_is_running_already(machine: &Machine) {
    let service = Service::configure(machine, "");
    service.drop_in("notify-reload.conf");
    service.systemctl("start");
    let main_pid = service.property("MainPID");
    service.deploy(programs::demo_held_back(machine));
    // Found without a name, as the only one.
    let first = machine.spawn(&["heirloom", "reload"]);
    service.await_property("ActiveState", "reloading");
    // systemd's own reload is another one, and becomes one more handover.
    let second = machine.spawn(&["systemctl", "reload", UNIT]);
    programs::let_go(machine);
    service.deploy(DEMO);
    let first = first.wait_with_output().expect("nsenter ends");
    assert!(
        first.status.success(),
        "{}{}",
        both(&first),
        service.story()
    );
    let second = second.wait_with_output().expect("nsenter ends");
    assert!(
        second.status.success(),
        "{}{}",
        both(&second),
        service.story()
    );
    service.await_property("ActiveState", "active");
    let generation = eventually("the last handover", || {
        let generation = service.generation();
        (generation >= 2).then_some(generation)
    });
    service.assert_undisturbed(&main_pid, generation);
}
