//! The body of a request, which tells its connection when it has been read to the end.
//!
//! A connection moves to the next generation only between two requests, and where one ends is known
//! only to whoever has read all of it. So what the service leaves unread is read here, and discarded,
//! unless it is too much.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use super::watch::Watch;

/// So much of what the service leaves unread is read for it. Beyond that a connection costs less than
/// what is still to come on it.
const DISCARDED_BYTES_MAX: usize = 256 * 1024;

/// The body of a request as it arrives.
pub struct RequestBody {
    /// None only while this is dropped.
    incoming: Option<Incoming>,
    /// The connection; none with HTTP/2, whose connections do not move.
    watch: Option<Watch>,
    ended: bool,
    /// The client waits for a word before it sends anything (`Expect: 100-continue`), which is given
    /// when the body is asked for. It may never send what it was not asked for.
    awaits_word: bool,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, awaits_word: bool, watch: Option<Watch>) -> Self {
        let ended = incoming.is_end_stream();
        Self {
            incoming: Some(incoming),
            watch,
            ended,
            awaits_word,
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
        self.awaits_word = false;
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(&mut *incoming).poll_frame(context);
        let ended = matches!(frame, Poll::Ready(None)) || incoming.is_end_stream();
        if !self.ended && ended {
            self.ended = true;
            if let Some(watch) = &self.watch {
                watch.lock().body_ended();
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let incoming = self.incoming.as_ref();
        incoming.map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
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
        let (Some(watch), Some(incoming)) = (&self.watch, self.incoming.take()) else {
            return;
        };
        match (self.ended, self.awaits_word) {
            (true, _) => {}
            (false, true) => watch.lock().body_left_unread(),
            (false, false) => watch.discard(Leftover { incoming, read: 0 }),
        }
    }
}

/// What a service left unread of a request's body.
pub(super) struct Leftover {
    incoming: Incoming,
    read: usize,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discarded {
    /// It was read to its end.
    Ended,
    /// It is too much to be read.
    TooMuch,
}

impl Leftover {
    /// Reads on, and discards what comes.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Discarded> {
        loop {
            if self.incoming.is_end_stream() {
                return Poll::Ready(Discarded::Ended);
            }
            match ready!(Pin::new(&mut self.incoming).poll_frame(context)) {
                Some(Ok(frame)) => self.read += frame.data_ref().map_or(0, Bytes::len),
                // A body that breaks ends its connection, which hyper sees to.
                None | Some(Err(_)) => return Poll::Ready(Discarded::Ended),
            }
            if self.read > DISCARDED_BYTES_MAX {
                return Poll::Ready(Discarded::TooMuch);
            }
        }
    }
}
