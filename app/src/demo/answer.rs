//! What an answer looks like, and why a request is not carried out.

use heirloom_app::{state::StateError, websocket::NotAWebSocket};
use http_body_util::Full as FullBody;
use hyper::{
    Response, StatusCode,
    body::Bytes,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;

pub(super) type Answer = Response<FullBody<Bytes>>;

/// Why a request was not carried out. Each text says what would be.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The request is wrong.
    BadRequest(String),
    /// It does not ask for a WebSocket as one does.
    NotAWebSocket(NotAWebSocket),
    /// What it names is not there.
    NotFound(String),
    /// The path takes other methods, which these are.
    NotAllowed(&'static str),
    /// It cannot be as things stand.
    Conflict(String),
    /// Its body did not arrive in time.
    Late,
    /// Its body is larger than this many bytes.
    TooLarge(usize),
    /// There is as much as there may be.
    Full(String),
    /// The state could not be reached, or changed.
    Unavailable(String),
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::BadRequest(text)
    }
}

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl Refusal {
    pub(super) fn into_answer(self) -> Answer {
        let (status, reason) = match self {
            Self::BadRequest(reason) => (StatusCode::BAD_REQUEST, reason),
            Self::NotAWebSocket(error) => (StatusCode::UPGRADE_REQUIRED, error.to_string()),
            Self::NotFound(reason) => (StatusCode::NOT_FOUND, reason),
            Self::NotAllowed(allowed) => {
                let mut answer = text(
                    StatusCode::METHOD_NOT_ALLOWED,
                    format!("this path takes {allowed}"),
                );
                answer
                    .headers_mut()
                    .insert(ALLOW, HeaderValue::from_static(allowed));
                return answer;
            }
            Self::Conflict(reason) => (StatusCode::CONFLICT, reason),
            Self::Late => (
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in time".to_owned(),
            ),
            Self::TooLarge(most) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a body has at most {most} bytes"),
            ),
            Self::Full(reason) => (StatusCode::INSUFFICIENT_STORAGE, reason),
            Self::Unavailable(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
        };
        text(status, reason)
    }
}

/// No line break at the end: scripts compare these answers.
pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    with_type(status, text.into(), "text/plain; charset=utf-8")
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(json) => with_type(status, json, "application/json"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn with_type(status: StatusCode, body: String, content_type: &'static str) -> Answer {
    let mut answer = Response::new(FullBody::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
