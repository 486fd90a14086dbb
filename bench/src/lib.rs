//! Load over HTTP/1.1 that hides nothing, and what the showcase and the measurements share.
//!
//! [`load`] is the part that others use: a client that never retries, and the tally of what it saw.

pub mod load;
