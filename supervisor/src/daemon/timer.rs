//! A deadline that puts an input into the queue, and is void once dropped.

use std::time::Duration;

use tokio::task::AbortHandle;

use super::input::{Input, Inputs};

/// A running deadline.
#[derive(Debug)]
pub(crate) struct Timer(AbortHandle);

impl Timer {
    /// Puts `input` into the queue after `delay`.
    pub(crate) fn start(inputs: &Inputs, delay: Duration, input: Input) -> Self {
        let inputs = inputs.clone();
        Self::task(async move {
            tokio::time::sleep(delay).await;
            // The queue is closed only when the supervisor ends.
            let _ended = inputs.send(input).await;
        })
    }

    /// Any work that is to end with its owner.
    pub(crate) fn task(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work).abort_handle())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}
