//! What the demo answers.

use std::{convert::Infallible, process, sync::Arc, time::Duration};

use heirloom_app::http::RequestBody;
use http_body_util::Full as FullBody;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    request::{key, number, parameter},
    state::{COUNTERS_MAX, FILL_BYTES_MAX, FILL_ENTRIES_MAX, FILL_TOTAL_BYTES_MAX, Full, State},
};

/// The longest a request to /slow may wait.
const SLOW_MS_MAX: u64 = 600_000;

const HELP: &str = "\
GET  /hello                    who answers: version and generation
GET  /version                  the same, and the process id, as JSON
POST /counters/KEY             adds one and answers the new value
GET  /counters/KEY             the value; 0 if nobody has added
GET  /slow?ms=500&key=KEY      waits, then adds one to the counter
POST /fill?entries=N&bytes=B   makes the state this large, for measurements
";

/// Who answers, as /version has it.
#[derive(Debug, Serialize)]
struct Identity {
    version: &'static str,
    generation: u64,
    pid: u32,
}

type Answer = Response<FullBody<Bytes>>;

/// The service of one generation.
#[derive(Debug)]
pub(super) struct Demo {
    version: &'static str,
    generation: u64,
    state: State,
}

impl Demo {
    pub(super) fn new(version: &'static str, generation: u64) -> Self {
        Self {
            version,
            generation,
            state: State::new(COUNTERS_MAX),
        }
    }

    /// Answers any request.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
    ) -> Result<Answer, Infallible> {
        let uri = request.uri();
        Ok(self.route(request.method(), uri.path(), uri.query()).await)
    }

    async fn route(self: Arc<Self>, method: &Method, path: &str, query: Option<&str>) -> Answer {
        let result = match path {
            "/" => match *method {
                Method::GET | Method::HEAD => Ok(text(StatusCode::OK, HELP)),
                _ => return not_allowed(path, "GET, HEAD"),
            },
            "/hello" => match *method {
                Method::GET | Method::HEAD => Ok(self.hello()),
                _ => return not_allowed(path, "GET, HEAD"),
            },
            "/version" => match *method {
                Method::GET | Method::HEAD => Ok(self.version()),
                _ => return not_allowed(path, "GET, HEAD"),
            },
            "/slow" => match *method {
                Method::GET => self.slow(query).await,
                _ => return not_allowed(path, "GET"),
            },
            "/fill" => match *method {
                Method::POST => self.fill(query).await,
                _ => return not_allowed(path, "POST"),
            },
            _ => match (path.strip_prefix("/counters/"), method) {
                (Some(key), &Method::GET | &Method::HEAD) => self.counter(key),
                (Some(key), &Method::POST) => self.add_one(key),
                (Some(_), _) => return not_allowed(path, "GET, HEAD, POST"),
                (None, _) => {
                    return text(
                        StatusCode::NOT_FOUND,
                        &format!("nothing is at {path}; there is:\n{HELP}"),
                    );
                }
            },
        };
        result.unwrap_or_else(Refusal::into_answer)
    }

    fn hello(&self) -> Answer {
        // There is no former version to name as long as no state comes from one.
        text(
            StatusCode::OK,
            &format!(
                "hello, version={}, generation={}, oldversion=, oldgeneration=0",
                self.version, self.generation
            ),
        )
    }

    fn version(&self) -> Answer {
        let identity = Identity {
            version: self.version,
            generation: self.generation,
            pid: process::id(),
        };
        match serde_json::to_string(&identity) {
            Ok(json) => with_type(StatusCode::OK, json, "application/json"),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    fn counter(&self, encoded_key: &str) -> Result<Answer, Refusal> {
        let value = self.state.counter(&key(encoded_key)?);
        Ok(text(StatusCode::OK, &value.to_string()))
    }

    fn add_one(&self, encoded_key: &str) -> Result<Answer, Refusal> {
        let value = self.state.add_one(&key(encoded_key)?)?;
        Ok(text(StatusCode::OK, &value.to_string()))
    }

    async fn slow(&self, query: Option<&str>) -> Result<Answer, Refusal> {
        let wait = Duration::from_millis(number(query, "ms", 0..=SLOW_MS_MAX, Some(500))?);
        let key = match parameter(query, "key")? {
            // Decoded already, so it is only checked: a percent sign in it is just that.
            Some(decoded) => key(&decoded.replace('%', "%25"))?,
            None => "slow".to_owned(),
        };
        sleep(wait).await;
        let value = self.state.add_one(&key)?;
        Ok(text(
            StatusCode::OK,
            &format!("value={value} generation={}", self.generation),
        ))
    }

    async fn fill(self: Arc<Self>, query: Option<&str>) -> Result<Answer, Refusal> {
        let entries = number(query, "entries", 0..=FILL_ENTRIES_MAX, None)?;
        let bytes = number(query, "bytes", 0..=FILL_BYTES_MAX, Some(100))?;
        // A million allocations take longer than a serving thread may be held up.
        let filled = spawn_blocking(move || self.state.fill(entries, bytes)).await;
        match filled {
            Ok(result) => result?,
            Err(error) => {
                return Ok(text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    &format!("filling ended early: {error}"),
                ));
            }
        }
        Ok(text(
            StatusCode::OK,
            &format!("entries={entries} bytes={bytes}"),
        ))
    }
}

