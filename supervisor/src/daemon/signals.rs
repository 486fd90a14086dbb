//! Signals become inputs.
//!
//! One owner for all of them: a signal handler only writes to a pipe, and this task reads it. For
//! HUP the kernel's word on who sent it goes into the log.

use std::io;

use futures_util::StreamExt;
use nix::libc::{SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook_tokio::SignalsInfo;

use super::input::{Input, Inputs, Signal};

/// Takes every signal that means something; from here on none of them ends the process.
///
/// # Errors
///
/// The system refused, which it does for no signal of ours.
pub(crate) fn take() -> io::Result<SignalsInfo<WithOrigin>> {
    SignalsInfo::with_exfiltrator(
        [SIGHUP, SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGCHLD, SIGPIPE],
        WithOrigin::default(),
    )
}

/// Puts signals into the queue until the supervisor ends.
pub(crate) async fn forward(mut signals: SignalsInfo<WithOrigin>, inputs: Inputs) {
    while let Some(origin) = signals.next().await {
        let signal = match origin.signal {
            SIGHUP => Signal::Reload {
                sender: origin.process.map(|process| process.pid),
            },
            SIGTERM | SIGINT => Signal::Stop,
            SIGUSR1 => Signal::Reopen,
            SIGUSR2 => Signal::Upgrade,
            SIGCHLD => Signal::ChildEnded,
            // PIPE: a write reports it.
            _other => continue,
        };
        if inputs.send(Input::Signal(signal)).await.is_err() {
            return;
        }
    }
}
