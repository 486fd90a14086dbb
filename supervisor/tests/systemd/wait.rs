//! Waiting for what no event announces: the same question again and again, with a limit.

use std::time::{Duration, Instant};

/// Far above what anything here takes, so that only a real failure reaches it.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Asks until there is an answer. Asking is what takes time: each question here runs a command or opens a file.
///
/// # Panics
/// With `what` was awaited, after [`LIMIT`].
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for {what}");
        std::thread::yield_now();
    }
}
