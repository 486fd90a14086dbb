//! What the measurements of state have in common: the value that is held, the account a holder gives,
//! the same map without tracking, and copies made in other ways.
//!
//! What is compared with what is [`crate::measure`]'s affair.

pub mod account;
pub mod numbers;
pub mod record;
pub mod transfer;
pub mod untracked;
