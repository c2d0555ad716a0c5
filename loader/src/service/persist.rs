//! The retry policy of a message's work in the database.

use std::time::Duration;

use common::backoff::backoff;
use common::lifecycle::Health;
use common::telemetry::retried;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::errors::{LoadError, Verdict};

/// Retries in place after a conflict with another transaction (a deadlock, a lock).
const MAX_CONFLICTS: u32 = 6;

/// Pauses before the retries of a statement that does not fit its table: a person may be changing the
/// table.
const MISFIT_PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(12),
];

/// Why the work on a message ended without success.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// The message is at fault: dead-letter it. The field counts the attempts.
    Dead { error: LoadError, attempts: u32 },
    /// Other transactions were in the way each time.
    Conflict(LoadError),
    /// Postgres is at fault: stop consuming until it works.
    Pause(LoadError),
    /// The service must stop: the delivery is redelivered.
    Stopping,
}

/// What is retried in place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retries {
    /// The most retries after a conflict with another transaction.
    pub(super) conflicts: u32,
    /// Whether a statement that does not fit its table is retried: not for a target whose earlier message ran out of
    /// retries.
    pub(super) misfits: bool,
}

impl Retries {
    pub(super) const ALL: Self = Self {
        conflicts: MAX_CONFLICTS,
        misfits: true,
    };
}

/// Repeats `work` until it succeeds or fails finally.
pub(super) async fn with_retries<T>(
    stop: &CancellationToken,
    retries: Retries,
    mut work: impl AsyncFnMut() -> Result<T, LoadError>,
) -> Result<T, Unfinished> {
    let (mut conflicts, mut misfits) = (0, 0);
    loop {
        let error = match work().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let attempts = 1 + conflicts + misfits;
        let (pause, cause) = match error.verdict() {
            Verdict::Pause => return Err(Unfinished::Pause(error)),
            Verdict::Dead => return Err(Unfinished::Dead { error, attempts }),
            Verdict::Retry if conflicts == retries.conflicts => {
                return Err(Unfinished::Conflict(error));
            }
            Verdict::Retry => {
                conflicts += 1;
                let pause = backoff(conflicts, Duration::from_millis(50), Duration::from_secs(2));
                (pause, "conflict")
            }
            Verdict::RetryThenDead => match MISFIT_PAUSES.get(misfits as usize) {
                Some(pause) if retries.misfits => {
                    misfits += 1;
                    (*pause, "table")
                }
                _ => return Err(Unfinished::Dead { error, attempts }),
            },
        };
        retried(cause, 1);
        tracing::debug!(error = error.sentence(), attempts, "retrying in place");
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
        health.not_ready(
            cause,
            format!("{}; the loader retries by itself", error.sentence()),
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
