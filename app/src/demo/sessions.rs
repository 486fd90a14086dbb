//! Sessions: each is somebody's, and counts how often it was asked for.

use std::error::Error;

use hyper::{
    StatusCode,
    body::{Body, Bytes},
};
use serde::{Deserialize, Serialize};

use super::{
    answer::{Answer, Refusal, json},
    body,
    request::check,
    routes::Demo,
    state::SESSIONS_MAX,
    token,
};
use crate::release::Session;

/// What opens a session.
#[derive(Debug, Deserialize)]
struct Opening {
    user: String,
}

#[derive(Debug, Serialize)]
struct Opened {
    token: String,
}

impl Demo {
    pub(super) async fn open_session<B>(&self, body: B) -> Result<Answer, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Opening { user } = body::read(body, r#"{"user":"ann"}"#).await?;
        check("user", &user)?;
        if self.stores.sessions.len().await? >= SESSIONS_MAX {
            return Err(Refusal::Full(format!(
                "there are {SESSIONS_MAX} sessions already; use one of them"
            )));
        }
        let token = token::new()?;
        let session = Session::open(user, self.generation);
        self.stores.sessions.insert(token.clone(), session).await?;
        Ok(json(StatusCode::CREATED, &Opened { token }))
    }

    pub(super) async fn visit_session(&self, token: &str) -> Result<Answer, Refusal> {
        let nobodys = || Refusal::NotFound("there is no session with this token".to_owned());
        if !token::is_one(token) {
            return Err(nobodys());
        }
        let visited = self
            .stores
            .sessions
            .update(token.to_owned(), |entry| entry.as_mut().map(Session::visit));
        let answer = visited.await?.ok_or_else(nobodys)?;
        Ok(json(StatusCode::OK, &answer))
    }
}
