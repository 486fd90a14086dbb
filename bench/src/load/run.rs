//! Carries out a plan: starts its clients, and opens and tries the idle connections around them.
//! What one client does is in `client`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::load::client::{Client, good_status};
use crate::load::connection::{Connection, Peek};
use crate::load::failure::{Failure, FailureKind};
use crate::load::plan::{Group, Pace, Plan};
use crate::load::report::Report;
use crate::load::tally::Tally;

/// A load could not begin. Nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// One of the idle connections could not be opened or used.
    #[error("idle connection {index} of {count} did not answer before the load began: {failure}")]
    Idle {
        /// Which one, from 0.
        index: usize,
        /// Of how many.
        count: usize,
        /// Why.
        failure: Failure,
    },
    /// The plan has neither clients nor idle connections.
    #[error("the plan has no clients: add some with keep_alive, fresh or idle")]
    NoClients,
}

/// A load that runs. Dropping it ends it at once; [`finish`](Self::finish) and
/// [`stop`](Self::stop) let running requests end first.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    idle: Vec<Connection>,
}

/// What all clients of a load share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    pub(crate) start: Instant,
    pub(crate) end: Instant,
    requests_left: AtomicU64,
    tally: Mutex<Tally>,
}

impl Load {
    /// Opens the idle connections, then starts the clients on the current tokio runtime.
    ///
    /// # Errors
    /// If an idle connection could not be opened or was not answered, or the plan has no clients.
    pub async fn start(plan: Plan) -> Result<Self, StartError> {
        if plan.idle == 0 && plan.groups.iter().all(|group| group.clients == 0) {
            return Err(StartError::NoClients);
        }
        let idle = open_idle(&plan).await?;
        let start = Instant::now();
        let mut tally = Tally::new(plan.bucket);
        tally.idle.opened = idle.len() as u64;
        let shared = Arc::new(Shared {
            start,
            end: start + plan.duration,
            requests_left: AtomicU64::new(plan.request_limit),
            tally: Mutex::new(tally),
            plan,
        });
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        let mut number = 0;
        for group in shared.plan.groups.clone() {
            for index in 0..group.clients {
                let client = Client::new(Arc::clone(&shared), stopped.clone(), number, group);
                clients.spawn(client.run(first_due(start, &group, index)));
                number += 1;
            }
        }
        Ok(Self {
            shared,
            stop,
            clients,
            idle,
        })
    }

    /// What was seen until now.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.tally().report(self.shared.start.elapsed())
    }

    /// Tells all clients to send no further request. Does not wait.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until the load has ended by itself, at its duration or its number of requests, or
    /// because of [`stop`](Self::stop); then tries the idle connections; then reports.
    ///
    /// It returns at the latest two request deadlines after the planned end.
    pub async fn finish(mut self) -> Report {
        while let Some(ended) = self.clients.join_next().await {
            if let Err(error) = ended {
                // A panic in a caller's closure must not look like a request that went well.
                let text = format!("a client of the load ended early: {error}");
                self.shared
                    .tally()
                    .failed(Failure::new(FailureKind::Local, text));
            }
        }
        let elapsed = self.shared.start.elapsed();
        self.try_idle().await;
        self.shared.tally().report(elapsed)
    }

    /// [`stop`](Self::stop), then [`finish`](Self::finish).
    pub async fn stop_and_finish(self) -> Report {
        self.stop();
        self.finish().await
    }

    /// One more request on each idle connection, all at once.
    async fn try_idle(&mut self) {
        let mut trials = JoinSet::new();
        for (index, mut connection) in self.idle.drain(..).enumerate() {
            let shared = Arc::clone(&self.shared);
            trials.spawn(async move {
                if connection.peek() != Peek::Open {
                    return;
                }
                shared.tally().idle.alive += 1;
                let deadline = Instant::now() + shared.plan.deadline;
                let answer = connection
                    .send(&shared.plan.idle_request, false, deadline)
                    .await;
                match answer.and_then(good_status) {
                    Ok(_) => shared.tally().idle.answered += 1,
                    Err(failure) => {
                        let text = format!("idle connection {index}: {}", failure.text);
                        let at = shared.start.elapsed();
                        shared.tally().keep(Failure {
                            text,
                            at,
                            ..failure
                        });
                    }
                }
            });
        }
        while trials.join_next().await.is_some() {}
    }
}

impl Shared {
    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        // Counts stay counts even if a thread panicked between two of them.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one request from the limit of all clients.
    pub(crate) fn take_request(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        self.requests_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

/// Spreads the first requests of a group over its period, so that its clients do not march in step.
fn first_due(start: Instant, group: &Group, index: usize) -> Instant {
    let period = match group.pace {
        Pace::Every(period) => period,
        Pace::Think(think) => think,
    };
    start + period.mul_f64(index as f64 / group.clients.max(1) as f64)
}

async fn open_idle(plan: &Plan) -> Result<Vec<Connection>, StartError> {
    let mut connections = Vec::with_capacity(plan.idle);
    for index in 0..plan.idle {
        let fail = |failure| StartError::Idle {
            index,
            count: plan.idle,
            failure,
        };
        let deadline = Instant::now() + plan.deadline;
        let mut connection = Connection::open(plan.server, deadline)
            .await
            .map_err(fail)?;
        let response = connection
            .send(&plan.idle_request, false, deadline)
            .await
            .and_then(good_status);
        if !response.map_err(fail)?.keeps_open() {
            let text = "the server does not keep connections open";
            return Err(fail(Failure::new(FailureKind::Unexpected, text)));
        }
        connections.push(connection);
    }
    Ok(connections)
}
