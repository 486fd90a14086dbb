//! The sending side against a next generation that the test plays.

use std::os::unix::net::UnixStream;

use heirloom_handover::lifeline::Lifeline;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::*;
use crate::moving::Kind;

/// Nothing a test waits for takes longer on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn parked(state: u8) -> Parked {
    Parked {
        kind: Kind {
            protocol: "session".to_owned(),
            name: "chat".to_owned(),
        },
        socket: UnixStream::pair().unwrap().0.into(),
        unread: Vec::new(),
        version: 1,
        state: vec![state],
        attic: Vec::new(),
    }
}

/// A mover, and the end of the lifeline at which the test plays the next generation.
fn mover() -> (Arc<Mover>, OwnedFd) {
    let (here, there) = Lifeline::pair().unwrap();
    fcntl(&here, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let tell: Tell = Box::new(|_, _| {});
    let census = Arc::default();
    let mover = Mover::start(here, Vec::new(), census, tell, &Handle::current()).unwrap();
    (Arc::new(mover), there)
}

fn say(there: &OwnedFd, answered: Answered) {
    fds::send(there, answered.text(), &[] as &[OwnedFd]).unwrap();
}

/// Gives so many, and waits until all are under way; what comes back, in order.
async fn give(
    mover: &Arc<Mover>,
    there: &OwnedFd,
    count: u8,
) -> Vec<tokio::task::JoinHandle<Option<Parked>>> {
    let mut given = Vec::new();
    for state in 0..count {
        let mover = Arc::clone(mover);
        given.push(tokio::spawn(async move { mover.give(parked(state)).await }));
        let there = there.try_clone().unwrap();
        let arrived = tokio::task::spawn_blocking(move || {
            fds::receive(&there, crate::moving::wire::LARGEST_BYTES).unwrap()
        });
        let arrived = timeout(PATIENCE, arrived).await.unwrap().unwrap();
        assert_eq!(arrived.bytes.last(), Some(&state));
    }
    given
}

async fn outcome(given: Vec<tokio::task::JoinHandle<Option<Parked>>>) -> Vec<Option<u8>> {
    let mut outcome = Vec::new();
    for one in given {
        let back = timeout(PATIENCE, one).await.unwrap().unwrap();
        outcome.push(back.map(|parked| parked.state[0]));
    }
    outcome
}

#[tokio::test]
async fn each_goes_or_comes_back_as_it_was_answered() {
    let (mover, there) = mover();
    let given = give(&mover, &there, 3).await;
    for answered in [Answered::Taken, Answered::Declined, Answered::Taken] {
        say(&there, answered);
    }
    assert_eq!(outcome(given).await, [None, Some(1), None]);
    assert!(mover.is_open());
    assert_eq!(mover.counted().lock().unwrap().total(), 2);
}

#[tokio::test]
async fn a_connection_that_is_taken_behind_a_full_one_is_not_kept_as_well() {
    let (mover, there) = mover();
    let given = give(&mover, &there, 4).await;
    // All of it is there before the sender hears the first.
    for answered in [Answered::Full, Answered::Taken] {
        say(&there, answered);
    }
    assert_eq!(outcome(given).await, [Some(0), None, Some(2), Some(3)]);
    assert!(!mover.is_open());
    assert!(mover.give(parked(9)).await.is_some());
    // What came back can no longer be taken.
    let late = fds::send(&there, Answered::Taken.text(), &[] as &[OwnedFd]).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn all_come_back_from_a_generation_that_ends() {
    let (mover, there) = mover();
    let given = give(&mover, &there, 2).await;
    say(&there, Answered::Taken);
    drop(there);
    assert_eq!(outcome(given).await, [None, Some(1)]);
    assert!(!mover.is_open());
}

#[tokio::test]
async fn that_nothing_is_left_to_be_moved_is_told() {
    let (here, _there) = Lifeline::pair().unwrap();
    fcntl(&here, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let (told, mut hear) = mpsc::channel(1);
    let tell: Tell = Box::new(move |moved, left| told.try_send((moved, left)).unwrap());
    let census = Arc::default();
    let _mover = Mover::start(here, Vec::new(), census, tell, &Handle::current()).unwrap();
    let told = timeout(PATIENCE, hear.recv()).await.unwrap();
    assert_eq!(told, Some((Counts::default(), Counts::default())));
}
