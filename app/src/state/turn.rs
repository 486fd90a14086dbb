//! An operation's turn at the gate: here if it may, else after a wait or in another generation.
//!
//! Owns the waiting that every store has in common. The attempt is the store's: it takes its lock, asks
//! [`Gate::lets_pass`] under it, and either does the whole operation or nothing.
//!
//! The first attempt is made at once, and hardly ever is there a second. So what waits is on the heap: an
//! operation is a small future then, and moving a large one around would cost more than the operation.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::Either;

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

/// An operation that was carried out at the first attempt, or what waits for its turn.
type AtOnceOr<T, A, F> = Either<Ready<Result<Turn<T, A>, StateError>>, Pin<Box<F>>>;

/// Carries a reading operation out as soon as the state is somewhere. An attempt that may not take place
/// gives back what it needs.
///
/// # Errors
///
/// [`StateError::OwnerGone`].
pub(crate) fn reading<T, A>(
    gate: &Gate,
    needed: A,
    mut attempt: impl FnMut(A) -> Result<T, A>,
) -> AtOnceOr<T, A, impl Future<Output = Result<Turn<T, A>, StateError>>> {
    match attempt(needed) {
        Ok(done) => Either::Left(ready(Ok(Turn::Here(done)))),
        Err(needed) => Either::Right(Box::pin(later(gate, needed, attempt))),
    }
}

/// As [`reading`], for a change, which waits first if a copy does not keep up.
///
/// # Errors
///
/// [`StateError::OwnerGone`].
pub(crate) fn changing<T, A>(
    gate: &Gate,
    needed: A,
    mut attempt: impl FnMut(A) -> Result<T, A>,
) -> AtOnceOr<T, A, impl Future<Output = Result<Turn<T, A>, StateError>>> {
    let throttled = gate.is_throttled();
    let needed = match throttled {
        true => needed,
        false => match attempt(needed) {
            Ok(done) => return Either::Left(ready(Ok(Turn::Here(done)))),
            Err(needed) => needed,
        },
    };
    Either::Right(Box::pin(async move {
        if throttled {
            gate.throttled().await;
            return reading(gate, needed, attempt).await;
        }
        later(gate, needed, attempt).await
    }))
}

/// Waits at the gate, then tries again, until the operation is carried out or belongs elsewhere.
async fn later<T, A>(
    gate: &Gate,
    mut needed: A,
    mut attempt: impl FnMut(A) -> Result<T, A>,
) -> Result<Turn<T, A>, StateError> {
    loop {
        if let Place::There(link) = gate.place().await? {
            return Ok(Turn::There(link, needed));
        }
        needed = match attempt(needed) {
            Ok(done) => return Ok(Turn::Here(done)),
            Err(needed) => needed,
        };
    }
}

/// Takes a lock, also after a panic: what a store leaves behind then is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
