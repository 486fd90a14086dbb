//! `systemctl restart`, `systemctl stop` and the end of the supervisor by accident.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::machine::Machine;
use crate::service::{Service, UNIT};
use crate::wait::eventually;

pub(crate) fn a_restart_costs_no_request_and_no_state(machine: &Machine) {
    let service = Service::start(machine, "");
    service.systemctl("reload");
    let program = serving(service);
    for generation in 2..4 {
        let main_pid = service.property("MainPID");
        while_asking(service, || service.systemctl("restart"));
        assert_ne!(service.property("MainPID"), main_pid);
        assert_eq!(service.property("ActiveState"), "active");
        assert_eq!(service.property("NRestarts"), "0");
        assert_eq!(serving(service), program, "{}", service.story());
        assert_eq!(service.supervisors().len(), 1, "{}", service.story());
        assert_eq!(service.status()["supervisor_generation"], generation);
    }
    // The same by hand: systemd starts the next one.
    let main_pid = service.property("MainPID");
    while_asking(service, || {
        machine.ok(&["heirloom", "stop", "--name", "shop", "--leave-running"]);
        another_supervisor(service, &main_pid);
    });
    assert_eq!(serving(service), program, "{}", service.story());
    service.systemctl("reload");
    assert_eq!(service.generation(), 3);
    service.systemctl("stop");
    assert_eq!(service.processes(), Vec::<String>::new());
}

/// A configuration that the next supervisor could not start with: the restart is a stop then, and says so.
pub(crate) fn a_restart_that_could_not_be_followed_is_a_stop(machine: &Machine) {
    let service = Service::start(machine, "");
    service.configure_text("[service.shop\n");
    assert!(!service.try_systemctl("restart").status.success());
    assert_eq!(service.processes(), Vec::<String>::new());
    assert!(
        service.story().contains("no other could start"),
        "{}",
        service.story()
    );
    assert!(service.story().contains("nothing runs any more"));
}

/// Waits until systemd has started another supervisor after this one.
fn another_supervisor(service: Service<'_>, main_pid: &str) {
    eventually("another supervisor", || {
        let next = service.property("MainPID");
        (next != "0" && next != main_pid).then_some(())
    });
    service.await_property("ActiveState", "active");
}

/// Asks for as long as something is done, and more than once; every request is answered.
fn while_asking(service: Service<'_>, deed: impl FnOnce()) {
    let asking = AtomicBool::new(true);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut answers = 0;
            while asking.load(Ordering::Relaxed) {
                service.get("/version").map_err(|why| (answers, why))?;
                answers += 1;
            }
            Ok::<u64, (u64, String)>(answers)
        });
        deed();
        asking.store(false, Ordering::Relaxed);
        let answers = client.join().expect("no panic");
        let answers = answers.unwrap_or_else(|why| panic!("{why:?}\n{}", service.story()));
        assert!(answers > 10, "{answers} answers only");
    });
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

pub(crate) fn a_supervisor_that_is_killed_costs_no_request(machine: &Machine) {
    let service = Service::start(machine, "");
    service.systemctl("reload");
    let (main_pid, program) = (service.property("MainPID"), serving(service));
    while_asking(service, || {
        kill_main(machine);
        another_supervisor(service, &main_pid);
    });
    assert_eq!(service.property("NRestarts"), "1", "{}", service.story());
    assert_eq!(serving(service), program, "{}", service.story());
    assert_eq!(service.supervisors().len(), 1, "{}", service.story());
    assert_eq!(service.status()["supervisor_generation"], 2);
    // It is a supervisor like any other: it hands over, may die again, and ends everything.
    service.systemctl("reload");
    assert_eq!(service.generation(), 3);
    let program = serving(service);
    let main_pid = service.property("MainPID");
    kill_main(machine);
    another_supervisor(service, &main_pid);
    assert_eq!(serving(service), program, "{}", service.story());
    service.systemctl("stop");
    assert_eq!(
        service.processes(),
        Vec::<String>::new(),
        "{}",
        service.story()
    );
    assert!(service.get("/version").is_err(), "the port is free");
}

pub(crate) fn a_start_after_a_kill_without_a_restart_ends_what_was_left(machine: &Machine) {
    let service = Service::configure(machine, "");
    // As after a stop that took too long: systemd keeps neither descriptors nor the runtime directory.
    service.set("Restart=no");
    service.systemctl("start");
    let (_, program) = serving(service);
    let program = machine.path(&format!("/proc/{program}"));
    kill_main(machine);
    service.await_property("ActiveState", "failed");
    assert!(program.exists(), "{}", service.story());
    assert!(!machine.path("/run/heirloom/shop").exists());
    service.systemctl("start");
    assert!(!program.exists(), "{}", service.story());
    assert_eq!(serving(service).0, 1, "{}", service.story());
    service.get("/version").expect("serves again");
    service.systemctl("stop");
    assert_eq!(service.processes(), Vec::<String>::new());
}

pub(crate) fn an_upgrade_keeps_the_main_process(machine: &Machine) {
    let service = Service::start(machine, "");
    let main_pid = service.property("MainPID");
    let program = serving(service);
    machine.ok(&["heirloom", "upgrade", "--name", "shop"]);
    service.assert_undisturbed(&main_pid, 1);
    assert_eq!(service.status()["supervisor_generation"], 2);
    assert_eq!(serving(service), program);
    service.systemctl("reload");
    service.assert_undisturbed(&main_pid, 2);
    // What systemd keeps is still in order: the next one finds it.
    kill_main(machine);
    eventually("another supervisor", || {
        let next = service.property("MainPID");
        (next != "0" && next != main_pid).then_some(())
    });
    service.await_property("ActiveState", "active");
    assert_eq!(service.generation(), 2, "{}", service.story());
    service.systemctl("stop");
    assert_eq!(service.processes(), Vec::<String>::new());
}

/// Kills the supervisor and nothing else.
fn kill_main(machine: &Machine) {
    machine.ok(&[
        "systemctl",
        "kill",
        "--signal=KILL",
        "--kill-whom=main",
        UNIT,
    ]);
}

/// The generation that serves, and its process.
fn serving(service: Service<'_>) -> (u64, i64) {
    eventually("only one generation is left, and serves", || {
        let status = service.status();
        let generations = status["services"][0]["generations"].as_array()?.clone();
        let [only] = &generations[..] else {
            return None;
        };
        (only["phase"] == "serving")
            .then(|| Some((only["generation"].as_u64()?, only["pid"].as_i64()?)))?
    })
}
