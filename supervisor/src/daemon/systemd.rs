//! What the supervisor tells systemd of itself (`sd_notify(3)`).
//!
//! Only the supervisor speaks to systemd; its children have sockets of their own. Without
//! `NOTIFY_SOCKET` every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

use super::input::{Input, Inputs};
use super::timer::Timer;

/// How much more time is asked for while something takes long; asked again well before it is over.
const EXTENSION: Duration = Duration::from_secs(30);

/// How often it is asked for.
const EXTEND_EVERY: Duration = Duration::from_secs(10);

/// The way to systemd.
#[derive(Debug)]
pub(crate) struct Systemd {
    inputs: Inputs,
    watchdog: Option<Duration>,
    busy: bool,
    heartbeat: Option<Timer>,
}

impl Systemd {
    pub(crate) fn new(inputs: &Inputs) -> Self {
        let mut systemd = Self {
            inputs: inputs.clone(),
            watchdog: sd_notify::watchdog_enabled().map(|interval| interval / 2),
            busy: false,
            heartbeat: None,
        };
        systemd.schedule();
        systemd
    }

    /// Everything that could be started has been; or a reload is over.
    pub(crate) fn ready(&mut self, status: &str) {
        let pid = std::process::id();
        tell(&[
            NotifyState::Ready,
            NotifyState::MainPid(pid),
            NotifyState::Status(status),
        ]);
        self.set_busy(false);
    }

    /// A reload was asked for. Said for each request, also while another runs: systemd waits for one
    /// that is later than its own.
    pub(crate) fn reloading(&mut self, status: &str) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status(status)]),
            Err(error) => tracing::warn!("the monotonic clock cannot be read: {error}"),
        }
        self.set_busy(true);
    }

    /// The end has begun.
    pub(crate) fn stopping(&mut self, status: &str) {
        tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
        self.set_busy(true);
    }

    /// Something takes its time: a start, a reload, the end.
    pub(crate) fn set_busy(&mut self, busy: bool) {
        if self.busy != busy {
            self.busy = busy;
            self.heartbeat();
        }
    }

    /// It is time to ask for more time, or to say that we are alive.
    pub(crate) fn heartbeat(&mut self) {
        if self.watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        if self.busy {
            let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
            tell(&[NotifyState::ExtendTimeoutUsec(extension)]);
        }
        self.schedule();
    }

    /// An idle supervisor without a watchdog does not wake up at all.
    fn schedule(&mut self) {
        let every = match (self.watchdog, self.busy) {
            (Some(watchdog), true) => Some(watchdog.min(EXTEND_EVERY)),
            (Some(watchdog), false) => Some(watchdog),
            (None, true) => Some(EXTEND_EVERY),
            (None, false) => None,
        };
        self.heartbeat = every.map(|every| Timer::start(&self.inputs, every, Input::Heartbeat));
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd could not be told: {error}");
    }
}
