//! Counters, and the slow request that adds to one.

use std::time::Duration;

use hyper::StatusCode;
use tokio::time::sleep;

use super::{
    answer::{Answer, Refusal, text},
    request::{key, number, parameter},
    routes::Demo,
    state::COUNTERS_MAX,
};
use crate::release::Counter;

/// The longest a request to /slow may wait, in milliseconds.
const SLOW_MS_MAX: u64 = 600_000;

impl Demo {
    pub(super) async fn counter(&self, encoded_key: &str) -> Result<Answer, Refusal> {
        let counter = self.stores.counters.get(&key(encoded_key)?).await?;
        let value = counter.map_or(0, |counter| counter.value());
        Ok(text(StatusCode::OK, value.to_string()))
    }

    pub(super) async fn add_one(&self, encoded_key: &str) -> Result<Answer, Refusal> {
        let value = self.count(key(encoded_key)?).await?;
        Ok(text(StatusCode::OK, value.to_string()))
    }

    pub(super) async fn slow(&self, query: Option<&str>) -> Result<Answer, Refusal> {
        let wait = Duration::from_millis(number(query, "ms", 0..=SLOW_MS_MAX, Some(500))?);
        let key = match parameter(query, "key")? {
            // Decoded already, so it is only checked: a percent sign in it is just that.
            Some(decoded) => key(&decoded.replace('%', "%25"))?,
            None => "slow".to_owned(),
        };
        sleep(wait).await;
        // The state may be the next generation's by now. It is written all the same, there.
        let value = self.count(key).await?;
        Ok(text(
            StatusCode::OK,
            format!("value={value} generation={}", self.generation),
        ))
    }

    /// Adds one to a counter and gives the new value.
    async fn count(&self, key: String) -> Result<u64, Refusal> {
        let counters = &self.stores.counters;
        let add_one = |counter: &mut Counter| counter.add(1).ok_or_else(at_its_end);
        let existing = |entry: &mut Option<Counter>| entry.as_mut().map(add_one);
        if let Some(added) = counters.update(key.clone(), existing).await? {
            return added;
        }
        // Only a new one asks how many there are.
        if counters.len().await? >= COUNTERS_MAX {
            return Err(Refusal::Full(format!(
                "there are {COUNTERS_MAX} counters already; use one of them"
            )));
        }
        let new = |entry: &mut Option<Counter>| add_one(entry.get_or_insert_default());
        counters.update(key, new).await?
    }
}

/// What is said of a counter that cannot hold more.
pub(super) fn at_its_end() -> Refusal {
    Refusal::Full("the counter is as high as it can count; use another one".to_owned())
}
