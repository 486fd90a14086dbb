//! What the demo answers: which request goes where. What happens there is in the file of its subject.

use std::{convert::Infallible, error::Error, process, sync::Arc};

use heirloom_app::{http::RequestBody, session::Served};
use http_body_util::Full as FullBody;
use hyper::{
    Method, Request, StatusCode,
    body::{Body, Bytes},
};
use serde::Serialize;
use tokio::sync::Mutex;

use super::{
    answer::{Answer, Refusal, json, text},
    state::Stores,
    transactions::Step,
};
use crate::release::{Identity, Talk, VERSION};

/// How often a change over several entries is tried when others change them meanwhile. Each time
/// somebody else got on, so this ends only under a load that no demo has.
pub(super) const CONFLICTS_MAX: u32 = 1000;

const HELP: &str = "\
GET  /hello                    who answers, and who did before: version and generation
GET  /version                  who answers, and the process id, as JSON
POST /counters/KEY             adds one and answers the new value
GET  /counters/KEY             the value; 0 if nobody has added
POST /sessions                 {\"user\":\"ann\"} opens a session
GET  /sessions/TOKEN           whose it is, and how often it was asked for
POST /transfers                {\"from\":\"a\",\"to\":\"b\",\"amount\":5} moves it; each begins with 1000
GET  /ledger                   all accounts at one instant
POST /transactions             begins one; then
POST /transactions/ID/add      {\"key\":\"k\",\"n\":1} adds to a counter, once it is committed
POST /transactions/ID/commit   carries all of it out
POST /transactions/ID/abort    gives it up
GET  /ws                       a WebSocket: a text is answered with its number
GET  /slow?ms=500&key=KEY      waits, then adds one to the counter
POST /fill?entries=N&bytes=B   makes the state this large, for measurements
";

/// Who answers, as /version has it.
#[derive(Debug, Serialize)]
struct Who {
    version: &'static str,
    generation: u64,
    pid: u32,
}

/// The service of one generation.
#[derive(Debug)]
pub(super) struct Demo {
    pub(super) generation: u64,
    /// The generation before.
    before: Identity,
    pub(super) stores: Stores,
    /// Held while the filling is being replaced.
    pub(super) filling: Mutex<()>,
    /// What requests for a WebSocket are answered with; none in tests of single requests.
    frames: Option<Served<Talk>>,
}

impl Demo {
    pub(super) fn new(generation: u64, before: Identity, stores: Stores) -> Self {
        Self {
            generation,
            before,
            stores,
            filling: Mutex::new(()),
            frames: None,
        }
    }

    /// The same, with WebSockets at /ws.
    pub(super) fn with_frames(self, frames: Served<Talk>) -> Self {
        Self {
            frames: Some(frames),
            ..self
        }
    }

    /// Answers any request.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
    ) -> Result<Answer, Infallible> {
        if let (&Method::GET, "/ws", Some(frames)) =
            (request.method(), request.uri().path(), &self.frames)
        {
            let answer = frames.upgrade(&request, Talk::begin(self.generation));
            return Ok(match answer {
                Ok(answer) => answer.map(|()| FullBody::default()),
                Err(error) => Refusal::NotAWebSocket(error).into_answer(),
            });
        }
        let (head, body) = request.into_parts();
        let (path, query) = (head.uri.path(), head.uri.query());
        let answer = self.route(&head.method, path, query, body).await;
        Ok(answer.unwrap_or_else(Refusal::into_answer))
    }

    async fn route<B>(
        &self,
        method: &Method,
        path: &str,
        query: Option<&str>,
        body: B,
    ) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let posts = *method == Method::POST;
        match segments.as_slice() {
            [""] if reads => Ok(text(StatusCode::OK, HELP)),
            ["hello"] if reads => Ok(self.hello()),
            ["version"] if reads => Ok(self.version()),
            ["ledger"] if reads => self.ledger().await,
            ["counters", key] if reads => self.counter(key).await,
            ["counters", key] if posts => self.add_one(key).await,
            ["sessions"] if posts => self.open_session(body).await,
            // These two change something, so HEAD would not be harmless.
            ["sessions", token] if *method == Method::GET => self.visit_session(token).await,
            ["slow"] if *method == Method::GET => self.slow(query).await,
            ["transfers"] if posts => self.transfer(body).await,
            ["transactions"] if posts => self.begin().await,
            ["transactions", id, "add"] if posts => self.step(id, Step::Add, body).await,
            ["transactions", id, "commit"] if posts => self.step(id, Step::Commit, body).await,
            ["transactions", id, "abort"] if posts => self.step(id, Step::Abort, body).await,
            ["fill"] if posts => self.fill(query).await,
            ["" | "hello" | "version" | "ledger"] => Err(Refusal::NotAllowed("GET, HEAD")),
            ["counters", _] => Err(Refusal::NotAllowed("GET, HEAD, POST")),
            ["sessions", _] | ["slow" | "ws"] => Err(Refusal::NotAllowed("GET")),
            ["sessions" | "transfers" | "transactions" | "fill"]
            | ["transactions", _, "add" | "commit" | "abort"] => Err(Refusal::NotAllowed("POST")),
            _ => Err(Refusal::NotFound(format!(
                "nothing is at {path}; there is:\n{HELP}"
            ))),
        }
    }

    fn hello(&self) -> Answer {
        let Identity {
            version,
            generation,
        } = &self.before;
        text(
            StatusCode::OK,
            format!(
                "hello, version={VERSION}, generation={}, oldversion={version}, \
                 oldgeneration={generation}",
                self.generation
            ),
        )
    }

    fn version(&self) -> Answer {
        let who = Who {
            version: VERSION,
            generation: self.generation,
            pid: process::id(),
        };
        json(StatusCode::OK, &who)
    }
}

/// What is said after [`CONFLICTS_MAX`].
pub(super) fn too_busy() -> Refusal {
    Refusal::Unavailable(
        "too many others change the same entries, and nothing was changed; try again".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::{BodyExt, Full};
    use tokio::time::{Instant, sleep};

    use super::*;

    fn demo() -> Demo {
        let before = Identity {
            version: "0.9.0".to_owned(),
            generation: 6,
        };
        Demo::new(7, before, Stores::new())
    }

    async fn send(demo: &Demo, method: Method, target: &str, body: &str) -> (u16, String) {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let body = Full::new(Bytes::from(body.to_owned()));
        let answer = demo.route(&method, path, query, body).await;
        let answer = answer.unwrap_or_else(Refusal::into_answer);
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(demo: &Demo, target: &str) -> (u16, String) {
        send(demo, Method::GET, target, "").await
    }

    async fn post(demo: &Demo, target: &str, body: &str) -> (u16, String) {
        send(demo, Method::POST, target, body).await
    }

    /// The value of a field of an answer that must have this status.
    fn field((status, body): (u16, String), expected: u16, name: &str) -> String {
        assert_eq!(status, expected, "{body}");
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        json[name].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn it_says_who_it_is_and_who_was_before() {
        let demo = demo();
        let hello =
            format!("hello, version={VERSION}, generation=7, oldversion=0.9.0, oldgeneration=6");
        assert_eq!(get(&demo, "/hello").await, (200, hello));
        let pid = process::id();
        assert_eq!(
            get(&demo, "/version").await,
            (
                200,
                format!(r#"{{"version":"{VERSION}","generation":7,"pid":{pid}}}"#)
            )
        );
    }

    #[tokio::test]
    async fn counters_are_read_and_added_to() {
        let demo = demo();
        let zero = (200, "0".to_owned());
        assert_eq!(get(&demo, "/counters/a").await, zero);
        let one = (200, "1".to_owned());
        assert_eq!(post(&demo, "/counters/a", "").await, one);
        assert_eq!(get(&demo, "/counters/%61").await, one);
        assert_eq!(get(&demo, "/counters/").await.0, 400);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_waits_first_and_adds_then() {
        let demo = demo();
        let started = Instant::now();
        let mut slow = std::pin::pin!(get(&demo, "/slow?ms=700&key=a%2525"));
        tokio::select! {
            biased;
            _ = &mut slow => panic!("it did not wait"),
            () = sleep(Duration::from_millis(699)) => {}
        }
        let untouched = get(&demo, "/counters/a%2525").await;
        assert_eq!(untouched, (200, "0".to_owned()));
        assert_eq!(slow.await, (200, "value=1 generation=7".to_owned()));
        assert!(started.elapsed() >= Duration::from_millis(700));
        let added = get(&demo, "/counters/a%2525").await;
        assert_eq!(added, (200, "1".to_owned()));
    }

    #[tokio::test]
    async fn a_session_counts_its_visits() {
        let demo = demo();
        let opened = post(&demo, "/sessions", r#"{"user":"ann"}"#).await;
        let token = field(opened, 201, "token");
        for visits in 1..=2 {
            let (status, body) = get(&demo, &format!("/sessions/{token}")).await;
            assert_eq!(status, 200);
            let json: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(
                (json["user"].as_str(), json["visits"].as_u64()),
                (Some("ann"), Some(visits))
            );
        }
        for missing in ["x", &"0".repeat(32)] {
            assert_eq!(get(&demo, &format!("/sessions/{missing}")).await.0, 404);
        }
        for bad in ["", "[]", r#"{"user":""}"#, r#"{"user":7}"#] {
            assert_eq!(post(&demo, "/sessions", bad).await.0, 400, "{bad}");
        }
    }

    #[tokio::test]
    async fn transfers_move_money_and_make_none() {
        let demo = demo();
        let ledger = |accounts, transfers| {
            let total = accounts * 1000;
            let text =
                format!(r#"{{"accounts":{accounts},"total":{total},"transfers":{transfers}}}"#);
            (200, text)
        };
        assert_eq!(get(&demo, "/ledger").await, ledger(0, 0));
        let transfer = |from: &str, to: &str, amount: i64| {
            format!(r#"{{"from":"{from}","to":"{to}","amount":{amount}}}"#)
        };
        let all = post(&demo, "/transfers", &transfer("a", "b", 1000)).await;
        assert_eq!(field(all, 201, "id").len(), 32);
        assert_eq!(get(&demo, "/ledger").await, ledger(2, 1));
        let refused = post(&demo, "/transfers", &transfer("a", "c", 1)).await;
        assert_eq!(refused, (409, "a has 0, which is less than 1".to_owned()));
        let back = post(&demo, "/transfers", &transfer("b", "c", 2000)).await;
        assert_eq!(back.0, 201);
        assert_eq!(get(&demo, "/ledger").await, ledger(3, 2));
        for bad in [
            transfer("a", "a", 1),
            transfer("a", "b", 0),
            transfer("a", "b", -1),
        ] {
            assert_eq!(post(&demo, "/transfers", &bad).await.0, 400, "{bad}");
        }
        assert_eq!(get(&demo, "/ledger").await, ledger(3, 2));
    }

    #[tokio::test]
    async fn a_transaction_is_carried_out_once_and_as_a_whole() {
        let demo = demo();
        let id = field(post(&demo, "/transactions", "").await, 201, "id");
        let on = |step: &str| format!("/transactions/{id}/{step}");
        for (key, n, answer) in [
            ("k", 2, r#"{"adds":1,"total":2}"#),
            ("l", 3, r#"{"adds":2,"total":5}"#),
            ("k", 5, r#"{"adds":3,"total":10}"#),
        ] {
            let add = format!(r#"{{"key":"{key}","n":{n}}}"#);
            let added = post(&demo, &on("add"), &add).await;
            assert_eq!(added, (200, answer.to_owned()));
        }
        assert_eq!(get(&demo, "/counters/k").await.1, "0");
        let committed = post(&demo, &on("commit"), "").await;
        assert_eq!(committed, (200, r#"{"counters":{"k":7,"l":3}}"#.to_owned()));
        assert_eq!(get(&demo, "/counters/k").await.1, "7");
        for step in ["commit", "abort"] {
            assert_eq!(post(&demo, &on(step), "").await.0, 404);
        }
        let add = post(&demo, &on("add"), r#"{"key":"k","n":1}"#).await;
        assert_eq!(add.0, 404);

        let id = field(post(&demo, "/transactions", "").await, 201, "id");
        let on = |step: &str| format!("/transactions/{id}/{step}");
        for bad in [r#"{"key":"k","n":0}"#, r#"{"key":"","n":1}"#, r#"{"n":1}"#] {
            assert_eq!(post(&demo, &on("add"), bad).await.0, 400, "{bad}");
        }
        for number in 1..=65 {
            let added = post(&demo, &on("add"), r#"{"key":"k","n":1}"#).await;
            assert_eq!(added.0, if number <= 64 { 200 } else { 409 });
        }
        assert_eq!(post(&demo, &on("abort"), "").await.0, 200);
        assert_eq!(get(&demo, "/counters/k").await.1, "7");
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
            let (status, text) = send(&demo, method, target, "").await;
            assert_eq!(status, 400, "{target}");
            assert!(text.contains(part), "{target}: {text}");
        }
    }

    #[tokio::test]
    async fn filling_replaces_what_was_there() {
        let demo = demo();
        for (entries, bytes) in [(1000_u64, 20), (10, 16), (200, 1), (0, 100)] {
            let target = format!("/fill?entries={entries}&bytes={bytes}");
            let filled = post(&demo, &target, "").await;
            assert_eq!(filled, (200, format!("entries={entries} bytes={bytes}")));
            let all = demo.stores.filling.entries().await.unwrap();
            assert_eq!(all.len() as u64, entries);
            assert!(all.iter().all(|(_, filling)| filling.bytes.len() == bytes));
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_told_with_what_is() {
        let demo = demo();
        let (status, text) = get(&demo, "/nowhere").await;
        assert_eq!(status, 404);
        assert!(text.contains("/nowhere") && text.contains("/counters/KEY"));
        let (status, text) = send(&demo, Method::DELETE, "/counters/a", "").await;
        assert_eq!(
            (status, text.as_str()),
            (405, "this path takes GET, HEAD, POST")
        );
        for (method, target) in [
            (Method::HEAD, "/slow?ms=1"),
            (Method::HEAD, "/sessions/x"),
            (Method::GET, "/transfers"),
            (Method::GET, "/transactions/x/add"),
            (Method::POST, "/ledger"),
        ] {
            let (status, _) = send(&demo, method, target, "").await;
            assert_eq!(status, 405, "{target}");
        }
        assert_eq!(post(&demo, "/transactions/x/stop", "").await.0, 404);
    }
}
