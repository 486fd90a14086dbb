//! A native app whose requests and answers take their time: what runs when the next generation takes
//! over is finished here, byte by byte, and its connection moves when it is over.
//!
//! ```text
//! GET  /stream?pieces=9&bytes=100&ms=50   so many pieces of so many bytes, one every so often
//! POST /echo                              the body, as it comes
//! POST /uploads/KEY                       reads all of the body, then adds one to the key's count
//! GET  /uploads/KEY                       the count
//! POST /ignored                           an answer that does not wait for the body
//! ```

use std::{convert::Infallible, error::Error, time::Duration};

use futures_util::stream;
use heirloom_app::{
    Drain, Inherited, Listener,
    http::{self, RequestBody},
    state::{Map, State, Tenure},
};
use heirloom_state_codec::State as Schema;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Frame},
    service::service_fn,
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

/// How long requests may take to finish once another generation has taken over.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// The most of anything a client may ask for.
const MOST: u64 = 1 << 20;

type Failure = Box<dyn Error + Send + Sync>;
type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// What came in under one key.
#[derive(Clone, Debug, Default, Serialize, Deserialize, Schema)]
#[state(name = "uploads", version = 1, oldest)]
struct Uploads {
    count: u64,
}

/// The service of one generation.
#[derive(Clone, Debug)]
struct Service {
    generation: u64,
    uploads: Map<String, Uploads>,
}

fn main() -> Result<(), Failure> {
    let mut inherited = Inherited::from_env()?;
    let listener = inherited.take_listener_or_only("http")?;
    tokio::runtime::Runtime::new()?.block_on(serve(&mut inherited, listener))
}

async fn serve(inherited: &mut Inherited, listener: Listener) -> Result<(), Failure> {
    let drain = Drain::new(DRAIN_LIMIT);
    drain.begin_on_signals()?;
    let state = State::new();
    let service = Service {
        generation: inherited.generation(),
        uploads: Map::new(&state, "uploads"),
    };
    let tenure = Tenure::new("streaming", env!("CARGO_PKG_VERSION"));
    state.take_over(inherited, &drain, tenure).await?;
    let answer = service_fn(move |request| service.clone().answer(request));
    http::serve(listener, answer, &drain, http::Options::default())?;
    inherited.notifier().ready("serving").await?;
    drain.finished().await;
    Ok(())
}

impl Service {
    async fn answer(self, request: Request<RequestBody>) -> Result<Answer, Infallible> {
        let answered = self.try_answer(request).await;
        Ok(answered.unwrap_or_else(|error| {
            let mut answer = text(error.to_string());
            *answer.status_mut() = StatusCode::BAD_REQUEST;
            answer
        }))
    }

    async fn try_answer(self, request: Request<RequestBody>) -> Result<Answer, Failure> {
        let path = request.uri().path().to_owned();
        let generation = self.generation;
        match (request.method(), path.split('/').nth(1).unwrap_or_default()) {
            (&Method::GET, "stream") => {
                let query = request.uri().query().unwrap_or_default();
                let number = |name| number(query, name);
                let (pieces, bytes, ms) = (number("pieces")?, number("bytes")?, number("ms")?);
                Ok(pieces_of(
                    generation,
                    pieces,
                    bytes,
                    Duration::from_millis(ms),
                ))
            }
            (&Method::POST, "echo") => {
                let mut answer = Response::new(request.into_body().boxed());
                answer.headers_mut().insert("generation", generation.into());
                Ok(answer)
            }
            (&Method::POST, "uploads") => {
                let mut body = request.into_body();
                let mut bytes = 0;
                while let Some(frame) = body.frame().await {
                    bytes += frame?.data_ref().map_or(0, Bytes::len);
                }
                let add = |entry: &mut Option<Uploads>| {
                    let uploads = entry.get_or_insert_default();
                    uploads.count += 1;
                    uploads.count
                };
                let count = self.uploads.update(path, add).await?;
                Ok(text(format!(
                    "count={count} bytes={bytes} generation={generation}"
                )))
            }
            (&Method::GET, "uploads") => {
                let uploads = self.uploads.get(&path).await?.unwrap_or_default();
                Ok(text(uploads.count.to_string()))
            }
            (&Method::POST, "ignored") => Ok(text(format!("generation={generation}"))),
            _ => Err("there is /stream, /echo, /uploads/KEY and /ignored".into()),
        }
    }
}

/// An answer that comes in pieces, of a length that the client is not told before.
fn pieces_of(generation: u64, pieces: u64, bytes: u64, pause: Duration) -> Answer {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let body = stream::unfold(0, move |number| async move {
        if number == pieces {
            return None;
        }
        sleep(pause).await;
        let piece = format!("generation={generation} piece={number} ");
        let piece = format!("{piece:.<bytes$}\n");
        Some((Ok(Frame::data(Bytes::from(piece))), number + 1))
    });
    Response::new(BodyExt::boxed(StreamBody::new(Box::pin(body))))
}

fn text(text: String) -> Answer {
    let body = Full::new(Bytes::from(text));
    Response::new(body.map_err(|never| match never {}).boxed())
}

/// A number of a query, such as `ms=5`.
fn number(query: &str, name: &str) -> Result<u64, Failure> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs
        .find(|(key, _)| *key == name)
        .ok_or_else(|| format!("{name}= is missing"))?;
    let number: u64 = value.parse()?;
    if number > MOST {
        return Err(format!("{name} is at most {MOST}").into());
    }
    Ok(number)
}
