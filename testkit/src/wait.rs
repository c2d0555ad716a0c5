//! Waiting for a condition instead of sleeping: a deadline, and a panic that names what was awaited.

use std::panic::Location;
use std::time::{Duration, Instant};

/// How long something may take that comes within seconds on a machine with nothing else to do. A test that waits for a
/// condition costs nothing by being patient, and one that is not fails where the machine is busy.
pub const PATIENCE: Duration = Duration::from_mins(5);

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Polls `condition` until it is true. Panics after `deadline` with `what`, where it was called.
///
/// ```no_run
/// # async fn f(queue_is_empty: impl AsyncFn() -> bool) {
/// testkit::wait_until("etl.raw to be empty", std::time::Duration::from_secs(10), async || queue_is_empty().await).await;
/// # }
/// ```
#[track_caller]
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> impl Future<Output = ()> {
    wait_for(what, deadline, async move || {
        condition().await.then_some(())
    })
}

/// Polls `attempt` until it gives a value, and gives that. Panics after `deadline` with `what`, where it was called.
#[track_caller]
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(value) = attempt().await {
                return value;
            }
            assert!(
                start.elapsed() < deadline,
                "waited {deadline:?} in vain for {what} ({caller})"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ends_as_soon_as_the_condition_holds() {
        let mut asked = 0;
        let answer = wait_for("the third time", Duration::from_secs(5), async || {
            asked += 1;
            (asked == 3).then_some("third")
        });
        assert_eq!(answer.await, "third");
    }

    #[tokio::test]
    #[should_panic(expected = "in vain for rain")]
    async fn says_what_never_came() {
        wait_until("rain", Duration::from_millis(10), async || false).await;
    }
}
