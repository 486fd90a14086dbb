//! One client of a load: sends requests one after another until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::load::connection::{Connection, Peek};
use crate::load::failure::{Failure, FailureKind};
use crate::load::http::Response;
use crate::load::plan::{Connections, Group, Pace, Reuse};
use crate::load::run::Shared;

/// A client that never waits by plan still waits this long after a failure, so that a dead server
/// is not answered with a busy loop.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
    number: usize,
    group: Group,
    /// Kept between requests by keep-alive clients.
    connection: Option<Connection>,
    /// Connections opened so far.
    opened: u64,
}

impl Client {
    pub(crate) fn new(
        shared: Arc<Shared>,
        stopped: watch::Receiver<bool>,
        number: usize,
        group: Group,
    ) -> Self {
        Self {
            shared,
            stopped,
            number,
            group,
            connection: None,
            opened: 0,
        }
    }

    /// Sends the first request at `due`.
    pub(crate) async fn run(mut self, mut due: Instant) {
        let mut last_end = self.shared.start;
        let mut sent = 0;
        while self.wait(due).await && self.shared.take_request() {
            // Late because the last answer was late: the server's doing, so the wait counts.
            // Late because this task was woken late: not the server's, so it does not.
            let from = match self.group.pace {
                Pace::Every(_) if last_end > due => due,
                Pace::Every(_) | Pace::Think(_) => Instant::now(),
            };
            let good = self.request(sent, from).await;
            sent += 1;
            last_end = Instant::now();
            due = match self.group.pace {
                Pace::Every(period) => due + period,
                Pace::Think(think) if good => last_end + think,
                Pace::Think(think) => last_end + think.max(PAUSE_AFTER_FAILURE),
            };
        }
        self.count_unsent(due);
        let lasts =
            self.opened == 1 && self.connection.as_ref().map(Connection::peek) == Some(Peek::Open);
        if lasts {
            self.shared.tally().lasting += 1;
        }
    }

    /// Waits until `due`. False if the load ends before, or has ended.
    async fn wait(&mut self, due: Instant) -> bool {
        if *self.stopped.borrow() || Instant::now() >= self.shared.end || due >= self.shared.end {
            return false;
        }
        if due <= Instant::now() {
            return true;
        }
        tokio::select! {
            () = sleep_until(due) => true,
            // Stopped, or the load was dropped: either way this is over.
            _ = self.stopped.changed() => false,
        }
    }

    /// Sends one request and counts what became of it. False if it failed.
    async fn request(&mut self, number: u64, from: Instant) -> bool {
        let result = self.exchange(number).await;
        let end = Instant::now();
        let at = end - self.shared.start;
        match result {
            Ok(response) => {
                let generation = (self.shared.plan.generation)(&response);
                self.shared.tally().answered(at, end - from, generation);
                true
            }
            Err(failure) => {
                self.connection = None;
                self.shared.tally().failed(Failure {
                    at,
                    client: self.number,
                    ..failure
                });
                false
            }
        }
    }

    async fn exchange(&mut self, number: u64) -> Result<Response, Failure> {
        let plan = &self.shared.plan;
        let request = (plan.requests)(self.number, number);
        let deadline = Instant::now() + plan.deadline;
        let fresh = match self.group.connections {
            Connections::Fresh => true,
            Connections::KeepAlive(Reuse::Blind) => false,
            Connections::KeepAlive(Reuse::Checked) => {
                self.drop_unfit_connection();
                false
            }
        };
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = Connection::open(self.shared.plan.server, deadline).await?;
                self.shared.tally().opened += 1;
                self.opened += 1;
                connection
            }
        };
        let response = connection
            .send(&request, fresh, deadline)
            .await
            .and_then(good_status)?;
        if !fresh && response.keeps_open() {
            self.connection = Some(connection);
        } else if !fresh {
            self.shared.tally().told_to_close += 1;
        }
        (self.shared.plan.check)(self.number, number, &response)
            .map_err(|reason| Failure::new(FailureKind::Unexpected, reason))?;
        Ok(response)
    }

    fn drop_unfit_connection(&mut self) {
        match self.connection.as_ref().map(Connection::peek) {
            None | Some(Peek::Open) => return,
            Some(Peek::Closed) => self.shared.tally().closed_by_server += 1,
            Some(Peek::Unsolicited) => self.shared.tally().unsolicited += 1,
        }
        self.connection = None;
    }

    /// Requests that the rate asked for and that there was no time left to send.
    fn count_unsent(&self, due: Instant) {
        let Pace::Every(period) = self.group.pace else {
            return;
        };
        let behind = Instant::now()
            .min(self.shared.end)
            .saturating_duration_since(due);
        let unsent = behind.as_nanos() / period.as_nanos().max(1);
        self.shared.tally().unsent += u64::try_from(unsent).unwrap_or(u64::MAX);
    }
}

/// Takes an answer with a status outside 200 to 299 for a failure.
pub(crate) fn good_status(response: Response) -> Result<Response, Failure> {
    if (200..300).contains(&response.status) {
        return Ok(response);
    }
    let text: String = response.text().chars().take(200).collect();
    Err(Failure::new(
        FailureKind::BadStatus,
        format!("status {}: {text}", response.status),
    ))
}
