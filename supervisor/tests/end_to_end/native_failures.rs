//! Either side of a handover of state misbehaves at every step of the protocol: who lives is
//! unharmed, the state is where it was, the reason says whose fault it is, and the next handover works.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::harness::Supervisor;
use crate::native_handovers::{happened, native, raise, reload_to, with};

/// What the new program does, and what `reload` must say of it.
const NEW: &[(&str, &str)] = &[
    ("boot=die", "killed by SIGKILL before it was ready"),
    ("boot=exit", "exited with status 3 before it was ready"),
    ("boot=hang", "not ready within 5s"),
    ("hello=die", "killed by SIGKILL"),
    ("hello=exit", "exited with status 3"),
    ("hello=hang", "the old program has taken its state back"),
    ("hello=garbage", "sent a message that makes no sense"),
    ("hello=deaf", "closed its socket"),
    ("hello=say:MESSAGE=HELLO\\nPROTOCOL=1", "HELLO twice"),
    ("hello=say:MESSAGE=DANCE", "there is no message DANCE"),
    (
        "receive=die",
        "killed by SIGKILL while it took the state over",
    ),
    (
        "receive=exit",
        "exited with status 3 while it took the state over",
    ),
    ("receive=hang", "the old program has taken its state back"),
    ("receive=garbage", "sent a message that makes no sense"),
    ("receive=deaf", "closed its socket"),
    (
        "receive=say:MESSAGE=REJECT\\nMIGRATION=%d\\nREASON=no room for it",
        "the new program refused the state: no room for it",
    ),
    (
        "receive=say:MESSAGE=COMMITTED\\nMIGRATION=%d\\nAT_USEC=1",
        "which it was not told to",
    ),
    (
        "receive=say:MESSAGE=FROZEN\\nMIGRATION=%d\\nAT_USEC=1\\nROUNDS=1\\nBYTES=1\\nSTALL_USEC=1",
        "is not its to say",
    ),
    (
        "receive=say:MESSAGE=SAVED\\nMIGRATION=%d\\nENTRIES=1\\nBYTES=1\\nROUNDS=1\\nPAUSE_USEC=1",
        "is not its to say",
    ),
    (
        "verify=die",
        "killed by SIGKILL while it took the state over",
    ),
    ("verify=hang", "the old program has taken its state back"),
    (
        "verify=say:MESSAGE=REJECT\\nMIGRATION=%d\\nREASON=schema 3 is not known",
        "refused the state: schema 3 is not known",
    ),
    (
        "verify=say:MESSAGE=COMMITTED\\nMIGRATION=%d\\nAT_USEC=1",
        "which it was not told to",
    ),
    (
        "ready=die",
        "killed by SIGKILL while it took the state over",
    ),
    (
        "ready=exit",
        "exited with status 3 while it took the state over",
    ),
    ("ready=hang", "the old program has taken its state back"),
    (
        "commit=die",
        "killed by SIGKILL while it took the state over",
    ),
    (
        "commit=exit",
        "exited with status 3 while it took the state over",
    ),
    ("commit=hang", "the old program has taken its state back"),
    ("commit=garbage+hang", "sent a message that makes no sense"),
    ("commit=deaf", "closed its socket"),
    (
        "commit=say:MESSAGE=REJECT\\nMIGRATION=%d\\nREASON=changed its mind+hang",
        "refused the state: changed its mind",
    ),
];

/// What the old program does, and what `reload` must say of it.
const OLD: &[(&str, &str)] = &[
    ("send=hang", "the copy was still under way"),
    (
        "send=garbage",
        "the old program sent a message that makes no sense",
    ),
    (
        "send=say:MESSAGE=FAILED\\nMIGRATION=%d\\nREASON=it does not converge",
        "the old program cannot copy its state: it does not converge",
    ),
    (
        "send=say:MESSAGE=FROZEN\\nMIGRATION=%d\\nAT_USEC=1\\nROUNDS=1\\nBYTES=1\\nSTALL_USEC=1",
        "FROZEN out of turn",
    ),
    (
        "send=say:MESSAGE=READY\\nMIGRATION=%d\\nENTRIES=1\\nBYTES=1",
        "is not its to say",
    ),
    (
        "send=say:MESSAGE=YIELDED\\nMIGRATION=%d\\nAT_USEC=1",
        "YIELDED out of turn",
    ),
    (
        "converged=hang",
        "the old program did not complete the copy",
    ),
    ("converged=garbage", "makes no sense"),
    ("freeze=garbage", "makes no sense"),
    (
        "freeze=say:MESSAGE=FAILED\\nMIGRATION=%d\\nREASON=it will not",
        "cannot copy its state: it will not",
    ),
    ("freeze=hang", "the old program did not complete the copy"),
];

