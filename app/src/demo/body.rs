//! Reading a request's body: JSON, within limits.

use std::{error::Error, time::Duration};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::answer::Refusal;

/// The largest body, in bytes. The largest that is of use has a few hundred.
const BYTES_MAX: usize = 64 * 1024;

/// How long a body may take to arrive: as long as a head.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(15);

/// Reads a body as a `T`. `example` is shown to whoever sends something else.
pub(super) async fn read<T, B>(body: B, example: &str) -> Result<T, Refusal>
where
    T: DeserializeOwned,
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let arrived = timeout(ARRIVAL_LIMIT, Limited::new(body, BYTES_MAX).collect()).await;
    let bytes = match arrived {
        Err(_) => return Err(Refusal::Late),
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(Refusal::TooLarge(BYTES_MAX));
        }
        Ok(Err(error)) => {
            return Err(Refusal::BadRequest(format!("the body is broken: {error}")));
        }
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| Refusal::BadRequest(format!("the body is to be like {example}: {error}")))
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    async fn of(text: impl Into<Bytes>) -> Result<u8, Refusal> {
        read(Full::new(text.into()), "7").await
    }

    #[tokio::test]
    async fn bodies_are_json_within_limits() {
        assert!(matches!(of(" 7 ").await, Ok(7)));
        let Err(Refusal::BadRequest(reason)) = of("seven").await else {
            panic!("it was taken");
        };
        assert!(reason.starts_with("the body is to be like 7: "), "{reason}");
        let fits = format!("7{}", " ".repeat(BYTES_MAX - 1));
        assert!(matches!(of(fits.clone()).await, Ok(7)));
        let large = of(fits + " ").await;
        assert!(
            matches!(large, Err(Refusal::TooLarge(BYTES_MAX))),
            "{large:?}"
        );
    }
}
