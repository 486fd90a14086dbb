//! Handovers that fail, at each step: every connection is still there, served by the generation that had
//! it, and none was closed.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{
    frames::{self, CONTINUATION, TEXT, frame},
    talking,
    wire::{Wire, get, post},
};
use crate::{harness::Supervisor, native_handovers::NATIVE};

/// What the new program does. None of them comes to own anything.
const CASES: [&str; 12] = [
    "boot=exit",
    "hello=die",
    "hello=hang",
    "receive=die",
    "receive=hang",
    "receive=garbage",
    "receive=say:MESSAGE=REJECT\\nMIGRATION=%d\\nREASON=it knows better",
    "verify=die",
    "verify=hang",
    "verify=exit",
    // It says that it has all, and does not do as it is told.
    "verify=say:MESSAGE=READY\\nMIGRATION=%d\\nENTRIES=1\\nBYTES=1+hang",
    "verify=say:MESSAGE=COMMITTED\\nMIGRATION=%d\\nAT_USEC=1",
];

/// What is missing of a request's body.
const REST: &str = "nn\"}";

/// Connections in every state.
struct All {
    idle: Vec<Wire>,
    unused: Vec<Wire>,
    half: Wire,
    slow: Wire,
    upload: Wire,
    framed: Wire,
    lined: Wire,
    counted: u64,
    said: u64,
}

impl All {
    fn connect(supervisor: &Supervisor) -> Self {
        let http = supervisor.address("http");
        let mut all = Self {
            idle: (0..10).map(|_| Wire::connect(http)).collect(),
            unused: (0..CASES.len()).map(|_| Wire::connect(http)).collect(),
            half: Wire::connect(http),
            slow: Wire::connect(http),
            upload: Wire::connect(http),
            framed: frames::connect(http),
            lined: Wire::connect(supervisor.address("chat")),
            counted: 0,
            said: 0,
        };
        for wire in &mut all.idle {
            assert_eq!(wire.generation(), 1);
        }
        all.lined.send("NAME ann\n");
        assert_eq!(all.lined.line(), "OK ann");
        all
    }

