//! What is promised under systemd, by subject. Each function is given a root of its own.

pub(crate) mod activation;
pub(crate) mod groups;
pub(crate) mod messages;
pub(crate) mod notify_reload;
pub(crate) mod reload;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod units;
