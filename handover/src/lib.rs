//! What a supervisor and the programs it runs say to each other.
//!
//! This crate holds the vocabulary of that conversation and nothing else: the names of the
//! environment variables ([`environment`]), the `KEY=VALUE` grammar every message is written in
//! ([`datagram`]), the `sd_notify` messages Heirloom understands ([`notify`]), the messages of the
//! handover protocol ([`message`], [`lifeline`]), the passing of file descriptors with a message
//! ([`fds`]), and the state machines of a handover: that of the generation that gives its state
//! ([`source`]), that of the one that takes it ([`target`]), and that of the former one as long as it may take
//! it back ([`reserve`], over the [`way_back`]). It knows neither tokio nor how a
//! service is run; the daemon and the library an app links both stand on it.

pub mod datagram;
pub mod environment;
pub mod fault;
pub mod fds;
pub mod lifeline;
pub mod message;
pub mod notify;
pub mod rendezvous;
pub mod reserve;
pub mod source;
pub mod target;
pub mod way_back;