const TIMES: [&str; 4] = ["--ready-timeout", "5s", "--freeze-timeout", "300ms"];

/// The number that is the state, after so many handovers that failed; the same process answers.
fn unharmed(supervisor: &Supervisor, pid: i32, value: &mut u64, case: &str) {
    *value += 1;
    assert_eq!(
        raise(supervisor),
        (*value, pid),
        "{case}\n{}",
        supervisor.log()
    );
}

fn fails_with(supervisor: &Supervisor, case: &str, outcome: (Option<i32>, String), reason: &str) {
    let (status, said) = outcome;
    assert_eq!(status, Some(1), "{case}: {said}\n{}", supervisor.log());
    assert!(
        said.contains(reason),
        "{case}: {said}\n{}",
        supervisor.log()
    );
    assert!(said.contains("serves on"), "{case}: {said}");
}

fn new_side(cases: &[(&str, &str)]) {
    let mut supervisor = native([]).args(TIMES).start();
    let (mut value, pid) = raise(&supervisor);
    for (case, reason) in cases {
        let outcome = reload_to(&supervisor, &["--do", &format!("new:{case}")]);
        fails_with(&supervisor, case, outcome, reason);
        unharmed(&supervisor, pid, &mut value, case);
    }
    supervisor.reload();
    supervisor.settle();
    assert_eq!(raise(&supervisor).0, value + 1);
    supervisor.stop();
}

fn old_side(cases: &[(&str, &str)]) {
    for (case, reason) in cases {
        let mut supervisor = native(["--do", &format!("old:{case}")]).args(TIMES).start();
        let (mut value, pid) = raise(&supervisor);
        fails_with(&supervisor, case, reload_to(&supervisor, &[]), reason);
        unharmed(&supervisor, pid, &mut value, case);
        let report = supervisor.reload();
        assert_eq!(report["strategy"], "handover", "{case}");
        supervisor.settle();
        assert_eq!(raise(&supervisor).0, value + 1, "{case}");
        supervisor.stop();
    }
}

#[test]
fn a_new_program_misbehaves_at_each_step_first_half() {
    new_side(&NEW[..NEW.len() / 2]);
}

#[test]
fn a_new_program_misbehaves_at_each_step_second_half() {
    new_side(&NEW[NEW.len() / 2..]);
}

#[test]
fn an_old_program_misbehaves_at_each_step_first_half() {
    old_side(&OLD[..OLD.len() / 2]);
}

#[test]
fn an_old_program_misbehaves_at_each_step_second_half() {
    old_side(&OLD[OLD.len() / 2..]);
}

#[test]
fn nonsense_before_the_hello_is_passed_over() {
    let supervisor = native([]).start();
    raise(&supervisor);
    let (status, said) = reload_to(&supervisor, &["--do", "new:boot=garbage"]);
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(raise(&supervisor).0, 2);
    assert!(
        supervisor.log().contains("was passed over"),
        "{}",
        supervisor.log()
    );
    supervisor.stop();
}

