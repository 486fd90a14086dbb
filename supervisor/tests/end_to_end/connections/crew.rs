//! Many clients at work, each in a thread of its own, while something else happens.

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::harness::Supervisor;

/// What a client does, again and again; it keeps its connection in between.
pub(super) type Turn<'a> = Box<dyn FnMut() + Send + 'a>;

/// Ends the clients, also if the work fails that goes on beside them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does `work` while all of them do theirs, and says how often each had its turn. A turn that is begun is
/// finished. If one fails, what the supervisor wrote is shown.
pub(super) fn beside(
    supervisor: &Supervisor,
    clients: Vec<Turn<'_>>,
    work: impl FnOnce(),
) -> Vec<u64> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = Stop(&stop);
        let at_work: Vec<_> = clients
            .into_iter()
            .map(|mut turn| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut turns = 0;
                    while !stop.load(Ordering::Relaxed) {
                        turn();
                        turns += 1;
                    }
                    turns
                })
            })
            .collect();
        work();
        drop(stopping);
        let ended = at_work.into_iter().map(|client| {
            client.join().unwrap_or_else(|panic| {
                eprintln!("{}", supervisor.log());
                resume_unwind(panic)
            })
        });
        ended.collect()
    })
}
