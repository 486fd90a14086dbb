//! The supervisor as its users meet it: the real binary, real programs, real sockets and signals.
//!
//! A file a subject; [`harness`] starts and ends a supervisor and waits for what happens to it.

#![allow(
    clippy::unwrap_used,
    reason = "a test's panic is its report; clippy exempts test functions only"
)]

mod cold_restart;
mod commands;
mod confined;
mod connections;
mod control_groups;
mod counted;
mod deaths;
mod deploy_recipe;
mod deploys;
mod failing_programs;
mod faults;
mod harness;
mod inheritance;
mod instances;
mod lifecycle;
mod limits;
mod listeners;
mod load;
mod matrix;
mod memory;
mod native_failures;
mod native_handovers;
mod native_python;
mod notifications;
mod pinning;
mod privileges;
mod programs;
mod readiness;
mod secrets;
mod shortages;
mod snapshots;
mod state;
mod storm;
mod torture;
mod upgrades;
