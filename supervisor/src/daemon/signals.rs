//! Signals become inputs.
//!
//! They are blocked for the life of the process and read from a descriptor, so that none is lost while the
//! supervisor replaces itself: what nobody has read yet waits in the kernel, for whichever program the
//! process is then. For HUP the kernel's word on who sent it goes into the log.

use std::io;
use std::os::fd::AsFd;

use nix::sys::signal::{SigSet, Signal as Number};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use tokio::io::Interest;

use super::input::{Input, Inputs, Signal};

/// Takes every signal that means something; from here on none of them ends the process. To be called
/// before there are threads, which would take them otherwise.
///
/// # Errors
///
/// The system refused, which it does for no signal of ours.
pub(crate) fn take() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [
        Number::SIGHUP,
        Number::SIGTERM,
        Number::SIGINT,
        Number::SIGUSR1,
        Number::SIGUSR2,
        Number::SIGCHLD,
    ] {
        set.add(signal);
    }
    set.thread_block()?;
    crate::sys::hear_of_children()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

/// Puts signals into the queue until the supervisor ends.
pub(crate) async fn forward(signals: SignalFd, inputs: Inputs) {
    let duplicate = signals.as_fd().try_clone_to_owned();
    let watched = duplicate.and_then(|fd| crate::sys::watch(fd, Interest::READABLE));
    let watched = match watched {
        Ok(watched) => watched,
        Err(error) => {
            tracing::error!("signals cannot be waited for: {error}");
            return;
        }
    };
    while let Ok(mut ready) = watched.readable().await {
        // There is room for a signal before it is taken: none is ever in between.
        let Ok(place) = inputs.reserve().await else {
            return;
        };
        match signals.read_signal() {
            Ok(Some(signal)) => {
                if let Some(signal) = meaning(&signal) {
                    place.send(Input::Signal(signal));
                }
            }
            Ok(None) => ready.clear_ready(),
            Err(errno) => {
                tracing::error!("signals cannot be read: {errno}");
                return;
            }
        }
    }
}

fn meaning(signal: &siginfo) -> Option<Signal> {
    match Number::try_from(signal.ssi_signo.cast_signed()) {
        Ok(Number::SIGHUP) => Some(Signal::Reload {
            sender: i32::try_from(signal.ssi_pid).ok().filter(|pid| *pid != 0),
        }),
        Ok(Number::SIGTERM | Number::SIGINT) => Some(Signal::Stop),
        Ok(Number::SIGUSR1) => Some(Signal::Reopen),
        Ok(Number::SIGUSR2) => Some(Signal::Upgrade),
        Ok(Number::SIGCHLD) => Some(Signal::ChildEnded),
        Ok(_) | Err(_) => None,
    }
}
