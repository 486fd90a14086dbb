//! The ledger: accounts, and transfers between them. What is in all of them together never changes.

use std::error::Error;

use hyper::{
    StatusCode,
    body::{Body, Bytes},
};
use serde::{Deserialize, Serialize};
use tokio::task::yield_now;

use super::{
    answer::{Answer, Refusal, json},
    body,
    request::check,
    routes::{CONFLICTS_MAX, Demo, too_busy},
    state::ACCOUNTS_MAX,
    token,
};
use crate::release::Account;

/// What is in an account when it is first named.
const OPENING_BALANCE: u64 = 1000;

#[derive(Debug, Deserialize)]
struct Transfer {
    from: String,
    to: String,
    amount: u64,
}

#[derive(Debug, Serialize)]
struct Done {
    id: String,
}

/// The whole ledger at one instant.
#[derive(Debug, Default, Serialize)]
struct Summary {
    accounts: u64,
    total: u64,
    transfers: u64,
}

impl Account {
    fn open() -> Self {
        Self {
            balance: OPENING_BALANCE,
            transfers: 0,
        }
    }
}

impl Demo {
    pub(super) async fn transfer<B>(&self, body: B) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let wanted: Transfer = body::read(body, r#"{"from":"a","to":"b","amount":5}"#).await?;
        check("from", &wanted.from)?;
        check("to", &wanted.to)?;
        if wanted.from == wanted.to {
            return Err(Refusal::BadRequest(
                "from and to are the same account; name two".to_owned(),
            ));
        }
        if wanted.amount == 0 {
            return Err(Refusal::BadRequest("amount is 1 or more".to_owned()));
        }
        let id = token::new()?;
        for _ in 0..CONFLICTS_MAX {
            if self.try_transfer(&wanted).await? {
                return Ok(json(StatusCode::CREATED, &Done { id }));
            }
            yield_now().await;
        }
        Err(too_busy())
    }

    /// Whether it was done; if not, somebody else was faster.
    async fn try_transfer(&self, wanted: &Transfer) -> Result<bool, Refusal> {
        let accounts = &self.stores.accounts;
        let mut transaction = self.stores.state.transaction();
        let from = transaction.get(accounts, &wanted.from).await?;
        let to = transaction.get(accounts, &wanted.to).await?;
        let fresh = u64::from(from.is_none()) + u64::from(to.is_none());
        if fresh > 0 && accounts.len().await? + fresh > ACCOUNTS_MAX {
            return Err(Refusal::Full(format!(
                "there are {ACCOUNTS_MAX} accounts already; use two of them"
            )));
        }
        let mut from = from.unwrap_or_else(Account::open);
        let mut to = to.unwrap_or_else(Account::open);
        let Some(rest) = from.balance.checked_sub(wanted.amount) else {
            return Err(Refusal::Conflict(format!(
                "{} has {}, which is less than {}",
                wanted.from, from.balance, wanted.amount
            )));
        };
        from.balance = rest;
        from.transfers += 1;
        // All money there is fits: there are only so many accounts.
        to.balance += wanted.amount;
        transaction.put(accounts, wanted.from.clone(), from);
        transaction.put(accounts, wanted.to.clone(), to);
        Ok(transaction.commit().await?)
    }

    pub(super) async fn ledger(&self) -> Result<Answer, Refusal> {
        let mut summary = Summary::default();
        for (_, account) in self.stores.accounts.entries().await? {
            summary.accounts += 1;
            summary.total += account.balance;
            summary.transfers += account.transfers;
        }
        Ok(json(StatusCode::OK, &summary))
    }
}
