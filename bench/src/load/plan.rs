//! What a load is to do: how many clients of which kind, how fast, for how long. No I/O.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::load::http::{Request, Response};

/// When a client sends its next request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// This long after the last answer. Zero means at once: the client is never idle.
    Think(Duration),
    /// One each period, whatever the server does. A request that could not be sent when it was due,
    /// because the one before it was still unanswered, is sent late, and its latency counts from
    /// the moment it was due. So a stall is seen by every request it delayed, not by one.
    Every(Duration),
}

impl Pace {
    /// `rate` requests a second for each client. A rate of zero is taken as one.
    #[must_use]
    pub fn per_second(rate: u32) -> Self {
        Self::Every(Duration::from_secs(1) / rate.max(1))
    }
}

/// What a keep-alive client does before it uses its connection again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// It writes. If the server has closed the connection meanwhile, the request fails.
    Blind,
    /// It looks first, as connection pools do. A closed connection is counted as closed by the
    /// server and replaced. This cannot save a request that crosses the close on the wire.
    Checked,
}

/// How a client uses connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// One connection for as long as the server keeps it.
    KeepAlive(Reuse),
    /// A new connection for each request, which asks the server to close it.
    Fresh,
}

/// Some clients that behave alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// How many.
    pub clients: usize,
    /// How they use connections.
    pub connections: Connections,
    /// How fast each of them sends.
    pub pace: Pace,
}

type Requests = Arc<dyn Fn(usize, u64) -> Request + Send + Sync>;
type Check = Arc<dyn Fn(usize, u64, &Response) -> Result<(), String> + Send + Sync>;
type Generation = Arc<dyn Fn(&Response) -> Option<u64> + Send + Sync>;

/// A whole load. Built with its methods, started with [`Load::start`](crate::load::Load::start).
#[derive(Clone)]
pub struct Plan {
    pub(crate) server: SocketAddr,
    pub(crate) groups: Vec<Group>,
    pub(crate) idle: usize,
    pub(crate) idle_request: Request,
    pub(crate) deadline: Duration,
    pub(crate) duration: Duration,
    pub(crate) request_limit: u64,
    pub(crate) bucket: Option<Duration>,
    pub(crate) requests: Requests,
    pub(crate) check: Check,
    pub(crate) generation: Generation,
}

impl Plan {
    /// A load on `server` that sends `request` again and again. It has no clients yet, ends after
    /// 60 s, and gives each request 5 s.
    #[must_use]
    pub fn new(server: SocketAddr, request: Request) -> Self {
        let idle_request = request.clone();
        Self {
            server,
            groups: Vec::new(),
            idle: 0,
            idle_request,
            deadline: Duration::from_secs(5),
            duration: Duration::from_secs(60),
            request_limit: u64::MAX,
            bucket: None,
            requests: Arc::new(move |_, _| request.clone()),
            check: Arc::new(|_, _, _| Ok(())),
            generation: Arc::new(generation_in_body),
        }
    }

    /// Adds `clients` that keep one connection each.
    #[must_use]
    pub fn keep_alive(self, clients: usize, pace: Pace, reuse: Reuse) -> Self {
        self.group(Group {
            clients,
            connections: Connections::KeepAlive(reuse),
            pace,
        })
    }

    /// Adds `clients` that open a connection for each request.
    #[must_use]
    pub fn fresh(self, clients: usize, pace: Pace) -> Self {
        self.group(Group {
            clients,
            connections: Connections::Fresh,
            pace,
        })
    }

    /// Adds a group.
    #[must_use]
    pub fn group(mut self, group: Group) -> Self {
        self.groups.push(group);
        self
    }

    /// Opens `count` connections before the load starts, sends one request on each, leaves them
    /// alone, and sends one more on each when the load has ended.
    #[must_use]
    pub fn idle(mut self, count: usize) -> Self {
        self.idle = count;
        self
    }

    /// How long a request may take, connecting included.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Ends the load after this time.
    #[must_use]
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = duration;
        self
    }

    /// Ends the load after this many requests of all clients together.
    #[must_use]
    pub fn request_limit(mut self, limit: u64) -> Self {
        self.request_limit = limit;
        self
    }

    /// Also counts per stretch of time of this length (see [`Bucket`](crate::load::Bucket)).
    #[must_use]
    pub fn series(mut self, bucket: Duration) -> Self {
        self.bucket = Some(bucket.max(Duration::from_millis(1)));
        self
    }

    /// Asks `requests` for each request, with the number of the client (from 0, over all groups)
    /// and the number of its request (from 0). Idle connections still send the first one.
    #[must_use]
    pub fn requests(
        mut self,
        requests: impl Fn(usize, u64) -> Request + Send + Sync + 'static,
    ) -> Self {
        self.requests = Arc::new(requests);
        self
    }

    /// Looks at each answer of status 200 to 299, with the numbers of the client and the request it
    /// belongs to, as in [`requests`](Self::requests). What it refuses, and why, is a failure.
    /// Called once for each such answer, so it can also collect acknowledgements.
    #[must_use]
    pub fn check(
        mut self,
        check: impl Fn(usize, u64, &Response) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.check = Arc::new(check);
        self
    }

    /// How to tell which generation answered. Unless set, the number `generation` in a JSON body,
    /// as `/version` of the demo service answers.
    #[must_use]
    pub fn generation(
        mut self,
        generation: impl Fn(&Response) -> Option<u64> + Send + Sync + 'static,
    ) -> Self {
        self.generation = Arc::new(generation);
        self
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Plan")
            .field("server", &self.server)
            .field("groups", &self.groups)
            .field("idle", &self.idle)
            .field("deadline", &self.deadline)
            .field("duration", &self.duration)
            .field("request_limit", &self.request_limit)
            .field("bucket", &self.bucket)
            .finish_non_exhaustive()
    }
}

fn generation_in_body(response: &Response) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Version {
        generation: u64,
    }
    if response.body.first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice::<Version>(&response.body)
        .ok()
        .map(|version| version.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_becomes_a_period() {
        assert_eq!(Pace::per_second(200), Pace::Every(Duration::from_millis(5)));
        assert_eq!(Pace::per_second(0), Pace::Every(Duration::from_secs(1)));
    }
}
