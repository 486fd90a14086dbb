//! What the clients ask of the demo service: each counts on a counter of its own, and between asks
//! which version and generation answers. What was acknowledged is compared with what is held.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use heirloom_bench::load::{Connection, Pace, Plan, Request, Response, Reuse};
use serde::Deserialize;
use tokio::time::Instant;

use crate::options::Options;

/// Most generations whose version is remembered.
const GENERATION_LIMIT: usize = 1000;
/// Bytes of each entry the service is filled with.
const FILLING_BYTES: u64 = 100;
/// How long filling may take, and each look at a counter.
const PATIENCE: Duration = Duration::from_secs(30);

/// The version of each generation, as the service itself said.
pub(crate) type Versions = BTreeMap<u64, String>;

#[derive(Debug)]
pub(crate) struct Demo {
    versions: Arc<Mutex<Versions>>,
    /// For each client, how often it was told that its counter had grown.
    acknowledged: Arc<[AtomicU64]>,
}

/// Acknowledged writes against those the service holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Writes {
    pub(crate) acknowledged: u64,
    /// Acknowledged, and not held.
    pub(crate) lost: u64,
    /// Held, and not acknowledged.
    pub(crate) extra: u64,
}

#[derive(Debug, Deserialize)]
struct Version {
    version: String,
    generation: u64,
}

impl Demo {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            versions: Arc::default(),
            acknowledged: (0..options.clients).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Gives the service state to hand over.
    pub(crate) async fn fill(server: SocketAddr, entries: u32) -> Result<()> {
        let path = format!("/fill?entries={entries}&bytes={FILLING_BYTES}");
        ask(server, &Request::post(&path, Vec::new())).await?;
        Ok(())
    }

    pub(crate) fn plan(&self, server: SocketAddr, options: &Options) -> Plan {
        let versions = Arc::clone(&self.versions);
        let acknowledged = Arc::clone(&self.acknowledged);
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
            .requests(|client, number| match counts(number) {
                true => Request::post(counter(client), Vec::new()),
                false => Request::get("/version"),
            })
            .check(move |client, number, response| match counts(number) {
                true => acknowledge(&acknowledged, client, &response.text()),
                false => check_version(response),
            })
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

    /// Writes acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        let each = self.acknowledged.iter();
        each.map(|one| one.load(Ordering::Relaxed)).sum()
    }

    /// Compares every counter with what its client was told, once nobody writes any more.
    pub(crate) async fn compare(&self, server: SocketAddr) -> Result<Writes> {
        let mut writes = Writes {
            acknowledged: self.acknowledged(),
            ..Writes::default()
        };
        for (client, acknowledged) in self.acknowledged.iter().enumerate() {
            let response = ask(server, &Request::get(counter(client))).await?;
            let held: u64 = response.text().trim().parse()?;
            let acknowledged = acknowledged.load(Ordering::Relaxed);
            writes.lost += acknowledged.saturating_sub(held);
            writes.extra += held.saturating_sub(acknowledged);
        }
        Ok(writes)
    }
}

/// Whether the request of this number is a write.
fn counts(number: u64) -> bool {
    number.is_multiple_of(2)
}

fn counter(client: usize) -> String {
    format!("/counters/showcase-{client}")
}

/// A write is acknowledged by the counter's new value, which is one more than its client knows.
fn acknowledge(acknowledged: &[AtomicU64], client: usize, answer: &str) -> Result<(), String> {
    let Ok(value) = answer.trim().parse::<u64>() else {
        return Err(format!("a counter answered {answer:?}"));
    };
    let known = acknowledged
        .get(client)
        .ok_or_else(|| format!("there is no client {client}"))?
        .fetch_add(1, Ordering::Relaxed);
    if value == known + 1 {
        Ok(())
    } else {
        Err(format!(
            "counter {client} is {value} after {} writes were acknowledged",
            known + 1
        ))
    }
}

fn check_version(response: &Response) -> Result<(), String> {
    match serde_json::from_slice::<Version>(&response.body) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("/version answered {:?}: {error}", response.text())),
    }
}

async fn ask(server: SocketAddr, request: &Request) -> Result<Response> {
    let deadline = Instant::now() + PATIENCE;
    let mut connection = Connection::open(server, deadline).await?;
    let response = connection
        .send(request, true, deadline)
        .await
        .context("asking the demo service")?;
    if !(200..300).contains(&response.status) {
        bail!("status {}: {}", response.status, response.text());
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_was_lost_or_made_twice_is_seen_at_the_next_answer() {
        let acknowledged = [AtomicU64::new(4)];
        assert!(acknowledge(&acknowledged, 0, "5").is_ok());
        for wrong in ["5", "8", "x"] {
            assert!(acknowledge(&acknowledged, 0, wrong).is_err());
        }
    }
}
