//! The retry policy of a message's work in the database.

use std::time::Duration;

use common::backoff::backoff;
use common::lifecycle::Health;
use common::telemetry::retried;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::errors::{LoadError, Verdict};

/// The retries in place after conflicts with other transactions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retries {
    /// After a deadlock, or what is over at once.
    pub(super) conflicts: u32,
    /// After a wait for a lock in vain, which takes seconds.
    pub(super) locks: u32,
}

impl Retries {
    pub(super) const NONE: Self = Self {
        conflicts: 0,
        locks: 0,
    };
    pub(super) const MOST: Self = Self {
        conflicts: 6,
        locks: 1,
    };
}

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

/// Repeats `work` until it succeeds or fails finally, after so many retries at most.
pub(super) async fn with_retries<T>(
    stop: &CancellationToken,
    mut left: Retries,
    mut work: impl AsyncFnMut() -> Result<T, LoadError>,
) -> Result<T, Unfinished> {
    let mut retries = 0;
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
                let attempts = 1 + retries;
                return Err(Unfinished::Dead { error, attempts });
            }
            Verdict::Retry => {}
        }
        let left = if error.has_waited_for_a_lock() {
            &mut left.locks
        } else {
            &mut left.conflicts
        };
        if *left == 0 {
            return Err(Unfinished::Conflict(error));
        }
        *left -= 1;
        retries += 1;
        retried("conflict", 1);
        tracing::debug!(error = error.sentence(), retries, "retrying in place");
        let pause = backoff(retries, Duration::from_millis(50), Duration::from_secs(2));
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
