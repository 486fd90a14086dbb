//! Counts how often each page was asked for, and goes on counting in the next generation.

use std::{convert::Infallible, error::Error, time::Duration};

use heirloom_app::{
    Drain, Inherited, http,
    state::{Map, State, Tenure},
};
use hyper::{Request, Response, service::service_fn};
use serde::{Deserialize, Serialize};

#[derive(Clone, Serialize, Deserialize, heirloom_state_codec::State)]
#[state(name = "page", version = 1, oldest)]
struct Page {
    visits: u64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut inherited = Inherited::from_env()?;
    let listener = inherited.take_listener("http")?;
    let drain = Drain::new(Duration::from_secs(30));
    drain.begin_on_signals()?;

    let state = State::new();
    let pages: Map<String, Page> = Map::new(&state, "pages");
    // When this returns, this process owns the state: all of it, to the last write of the one before.
    let tenure = Tenure::new("visits", "1.0.0");
    state.take_over(&mut inherited, &drain, tenure).await?;

    let service = service_fn(move |request: Request<http::RequestBody>| {
        let pages = pages.clone();
        async move {
            let visit = |page: &mut Option<Page>| {
                let page = page.get_or_insert(Page { visits: 0 });
                page.visits += 1;
                page.visits
            };
            let visits = pages.update(request.uri().path().to_owned(), visit).await;
            let text = visits.map_or_else(|error| error.to_string(), |visits| visits.to_string());
            Ok::<_, Infallible>(Response::new(text))
        }
    });
    http::serve(listener, service, &drain, http::Options::default())?;
    inherited.notifier().ready("serving").await?;
    drain.finished().await;
    Ok(())
}
