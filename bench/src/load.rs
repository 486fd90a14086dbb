//! A load generator for one HTTP/1.1 server that never retries and never hides an error.
//!
//! It exists to answer one question: did anybody notice the handover? So each request is sent once,
//! each failure is counted with its kind, and a connection that the server closed is counted even
//! where a client could have got over it.
//!
//! ```no_run
//! use std::time::Duration;
//! use heirloom_bench::load::{Load, Pace, Plan, Request, Reuse};
//!
//! # async fn example() -> Result<(), heirloom_bench::load::StartError> {
//! let server = "127.0.0.1:8080".parse().expect("a literal address");
//! let plan = Plan::new(server, Request::get("/version"))
//!     .keep_alive(32, Pace::per_second(200), Reuse::Checked)
//!     .fresh(8, Pace::per_second(200))
//!     .idle(500)
//!     .duration(Duration::from_secs(12));
//! let load = Load::start(plan).await?;
//! // ... hand over here ...
//! let report = load.finish().await;
//! assert_eq!(report.failed, 0, "{report}");
//! assert_eq!(report.idle.answered, 500, "{report}");
//! # Ok(())
//! # }
//! ```
//!
//! The files: [`http`] reads responses (pure), [`connection`] is one socket, `plan` says what to do,
//! `run` and
//! `client` do it, `tally` and `series` count.

mod client;
pub mod connection;
pub mod failure;
pub mod http;
mod plan;
mod report;
mod run;
mod series;
mod tally;

pub use connection::{Connection, Peek};
pub use failure::{Failure, FailureKind};
pub use http::{Request, Response};
pub use plan::{Connections, Group, Pace, Plan, Reuse};
pub use report::{Idle, Latency, Report};
pub use run::{Load, StartError};
pub use series::Bucket;
