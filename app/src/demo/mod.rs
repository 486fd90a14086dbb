//! The demo service: a small stateful service whose restarts nobody should notice.
//!
//! Two binaries share it, one for each release. What differs between them, the types of the state, is
//! in `crate::release`, which each binary takes from `release/` and `schema/`. [`command_line`] is how
//! it is started, [`state`] what it remembers, [`routes`] what it answers. The life of the process is
//! here.

mod answer;
mod body;
mod command_line;
mod counters;
mod filling;
mod ledger;
mod request;
mod routes;
mod sessions;
mod state;
mod talk;
mod token;
mod transactions;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use command_line::CommandLine;
use heirloom_app::{
    Drain, Inherited, Listener, Outcome, http,
    state::{Origin, Tenure},
};
use hyper::service::service_fn;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use routes::Demo;
use state::Stores;
use talk::Talks;
use tokio::time::sleep;

use crate::release::{Identity, VERSION};

/// What the demo's state is called.
const APP: &str = "heirloom-demo";

/// The name of the listener the demo answers HTTP on.
const HTTP: &str = "http";

/// Runs the demo to its end.
pub(crate) fn main() -> ExitCode {
    let command_line = CommandLine::read(VERSION);
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(command_line.log_level)
        .init();
    match start(&command_line) {
        Ok(Outcome::Drained | Outcome::Forced { .. }) => ExitCode::SUCCESS,
        Ok(Outcome::LimitPassed { cut }) => {
            eprintln!(
                "heirloom-demo: {cut} tasks had not finished {:?} after the drain began and were \
                 cut off; a longer --drain-timeout lets them finish",
                command_line.drain_timeout
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("heirloom-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Takes what was inherited, starts the runtime and serves in it.
fn start(command_line: &CommandLine) -> anyhow::Result<Outcome> {
    raise_descriptor_limit();
    let mut inherited = Inherited::from_env()?;
    let has_chat = inherited.names().any(|name| name == talk::CHAT);
    let chat = has_chat
        .then(|| inherited.take_listener(talk::CHAT))
        .transpose()?;
    let listener = listener(&mut inherited, command_line)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(command_line.workers)
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let outcome = runtime.block_on(serve(command_line, &mut inherited, listener, chat));
    // What still runs was cut off, or blocks a thread: it is not waited for.
    runtime.shutdown_background();
    outcome
}

/// The listener given by the supervisor, or by hand.
fn listener(inherited: &mut Inherited, command_line: &CommandLine) -> anyhow::Result<Listener> {
    match command_line.listen {
        Some(address) if inherited.is_empty() => Listener::bind_tcp(HTTP, address)
            .with_context(|| format!("cannot listen on {address}; is another program there?")),
        Some(_) | None => inherited
            .take_listener_or_only(HTTP)
            .context("there is nothing to serve on; by hand, use --listen HOST:PORT"),
    }
}

/// The life of a generation: boot, take the state over, serve, drain.
async fn serve(
    command_line: &CommandLine,
    inherited: &mut Inherited,
    listener: Listener,
    chat: Option<Listener>,
) -> anyhow::Result<Outcome> {
    let drain = Drain::new(command_line.drain_timeout);
    drain
        .begin_on_signals()
        .context("the signal handlers cannot be installed")?;
    let notifier = inherited.notifier().clone();
    let watchdog = notifier.start_watchdog();

    if !command_line.slow_start.is_zero() {
        tokio::select! {
            () = sleep(command_line.slow_start) => {}
            () = drain.begun() => return Ok(drain.finished().await),
        }
    }

    let generation = inherited.generation();
    let status = format!("version {VERSION}, generation {generation}, on {listener}");
    let stores = Stores::new();
    let talks = Talks::declare(&stores.state);
    // A SIGTERM that comes meanwhile counts once it is known whose the state is.
    let origin = stores
        .state
        .take_over(inherited, &drain, Tenure::new(APP, VERSION))
        .await?;
    let own = Identity {
        version: VERSION.to_owned(),
        generation,
    };
    let before = stores.identity.set(own).await?;
    match origin {
        Origin::Fresh => {}
        Origin::Saved => tracing::info!("the state was saved by generation {}", before.generation),
        Origin::Generation(former) => tracing::info!("the state was generation {former}'s"),
        _ => tracing::info!(?origin, "the state was taken over"),
    }
    let frames = talks
        .serve(chat, &drain, generation)
        .context("the listener \"chat\" cannot be served")?;
    let demo = Arc::new(Demo::new(generation, before, stores).with_frames(frames));
    let service = service_fn(move |request| Arc::clone(&demo).answer(request));
    let mut options = http::Options::default();
    options.linger = command_line.linger;
    options.connections_max = command_line.connections_max;
    http::serve(listener, service, &drain, options).context("the listener cannot be served")?;

    notifier
        .ready(&format!("serving: {status}"))
        .await
        .context("READY=1 did not reach the supervisor")?;
    tracing::info!("serving: {status}");

    drain.begun().await;
    tracing::info!("draining: {status}");
    if let Err(error) = notifier.stopping(&format!("draining: {status}")).await {
        tracing::warn!(%error, "STOPPING=1 did not reach the supervisor");
    }
    let outcome = drain.finished().await;
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    tracing::info!(?outcome, "ended: {status}");
    Ok(outcome)
}

/// Lets the process open as many descriptors as it is allowed to ask for: each connection is one.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
}
