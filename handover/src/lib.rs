//! What a supervisor and the programs it runs say to each other.
//!
//! This crate holds the vocabulary of that conversation and nothing else: the names of the
//! environment variables ([`environment`]), the `KEY=VALUE` grammar every message is written in
//! ([`datagram`]), the `sd_notify` messages Heirloom understands ([`notify`]), the messages of the
//! handover protocol ([`message`], [`lifeline`]), the passing of file descriptors with a message
//! ([`fds`]), and the two state machines of a handover: that of the generation that gives its state
//! ([`source`]) and that of the one that takes it ([`target`]). It knows neither tokio nor how a
//! service is run; the daemon and the library an app links both stand on it.

pub mod datagram;
pub mod environment;
pub mod fds;
pub mod lifeline;
pub mod message;
pub mod notify;
pub mod rendezvous;
pub mod source;
pub mod target;
