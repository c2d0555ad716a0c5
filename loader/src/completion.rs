//! Whether a run is done, and what has to be done then: a run whose rows were staged is published.
//! Asked after every commit, duplicate and event, and by a frequent sweep, so that no crash between
//! a commit and the question leaves a finished run open, and that an approved one is published.

use std::time::Duration;

use common::failpoint;
use common::job::JobSpec;
use common::message::RunId;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};

use crate::database::{transaction, transaction_within};
use crate::errors::{self, LoadError};
use crate::ledger::turn_key;
use crate::publish::{Counted, Published, publish};
use crate::staging;

/// How long completing a run may take: publishing writes all of its rows at once.
const PUBLISHING: Duration = Duration::from_hours(1);

/// [`try_complete`], for whoever has a delivery in hand: that somebody else is in the way is no
/// reason to keep it, since the sweep asks again.
pub async fn ask(pool: &PgPool, run: &RunId) -> Result<Option<String>, LoadError> {
    match try_complete(pool, run).await {
        Err(error) if error.verdict() == errors::Verdict::Retry => {
            tracing::info!(run.id = %run, error = error.sentence(), "somebody is in the way of completing the run; trying again soon");
            Ok(None)
        }
        answer => answer,
    }
}

/// Completes the run if every batch of its result is in the ledger and the rows add up; tells its
/// new state if it came to another one now. The first terminal state stays.
pub async fn try_complete(pool: &PgPool, run: &RunId) -> Result<Option<String>, LoadError> {
    let may_be_done = transaction(pool, async |tx: &mut PgConnection| {
        may_be_done(tx, run).await
    });
    let asked = LoadError::books("asked whether the run is done");
    if !may_be_done.await.map_err(asked)? {
        return Ok(None);
    }
    let ended = transaction_within(PUBLISHING, pool, async |tx: &mut PgConnection| {
        complete(tx, run).await
    });
    let ended = ended.await.map_err(|source| LoadError::Completion {
        run: run.to_string(),
        source,
    })?;
    let Some((state, why)) = ended else {
        return Ok(None);
    };
    failpoint::reach("after_publish").await;
    count(state);
    match state {
        "completed" => tracing::info!(run.id = %run, "run completed"),
        "failed" => {
            tracing::error!(run.id = %run, error = why, "the ledger contradicts the extractor's counts");
        }
        "held" => {
            tracing::error!(run.id = %run, reason = why, "run held: etl approve or etl discard decides");
        }
        _ => tracing::warn!(run.id = %run, reason = why, "run superseded"),
    }
    Ok(Some(state.to_owned()))
}

/// Counts a run that came to an end, or is held.
pub(crate) fn count(state: &'static str) {
    metrics::counter!("etl_runs_total", "state" => state).increment(1);
}

/// A cheap question first: the count is known, and so is the batch that comes last. A big run is
/// counted at its end only, not after each of its batches.
async fn may_be_done(tx: &mut PgConnection, run: &RunId) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT EXISTS (
             SELECT FROM etl.runs r JOIN etl.batches b
                 ON b.run_id = r.run_id AND b.generation = r.generation AND b.seq >= r.batches_expected - 1
             WHERE r.run_id = $1 AND r.state IN ('requested', 'running') AND r.batches_expected IS NOT NULL)",
    )
    .bind(run.as_str())
    .fetch_one(tx)
    .await
}

