//! The unit files of `systemd/` with the real daemon and the demo service, under a real systemd as process 1.
//!
//! Every scenario runs once on systemd 252 and once on 257, each in a root that it boots for itself (half a second) and that is
//! gone when it ends. What the machine must have, and the command that installs it, is in [`version`]; nothing is ever skipped.
//!
//! * [`version`], [`keeper`], [`machine`]: the rig: which root, booting it, running commands and opening files in it
//! * [`service`], [`programs`], [`http`]: one instance of the unit, what it supervises, and its client
//! * `scenarios`: what is promised, by subject

mod http;
mod keeper;
mod machine;
mod programs;
mod scenarios;
mod service;
mod version;
mod wait;

/// Makes a test for each systemd version of each scenario: `on_252::reload::ten_times`.
macro_rules! scenarios {
    ($($subject:ident: $($(#[$attribute:meta])* $name:ident),+ $(,)?;)+) => {
        mod on_252 { scenarios!(@version V252 $($subject: $($(#[$attribute])* $name),+;)+); }
        mod on_257 { scenarios!(@version V257 $($subject: $($(#[$attribute])* $name),+;)+); }
    };
    (@version $version:ident $($subject:ident: $($(#[$attribute:meta])* $name:ident),+;)+) => {
        $(mod $subject {
            use crate::{machine::Machine, scenarios::$subject as scenario, version::Version};
            $(#[test] $(#[$attribute])*
            fn $name() {
                scenario::$name(&Machine::boot(Version::$version));
            })+
        })+
    };
}

scenarios! {
    start:
        active_only_when_the_service_is_ready,
        slower_than_the_start_timeout,
        never_ready_fails_and_leaves_nothing,
        wrong_configuration_is_not_retried;
    reload:
        ten_times,
        by_signal_to_the_main_process,
        by_signal_to_every_process,
        shown_as_reloading_and_in_the_status_text,
        reported_as_failed_when_the_program_exits,
        reported_as_failed_when_the_program_cannot_run,
        reported_as_failed_when_the_program_is_never_ready,
        refused_when_the_configuration_is_wrong;
    groups:
        each_generation_is_in_one_of_its_own_and_is_ended_with_it;
    stop:
        a_restart_costs_no_request_and_no_state,
        a_restart_that_could_not_be_followed_is_a_stop,
        stop_leaves_nothing,
        a_supervisor_that_is_killed_costs_no_request,
        a_start_after_a_kill_without_a_restart_ends_what_was_left,
        an_upgrade_keeps_the_main_process;
    activation:
        first_connection_starts_the_service,
        two_sockets_are_told_apart_by_name;
    messages:
        a_program_cannot_speak_for_the_unit,
        a_dying_program_does_not_stop_the_unit,
        the_watchdog_is_answered_if_it_is_asked_for,
        a_journal_that_stalls_stops_no_handover,
        log_lines_carry_service_and_generation;
    units:
        verified_and_hardened,
        drop_ins_are_valid_and_all_are_tried,
        drop_ins_open_what_they_say,
        privileged_port_is_bound_with_its_drop_in_only,
        user_is_switched_with_its_drop_in;
}

/// `Type=notify-reload`, which systemd 252 does not have.
mod only_on_257 {
    scenarios!(@version V257
        notify_reload:
            waits_for_the_new_generation,
            says_success_when_the_handover_failed,
            returns_when_the_configuration_is_wrong,
            returns_when_a_handover_is_running_already;
    );
}
