//! The demo's state, which real clients change while real handovers move it: all that was acknowledged is
//! there, once, in whatever generation and version answers.
//!
//! [`client`] asks and never retries, [`writers`] are many at once and know what must be there afterwards, and
//! [`witnesses`] know it also where an answer is lost with the process that owed it.

pub(crate) mod client;
mod deaths;
mod failures;
mod moves;
mod probation;
mod restarts;
mod witnesses;
mod writers;

use serde_json::Value;

use crate::harness::{Supervisor, built};

/// The path of the demo's version 1 or 2, for a command line.
fn demo(version: u32) -> String {
    let name = match version {
        1 => "heirloom-demo",
        _ => "heirloom-demo-v2",
    };
    built(name).to_str().unwrap().to_owned()
}

/// Hands over to this version; panics unless it serves then.
fn reload_to(supervisor: &Supervisor, version: u32) {
    let said = supervisor.heirloom(["reload", "--", &demo(version)]);
    assert!(said.status.success(), "{said:?}\n{}", supervisor.log());
}

/// Hands over to this version, which must fail; what was said.
fn refused_by(supervisor: &Supervisor, version: u32) -> String {
    supervisor.expect(1, ["reload", "--", &demo(version)])
}

/// A field of a JSON answer.
fn field(json: &str, name: &str) -> Value {
    let value: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"));
    value[name].clone()
}

/// A field of a JSON answer that is text.
pub(crate) fn text(json: &str, name: &str) -> String {
    let value = field(json, name);
    let text = value.as_str().unwrap_or_else(|| panic!("{name} in {json}"));
    text.to_owned()
}

/// A field of a JSON answer that is a number.
pub(crate) fn number(json: &str, name: &str) -> u64 {
    let value = field(json, name);
    value.as_u64().unwrap_or_else(|| panic!("{name} in {json}"))
}
