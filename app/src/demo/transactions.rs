//! Transactions over several requests: begun, added to, and then committed as a whole or given up.
//!
//! What one will add is state like any other, so it outlives the generation that began it.

use std::{collections::BTreeMap, error::Error};

use hyper::{
    StatusCode,
    body::{Body, Bytes},
};
use serde::{Deserialize, Serialize};
use tokio::task::yield_now;

use super::{
    answer::{Answer, Refusal, json},
    body,
    counters::at_its_end,
    request::check,
    routes::{CONFLICTS_MAX, Demo, too_busy},
    state::{COUNTERS_MAX, TRANSACTIONS_MAX},
    token,
};
use crate::release::{Add, Pending};

/// The most additions of one transaction: all of them are applied under one set of locks.
const ADDS_MAX: usize = 64;

/// The most that one addition adds.
const ADD_MAX: u32 = 1_000_000_000;

#[derive(Debug, Deserialize)]
struct Addition {
    key: String,
    n: u32,
}

#[derive(Debug, Serialize)]
struct Begun {
    id: String,
}

/// What an open transaction comes to.
#[derive(Debug, Serialize)]
struct Standing {
    adds: usize,
    total: u64,
}

/// Counters after a commit.
#[derive(Debug, Serialize)]
struct Committed {
    counters: BTreeMap<String, u64>,
}

/// What is to become of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Add,
    Commit,
    Abort,
}

impl Demo {
    pub(super) async fn begin(&self) -> Result<Answer, Refusal> {
        if self.stores.transactions.len().await? >= TRANSACTIONS_MAX {
            return Err(Refusal::Full(format!(
                "there are {TRANSACTIONS_MAX} open transactions already; commit or abort one"
            )));
        }
        let id = token::new()?;
        let open = self
            .stores
            .transactions
            .insert(id.clone(), Pending::default());
        open.await?;
        Ok(json(StatusCode::CREATED, &Begun { id }))
    }

    pub(super) async fn step<B>(&self, id: &str, step: Step, body: B) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        if !token::is_one(id) {
            return Err(not_open());
        }
        match step {
            Step::Add => {
                let addition: Addition = body::read(body, r#"{"key":"k","n":1}"#).await?;
                self.add(id, addition).await
            }
            Step::Commit => self.commit(id).await,
            Step::Abort => {
                let removed = self.stores.transactions.remove(&id.to_owned()).await?;
                let pending = removed.ok_or_else(not_open)?;
                Ok(json(StatusCode::OK, &standing(&pending)))
            }
        }
    }

    async fn add(&self, id: &str, addition: Addition) -> Result<Answer, Refusal> {
        let Addition { key, n } = addition;
        check("key", &key)?;
        if n == 0 || n > ADD_MAX {
            return Err(Refusal::BadRequest(format!(
                "n is a number from 1 to {ADD_MAX}"
            )));
        }
        let added = self.stores.transactions.update(id.to_owned(), |entry| {
            let pending = entry.as_mut().ok_or_else(not_open)?;
            if pending.adds().len() >= ADDS_MAX {
                return Err(Refusal::Conflict(format!(
                    "a transaction has at most {ADDS_MAX} additions; commit or abort it"
                )));
            }
            pending.add(Add {
                key: key.clone(),
                n,
            });
            Ok(standing(pending))
        });
        Ok(json(StatusCode::OK, &added.await??))
    }

    async fn commit(&self, id: &str) -> Result<Answer, Refusal> {
        for _ in 0..CONFLICTS_MAX {
            if let Some(counters) = self.try_commit(id.to_owned()).await? {
                return Ok(json(StatusCode::OK, &Committed { counters }));
            }
            yield_now().await;
        }
        Err(too_busy())
    }

    /// The new values of the counters; none if somebody else was faster.
    async fn try_commit(&self, id: String) -> Result<Option<BTreeMap<String, u64>>, Refusal> {
        let Self { stores, .. } = self;
        let mut transaction = stores.state.transaction();
        let pending = transaction.get(&stores.transactions, &id).await?;
        let mut values = BTreeMap::new();
        for add in pending.ok_or_else(not_open)?.adds() {
            // A key that was added to before is seen as it will be.
            let counter = transaction.get(&stores.counters, &add.key).await?;
            if counter.is_none() && stores.counters.len().await? >= COUNTERS_MAX {
                return Err(Refusal::Full(format!(
                    "there are {COUNTERS_MAX} counters already; abort, and use one of them"
                )));
            }
            let mut counter = counter.unwrap_or_default();
            let value = counter.add(add.n.into()).ok_or_else(at_its_end)?;
            transaction.put(&stores.counters, add.key.clone(), counter);
            values.insert(add.key.clone(), value);
        }
        transaction.remove(&stores.transactions, id);
        Ok(transaction.commit().await?.then_some(values))
    }
}

fn standing(pending: &Pending) -> Standing {
    Standing {
        adds: pending.adds().len(),
        total: pending.total(),
    }
}

/// A transaction that was committed leaves nothing behind, so it is not told from one that never was.
fn not_open() -> Refusal {
    Refusal::NotFound(
        "there is no open transaction with this id: it was committed, aborted, or never begun"
            .to_owned(),
    )
}
