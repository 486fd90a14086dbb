//! A plain web server that knows nothing of Heirloom: what `start_server` and the overlap strategy
//! are measured with.
//!
//! It takes its listener as any socket-activated program does, may need a while to boot, and ends
//! on SIGTERM in the usual good way: accept no more, finish what runs, close what is idle.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use listenfd::ListenFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

/// How long requests that run may take after SIGTERM.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
/// How long to leave the listener alone after accept failed, for instance for want of descriptors.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Answers every request with "ok" on the listener that is passed in.
#[derive(Debug, Parser)]
#[command(name = "worker")]
struct Options {
    /// How long to pretend to boot before serving
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    boot: Duration,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    // Before there are threads, because this changes the environment.
    let listener = ListenFd::from_env()
        .take_tcp_listener(0)?
        .context("no listener was passed in: start this program through a supervisor")?;
    listener.set_nonblocking(true)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(listener, options.boot))
}

async fn serve(listener: std::net::TcpListener, boot: Duration) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        () = sleep(boot) => {}
        _ = terminate.recv() => return Ok(()),
    }
    // Only now: a socket in the epoll set is what tells a supervisor that this program is ready.
    let listener = TcpListener::from_std(listener)?;
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    eprintln!("worker: accept: {error}");
                    sleep(PAUSE_AFTER_FAILURE).await;
                    continue;
                }
            },
            _ = terminate.recv() => break,
        };
        // Only makes answers faster; without it they are still right.
        drop(stream.set_nodelay(true));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that went away is no concern of anybody else.
            drop(connection.await);
        });
    }
    drop(listener);
    timeout(DRAIN_PATIENCE, graceful.shutdown())
        .await
        .context("requests ran on after SIGTERM")
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"ok\n"))))
}
