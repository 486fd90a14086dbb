//! The drop-in `notify-reload.conf`: systemd signals and waits for messages. From systemd 253.

use crate::machine::{DEMO, Machine};
use crate::programs;
use crate::service::Service;

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
