//! The supervisor as its users meet it: the real binary, real programs, real sockets and signals.
//!
//! A file a subject; [`harness`] starts and ends a supervisor and waits for what happens to it.

mod commands;
mod deploy_recipe;
mod harness;
mod load;
mod programs;
