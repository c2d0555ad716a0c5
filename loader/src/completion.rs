//! Completes runs. The check runs after every commit, duplicate and event, and in the sweep, so that a crash between a
//! commit and the check leaves no finished run open. A run with staged rows is committed first, and only by the sweep: no
//! delivery waits for a commit.

use std::time::Duration;

use common::failpoint;
use common::message::RunId;
use ledger::completion::{End, may_be_complete};
use ledger::{LockedRun, RunState, Store};
use sqlx::PgConnection;

use crate::errors::{LoadError, Verdict};
use crate::target::LOCK_TIMEOUT;
use crate::target::commit::commit;

/// The timeout for completing a run: a commit writes all of its rows at once.
const COMMIT_TIMEOUT: Duration = Duration::from_hours(1);

/// What became of a run whose batches may all be in the ledger.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A batch is missing, or another transaction holds the run: the check is repeated.
    Open,
    /// Its rows are staged, and the sweep commits them.
    Staged,
    Ended(String, RunState, End),
}

/// Like [`try_complete`], for a loader that holds a delivery: it commits no staged rows, which may take long, and a conflict
/// with another transaction is no reason to hold the delivery longer. Returns whether the sweep has something to do.
pub async fn ask(store: &Store, run: &RunId) -> Result<bool, LoadError> {
    match conclude(store, run, false).await {
        Err(error) if error.verdict() == Verdict::Retry => {
            tracing::info!(run.id = %run, error = error.sentence(), "completing the run met a conflict; the sweep tries again");
            Ok(true)
        }
        found => Ok(found? == Found::Staged),
    }
}

/// Completes the run if the ledger has every batch of its result and the rows add up. Returns the new state if it
/// changed. The first terminal state stays.
pub async fn try_complete(store: &Store, run: &RunId) -> Result<Option<RunState>, LoadError> {
    Ok(match conclude(store, run, true).await? {
        Found::Ended(_, state, _) => Some(state),
        Found::Open | Found::Staged => None,
    })
}

async fn conclude(store: &Store, run: &RunId, commits: bool) -> Result<Found, LoadError> {
    if !may_be_complete(store, run).await? {
        return Ok(Found::Open);
    }
    let failure = format!("cannot complete the run {run}");
    let work = async |tx: &mut PgConnection| complete(tx, run, commits).await;
    let found = store.transaction_within(COMMIT_TIMEOUT, failure, work);
    let found = found.await.map_err(LoadError::completion)?;
    let Found::Ended(job, state, end) = &found else {
        return Ok(found);
    };
    failpoint::reach("after_run_commit").await;
    count(job, *state);
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
    Ok(found)
}

/// Counts a run that ended, or is held.
pub(crate) fn count(job: &str, state: RunState) {
    add(job, state, 1);
}

fn add(job: &str, state: RunState, runs: u64) {
    metrics::counter!("etl_runs_total", "job" => job.to_owned(), "state" => state.name())
        .increment(runs);
}

/// Shows the counters of a job's runs before the first of them is counted: a rate needs a zero to begin from.
pub(crate) fn show_counters(job: &str) {
    for state in [
        RunState::Completed,
        RunState::Failed,
        RunState::Held,
        RunState::Superseded,
    ] {
        add(job, state, 0);
    }
}

async fn complete(
    tx: &mut PgConnection,
    run: &RunId,
    commits: bool,
) -> Result<Found, ledger::Error> {
    // The transaction that holds the run repeats this check when it ends, or the sweep does: a commit may take long,
    // and no delivery waits for it.
    let Some(mut run) = LockedRun::try_lock(tx, run).await? else {
        return Ok(Found::Open);
    };
    if !run.row().state.takes_batches() {
        return Ok(Found::Open);
    }
    let Some(sums) = run.sums().await? else {
        return Ok(Found::Open);
    };
    let end = if let Some(contradiction) = sums.contradiction {
        End::Failed(contradiction)
    } else if let Some(staging) = run.staging().await? {
        if !commits {
            return Ok(Found::Staged);
        }
        sqlx::query("SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)")
            .bind(format!("{}s", COMMIT_TIMEOUT.as_secs()))
            .bind(LOCK_TIMEOUT)
            .execute(run.connection())
            .await?;
        commit(&mut run, &sums, &staging).await?
    } else if let Some(why) = run.why_nothing_is_staged().await? {
        End::Held(why)
    } else {
        End::Completed
    };
    let job = run.row().job.clone();
    let state = run.end(&end).await?;
    failpoint::reach("mid_run_commit").await;
    Ok(Found::Ended(job, state, end))
}