/// The new state, and why where that is to be said.
type Ended = Option<(&'static str, Option<String>)>;

async fn complete(tx: &mut PgConnection, run: &RunId) -> Result<Ended, sqlx::Error> {
    // Batch transactions hold the row shared, so that none is between its ledger row and its commit
    // from here on. Whoever holds the turn now asks this question when he is done, or the sweep does:
    // publishing may take long, and nobody shall wait for it.
    let (has_turn,): (bool,) = sqlx::query_as("SELECT pg_try_advisory_xact_lock($1)")
        .bind(turn_key(run))
        .fetch_one(&mut *tx)
        .await?;
    if !has_turn {
        return Ok(None);
    }
    let locked = sqlx::query(
        "SELECT FROM etl.runs WHERE run_id = $1 AND state IN ('requested', 'running') FOR UPDATE",
    );
    if locked
        .bind(run.as_str())
        .fetch_optional(&mut *tx)
        .await?
        .is_none()
    {
        return Ok(None);
    }
    let Some(Verdict {
        contradiction,
        counted,
    }) = add_up(tx, run).await?
    else {
        return Ok(None);
    };
    if contradiction.is_some() {
        return end(tx, run, "failed", contradiction).await;
    }
    let staging = staging::find(tx, run.as_str(), counted.generation).await?;
    let Some(staging) = staging else {
        return match nothing_staged(tx, run, counted.generation).await? {
            None => end(tx, run, "completed", None).await,
            Some(why) => end(tx, run, "held", Some(why)).await,
        };
    };
    sqlx::query("SELECT set_config('statement_timeout', $1, true)")
        .bind(format!("{}s", PUBLISHING.as_secs()))
        .execute(&mut *tx)
        .await?;
    let ended = match publish(tx, run.as_str(), &counted, &staging).await? {
        Published::Done => end(tx, run, "completed", None).await,
        Published::Held(why) => end(tx, run, "held", Some(why)).await,
        Published::Superseded(why) => end(tx, run, "superseded", Some(why)).await,
    };
    failpoint::reach("mid_publish").await;
    ended
}

/// Why a run without a staging table is not complete all the same: it is a replay whose every batch was given up before
/// any was staged, and the rows that it was to replace are in the target still.
async fn nothing_staged(
    tx: &mut PgConnection,
    run: &RunId,
    generation: i32,
) -> Result<Option<String>, sqlx::Error> {
    let spec: Option<Json<JobSpec>> = sqlx::query_scalar(
        "SELECT job_spec FROM etl.replays WHERE run_id = $1 AND generation = $2",
    )
    .bind(run.as_str())
    .bind(generation)
    .fetch_optional(tx)
    .await?;
    let generation = u32::try_from(generation).unwrap_or_default();
    let is_staged = spec.is_some_and(|spec| spec.0.target.is_staged(generation));
    Ok(is_staged.then(|| {
        format!(
            "every batch of the replay was given up, and the rows that it was to replace are in the target still; `etl discard {run} --why ...` leaves them there, `etl replay {run}` tries again"
        )
    }))
}

/// What the ledger says of a run whose last batch is there.
struct Verdict {
    contradiction: Option<String>,
    counted: Counted,
}

/// `None` while a batch is missing.
async fn add_up(tx: &mut PgConnection, run: &RunId) -> Result<Option<Verdict>, sqlx::Error> {
    #[derive(sqlx::FromRow)]
    struct Row {
        contradiction: Option<String>,
        #[sqlx(flatten)]
        counted: Counted,
    }
    // The key makes seqs distinct: n of them, the last being n - 1, are 0 to n - 1. The sum of the
    // rows says nothing of where they were cut, which the first rows do.
    let found: Option<Row> = sqlx::query_as(
        "WITH placed AS (
             SELECT r.run_no, r.generation, r.batches_expected, r.rows_expected, b.seq, b.rows_extracted, b.rows_loaded, b.rows_rejected,
                    b.first_row <> sum(b.rows_extracted) OVER (ORDER BY b.seq) - b.rows_extracted AS is_misplaced
             FROM etl.runs r JOIN etl.batches b ON b.run_id = r.run_id AND b.generation = r.generation
             WHERE r.run_id = $1),
         ledger AS (
             SELECT run_no, generation, batches_expected, rows_expected, count(*) AS batches, max(seq) AS last_seq,
                    sum(rows_extracted)::bigint AS rows_extracted, sum(rows_loaded)::bigint AS rows_loaded,
                    sum(rows_rejected)::bigint AS rows_rejected, min(seq) FILTER (WHERE is_misplaced) AS misplaced
             FROM placed GROUP BY run_no, generation, batches_expected, rows_expected)
         SELECT run_no, generation, rows_extracted, rows_loaded, rows_rejected,
                CASE WHEN last_seq >= batches_expected
                     THEN format('batch %s is in the ledger, and the result has %s batches', last_seq, batches_expected)
                     WHEN rows_extracted <> rows_expected
                     THEN format('its batches have %s rows, and the result has %s', rows_extracted, rows_expected)
                     WHEN misplaced IS NOT NULL
                     THEN format('batch %s does not begin where the batches before it end: rows were loaded twice or not at all', misplaced)
                END AS contradiction
         FROM ledger WHERE batches >= batches_expected OR last_seq >= batches_expected",
    )
    .bind(run.as_str())
    .fetch_optional(tx)
    .await?;
    Ok(found.map(|row| Verdict {
        contradiction: row.contradiction,
        counted: row.counted,
    }))
}

/// Writes the new state. A run that is held was approved in vain, if it was, and needs a new word.
async fn end(
    tx: &mut PgConnection,
    run: &RunId,
    state: &'static str,
    why: Option<String>,
) -> Result<Ended, sqlx::Error> {
    sqlx::query(
        "UPDATE etl.runs SET state = $2,
             failure = CASE WHEN $2 = 'held' THEN NULL ELSE $3 END,
             held_because = CASE WHEN $2 = 'held' THEN $3 ELSE held_because END,
             approved_at = CASE WHEN $2 = 'held' THEN NULL ELSE approved_at END,
             finished_at = CASE WHEN $2 = 'held' THEN NULL ELSE now() END
         WHERE run_id = $1",
    )
    .bind(run.as_str())
    .bind(state)
    .bind(&why)
    .execute(tx)
    .await?;
    Ok(Some((state, why)))
}

/// Open runs that may be done: the number of batches is known, and the last one is in the ledger.
pub async fn candidates(pool: &PgPool) -> Result<Vec<RunId>, LoadError> {
    let found = transaction(pool, async |tx: &mut PgConnection| {
        sqlx::query_scalar::<_, String>(
            "SELECT run_id FROM etl.runs r WHERE state IN ('requested', 'running') AND batches_expected IS NOT NULL
                 AND EXISTS (SELECT FROM etl.batches b
                     WHERE b.run_id = r.run_id AND b.generation = r.generation AND b.seq >= r.batches_expected - 1)
             ORDER BY run_no",
        )
        .fetch_all(tx)
        .await
    });
    let found = found
        .await
        .map_err(LoadError::books("searched for open runs"))?;
    Ok(found
        .into_iter()
        .filter_map(|run| run.parse().ok())
        .collect())
}
