//! The end of a generation: who is told, who is waited for, and for how long.
//!
//! What a task does when the drain begins is the task's own affair; for HTTP see [`crate::http`].

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::StreamExt;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::{
    task::{AbortHandle, Id},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

use crate::moving::{Phases, census::Census, taking::Arrivals};

/// How long tasks that are cut off get to let go of what they hold.
const ABORT_LIMIT: Duration = Duration::from_secs(1);

/// A handle to the end of this process; clones are handles to the same end.
///
/// The drain begins once, with [`Self::begin`] or a signal, and cannot be taken back. From then on
/// nothing new is to be started; what was started with [`Self::spawn`] has until the limit.
#[derive(Clone)]
pub struct Drain {
    shared: Arc<Shared>,
}

struct Shared {
    limit: Duration,
    begun_at: OnceLock<Instant>,
    begun: CancellationToken,
    forced: CancellationToken,
    tracker: TaskTracker,
    /// The tasks that run, to be cut off at the limit.
    running: Mutex<HashMap<Id, AbortHandle>>,
    /// What is left to do when all tasks have ended.
    last: Mutex<Vec<Last>>,
    /// How many connections there are.
    census: Arc<Census>,
    /// What a handover means for connections.
    phases: Phases,
    /// Connections of the generation before.
    arrivals: Arc<Arrivals>,
}

type Last = Box<dyn FnOnce(Outcome) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every task finished by itself.
    Drained,
    /// The limit passed; this many tasks were cut off.
    LimitPassed {
        /// How many still ran.
        cut: usize,
    },
    /// Somebody asked for the end at once; this many tasks were cut off.
    Forced {
        /// How many still ran.
        cut: usize,
    },
}

impl Drain {
    /// A drain that has not begun and may take as long as `limit` once it has.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        let tracker = TaskTracker::new();
        // Closed from the start: that only means that waiting ends when no task runs.
        tracker.close();
        Self {
            shared: Arc::new(Shared {
                limit,
                begun_at: OnceLock::new(),
                begun: CancellationToken::new(),
                forced: CancellationToken::new(),
                tracker,
                running: Mutex::new(HashMap::new()),
                last: Mutex::default(),
                census: Arc::default(),
                phases: Phases::new(),
                arrivals: Arc::default(),
            }),
        }
    }

    /// Lets SIGTERM begin the drain, and a second SIGTERM, or SIGINT, end everything at once. A
    /// drain that has begun in another way is not ended by the first SIGTERM.
    ///
    /// Call it early: until then these signals end the process without any drain. Must be called
    /// within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// The system's, if the handlers cannot be installed.
    pub fn begin_on_signals(&self) -> io::Result<()> {
        // Not tokio::signal: there, a signal that arrives between the installation of the handler and
        // the subscription to it is lost. Here it is remembered.
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let drain = self.clone();
        tokio::spawn(async move {
            let mut terminated = false;
            while let Some(signal) = signals.next().await {
                if signal == SIGTERM && !terminated {
                    terminated = true;
                    drain.begin();
                } else {
                    drain.force();
                }
            }
        });
        Ok(())
    }

    /// Begins the drain. The second call does nothing.
    pub fn begin(&self) {
        // The instant is set first: whoever sees the token sees the instant.
        self.shared.begun_at.get_or_init(Instant::now);
        self.shared.begun.cancel();
    }

    /// Ends the drain at once, beginning it if need be.
    pub fn force(&self) {
        self.begin();
        self.shared.forced.cancel();
    }

    /// How many connections there are.
    pub(crate) fn census(&self) -> &Arc<Census> {
        &self.shared.census
    }

    /// What a handover means for connections.
    pub(crate) fn phases(&self) -> &Phases {
        &self.shared.phases
    }

    /// Connections of the generation before, and who serves them.
    pub(crate) fn arrivals(&self) -> &Arc<Arrivals> {
        &self.shared.arrivals
    }

    /// When the drain began; none if it has not.
    #[must_use]
    pub fn begun_at(&self) -> Option<Instant> {
        self.shared.begun_at.get().copied()
    }

    /// Whether the drain has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun_at().is_some()
    }

    /// Waits for the drain to begin.
    pub fn begun(&self) -> Begun {
        Begun {
            waiting: Box::pin(self.shared.begun.clone().cancelled_owned()),
            registered: None,
            drain: self.clone(),
        }
    }

    /// Starts a task which the drain waits for and, at its limit, cuts off.
    ///
    /// A task that runs must end by itself after the drain has begun. Must be called within a
    /// Tokio runtime.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Made here, not in the task: a task cut off before its first step must be taken off too.
        let registration = Registration {
            shared: Arc::clone(&self.shared),
        };
        // The task cannot take itself off before it is on the list: it needs this lock for that.
        let mut running = self.shared.running();
        let handle = self.shared.tracker.spawn(async move {
            let _registration = registration;
            task.await;
        });
        running.insert(handle.id(), handle.abort_handle());
    }

    /// How many tasks run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.shared.tracker.len()
    }

    /// Has this done once all tasks have ended or were cut off, before [`Self::finished`] returns. It must
    /// end by itself.
    pub(crate) fn at_the_end<F>(&self, last: impl FnOnce(Outcome) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.shared
            .last()
            .push(Box::new(|outcome| Box::pin(last(outcome))));
    }

    /// Waits until the drain has begun and all tasks have ended, or cuts them off: at the limit,
    /// or when forced to.
    pub async fn finished(&self) -> Outcome {
        let outcome = self.tasks_finished().await;
        let last = std::mem::take(&mut *self.shared.last());
        for last in last {
            last(outcome).await;
        }
        outcome
    }

    async fn tasks_finished(&self) -> Outcome {
        self.begun().await;
        let began = self.begun_at().unwrap_or_else(Instant::now);
        let forced = tokio::select! {
            biased;
            () = self.shared.tracker.wait() => return Outcome::Drained,
            () = self.shared.forced.cancelled() => true,
            () = sleep_until(began + self.shared.limit) => false,
        };
        let cut = self.running();
        for task in self.shared.running().values() {
            task.abort();
        }
        if timeout(ABORT_LIMIT, self.shared.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                tasks = self.running(),
                "tasks were cut off and still run: they block their thread"
            );
        }
        if forced {
            Outcome::Forced { cut }
        } else {
            Outcome::LimitPassed { cut }
        }
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Drain")
            .field("limit", &self.shared.limit)
            .field("begun_at", &self.begun_at())
            .field("running", &self.running())
            .finish()
    }
}

