//! provisional
use super::{error::StateError, gate::Gate};
pub(crate) trait Group: Send {}
pub(crate) async fn commit_groups(_: &Gate, _: Vec<Box<dyn Group>>) -> Result<bool, StateError> {
    Ok(false)
}
