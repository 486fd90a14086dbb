//! What the clients ask of the demo service: which version and generation answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use heirloom_bench::load::{Pace, Plan, Request, Response, Reuse};
use serde::Deserialize;

use crate::options::Options;

/// Most generations whose version is remembered.
const GENERATION_LIMIT: usize = 1000;

/// The version of each generation, as the service itself said.
pub(crate) type Versions = BTreeMap<u64, String>;

#[derive(Debug, Default)]
pub(crate) struct Demo {
    versions: Arc<Mutex<Versions>>,
}

#[derive(Debug, Deserialize)]
struct Version {
    version: String,
    generation: u64,
}

impl Demo {
    pub(crate) fn plan(&self, server: SocketAddr, options: &Options) -> Plan {
        let versions = Arc::clone(&self.versions);
        let pace = Pace::per_second(options.rate);
        Plan::new(server, Request::get("/version"))
            .keep_alive(
                usize::from(options.keep_alive_clients()),
                pace,
                Reuse::Checked,
            )
            .fresh(usize::from(options.fresh_clients()), pace)
            .idle(usize::from(options.idle))
            // The end comes from outside; this is the limit should it not come.
            .duration(options.duration * 2)
            .check(check)
            .generation(move |response| {
                let Version {
                    version,
                    generation,
                } = serde_json::from_slice(&response.body).ok()?;
                let mut versions = versions.lock().unwrap_or_else(PoisonError::into_inner);
                if versions.len() < GENERATION_LIMIT {
                    versions.entry(generation).or_insert(version);
                }
                Some(generation)
            })
    }

    pub(crate) fn versions(&self) -> Versions {
        self.versions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn check(_: usize, _: u64, response: &Response) -> Result<(), String> {
    match serde_json::from_slice::<Version>(&response.body) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("/version answered {:?}: {error}", response.text())),
    }
}
