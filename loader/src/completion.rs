//! Whether a run is done. Asked after every commit, duplicate and event, and by a periodic sweep, so
//! that no crash between a commit and the question leaves a finished run open.

use common::message::RunId;
use sqlx::{PgConnection, PgPool};

use crate::database::transaction;
use crate::errors::LoadError;
use crate::ledger::turn_key;

/// Completes the run if every batch of its result is in the ledger and the rows add up; tells its
/// new state if it came to a terminal one now. The first terminal state stays.
pub async fn try_complete(pool: &PgPool, run: &RunId) -> Result<Option<String>, LoadError> {
    let answer = transaction(pool, async |tx: &mut PgConnection| {
        if may_be_done(tx, run).await? {
            complete(tx, run).await
        } else {
            Ok(None)
        }
    });
    let ended = answer
        .await
        .map_err(LoadError::books("asked whether the run is done"))?;
    match ended.as_deref() {
        Some("completed") => tracing::info!(run.id = %run, "run completed"),
        Some(state) => {
            tracing::error!(run.id = %run, run.state = state, "the ledger contradicts the extractor's counts");
        }
        None => {}
    }
    Ok(ended)
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

async fn complete(tx: &mut PgConnection, run: &RunId) -> Result<Option<String>, sqlx::Error> {
    // Batch transactions hold the row shared, so that none is between its ledger row and its commit
    // from here on.
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(turn_key(run))
        .execute(&mut *tx)
        .await?;
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
    // The key makes seqs distinct: n of them, the last being n - 1, are 0 to n - 1. The sum of the
    // rows says nothing of where they were cut, which the first rows do.
    sqlx::query_scalar(
        "WITH placed AS (
             SELECT r.batches_expected, r.rows_expected, b.seq, b.rows_extracted,
                    b.first_row <> sum(b.rows_extracted) OVER (ORDER BY b.seq) - b.rows_extracted AS is_misplaced
             FROM etl.runs r JOIN etl.batches b ON b.run_id = r.run_id AND b.generation = r.generation
             WHERE r.run_id = $1),
         ledger AS (
             SELECT batches_expected, rows_expected, count(*) AS batches, max(seq) AS last_seq, sum(rows_extracted) AS rows,
                    min(seq) FILTER (WHERE is_misplaced) AS misplaced
             FROM placed GROUP BY batches_expected, rows_expected),
         verdict AS (
             SELECT CASE WHEN last_seq >= batches_expected
                         THEN format('batch %s is in the ledger, and the result has %s batches', last_seq, batches_expected)
                         WHEN rows <> rows_expected
                         THEN format('its batches have %s rows, and the result has %s', rows, rows_expected)
                         WHEN misplaced IS NOT NULL
                         THEN format('batch %s does not begin where the batches before it end: rows were loaded twice or not at all', misplaced)
                    END AS contradiction
             FROM ledger WHERE batches >= batches_expected OR last_seq >= batches_expected)
         UPDATE etl.runs SET state = CASE WHEN contradiction IS NULL THEN 'completed' ELSE 'failed' END,
                failure = contradiction, finished_at = now()
         FROM verdict WHERE run_id = $1 RETURNING state",
    )
    .bind(run.as_str())
    .fetch_optional(tx)
    .await
}

/// Open runs whose number of batches is known.
pub async fn candidates(pool: &PgPool) -> Result<Vec<RunId>, LoadError> {
    let found = transaction(pool, async |tx: &mut PgConnection| {
        sqlx::query_scalar::<_, String>("SELECT run_id FROM etl.runs WHERE state IN ('requested', 'running') AND batches_expected IS NOT NULL ORDER BY run_no")
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
