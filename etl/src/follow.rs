//! Follows a run until nothing more happens by itself.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Failure;
use ledger::{Run, Store};

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How following ended.
pub enum End {
    /// The run is over, or waits for a person: it is held or blocked.
    Ended(Run),
    /// The time is over, and the run goes on.
    TimedOut(Run, Duration),
}

impl End {
    /// The run as it was seen last.
    pub fn run(&self) -> &Run {
        let (Self::Ended(run) | Self::TimedOut(run, _)) = self;
        run
    }

    /// Whether the run ended and every row is accounted for.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Ended(run) if run.is_complete())
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
        if run.state.is_over() || run.waits_for_a_person() {
            return Ok(End::Ended(run));
        }
        if let Some(limit) = limit.filter(|limit| started.elapsed() >= *limit) {
            return Ok(End::TimedOut(run, limit));
        }
        sleep(POLL_INTERVAL).await;
    }
}
