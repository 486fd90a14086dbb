//! Load over HTTP/1.1 that hides nothing, and what the showcase and the measurements share.
//!
//! [`load`] is the part that others use: a client that never retries, and the tally of what it saw.
//! [`peers`] are the servers that are compared, [`measure`] compares, [`publish`] writes it down.
//! [`process`], [`procfs`] and [`supervisor`] start, watch and end what is measured.

pub mod load;
pub mod measure;
pub mod peers;
pub mod process;
pub mod procfs;
pub mod publish;
pub mod state;
pub mod supervisor;
