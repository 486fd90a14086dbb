//! What the system gives the three: sockets, one direction each, and the pipe.
//!
//! As Linux does it. A message is queued, or refused because the reader has shut its side down or is
//! gone: one act. What is queued when the writer goes is still read, and then the end. If the writer
//! left messages unread on *its* side, the first read says that the connection was reset, ahead of
//! what is queued, and only once.

/// One direction of a connected pair of sockets, or the pipe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Channel<M> {
    queued: Vec<M>,
    writer_closed: bool,
    reading_shut: bool,
    reset: bool,
}

/// What a read comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read<M> {
    Message(M),
    Reset,
    End,
    Nothing,
}

impl<M: Copy> Channel<M> {
    pub(super) fn new() -> Self {
        Self {
            queued: Vec::new(),
            writer_closed: false,
            reading_shut: false,
            reset: false,
        }
    }

    /// Says whether the message is in the reader's queue.
    pub(super) fn send(&mut self, message: M) -> bool {
        let taken = !self.reading_shut && !self.writer_closed;
        if taken {
            self.queued.push(message);
        }
        taken
    }

    pub(super) fn receive(&mut self) -> Read<M> {
        let read = self.peek();
        match read {
            Read::Message(_) => drop(self.queued.remove(0)),
            Read::Reset => self.reset = false,
            Read::End | Read::Nothing => {}
        }
        read
    }

    /// What [`Self::receive`] would come to.
    pub(super) fn peek(&self) -> Read<M> {
        match self.queued.first() {
            _any if self.reset => Read::Reset,
            Some(message) => Read::Message(*message),
            None if self.writer_closed || self.reading_shut => Read::End,
            None => Read::Nothing,
        }
    }

    pub(super) fn queued(&self) -> &[M] {
        &self.queued
    }

    /// `shutdown(SHUT_RD)`: nothing more is queued; what is there stays.
    pub(super) fn shut_reading(&mut self) {
        self.reading_shut = true;
    }

    pub(super) fn close_writer(&mut self) {
        self.writer_closed = true;
    }

    /// The reader goes; says whether it left something unread.
    pub(super) fn close_reader(&mut self) -> bool {
        let unread = !self.queued.is_empty();
        // A dead reader's queue and flags mean nothing to anybody.
        self.queued.clear();
        self.reset = false;
        self.reading_shut = true;
        unread
    }
}

/// One side closes its end of a pair of sockets: `incoming` is what it reads, `outgoing` what the other
/// side reads.
pub(super) fn close<I: Copy, O: Copy>(incoming: &mut Channel<I>, outgoing: &mut Channel<O>) {
    let unread = incoming.close_reader();
    if !outgoing.reading_shut && !outgoing.writer_closed {
        outgoing.reset |= unread;
    }
    outgoing.writer_closed = true;
}
