//! The programs a deployment could put in the demo's place: those that fail, and a plain one made of a shell script.

use crate::machine::{DEMO, Machine};

/// Ends at once, with a last word on stderr.
pub(crate) fn exits(machine: &Machine) -> &'static str {
    machine.write_program(
        "/srv/shop/exits",
        "#!/bin/sh\necho 'the configuration is missing' >&2\nexit 3\n",
    );
    "/srv/shop/exits"
}

/// Has no execute permission.
pub(crate) fn not_executable(machine: &Machine) -> &'static str {
    machine.write("/srv/shop/not-executable", "#!/bin/sh\nexit 0\n");
    "/srv/shop/not-executable"
}

/// Runs, and never serves. It asks for `ready = "notify"`: nothing else could tell.
pub(crate) fn never_ready(machine: &Machine) -> &'static str {
    machine.write_program("/srv/shop/never-ready", "#!/bin/sh\nexec sleep 600\n");
    "/srv/shop/never-ready"
}

/// Runs `before` and then becomes the demo service.
pub(crate) fn demo_after(machine: &Machine, before: &str) -> &'static str {
    machine.write_program(
        "/srv/shop/demo-after",
        &format!("#!/bin/bash\n{before}\nexec {DEMO} \"$@\"\n"),
    );
    "/srv/shop/demo-after"
}

/// Becomes the demo service once [`let_go`] is called.
pub(crate) fn demo_held_back(machine: &Machine) -> &'static str {
    make_gate(machine);
    demo_after(machine, &format!("read -r _ <{GATE}"))
}

/// Becomes the demo service at once; a child of it does `meanwhile` when [`let_go`] is called.
pub(crate) fn demo_with(machine: &Machine, meanwhile: &str) -> &'static str {
    make_gate(machine);
    demo_after(machine, &format!("{{ read -r _ <{GATE}\n{meanwhile}\n}} &"))
}

/// Lets one program past the gate, once it is there.
pub(crate) fn let_go(machine: &Machine) {
    machine.ok(&["sh", "-c", &format!("echo >{GATE}")]);
}

/// A fifo: opening one end waits for the other.
const GATE: &str = "/srv/shop/gate";

fn make_gate(machine: &Machine) {
    machine.ok(&["mkfifo", "--mode=0644", GATE]);
}
