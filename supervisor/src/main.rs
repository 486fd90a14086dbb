//! `heirloom`: replaces a running network service by a new version without its users noticing.
//!
//! * `cli` defines the command line and holds a file for each command;
//! * `clock` is the time of day;
//! * `config` is what a supervisor is told to run;
//! * `control` is how a running supervisor is spoken to;
//! * `core` makes the decisions, without I/O;
//! * `daemon` turns the world into their events and their actions into system calls;
//! * `torture` tries all of it on a program, under load, while its processes are killed;
//! * `log` is where lines go; `sys` holds the few system calls that need `unsafe`.

#![deny(unsafe_code)]

mod cli;
mod clock;
mod config;
mod control;
mod core;
mod daemon;
mod log;
mod sys;
#[cfg(test)]
mod targets;
mod torture;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
