//! The long-lived process: everything that happens becomes an [`input::Input`] in one queue, and
//! one loop answers it.
//!
//! * [`supervisor`] is that loop: it sends each input to the service it concerns, reads the
//!   configuration again, speaks to systemd and knows when to end.
//! * [`runner`] carries one service: it feeds the pure machines of `core` and turns their actions
//!   into system calls.
//! * What a service is made of: [`plan`] (a program as it was looked up), [`listeners`],
//!   [`process`] (one generation's process, with [`output`], [`notify_socket`], [`native_socket`] and
//!   [`readiness`]), [`state_file`] (its state, saved), [`memory`] (room for a second copy), [`store`] (descriptors kept for the next generation), [`family`] (every process it started), [`control_groups`] (what
//!   holds them together where it may),
//!   [`strays`] (those that hide from their family).
//! * The outside: [`server`] (control socket), [`signals`], [`systemd`], [`history`] (what happened),
//!   [`inspect`] (what is measured for `status`).

mod adoption;
mod control_groups;
mod family;
mod history;
mod input;
mod inspect;
mod listeners;
mod memory;
mod native_socket;
mod notify_socket;
mod output;
pub(crate) mod plan;
mod process;
mod readiness;
mod record;
mod runner;
mod server;
mod signals;
mod state_file;
mod store;
mod strays;
mod supervisor;
mod systemd;
mod timer;
mod upgrade;

pub(crate) use listeners::Inherited;
pub(crate) use memory::size;
pub(crate) use plan::look_up;
pub(crate) use signals::take as take_signals;
pub(crate) use supervisor::{First, Origin, Start, check_threads, run};
pub(crate) use upgrade::{Passed, TRY, try_record};
