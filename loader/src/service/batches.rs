//! What becomes of a batch: it is loaded, dead-lettered, or parked because of its target. The lanes and the drain of
//! `etl.parked` share it.

use std::time::Duration;

use common::message::ValidBatch;
use common::reason::Reason;
use tokio_util::sync::CancellationToken;

use super::persist::{Retries, Unfinished, with_retries};
use crate::errors::{LoadError, Verdict};
use crate::load::{Loader, Outcome};
use crate::parking::{self, Patience};

/// The end of an attempt to load a batch.
pub(super) enum End {
    Settled(Outcome),
    /// The message is at fault, after so many attempts.
    Dead {
        reason: Reason,
        attempts: u32,
    },
    /// The target cannot take it now.
    Parked(String),
    /// The batch does not fit its target.
    Misfit(Reason),
    /// PostgreSQL is at fault.
    Pause(LoadError),
    Stopping,
}

impl End {
    /// Why the batch is parked, with PostgreSQL's own words: for the ledger, not for logs. Empty where it is not.
    pub(super) fn reason(self) -> String {
        match self {
            Self::Parked(why) => why,
            Self::Misfit(why) => why.text().to_owned(),
            Self::Settled(_) | Self::Dead { .. } | Self::Pause(_) | Self::Stopping => String::new(),
        }
    }
}

/// How much time a batch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Time {
    /// Seconds: others wait behind it.
    Little,
    /// Minutes.
    Ample,
}

impl Time {
    /// How long it waits for other batches of its target.
    fn patience(self) -> Patience {
        match self {
            Self::Little => Patience {
                proven: Duration::from_secs(8),
                unproven: Duration::from_secs(1),
            },
            Self::Ample => Patience {
                proven: Duration::from_mins(1),
                unproven: Duration::from_mins(1),
            },
        }
    }

    fn retries(self) -> Retries {
        match self {
            Self::Little => Retries {
                conflicts: 3,
                locks: 0,
            },
            Self::Ample => Retries::MOST,
        }
    }
}

/// Loads a batch unless its target is known to be unavailable, or stays busy. A failure that is not the message's is the
/// target's where PostgreSQL takes a write on the ledger meanwhile.
pub(super) async fn attempt(
    loader: &Loader,
    stop: &CancellationToken,
    batch: &ValidBatch,
    time: Time,
) -> End {
    let target = parking::name(&batch.target);
    // Until the failure is recorded: who waits for it must not try in vain.
    let slot = match loader.parking.enter(&target, time.patience()).await {
        Ok(slot) => slot,
        Err(why) => return without_target(loader, batch, why).await,
    };
    let load = async || match time {
        Time::Little => loader.accept_briefly(batch).await,
        Time::Ample => loader.accept(batch).await,
    };
    let done = with_retries(stop, time.retries(), load).await;
    match done {
        Ok(outcome) => {
            slot.prove();
            End::Settled(outcome)
        }
        Err(Unfinished::Dead { error, attempts }) => End::Dead {
            reason: error.reason(),
            attempts,
        },
        Err(Unfinished::Stopping) => End::Stopping,
        Err(Unfinished::Pause(error)) => End::Pause(error),
        Err(Unfinished::Misfit(error)) => End::Misfit(error.reason()),
        // Another transaction holds the run, as a commit does.
        Err(Unfinished::Conflict(error)) if !error.is_of_target() => End::Parked(error.sentence()),
        Err(Unfinished::Conflict(error) | Unfinished::Target(error)) => {
            if loader.store.probe(&batch.id).await.is_err() {
                return End::Pause(error);
            }
            let why = error.sentence();
            tracing::warn!(
                target.table = target,
                error = why,
                "the target cannot take rows now; its batches are parked until it can"
            );
            let reason = error.reason();
            loader.parking.failed(&target, batch, reason.text());
            End::Parked(reason.text().to_owned())
        }
    }
}

/// Settles a batch that needs no target, or says why it is parked.
async fn without_target(loader: &Loader, batch: &ValidBatch, why: String) -> End {
    match loader.settle(batch).await {
        Ok(Some(outcome)) => End::Settled(outcome),
        Ok(None) => End::Parked(why),
        Err(error) => match error.verdict() {
            Verdict::Dead => End::Dead {
                reason: error.reason(),
                attempts: 1,
            },
            Verdict::Pause => End::Pause(error),
            Verdict::Retry | Verdict::Target | Verdict::Misfit => End::Parked(why),
        },
    }
}

/// [`attempt`]'s failure while the loader waits for PostgreSQL: none when the wait is over.
pub(super) async fn again(loader: &Loader, batch: &ValidBatch) -> Result<(), LoadError> {
    match loader.accept(batch).await {
        Err(error) if error.verdict() == Verdict::Target => {
            Ok(loader.store.probe(&batch.id).await?)
        }
        done => done.map(drop),
    }
}