/// Why a request was not carried out.
#[derive(Debug)]
enum Refusal {
    /// The request is wrong; the text says what would be right.
    BadRequest(String),
    /// The state is full.
    Full(Full),
}

impl From<String> for Refusal {
    fn from(text: String) -> Self {
        Self::BadRequest(text)
    }
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        Self::Full(full)
    }
}

impl Refusal {
    fn into_answer(self) -> Answer {
        match self {
            Self::BadRequest(reason) => text(StatusCode::BAD_REQUEST, &reason),
            Self::Full(Full::Counters) => text(
                StatusCode::INSUFFICIENT_STORAGE,
                &format!("there are {COUNTERS_MAX} counters already; use one of them"),
            ),
            Self::Full(Full::Filling) => text(
                StatusCode::BAD_REQUEST,
                &format!("entries times bytes is at most {FILL_TOTAL_BYTES_MAX}"),
            ),
        }
    }
}

fn not_allowed(path: &str, allowed: &'static str) -> Answer {
    let mut answer = text(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("{path} takes {allowed}"),
    );
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// No line break at the end: scripts compare these answers.
fn text(status: StatusCode, text: &str) -> Answer {
    with_type(status, text.to_owned(), "text/plain; charset=utf-8")
}

fn with_type(status: StatusCode, body: String, content_type: &'static str) -> Answer {
    let mut answer = Response::new(FullBody::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use super::*;

    fn demo() -> Arc<Demo> {
        Arc::new(Demo::new("1.2.3", 7))
    }

    async fn ask(demo: &Arc<Demo>, method: Method, target: &str) -> (u16, String) {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let answer = Arc::clone(demo).route(&method, path, query).await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn it_says_who_it_is() {
        let demo = demo();
        assert_eq!(
            ask(&demo, Method::GET, "/hello").await,
            (
                200,
                "hello, version=1.2.3, generation=7, oldversion=, oldgeneration=0".to_owned()
            )
        );
        let (status, json) = ask(&demo, Method::GET, "/version").await;
        assert_eq!(status, 200);
        let pid = process::id();
        assert_eq!(
            json,
            format!(r#"{{"version":"1.2.3","generation":7,"pid":{pid}}}"#)
        );
    }

    #[tokio::test]
    async fn counters_are_read_and_added_to() {
        let demo = demo();
        let zero = (200, "0".to_owned());
        assert_eq!(ask(&demo, Method::GET, "/counters/a").await, zero);
        let one = (200, "1".to_owned());
        assert_eq!(ask(&demo, Method::POST, "/counters/a").await, one);
        assert_eq!(ask(&demo, Method::GET, "/counters/%61").await, one);
        assert_eq!(ask(&demo, Method::GET, "/counters/").await.0, 400);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_waits_first_and_adds_then() {
        let demo = demo();
        let started = Instant::now();
        let slow = ask(&demo, Method::GET, "/slow?ms=700&key=a%2525");
        let mut slow = std::pin::pin!(slow);
        tokio::select! {
            biased;
            _ = &mut slow => panic!("it did not wait"),
            () = sleep(Duration::from_millis(699)) => {}
        }
        let untouched = ask(&demo, Method::GET, "/counters/a%2525").await;
        assert_eq!(untouched, (200, "0".to_owned()));
        assert_eq!(slow.await, (200, "value=1 generation=7".to_owned()));
        assert!(started.elapsed() >= Duration::from_millis(700));
        let added = ask(&demo, Method::GET, "/counters/a%2525").await;
        assert_eq!(added, (200, "1".to_owned()));
    }

    #[tokio::test]
    async fn limits_are_told() {
        let demo = demo();
        for (method, target, part) in [
            (
                Method::GET,
                "/slow?ms=600001",
                "ms is a number from 0 to 600000",
            ),
            (Method::GET, "/slow?ms=fast", "ms is a number"),
            (Method::POST, "/fill", "entries is a number"),
            (
                Method::POST,
                "/fill?entries=1&bytes=65537",
                "bytes is a number",
            ),
            (
                Method::POST,
                "/fill?entries=10000000&bytes=65536",
                "entries times bytes",
            ),
        ] {
            let (status, text) = ask(&demo, method, target).await;
            assert_eq!(status, 400, "{target}");
            assert!(text.contains(part), "{target}: {text}");
        }
        let filled = ask(&demo, Method::POST, "/fill?entries=1000&bytes=32").await;
        assert_eq!(filled, (200, "entries=1000 bytes=32".to_owned()));
    }

    #[tokio::test]
    async fn what_is_not_there_is_told_with_what_is() {
        let demo = demo();
        let (status, text) = ask(&demo, Method::GET, "/nowhere").await;
        assert_eq!(status, 404);
        assert!(text.contains("/nowhere") && text.contains("/counters/KEY"));
        let (status, text) = ask(&demo, Method::DELETE, "/counters/a").await;
        assert_eq!(
            (status, text.as_str()),
            (405, "/counters/a takes GET, HEAD, POST")
        );
        assert_eq!(ask(&demo, Method::HEAD, "/slow?ms=1").await.0, 405);
    }
}
