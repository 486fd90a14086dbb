//! The decisions, without any I/O.
//!
//! [`generation`] is the life of one process of a service, as a table of state and event.
//! [`service`] puts such lives together: which process is started, which retires, when a handover
//! has succeeded and what happens when it has not. [`transfer`] moves the state of one process into
//! another, and [`reserve`] keeps the former one able to take it back. [`backoff`] says how long a crashing program
//! waits for its next attempt. The daemon turns the world into their events and their actions into
//! system calls; nothing in here knows of time, descriptors or signals.

pub(crate) mod backoff;
#[cfg(test)]
mod exploration;
pub(crate) mod generation;
pub(crate) mod reserve;
pub(crate) mod service;
pub(crate) mod transfer;
