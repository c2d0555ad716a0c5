//! How long a failure is put up with before it counts.

use std::time::Duration;

use common::backoff::backoff;
use common::lifecycle::Health;
use common::telemetry::retried;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::errors::{LoadError, Verdict};

/// Tries in place when somebody else was in the way (a deadlock, a lock).
const CONFLICTS: u32 = 6;

/// Pauses before further tries of a statement that does not fit its table: somebody may be changing
/// it right now.
const MISFITS: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(12),
];

/// How work on a message ended without success.
#[derive(Debug)]
pub(super) enum GivenUp {
    /// The message's fault: dead-letter it, after this many attempts.
    Dead { error: LoadError, attempts: u32 },
    /// Postgres' fault: stop consuming until it works.
    Pause(LoadError),
    /// The service shall stop: leave the delivery to whoever comes next.
    Stopping,
}

/// Does `work` until it succeeds or cannot be put up with any longer. `patient` is whether a misfit
/// is tried again at all.
pub(super) async fn persevere<T>(
    stop: &CancellationToken,
    patient: bool,
    mut work: impl AsyncFnMut() -> Result<T, LoadError>,
) -> Result<T, GivenUp> {
    let (mut conflicts, mut misfits) = (0, 0);
    loop {
        let error = match work().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let attempts = 1 + conflicts + misfits;
        let pause = match error.verdict() {
            Verdict::Pause => return Err(GivenUp::Pause(error)),
            Verdict::Dead => return Err(GivenUp::Dead { error, attempts }),
            Verdict::Retry if conflicts == CONFLICTS => return Err(GivenUp::Pause(error)),
            Verdict::Retry => {
                conflicts += 1;
                backoff(conflicts, Duration::from_millis(50), Duration::from_secs(2))
            }
            Verdict::RetryThenDead => match MISFITS.get(misfits as usize) {
                Some(pause) if patient => {
                    misfits += 1;
                    *pause
                }
                _ => return Err(GivenUp::Dead { error, attempts }),
            },
        };
        let cause = if error.verdict() == Verdict::Retry {
            "conflict"
        } else {
            "table"
        };
        retried(cause, 1);
        tracing::debug!(error = error.sentence(), attempts, "trying again in place");
        if timeout(pause, stop.cancelled()).await.is_ok() {
            return Err(GivenUp::Stopping);
        }
    }
}

/// Waits, with nothing in hand, until `work` no longer fails for Postgres' sake. The message that
/// failed is the probe: whatever kept it from its place (a full disk, a lock, a lost privilege) has
/// to be gone, not just the server be back. It comes again, and is found done.
pub(super) async fn wait_for_postgres(
    health: &Health,
    cause: &'static str,
    stop: &CancellationToken,
    error: LoadError,
    mut work: impl AsyncFnMut() -> Result<(), LoadError>,
) {
    let mut error = error;
    tracing::warn!(
        cause,
        error = error.sentence(),
        "Postgres cannot take this now; nothing of its kind is consumed until it can"
    );
    for attempt in 0.. {
        health.not_ready(cause, format!("{}; it goes on by itself", error.sentence()));
        if timeout(
            backoff(attempt, Duration::from_millis(500), Duration::from_secs(15)),
            stop.cancelled(),
        )
        .await
        .is_ok()
        {
            return;
        }
        retried("database", 1);
        error = match work().await {
            Err(error) if matches!(error.verdict(), Verdict::Pause | Verdict::Retry) => error,
            Ok(()) | Err(_) => break,
        };
    }
    health.clear(cause);
    tracing::info!(cause, "Postgres takes it again");
}
