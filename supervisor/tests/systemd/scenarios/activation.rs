//! Socket activation: systemd's sockets are taken over by their names and live through everything.

use serde_json::json;

use crate::machine::Machine;
use crate::service::{CURRENT, Service};

const SOCKET: &str = "heirloom@shop.socket";
const CHAT: &str = "\
[Socket]
ListenStream=127.0.0.1:8081
FileDescriptorName=chat
Service=heirloom@%i.service
";

pub(crate) fn first_connection_starts_the_service(machine: &Machine) {
    // The configuration that binds by itself where there is no socket unit.
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
        "taken over, not bound: {listeners}"
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

pub(crate) fn two_sockets_are_told_apart_by_name(machine: &Machine) {
    // In the order that systemd does not pass them in, whichever that is: once each way round.
    for listen in ["\"fd:http\", \"fd:chat\"", "\"fd:chat\", \"fd:http\""] {
        let service = configure(machine, listen);
        machine.write("/etc/systemd/system/heirloom-chat@.socket", CHAT);
        service.set("Sockets=heirloom@shop.socket heirloom-chat@shop.socket");
        machine.ok(&["systemctl", "start", SOCKET, "heirloom-chat@shop.socket"]);
        // The demo answers HTTP on the listener of that name alone, so a mix-up would be silence.
        assert_eq!(service.generation(), 1, "{}", service.story());
        service.systemctl("reload");
        assert_eq!(service.generation(), 2, "{}", service.story());
        let listeners = service.status()["services"][0]["listeners"].clone();
        let address = |name: &str| {
            let mut all = listeners.as_array().expect("a list").iter();
            all.find(|listener| listener["name"] == name)
                .map(|found| found["address"].clone())
        };
        assert_eq!(
            address("http"),
            Some(json!("tcp:127.0.0.1:8080")),
            "{listeners}"
        );
        assert_eq!(
            address("chat"),
            Some(json!("tcp:127.0.0.1:8081")),
            "{listeners}"
        );
        machine.ok(&["systemctl", "stop", SOCKET, "heirloom-chat@shop.socket"]);
        service.systemctl("stop");
    }
}

fn configure<'a>(machine: &'a Machine, listen: &str) -> Service<'a> {
    let service = Service::configure(machine, "");
    service.configure_text(&format!(
        "name = \"shop\"\n[service.shop]\ncommand = [\"{CURRENT}\"]\nlisten = [{listen}]\n"
    ));
    service
}
