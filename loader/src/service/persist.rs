//! The retry policy of a message's work in the database.

use std::time::Duration;

use common::backoff::backoff;
use common::lifecycle::Health;
use common::telemetry::retried;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::errors::{LoadError, Verdict};

/// Retries in place after a conflict with another transaction (a deadlock, a lock).
pub(super) const MAX_CONFLICTS: u32 = 6;

/// Why the work on a message ended without success.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// The message is at fault: dead-letter it. The field counts the attempts.
    Dead { error: LoadError, attempts: u32 },
    /// Other transactions were in the way each time.
    Conflict(LoadError),
    /// The target is at fault, or PostgreSQL.
    Target(LoadError),
    /// The batch does not fit its target.
    Misfit(LoadError),
    /// Postgres is at fault: stop consuming until it works.
    Pause(LoadError),
    /// The service must stop: the delivery is redelivered.
    Stopping,
}

/// Repeats `work` until it succeeds or fails finally, after so many conflicts at most.
pub(super) async fn with_retries<T>(
    stop: &CancellationToken,
    max_conflicts: u32,
    mut work: impl AsyncFnMut() -> Result<T, LoadError>,
) -> Result<T, Unfinished> {
    let mut conflicts = 0;
    loop {
        let error = match work().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match error.verdict() {
            Verdict::Pause => return Err(Unfinished::Pause(error)),
            Verdict::Target => return Err(Unfinished::Target(error)),
            Verdict::Misfit => return Err(Unfinished::Misfit(error)),
            Verdict::Dead => {
                let attempts = 1 + conflicts;
                return Err(Unfinished::Dead { error, attempts });
            }
            Verdict::Retry if conflicts >= max_conflicts => {
                return Err(Unfinished::Conflict(error));
            }
            // It has waited for some seconds already: once more is enough.
            Verdict::Retry if error.has_waited_for_a_lock() => conflicts = max_conflicts,
            Verdict::Retry => conflicts += 1,
        }
        retried("conflict", 1);
        tracing::debug!(error = error.sentence(), conflicts, "retrying in place");
        let pause = backoff(conflicts, Duration::from_millis(50), Duration::from_secs(2));
        if timeout(pause, stop.cancelled()).await.is_ok() {
            return Err(Unfinished::Stopping);
        }
    }
}

/// Waits, with no delivery in hand, until `work` no longer fails because of Postgres. The failed message
/// is the probe: its own obstacle (a full disk, a lock, a lost privilege) must be gone, and not only the
/// server be back. The message is redelivered, and the ledger recognises it.
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
        // No log: it may have PostgreSQL's own words.
        let why = error.reason();
        health.not_ready(
            cause,
            format!("{}; the loader retries by itself", why.text()),
        );
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
