//! Waits for a condition instead of sleeping, with a deadline and a panic that names the condition.

use std::panic::Location;
use std::time::{Duration, Instant};

/// The deadline for conditions that hold within seconds on an idle machine. A long one costs nothing, since a test waits no
/// longer than necessary; a short one fails on a busy machine.
pub const TIMEOUT: Duration = Duration::from_mins(5);

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Polls `condition` until it is true. Panics after `deadline` with `what` and the caller's location.
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

/// Polls `attempt` until it returns a value, and returns that. Panics after `deadline` with `what` and the caller's location.
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
                "timed out after {deadline:?} waiting for {what} ({caller})"
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
    async fn wait_ends_when_the_condition_holds() {
        let mut asked = 0;
        let answer = wait_for("the third time", Duration::from_secs(5), async || {
            asked += 1;
            (asked == 3).then_some("third")
        });
        assert_eq!(answer.await, "third");
    }

    #[tokio::test]
    #[should_panic(expected = "waiting for rain")]
    async fn timeout_names_the_condition() {
        wait_until("rain", Duration::from_millis(10), async || false).await;
    }
}
