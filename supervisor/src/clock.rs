//! The time of day, for what is shown to people. It may jump, so nothing is decided by it.

use std::time::SystemTime;

/// What time it is.
#[allow(
    clippy::disallowed_methods,
    reason = "this is where times that are only shown come from"
)]
pub(crate) fn time_of_day() -> SystemTime {
    SystemTime::now()
}
