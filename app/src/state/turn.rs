//! An operation's turn at the gate: here if it may, else after a wait or in another generation.
//!
//! Owns the waiting that every store has in common. The attempt is the store's: it takes its lock, asks
//! [`Gate::lets_pass`] under it, and either does the whole operation or nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    error::StateError,
    gate::{Gate, Place},
    link::Link,
};

/// Where an operation belongs.
#[derive(Debug)]
pub(crate) enum Turn<T, A> {
    /// It was carried out in this process.
    Here(T),
    /// It is to be carried out in the generation at the other end, with what it needs.
    There(Arc<Link>, A),
}

/// Carries a reading operation out as soon as the state is somewhere. An attempt that may not take place
/// gives back what it needs.
///
/// # Errors
///
/// [`StateError::OwnerGone`].
pub(crate) async fn reading<T, A>(
    gate: &Gate,
    mut needed: A,
    mut attempt: impl FnMut(A) -> Result<T, A>,
) -> Result<Turn<T, A>, StateError> {
    loop {
        needed = match attempt(needed) {
            Ok(done) => return Ok(Turn::Here(done)),
            Err(needed) => needed,
        };
        if let Place::There(link) = gate.place().await? {
            return Ok(Turn::There(link, needed));
        }
    }
}

/// As [`reading`], for a change, which waits first if a copy does not keep up.
///
/// # Errors
///
/// [`StateError::OwnerGone`].
pub(crate) async fn changing<T, A>(
    gate: &Gate,
    needed: A,
    attempt: impl FnMut(A) -> Result<T, A>,
) -> Result<Turn<T, A>, StateError> {
    if gate.is_throttled() {
        gate.throttled().await;
    }
    reading(gate, needed, attempt).await
}

/// Takes a lock, also after a panic: what a store leaves behind then is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
