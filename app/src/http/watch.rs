//! What an HTTP/1 connection is seen doing, and when the patience with it ends.
//!
//! The rules are [`super::activity`]'s; here they get a clock and a socket that reports.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    Options,
    activity::{Activity, Expiry},
    body::{Discarded, Leftover},
    service::Observer,
};
use crate::{Begun, Drain, stream::Rewound, websocket::Upgrade};

/// The activity of an HTTP/1 connection, shared by its socket, its service and its clock. All
/// three run in the connection's own task, so the lock is never waited for.
#[derive(Clone)]
pub(super) struct Watch {
    activity: Arc<Mutex<Activity>>,
    /// What becomes of the connection when hyper is done with it.
    upgrade: Arc<Mutex<Option<Upgrade>>>,
    /// What is still to be read of a body in which nobody is interested.
    leftover: Arc<Mutex<Option<Leftover>>>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            activity: Arc::new(Mutex::new(Activity::new(Instant::now()))),
            upgrade: Arc::default(),
            leftover: Arc::default(),
        }
    }

    /// Nobody is interested in the rest of this body.
    pub(super) fn discard(&self, leftover: Leftover) {
        *self.leftover() = Some(leftover);
    }

    /// Reads on what nobody is interested in. To be polled after hyper, which is woken if this makes
    /// a difference to it.
    pub(super) fn poll_discard(&self, context: &mut Context<'_>) {
        let mut leftover = self.leftover();
        let Some(Poll::Ready(discarded)) = leftover.as_mut().map(|body| body.poll(context)) else {
            return;
        };
        *leftover = None;
        match discarded {
            Discarded::Ended => self.lock().body_ended(),
            Discarded::TooMuch => self.lock().body_left_unread(),
        }
        // hyper sees what was left of the body go.
        context.waker().wake_by_ref();
    }

    fn leftover(&self) -> MutexGuard<'_, Option<Leftover>> {
        self.leftover.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The response that is on its way is the last in HTTP.
    pub(super) fn upgrade_with(&self, upgrade: Upgrade) {
        *self.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(upgrade);
    }

    /// What to go on with when hyper is done, if with anything.
    pub(super) fn take_upgrade(&self) -> Option<Upgrade> {
        self.upgrade
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Watch {
    fn request_started(&self, with_body: bool) {
        self.lock().request_started(with_body);
    }

    fn response_ended(&self) {
        self.lock().response_ended(Instant::now());
    }

    fn watch(&self) -> Option<Watch> {
        Some(self.clone())
    }
}

/// Tells when the patience with an HTTP/1 connection ends.
pub(super) struct Clock {
    watch: Watch,
    options: Arc<Options>,
    drain: Drain,
    begun: Begun,
    /// Set for the end of the patience or earlier: setting it anew for each request would cost
    /// more than to look again when it goes off too early.
    alarm: Pin<Box<Sleep>>,
}

impl Clock {
    pub(super) fn new(watch: &Watch, options: &Arc<Options>, drain: &Drain) -> Self {
        Self {
            watch: watch.clone(),
            options: Arc::clone(options),
            drain: drain.clone(),
            begun: drain.begun(),
            alarm: Box::pin(sleep_until(Instant::now() + options.idle_timeout)),
        }
    }

    /// Ready when the patience has ended, as the activity is now. To be polled after everything
    /// that can change the activity.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Expiry> {
        // Only to be woken when it begins.
        let _ = Pin::new(&mut self.begun).poll(context);
        loop {
            let Some((end, expiry)) = self
                .watch
                .lock()
                .patience(&self.options, self.drain.begun_at())
            else {
                return Poll::Pending;
            };
            if end < self.alarm.deadline() {
                self.alarm.as_mut().reset(end);
            }
            ready!(self.alarm.as_mut().poll(context));
            if end <= self.alarm.deadline() {
                return Poll::Ready(expiry);
            }
            self.alarm.as_mut().reset(end);
        }
    }
}

/// A socket that reports to its [`Watch`].
pub(super) struct Watched {
    pub(super) inner: Rewound,
    pub(super) watch: Watch,
}

impl Watched {
    fn report_write<T>(&self, result: &Poll<io::Result<T>>) {
        match result {
            Poll::Ready(_) => self.watch.lock().write_went_on(),
            Poll::Pending => self.watch.lock().write_blocked(Instant::now()),
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.watch.lock().may_read() {
            // The connection's driver asks again when this changes.
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.watch.lock().bytes_arrived(Instant::now());
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.report_write(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.report_write(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
