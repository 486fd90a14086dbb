//! The body of a request, which tells its connection when it has been read to the end.
//!
//! A connection moves to the next generation only between two requests, and where one ends is known
//! only to whoever has read all of it.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use super::watch::Watch;

/// The body of a request as it arrives.
pub struct RequestBody {
    incoming: Incoming,
    /// The connection; none with HTTP/2, whose connections do not move.
    watch: Option<Watch>,
    ended: bool,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, watch: Option<Watch>) -> Self {
        let ended = incoming.is_end_stream();
        Self {
            incoming,
            watch,
            ended,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.incoming).poll_frame(context);
        if !self.ended && (matches!(frame, Poll::Ready(None)) || self.incoming.is_end_stream()) {
            self.ended = true;
            if let Some(watch) = &self.watch {
                watch.lock().body_ended();
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RequestBody")
            .field("incoming", &self.incoming)
            .finish_non_exhaustive()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.as_ref().filter(|_| !self.ended) {
            watch.lock().body_left_unread();
        }
    }
}
