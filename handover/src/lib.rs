//! What a supervisor and the programs it runs say to each other.
//!
//! This crate holds the vocabulary of that conversation and nothing else: the names of the
//! environment variables ([`environment`]), the `KEY=VALUE` grammar every message is written in
//! ([`datagram`]), the `sd_notify` messages Heirloom understands ([`notify`]) and the passing of
//! file descriptors with a message ([`fds`]). It knows neither tokio nor how a service is run; the
//! daemon and the library an app links both stand on it.

pub mod datagram;
pub mod environment;
pub mod fds;
pub mod notify;
