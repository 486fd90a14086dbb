//! What the clients ask of the demo service, and how they know that no answer was lost or doubled.
//!
//! Each client alternates between asking for the version and adding one to a counter of its own.
//! The counter lives in the service's memory and so moves with every handover. If its answer is not
//! exactly one more than the last, a write was lost or applied twice.

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
            .requests(request)
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

fn request(client: usize, number: u64) -> Request {
    if number.is_multiple_of(2) {
        Request::get("/version")
    } else {
        Request::post(format!("/counters/client-{client}"), "")
    }
}

fn check(client: usize, number: u64, response: &Response) -> Result<(), String> {
    let text = response.text();
    if number.is_multiple_of(2) {
        return match serde_json::from_str::<Version>(&text) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("/version answered {text:?}: {error}")),
        };
    }
    let wanted = number / 2 + 1;
    match text.trim().parse::<u64>() {
        Ok(found) if found == wanted => Ok(()),
        Ok(found) if found < wanted => Err(format!(
            "counter of client {client} is {found}, not {wanted}: a write was lost"
        )),
        Ok(found) => Err(format!(
            "counter of client {client} is {found}, not {wanted}: a write was applied twice"
        )),
        Err(_) => Err(format!("/counters answered {text:?}, which is no number")),
    }
}
