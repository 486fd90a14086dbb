//! Socket activation: systemd's socket is taken over by its name and lives through everything.

use crate::machine::Machine;
use crate::service::Service;

const SOCKET: &str = "heirloom@shop.socket";

pub(crate) fn first_connection_starts_the_service(machine: &Machine) {
    let service = Service::configure(machine, "");
    machine.ok(&["systemctl", "start", SOCKET]);
    assert_eq!(service.property("ActiveState"), "inactive");
    // The connection waits in the queue until the first generation serves: nobody is refused.
    assert_eq!(service.generation(), 1, "{}", service.story());
    service.await_property("ActiveState", "active");
    let main_pid = service.property("MainPID");
    let listeners = service.status()["services"][0]["listeners"].clone();
    assert_eq!(
        listeners.as_array().map(Vec::len),
        Some(1),
        "taken over by name, not bound again: {listeners}"
    );
    assert_eq!(listeners[0]["name"], "http", "{listeners}");
    for generation in 2..=4 {
        service.systemctl("reload");
        service.assert_undisturbed(&main_pid, generation);
    }
    // systemd still holds the socket: a stop and the next connection are a start.
    service.systemctl("stop");
    service
        .get("/version")
        .unwrap_or_else(|reason| panic!("{reason}\n{}", service.story()));
    service.await_property("ActiveState", "active");
    assert_ne!(service.property("MainPID"), main_pid);
}