#[test]
fn a_program_of_another_protocol_is_refused() {
    let supervisor = native([]).start();
    let (_, pid) = raise(&supervisor);
    let (status, said) = reload_to(&supervisor, &["--protocol", "2"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("speaks version 2 of the handover protocol"),
        "{said}"
    );
    assert_eq!(raise(&supervisor), (2, pid));
    supervisor.stop();
}

#[test]
fn a_reader_of_one_byte_a_second_is_cut_by_the_time_it_has() {
    let setup = native(["--padding", "4194304"]).args(["--ready-timeout", "3s"]);
    let mut supervisor = setup.start();
    let (_, pid) = raise(&supervisor);
    let (status, said) = reload_to(&supervisor, &["--do", "new:receive=slow"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("was not taken over within 3s: the copy was still under way"),
        "{said}"
    );
    assert_eq!(raise(&supervisor), (2, pid));
    supervisor.settle();
    supervisor.reload();
    assert_eq!(raise(&supervisor).0, 3);
    supervisor.stop();
}

/// An old program that dies before its copy is whole: the state is lost with it, as in any crash.
#[test]
fn an_old_program_dies_before_its_state_was_copied() {
    for step in ["send", "converged", "freeze"] {
        let setup = native(["--do", &format!("old:{step}=die")]);
        let mut supervisor = setup.args(TIMES).start();
        let (_, pid) = raise(&supervisor);
        let (status, said) = reload_to(&supervisor, &["--release", "2"]);
        assert_eq!(status, Some(1), "{step}: {said}\n{}", supervisor.log());
        // The new one may have met the end of the stream before the death was seen.
        let told = [
            "the state is lost with it",
            "the stream ends without its end mark",
        ];
        assert!(
            told.iter().any(|told| said.contains(told)),
            "{step}: {said}"
        );
        supervisor.settle();
        let (value, now) = raise(&supervisor);
        assert_eq!(value, 1, "{step}");
        assert_ne!(now, pid);
        supervisor.stop();
    }
}

/// Once the copy is whole, the state outlives the program it came from.
#[test]
fn an_old_program_dies_after_its_state_was_copied() {
    for deed in ["frozen=die", "frozen=exit", "yield=die"] {
        let setup = native(["--do", &format!("old:{deed}")]);
        let mut supervisor = setup.args(TIMES).start();
        raise(&supervisor);
        let (status, said) = reload_to(&supervisor, &["--release", "2"]);
        assert_eq!(status, Some(0), "{deed}: {said}\n{}", supervisor.log());
        assert_eq!(raise(&supervisor).0, 2, "{deed}");
        supervisor.settle();
        supervisor.reload();
        assert_eq!(raise(&supervisor).0, 3, "{deed}");
        supervisor.stop();
    }
}

#[test]
fn an_old_program_that_does_not_look_at_the_lifeline_is_ended_in_time() {
    let setup = native(["--do", "old:frozen=hang"]).args(["--drain-timeout", "1s"]);
    let mut supervisor = setup.start();
    raise(&supervisor);
    assert_eq!(reload_to(&supervisor, &[]).0, Some(0));
    assert_eq!(raise(&supervisor).0, 2);
    supervisor.settle();
    assert_eq!(happened(&supervisor, "killed").len(), 1);
    supervisor.stop();
}

/// It owned the state, and so the state is gone with it; what serves again is the proven program.
#[test]
fn a_new_program_is_gone_in_the_instant_in_which_it_took_the_state_over() {
    for deed in [
        "committed=die",
        "committed=exit",
        "committed=hang",
        "committed=deaf",
    ] {
        let mut supervisor = native([]).args(TIMES).start();
        let (_, pid) = raise(&supervisor);
        let deed = format!("new:{deed}");
        let (status, said) = reload_to(&supervisor, &["--release", "2", "--do", &deed]);
        assert_eq!(status, Some(5), "{deed}: {said}\n{}", supervisor.log());
        supervisor.settle();
        let (value, now) = raise(&supervisor);
        assert_eq!(value, 1, "{deed}: {}", supervisor.log());
        assert_ne!(now, pid);
        supervisor.reload();
        assert_eq!(raise(&supervisor).0, 2, "{deed}");
        supervisor.stop();
    }
}

#[test]
fn an_old_program_that_closes_its_socket_serves_on_and_is_then_like_any_other() {
    let mut supervisor = native(["--do", "old:send=deaf"]).args(TIMES).start();
    let (_, pid) = raise(&supervisor);
    let (status, said) = reload_to(&supervisor, &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("the old program closed its socket"), "{said}");
    assert_eq!(raise(&supervisor), (2, pid));
    supervisor.reload();
    assert_eq!(happened(&supervisor, "not-taken-over").len(), 1);
    assert_eq!(raise(&supervisor).0, 1);
    supervisor.settle();
    supervisor.stop();
}

/// Every moment may be the one in which somebody ends a process.
#[test]
fn either_side_is_killed_at_any_moment() {
    let mut supervisor = native(["--padding", "262144"]).args(TIMES).start();
    for turn in 0..16_u64 {
        // Who answers may have been started, after a death in the last turn, so lately that it is
        // not known to serve yet.
        let before = raise(&supervisor).0;
        supervisor.settle();
        let generation = supervisor.serving().0;
        let reload = supervisor.begin(["reload"]);
        let copying = supervisor
            .events()
            .wait_for_generation("copying", generation);
        let text = copying["text"].as_str().unwrap();
        let new: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
        let victim = if turn % 2 == 0 { new } else { generation };
        let pid = pid_of(&supervisor, victim);
        std::thread::sleep(Duration::from_micros(turn / 2 * 300));
        if let Some(pid) = pid {
            let _gone = kill(pid, Signal::SIGKILL);
        }
        let (status, said) = supervisor.finish(reload);
        assert!(
            matches!(status, Some(0 | 1 | 5)),
            "{status:?}: {said}\n{}",
            supervisor.log()
        );
        supervisor.settle();
        let after = raise(&supervisor).0;
        // The state is whole, or it was lost with the process that owned it.
        assert!(
            after == before + 1 || after == 1,
            "{before}, {after}\n{}",
            supervisor.log()
        );
        if turn % 2 == 0 && status == Some(1) {
            assert_eq!(after, before + 1, "the old one lived\n{}", supervisor.log());
        }
    }
    supervisor.stop();
}

fn pid_of(supervisor: &Supervisor, generation: u64) -> Option<nix::unistd::Pid> {
    let service = supervisor.service();
    let mut all = service["generations"].as_array().unwrap().iter();
    let found = all.find(|one| one["generation"] == generation)?;
    let pid = i32::try_from(found["pid"].as_i64()?).unwrap();
    Some(nix::unistd::Pid::from_raw(pid))
}

#[test]
fn a_flood_of_messages_holds_up_nobody() {
    let flood = "MESSAGE=CONVERGED\\nMIGRATION=%d\\nROUNDS=1\\nBYTES=1";
    let deed = format!("old:send=flood:{flood}");
    let mut supervisor = native(["--do", &deed]).args(TIMES).start();
    raise(&supervisor);
    let report = supervisor.reload();
    assert_eq!(report["strategy"], "handover");
    assert_eq!(happened(&supervisor, "converged").len(), 1);
    assert_eq!(raise(&supervisor).0, 2);
    supervisor.settle();
    supervisor.stop();
}

#[test]
fn an_instance_that_cannot_take_over_brings_the_state_of_the_others_back() {
    let mut supervisor = native([]).args(["--instances", "2"]).start();
    let mut raised = 0;
    // Each request raises the number of one instance, so they add up to all requests.
    let mut raise_both = |supervisor: &Supervisor| {
        let mut values = std::collections::BTreeMap::new();
        for _ in 0..500 {
            let (value, pid) = raise(supervisor);
            values.insert(pid, value);
            raised += 1;
            if values.len() == 2 && raised >= 10 {
                break;
            }
        }
        assert_eq!(values.len(), 2, "one of the two answers nobody");
        assert_eq!(values.values().sum::<u64>(), raised);
    };
    raise_both(&supervisor);
    let deed = ["--instance", "1", "--do", "new:verify=exit"];
    let (status, said) = reload_to(&supervisor, &deed);
    assert_eq!(status, Some(5), "{said}");
    supervisor.settle();
    assert_eq!(
        happened(&supervisor, "taken-over").len(),
        2,
        "{}",
        supervisor.log()
    );
    raise_both(&supervisor);
    supervisor.reload();
    raise_both(&supervisor);
    supervisor.stop();
}

/// It may have changed its state between the two, so the copy is not the state any more.
#[test]
fn an_old_program_that_took_its_state_back_and_died_is_not_survived_by_its_copy() {
    let deed = "old:frozen=say:MESSAGE=THAWED\\nMIGRATION=%d\\nAT_USEC=1\\nREASON=too long+die";
    let mut supervisor = native(["--do", deed]).args(TIMES).start();
    raise(&supervisor);
    let command = with(&supervisor, &["--verify-until", "{dir}/go"]);
    let words = ["reload", "--"].into_iter();
    let reload = supervisor.begin(words.chain(command.iter().map(String::as_str)));
    supervisor.events().wait_for_generation("died", 1);
    supervisor.write("go", "");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(1), "{said}\n{}", supervisor.log());
    assert!(said.contains("too long"), "{said}");
    supervisor.settle();
    assert_eq!(raise(&supervisor).0, 1);
    supervisor.stop();
}

/// It was stopped while both deadlines passed: the handover was given up, and only then it says that the
/// new one owned the state. It can serve nobody any more.
#[test]
fn an_old_program_that_yields_after_the_handover_was_given_up_is_replaced() {
    // It is to be stopped before its own deadline.
    let times = ["--ready-timeout", "5s", "--freeze-timeout", "1s"];
    let mut supervisor = native([]).args(times).start();
    let (_, pid) = raise(&supervisor);
    let options = ["--commit-until", "{dir}/go", "--do", "new:committed=hang"];
    let command = with(&supervisor, &options);
    let words = ["reload", "--"].into_iter();
    let reload = supervisor.begin(words.chain(command.iter().map(String::as_str)));
    supervisor.events().wait_for_generation("frozen", 1);
    let old = nix::unistd::Pid::from_raw(pid);
    kill(old, Signal::SIGSTOP).unwrap();
    supervisor.write("go", "");
    let (status, said) = supervisor.finish(reload);
    assert_eq!(status, Some(1), "{said}\n{}", supervisor.log());
    kill(old, Signal::SIGCONT).unwrap();
    supervisor.events().wait_for_generation("died", 1);
    supervisor.settle();
    let (value, now) = raise(&supervisor);
    assert_eq!(value, 1, "{}", supervisor.log());
    assert_ne!(now, pid);
    supervisor.stop();
}
