//! Completes runs. The check runs after every commit, duplicate and event, and in the sweep, so that a crash between a
//! commit and the check leaves no finished run open. A run with staged rows is committed first; the sweep commits
//! approved runs.

use std::time::Duration;

use common::failpoint;
use common::message::RunId;
use ledger::completion::{End, may_be_complete};
use ledger::{LockedRun, RunState, Store};
use sqlx::PgConnection;

use crate::errors::{LoadError, Verdict};
use crate::target::commit::commit;

/// The timeout for completing a run: a commit writes all of its rows at once.
const COMMIT_TIMEOUT: Duration = Duration::from_hours(1);

/// Like [`try_complete`], for a loader that holds a delivery: a conflict with another transaction is no reason to hold
/// it longer, since the sweep repeats the check.
pub async fn ask(store: &Store, run: &RunId) -> Result<Option<RunState>, LoadError> {
    match try_complete(store, run).await {
        Err(error) if error.verdict() == Verdict::Retry => {
            tracing::info!(run.id = %run, error = error.sentence(), "completing the run met a conflict; the sweep tries again");
            Ok(None)
        }
        answer => answer,
    }
}

/// Completes the run if the ledger has every batch of its result and the rows add up. Returns the new state if it
/// changed. The first terminal state stays.
pub async fn try_complete(store: &Store, run: &RunId) -> Result<Option<RunState>, LoadError> {
    if !may_be_complete(store, run).await? {
        return Ok(None);
    }
    let failure = format!("cannot complete the run {run}");
    let ended = store.transaction_within(COMMIT_TIMEOUT, failure, async |tx: &mut PgConnection| {
        complete(tx, run).await
    });
    let Some((state, end)) = ended.await.map_err(LoadError::completion)? else {
        return Ok(None);
    };
    failpoint::reach("after_run_commit").await;
    count(state);
    match end {
        End::Completed => tracing::info!(run.id = %run, "run completed"),
        End::Failed(error) => {
            tracing::error!(run.id = %run, error, "run failed: the ledger contradicts the extractor's counts");
        }
        // The reason may quote a row; the ledger has it.
        End::Held(_) => {
            tracing::error!(run.id = %run, "run held: etl status says why, and etl approve or etl discard decides");
        }
        End::Superseded(reason) => tracing::warn!(run.id = %run, reason, "run superseded"),
    }
    Ok(Some(state))
}

/// Counts a run that ended, or is held.
pub(crate) fn count(state: RunState) {
    metrics::counter!("etl_runs_total", "state" => state.name()).increment(1);
}

/// Shows the counters of runs before the first of them is counted: a rate needs a zero to begin from.
pub(crate) fn show_counters() {
    for state in [
        RunState::Completed,
        RunState::Failed,
        RunState::Held,
        RunState::Superseded,
    ] {
        metrics::counter!("etl_runs_total", "state" => state.name()).increment(0);
    }
}

async fn complete(
    tx: &mut PgConnection,
    run: &RunId,
) -> Result<Option<(RunState, End)>, ledger::Error> {
    // The transaction that holds the run repeats this check when it ends, or the sweep does: a commit may take long,
    // and no delivery waits for it.
    let Some(mut run) = LockedRun::try_lock(tx, run).await? else {
        return Ok(None);
    };
    if !run.row().state.takes_batches() {
        return Ok(None);
    }
    let Some(sums) = run.sums().await? else {
        return Ok(None);
    };
    let end = if let Some(contradiction) = sums.contradiction {
        End::Failed(contradiction)
    } else if let Some(staging) = run.staging().await? {
        sqlx::query("SELECT set_config('statement_timeout', $1, true)")
            .bind(format!("{}s", COMMIT_TIMEOUT.as_secs()))
            .execute(run.connection())
            .await?;
        commit(&mut run, &sums, &staging).await?
    } else if let Some(why) = run.why_nothing_is_staged().await? {
        End::Held(why)
    } else {
        End::Completed
    };
    let state = run.end(&end).await?;
    failpoint::reach("mid_run_commit").await;
    Ok(Some((state, end)))
}
