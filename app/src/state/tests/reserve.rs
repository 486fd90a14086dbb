//! What a generation in reserve is told, at moments that no real supervisor can be made to choose.

use std::time::Duration;

use heirloom_handover::message::{Order, Purpose, Report, Standing};
use tokio::time::timeout;

use super::{Generation, Owner, PATIENCE};
use crate::state::State;

/// Longer than any test.
const LONG: Option<Duration> = Some(Duration::from_secs(600));

const COMMIT: Order = Order::Commit {
    migration: 7,
    alone: false,
};
const STAND_DOWN: Order = Order::StandDown { migration: 7 };

async fn frozen() -> (Owner, Generation) {
    let old = Owner::first(State::new()).await;
    let new = Generation::start(2, State::new());
    old.send(&new, 7, Purpose::Handover, LONG).await;
    old.freeze(&new, 7).await;
    (old, new)
}

async fn in_reserve() -> (Owner, Owner) {
    let (old, new) = frozen().await;
    let new = committed(new).await;
    assert!(matches!(old.says().await, Report::Yielded { .. }));
    (old, new)
}

async fn committed(new: Generation) -> Owner {
    new.order(&COMMIT, &[]);
    assert!(matches!(new.says().await, Report::Committed { .. }));
    new.owns().await
}

async fn stands(owner: &Owner) -> Standing {
    owner.order(&Order::Who, &[]);
    loop {
        if let Report::Phase { phase, .. } = owner.says().await {
            return phase;
        }
    }
}

/// What it says next, but for connections that have moved.
async fn says(owner: &Owner) -> Report {
    loop {
        let said = owner.says().await;
        if !matches!(said, Report::Moved { .. }) {
            return said;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_dismissed_before_it_sees_the_commit_stands_down_when_it_does() {
    let (old, new) = frozen().await;
    old.order(&STAND_DOWN, &[]);
    assert_eq!(stands(&old).await, Standing::Frozen);
    let _new = committed(new).await;
    assert!(matches!(says(&old).await, Report::Yielded { .. }));
    let said = says(&old).await;
    assert!(matches!(said, Report::StoodDown { .. }), "{said:?}");
    assert_eq!(stands(&old).await, Standing::Yielded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dismissal_in_a_handover_that_fails_is_not_one_in_the_next() {
    let (old, new) = frozen().await;
    old.order(&STAND_DOWN, &[]);
    let abort = Order::Abort {
        migration: 7,
        reason: "a test".to_owned(),
    };
    old.order(&abort, &[]);
    assert!(matches!(says(&old).await, Report::Thawed { .. }));
    new.order(&abort, &[]);
    let next = Generation::start(3, State::new());
    old.send(&next, 7, Purpose::Handover, LONG).await;
    old.freeze(&next, 7).await;
    let _next = committed(next).await;
    assert!(matches!(says(&old).await, Report::Yielded { .. }));
    assert_eq!(stands(&old).await, Standing::Reserve);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_dismissal_is_answered() {
    let (old, _new) = in_reserve().await;
    assert_eq!(stands(&old).await, Standing::Reserve);
    for _ in 0..2 {
        old.order(&STAND_DOWN, &[]);
        let said = says(&old).await;
        assert!(matches!(said, Report::StoodDown { .. }), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_told_to_end_stands_down_first() {
    let (old, new) = in_reserve().await;
    old.order(&Order::Retire, &[]);
    let said = says(&old).await;
    assert!(matches!(said, Report::StoodDown { .. }), "{said:?}");
    timeout(PATIENCE, old.drain.finished()).await.unwrap();
    assert_eq!(stands(&new).await, Standing::Owning);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_given_back_is_served_by_the_one_that_had_it() {
    let (old, new) = in_reserve().await;
    new.order(&Order::Return { migration: 7 }, &[]);
    let said = says(&old).await;
    assert!(matches!(said, Report::Returned { .. }), "{said:?}");
    assert_eq!(stands(&old).await, Standing::Owning);
    assert_eq!(stands(&new).await, Standing::Yielded);
}