    /// Begins something on each of them.
    fn begin(&mut self) {
        self.half.send("GET /hello HT");
        self.slow.send(get("/slow?ms=400&key=s"));
        let whole = post("/sessions", r#"{"user":"ann"}"#);
        self.upload.send(whole.strip_suffix(REST).unwrap());
        self.framed.send(frame(TEXT, false, "half "));
        self.lined.send("SAY ha");
    }

    /// Finishes it; all of it is answered by the first generation.
    fn finish(&mut self, case: &str) {
        self.counted += 1;
        self.said += 1;
        for wire in &mut self.idle {
            assert_eq!(wire.generation(), 1, "{case}");
        }
        let mut unused = self.unused.pop().unwrap();
        assert_eq!(unused.generation(), 1, "{case}");
        self.half.send("TP/1.1\r\nhost: test\r\n\r\n");
        assert!(self.half.answer().contains("generation=1,"), "{case}");
        let slow = format!("value={} generation=1", self.counted);
        assert_eq!(self.slow.answer(), slow, "{case}");
        self.upload.send(REST);
        let answer = self.upload.try_answer().unwrap();
        assert_eq!(answer.status, 201, "{case}: {answer:?}");
        assert!(!answer.says_close(), "{case}: {answer:?}");
        self.framed.send(frame(CONTINUATION, true, "whole"));
        let said = format!("{} gen=1 half whole", self.said);
        assert_eq!(frames::text(&mut self.framed), said, "{case}");
        self.lined.send("lf\n");
        let said = format!("ann #{} gen=1 half", self.said);
        assert_eq!(self.lined.line(), said, "{case}");
    }
}

#[test]
fn a_handover_that_fails_at_any_step_closes_no_connection_first_half() {
    each_fails(&CASES[..CASES.len() / 2]);
}

#[test]
fn a_handover_that_fails_at_any_step_closes_no_connection_second_half() {
    each_fails(&CASES[CASES.len() / 2..]);
}

fn each_fails(cases: &[&str]) {
    let setup = talking().args(["--ready-timeout", "1500ms", "--freeze-timeout", "300ms"]);
    let program = setup.script("native", NATIVE);
    let program = program.to_str().unwrap().to_owned();
    let mut supervisor = setup.start();
    let mut all = All::connect(&supervisor);
    for case in cases {
        all.begin();
        let deed = format!("new:{case}");
        supervisor.expect(1, ["reload", "--", &program, "--do", &deed]);
        all.finish(case);
    }
    // And then one succeeds, with all of them.
    let said = supervisor.heirloom(["reload", "--", &super::demo(1)]);
    assert!(said.status.success(), "{said:?}\n{}", supervisor.log());
    let generation = supervisor.serving().0;
    for wire in &mut all.idle {
        assert_eq!(wire.generation(), generation);
    }
    all.lined.send("SAY bye\n");
    let said = format!("ann #{} gen={generation} bye", all.said + 1);
    assert_eq!(all.lined.line(), said);
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn a_new_generation_that_dies_while_connections_move_leaves_the_others_to_the_one_in_reserve() {
    let mut supervisor = talking().start();
    let address = supervisor.address("http");
    let mut busy = Wire::connect(address);
    busy.send(get("/slow?ms=1500&key=s"));
    let mut idle = Wire::connect(address);
    assert_eq!(idle.generation(), 1);
    supervisor.reload();
    assert_eq!(idle.generation(), 2);
    // What it served is gone with it, and not what it owned.
    kill(Pid::from_raw(supervisor.serving().1), Signal::SIGKILL).unwrap();
    supervisor.events().wait_for_generation("returned", 1);
    assert!(idle.is_closed());
    // The one in reserve still has its request, and owns the state again when that changes it.
    assert_eq!(busy.answer(), "value=1 generation=1");
    assert_eq!(busy.generation(), 1);
    assert_eq!(Wire::connect(address).generation(), 1);
    drop(busy);
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn what_a_dead_generation_had_no_room_for_goes_to_the_one_after_it() {
    let mut supervisor = talking().start();
    let mut idle: Vec<Wire> = (0..60)
        .map(|_| Wire::connect(supervisor.address("http")))
        .collect();
    for wire in &mut idle {
        assert_eq!(wire.generation(), 1);
    }
    let mut lined: Vec<Wire> = (0..60)
        .map(|_| Wire::connect(supervisor.address("chat")))
        .collect();
    for wire in &mut lined {
        wire.send("NAME ann\n");
        assert_eq!(wire.line(), "OK ann");
    }
    let cramped = ["reload", "--", "prlimit", "--nofile=50:50", &super::demo(1)];
    supervisor.expect(0, cramped);
    // They are not sent away as long as the state may come back.
    let answer = |wire: &mut Wire| {
        wire.send(get("/hello"));
        let answer = wire.try_answer().unwrap();
        assert!(!answer.says_close(), "{answer:?}");
        super::number(&answer.body, "generation")
    };
    idle.retain_mut(|wire| answer(wire) == 1);
    kill(Pid::from_raw(supervisor.serving().1), Signal::SIGKILL).unwrap();
    supervisor.events().wait_for_generation("returned", 1);
    lined.retain_mut(|wire| !wire.is_closed());
    assert!(
        idle.len() > 10 && lined.len() > 10,
        "{} and {}",
        idle.len(),
        lined.len()
    );

    let report = supervisor.reload();
    for wire in &mut idle {
        assert_eq!(answer(wire), 3);
    }
    for wire in &mut lined {
        wire.send("SAY hello\n");
        assert!(wire.line().contains("gen=3"));
    }
    let moved = report["connections"]["moved"]["http/1"].as_u64();
    assert_eq!(moved, Some(idle.len() as u64), "{report}");
    drop((idle, lined));
    supervisor.settle();
    supervisor.stop();
}
