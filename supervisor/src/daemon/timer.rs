//! A deadline that puts an input into the queue, and is void once dropped.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::task::AbortHandle;

use super::input::{Input, Inputs};

/// A running deadline, or a task.
#[derive(Debug)]
pub(crate) struct Timer {
    task: AbortHandle,
    ends_ms: Option<u64>,
}

impl Timer {
    /// Puts `input` into the queue after `delay`.
    pub(crate) fn start(inputs: &Inputs, delay: Duration, input: Input) -> Self {
        let inputs = inputs.clone();
        let ends_ms =
            boot_ms().saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        let mut timer = Self::task(async move {
            tokio::time::sleep(delay).await;
            // The queue is closed only when the supervisor ends.
            let _ended = inputs.send(input).await;
        });
        timer.ends_ms = Some(ends_ms);
        timer
    }

    /// Any work that is to end with its owner.
    pub(crate) fn task(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            task: tokio::spawn(work).abort_handle(),
            ends_ms: None,
        }
    }

    /// When it is over, in milliseconds of `CLOCK_BOOTTIME`; none for a task.
    pub(crate) fn ends_ms(&self) -> Option<u64> {
        self.ends_ms
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Now, on the clock that counts since the machine was started and that nobody sets.
pub(crate) fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// The time until a point on that clock.
pub(crate) fn until(point_ms: u64) -> Duration {
    Duration::from_millis(point_ms.saturating_sub(boot_ms()))
}
