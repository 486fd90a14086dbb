//! How a supervisor is spoken to: a unix socket, a request a connection, lines of JSON.
//!
//! [`protocol`] is what goes over it, [`place`] where the socket is and how one supervisor of a
//! name is told from two, [`client`] the asking side. The answering side is the daemon's.

pub(crate) mod client;
pub(crate) mod place;
pub(crate) mod protocol;
