//! The README's first command: a service is replaced again and again under load, and one can watch.
//!
//! This file owns the course of events. What is shown is in `screen`, what is asked of the demo
//! service in `demo`.

mod demo;
mod options;
mod screen;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use heirloom_bench::load::Load;
use heirloom_bench::supervisor::{Handover, Supervisor};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, sleep_until};

use demo::Demo;
use options::Options;
use screen::{Facts, Screen};

/// How often a live table is drawn.
const FRAME: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(2);
/// No handover begins this shortly before the end: the new generation is to be seen serving.
const LAST_HANDOVER_BEFORE_END: Duration = Duration::from_millis(500);

/// Something was lost, or a handover failed.
const LOST: u8 = 1;
/// The showcase could not run.
const COULD_NOT_RUN: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(LOST),
        Err(error) => {
            eprintln!("showcase: {error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

/// One handover that was carried out.
#[derive(Debug)]
struct Done {
    /// How long `heirloom reload` took.
    took: Duration,
    /// What the supervisor says about it.
    handover: Option<Handover>,
}

/// True if nothing was lost.
async fn run(options: &Options) -> Result<bool> {
    let mut stopped = Stopped::new()?;
    let programs = options.programs()?;
    let first_version = [programs.versions[0].as_str()];
    let mut supervisor = tokio::select! {
        started = Supervisor::start(&programs.heirloom, &first_version) => started?,
        () = stopped.signalled() => return Ok(true),
    };
    let result = perform(options, &programs.versions, &mut supervisor, &mut stopped).await;
    let ended = supervisor.stop().await;
    let spotless = result?;
    ended.context("ending the supervisor")?;
    Ok(spotless)
}

/// Load, handovers and display, then the tally.
async fn perform(
    options: &Options,
    versions: &[String; 2],
    supervisor: &mut Supervisor,
    stopped: &mut Stopped,
) -> Result<bool> {
    let demo = Demo::new(options);
    tokio::select! {
        filled = Demo::fill(supervisor.address(), options.entries) => filled?,
        () = stopped.signalled() => return Ok(true),
    }
    let load = tokio::select! {
        started = Load::start(demo.plan(supervisor.address(), options)) => started?,
        () = stopped.signalled() => return Ok(true),
    };
    let mut screen = Screen::new(options);
    let end = Instant::now() + options.duration;
    let (done, mut handed_over) = mpsc::unbounded_channel();
    let (stop, stop_seen) = watch::channel(false);
    let mut facts = Facts::new(options);
    let mut frames = interval(if screen.is_live() { FRAME } else { LINE });
    let mut ending = false;
    let failure = {
        let handovers = hand_over(supervisor, versions, options.every, end, stop_seen, done);
        tokio::pin!(handovers);
        loop {
            tokio::select! {
                result = &mut handovers, if !ending => match result {
                    Ok(()) => ending = true,
                    Err(error) => break Some(error),
                },
                Some(one) = handed_over.recv() => {
                    facts.add(one.took, one.handover);
                    facts.writes.acknowledged = demo.acknowledged();
                    screen.handed_over(&load.report(), &demo.versions(), &facts);
                }
                _ = frames.tick() => {
                    facts.writes.acknowledged = demo.acknowledged();
                    screen.draw(&load.report(), &demo.versions(), &facts);
                }
                () = sleep_until(end), if ending => break None,
                () = stopped.signalled() => {
                    // A handover that runs is allowed to end; a second signal does not wait.
                    stop.send_replace(true);
                    if !ending {
                        tokio::select! {
                            result = &mut handovers => break result.err(),
                            () = stopped.signalled() => break None,
                        }
                    }
                    break None;
                }
            }
        }
    };
    while let Ok(one) = handed_over.try_recv() {
        facts.add(one.took, one.handover);
    }
    let report = load.stop_and_finish().await;
    facts.writes = demo.compare(supervisor.address()).await?;
    screen.tally(&report, &demo.versions(), &facts);
    if let Some(error) = failure {
        eprintln!("showcase: a handover failed, and the one before it serves on: {error:#}");
        return Ok(false);
    }
    Ok(facts.promise_kept(&report))
}

/// Hands over every `every`, to the second version, the first, the second, and so on.
async fn hand_over(
    supervisor: &mut Supervisor,
    versions: &[String; 2],
    every: Duration,
    end: Instant,
    mut stop: watch::Receiver<bool>,
    done: mpsc::UnboundedSender<Done>,
) -> Result<()> {
    let mut due = Instant::now() + every;
    for version in versions.iter().rev().cycle() {
        if due + LAST_HANDOVER_BEFORE_END > end {
            return Ok(());
        }
        tokio::select! {
            () = sleep_until(due) => {}
            _ = stop.changed() => return Ok(()),
        }
        supervisor.check_running()?;
        let took = supervisor.reload(&[version]).await?;
        let handover = supervisor.status().await?.last_handover;
        // The receiver outlives this future, or nobody wants to know any more.
        drop(done.send(Done { took, handover }));
        due = (due + every).max(Instant::now());
    }
    Ok(())
}

/// The signals that end the showcase, which then still cleans up and tells what it saw.
#[derive(Debug)]
struct Stopped {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Stopped {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn signalled(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