/// Lets HTTP/2 streams, which hyper runs as tasks, be waited for and cut off like all others.
impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Drain {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

impl Shared {
    fn last(&self) -> std::sync::MutexGuard<'_, Vec<Last>> {
        // No code that holds the lock can panic half-way through a change.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<Id, AbortHandle>> {
        // No code that holds the lock can panic half-way through a change.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a task off the list, however it ends.
struct Registration {
    shared: Arc<Shared>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(id) = tokio::task::try_id() {
            self.shared.running().remove(&id);
        }
    }
}

/// Waits for a drain to begin; made by [`Drain::begun`].
///
/// Cheap to poll again and again, as a connection does: the shared queue of waiters, which has a
/// lock, is only gone to when the waker is a new one.
#[must_use = "futures do nothing unless polled"]
pub struct Begun {
    waiting: Pin<Box<WaitForCancellationFutureOwned>>,
    registered: Option<Waker>,
    drain: Drain,
}

impl Future for Begun {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.drain.has_begun() {
            return Poll::Ready(());
        }
        let known = self
            .registered
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()));
        if known {
            return Poll::Pending;
        }
        self.registered = Some(context.waker().clone());
        self.waiting.as_mut().poll(context)
    }
}

impl fmt::Debug for Begun {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Begun")
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_its_tasks() {
        let drain = Drain::new(LIMIT);
        let (release, released) = oneshot::channel::<()>();
        let observer = drain.clone();
        drain.spawn(async move {
            observer.begun().await;
            released.await.unwrap();
        });
        drain.begin();
        let finished = tokio::spawn({
            let drain = drain.clone();
            async move { drain.finished().await }
        });
        tokio::task::yield_now().await;
        assert!(!finished.is_finished());
        release.send(()).unwrap();
        assert_eq!(finished.await.unwrap(), Outcome::Drained);
        assert_eq!(drain.running(), 0);
        assert!(drain.shared.running().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_cuts_off_what_does_not_end() {
        let drain = Drain::new(LIMIT);
        drain.spawn(pending());
        drain.spawn(async {});
        tokio::task::yield_now().await;
        drain.begin();
        let began = Instant::now();
        assert_eq!(drain.finished().await, Outcome::LimitPassed { cut: 1 });
        assert_eq!(began.elapsed(), LIMIT);
        assert_eq!(drain.running(), 0);
        assert!(drain.shared.running().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn force_does_not_wait() {
        let drain = Drain::new(LIMIT);
        drain.spawn(pending());
        let began = Instant::now();
        drain.force();
        assert_eq!(drain.finished().await, Outcome::Forced { cut: 1 });
        assert!(began.elapsed() < ABORT_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_ends_before_the_drain_begins() {
        let drain = Drain::new(LIMIT);
        assert!(timeout(LIMIT * 10, drain.finished()).await.is_err());
        drain.begin();
        assert_eq!(drain.finished().await, Outcome::Drained);
    }

    #[tokio::test]
    async fn begun_wakes_every_task_and_counts_a_panic_as_an_end() {
        let drain = Drain::new(LIMIT);
        for _ in 0..100 {
            let begun = drain.begun();
            drain.spawn(begun);
        }
        drain.spawn(async { panic!("a test of a task that panics") });
        tokio::task::yield_now().await;
        drain.begin();
        assert_eq!(drain.finished().await, Outcome::Drained);
        assert!(drain.shared.running().is_empty());
    }
}
