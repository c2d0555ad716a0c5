//! Follows a run until nothing more happens by itself.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Failure;
use ledger::{Run, Store};

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How following ended.
pub struct End {
    /// As it was seen last: over or waiting for a person (held or blocked), unless the time was over first.
    pub run: Run,
    /// The time after which following ended, although the run goes on.
    pub timed_out: Option<Duration>,
}

impl End {
    /// Whether the run ended and every row is accounted for.
    pub fn is_complete(&self) -> bool {
        self.timed_out.is_none() && self.run.is_complete()
    }
}

/// Follows a run until it is over or waits for a person, for at most `limit`. Each state of it goes to `look`.
pub async fn to_the_end(
    store: &Store,
    run: &str,
    limit: Option<Duration>,
    mut look: impl FnMut(&Run),
) -> Result<End, Failure> {
    let started = Instant::now();
    loop {
        let run = store.exactly(run).await?;
        look(&run);
        let is_still = run.state.is_over() || run.waits_for_a_person();
        let timed_out = limit.filter(|limit| !is_still && started.elapsed() >= *limit);
        if is_still || timed_out.is_some() {
            return Ok(End { run, timed_out });
        }
        sleep(POLL_INTERVAL).await;
    }
}
