//! The library a service links so that its restarts cost its users nothing.
//!
//! It turns what a supervisor hands to a process into typed values, and what a process owes its
//! supervisor and its clients into one call each:
//!
//! * [`Inherited`] is everything the process was started with: its listeners by name, the number
//!   of its generation, the socket to report to.
//! * [`Notifier`] reports: ready, status, stopping, still alive.
//! * [`Drain`] is the end of a generation: it begins with SIGTERM, tells every task, waits for them,
//!   and has a limit.
//! * [`http::serve`] answers HTTP/1.1 and HTTP/2 on a listener and drains without failing a request.
//!
//! ```
//! # use std::{convert::Infallible, time::Duration};
//! # use http_body_util::Full;
//! # use hyper::{Request, Response, body::Bytes, service::service_fn};
//! use heirloom_app::{Drain, Inherited, Listener, http};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut inherited = Inherited::from_env()?;
//! let listener = if inherited.is_empty() {
//!     Listener::bind_tcp("http", "127.0.0.1:0".parse()?)? // started by hand
//! } else {
//!     inherited.take_listener("http")?
//! };
//! let hello = service_fn(|_: Request<http::RequestBody>| async {
//!     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("hello"))))
//! });
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let drain = Drain::new(Duration::from_secs(30));
//! drain.begin_on_signals()?;
//! http::serve(listener, hello, &drain, http::Options::default())?;
//! inherited.notifier().ready("serving").await?;
//! # drain.begin(); // as SIGTERM would
//! drain.finished().await;
//! # Ok(()) })}
//! ```
//!
//! How to write a service, with this library or without, is told in `docs/writing-an-app.md`.
//!
//! The library never changes the process's environment and starts no thread.

mod accept;
mod drain;
pub mod http;
mod inherit;
mod moving;
mod notify;
pub mod session;
pub mod state;
mod stream;
mod sys;
pub mod websocket;

pub use drain::{Begun, Drain, Outcome};
pub use inherit::{InheritError, Inherited, Listener};
pub use notify::Notifier;

/// The examples of the guides, so that they are tested.
#[cfg(doctest)]
#[doc = include_str!("../../docs/writing-an-app.md")]
mod guide {}
#[cfg(doctest)]
#[doc = include_str!("../../docs/connections.md")]
mod connections_guide {}
