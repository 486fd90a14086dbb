//! How long a connection may stay as it is: decided here, without I/O.
//!
//! The socket and the service report what happens; the driver of the connection asks for the
//! instant at which its patience ends, and why.

use tokio::time::Instant;

use super::Options;

/// What an HTTP/1 connection is doing.
#[derive(Debug)]
pub(super) struct Activity {
    stage: Stage,
    body: Body,
    /// Since when the client has taken nothing of what is to be written.
    write_blocked_since: Option<Instant>,
    /// Whether nothing of a next request is to be read.
    holds: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No request runs and nothing of one has arrived, since then.
    Quiet { since: Instant },
    /// A part of a request's head has arrived, the first of it then.
    Head { since: Instant },
    /// A request runs, or its response is not complete yet.
    Request,
}

/// What is known of the body of the last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// There was none, or it was read to its end.
    Ended,
    /// It is being read, by the service or in its stead.
    Open,
    /// It was left unread: where the next request begins, only hyper knows.
    Left,
}

/// What is to be done when the patience ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// Nothing runs: close, unless something has arrived in the meantime.
    Quiet,
    /// The head does not get complete: give up on the client.
    HeadTooSlow,
    /// The client does not read: give up on it.
    WriteBlocked,
}

impl Activity {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            stage: Stage::Quiet { since: now },
            body: Body::Ended,
            write_blocked_since: None,
            holds: false,
        }
    }

    /// Bytes have been read from the client.
    pub(super) fn bytes_arrived(&mut self, now: Instant) {
        match self.stage {
            Stage::Quiet { .. } => self.stage = Stage::Head { since: now },
            Stage::Head { .. } | Stage::Request => {}
        }
    }

    /// A request's head is complete.
    pub(super) fn request_started(&mut self, with_body: bool) {
        self.stage = Stage::Request;
        self.body = if with_body { Body::Open } else { Body::Ended };
    }

    /// The request's body has been read to its end.
    pub(super) fn body_ended(&mut self) {
        self.body = Body::Ended;
    }

    /// Nobody will read the rest of the request's body.
    pub(super) fn body_left_unread(&mut self) {
        self.body = Body::Left;
    }

    /// Whether a request runs, or its body is not over.
    pub(super) fn is_busy(&self) -> bool {
        match (self.stage, self.body) {
            (Stage::Request, _) | (_, Body::Open) => true,
            (Stage::Quiet { .. } | Stage::Head { .. }, Body::Ended | Body::Left) => false,
        }
    }

    /// Whether the client has everything, and it is known where its next request begins.
    pub(super) fn is_between_requests(&self) -> bool {
        !self.is_busy() && self.body == Body::Ended && self.write_blocked_since.is_none()
    }

    /// Whether nobody but hyper knows where the next request begins.
    pub(super) fn is_spoilt(&self) -> bool {
        !self.is_busy() && self.body == Body::Left
    }

    /// From now on nothing of a next request is to be read, or again it is.
    pub(super) fn hold(&mut self, holds: bool) {
        self.holds = holds;
    }

    /// Whether hyper may read: it reads ahead, and what it has read it answers.
    pub(super) fn may_read(&self) -> bool {
        !self.holds || self.body == Body::Open
    }

    /// The response, with its body, has been handed over for writing, or given up.
    pub(super) fn response_ended(&mut self, now: Instant) {
        self.stage = Stage::Quiet { since: now };
    }

    /// The client took nothing, as there is no room on the way to it.
    pub(super) fn write_blocked(&mut self, now: Instant) {
        self.write_blocked_since.get_or_insert(now);
    }

    /// The client took something.
    pub(super) fn write_went_on(&mut self) {
        self.write_blocked_since = None;
    }

    /// When the patience with this connection ends, as things are, and why; none while only the
    /// service itself is waited for.
    pub(super) fn patience(
        &self,
        options: &Options,
        drain_begun_at: Option<Instant>,
    ) -> Option<(Instant, Expiry)> {
        if let Some(since) = self.write_blocked_since {
            return Some((since + options.write_timeout, Expiry::WriteBlocked));
        }
        match self.stage {
            Stage::Quiet { since } => {
                let idle = since + options.idle_timeout;
                let end = match (drain_begun_at, self.body) {
                    (Some(begun_at), Body::Ended | Body::Left) => {
                        idle.min(since.max(begun_at) + options.linger)
                    }
                    // The client is in the middle of a request's body.
                    (Some(_), Body::Open) | (None, _) => idle,
                };
                Some((end, Expiry::Quiet))
            }
            Stage::Head { since } => Some((since + options.head_timeout, Expiry::HeadTooSlow)),
            Stage::Request => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn options() -> Options {
        Options {
            linger: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(100),
            head_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(50),
            ..Options::default()
        }
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_quiet_connection_lives_until_the_idle_timeout() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        assert_eq!(
            activity.patience(&options(), None),
            Some((after(start, 100), Expiry::Quiet))
        );
        activity.bytes_arrived(after(start, 5));
        activity.request_started(false);
        activity.response_ended(after(start, 7));
        assert_eq!(
            activity.patience(&options(), None),
            Some((after(start, 107), Expiry::Quiet))
        );
    }

    #[test]
    fn linger_counts_from_the_drain_or_the_last_response() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        let drain = Some(after(start, 20));
        assert_eq!(
            activity.patience(&options(), drain),
            Some((after(start, 22), Expiry::Quiet))
        );
        activity.bytes_arrived(after(start, 21));
        activity.request_started(false);
        activity.response_ended(after(start, 30));
        assert_eq!(
            activity.patience(&options(), drain),
            Some((after(start, 32), Expiry::Quiet))
        );
    }

    #[test]
    fn an_idle_timeout_that_ends_first_counts_during_the_drain_too() {
        let start = Instant::now();
        let activity = Activity::new(start);
        assert_eq!(
            activity.patience(&options(), Some(after(start, 99))),
            Some((after(start, 100), Expiry::Quiet))
        );
    }

    #[test]
    fn a_running_request_is_never_cut() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        activity.bytes_arrived(start);
        activity.request_started(false);
        activity.bytes_arrived(after(start, 1));
        assert_eq!(activity.patience(&options(), None), None);
        assert_eq!(activity.patience(&options(), Some(start)), None);
    }

    #[test]
    fn a_head_has_its_time_from_its_first_byte_even_in_a_drain() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        activity.bytes_arrived(after(start, 1));
        activity.bytes_arrived(after(start, 8));
        let expected = Some((after(start, 11), Expiry::HeadTooSlow));
        assert_eq!(activity.patience(&options(), None), expected);
        assert_eq!(activity.patience(&options(), Some(start)), expected);
    }

    #[test]
    fn between_requests_is_where_body_and_response_have_ended() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        assert!(activity.is_between_requests());
        activity.bytes_arrived(start);
        assert!(activity.is_between_requests());
        activity.request_started(true);
        activity.response_ended(start);
        assert!(activity.is_busy());
        activity.body_ended();
        assert!(activity.is_between_requests());
        activity.request_started(true);
        activity.body_left_unread();
        activity.response_ended(start);
        assert!(!activity.is_busy() && !activity.is_between_requests());
        assert!(activity.is_spoilt());
        activity.request_started(false);
        activity.response_ended(start);
        assert!(activity.is_between_requests());
        activity.write_blocked(start);
        assert!(!activity.is_between_requests() && !activity.is_spoilt());
    }

    #[test]
    fn a_client_that_does_not_read_is_given_up() {
        let start = Instant::now();
        let mut activity = Activity::new(start);
        activity.bytes_arrived(start);
        activity.request_started(false);
        activity.write_blocked(after(start, 3));
        activity.write_blocked(after(start, 9));
        assert_eq!(
            activity.patience(&options(), None),
            Some((after(start, 53), Expiry::WriteBlocked))
        );
        activity.write_went_on();
        assert_eq!(activity.patience(&options(), None), None);
    }
}
