//! What the generations before a replay have left in the target, and the way back to it when the replay is abandoned. Then the
//! ledger of the live generation says again what is in the target: no row is called dropped that is there, and none loaded that
//! is not.

use common::job::JobSpec;
use common::message::BatchId;
use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::run::{LockedRun, RunRow, bigint, generation_no, integer};
use crate::state::RunState;

/// What of a run is in its target, of the generations before the live one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Earlier {
    /// Batches that are there, and that the live generation has not replaced.
    pub(crate) batches: i64,
    /// Their rows.
    pub(crate) rows: i64,
}

/// A generation before the live one.
#[derive(FromRow)]
struct Generation {
    #[sqlx(rename = "generation")]
    number: i32,
    #[sqlx(json)]
    job_spec: JobSpec,
    /// The run's state when the next generation began.
    #[sqlx(try_from = "String")]
    end: RunState,
    /// Whether its replay came to nothing: what its ledger says was carried back then.
    is_abandoned: bool,
}

impl Generation {
    /// Whether its ledger is about rows in the target: what is staged gets there only when it is complete.
    fn is_in_target(&self) -> bool {
        !self.job_spec.target.is_staged(generation_no(self.number))
            || self.is_abandoned
            || self.end == RunState::Completed
    }
}

impl Earlier {
    #[cfg(test)]
    pub(crate) fn left(batches: i64, rows: i64) -> Self {
        Self { batches, rows }
    }

    /// What is there of a run whose row is locked.
    pub(crate) async fn of(tx: &mut PgConnection, run: &RunRow) -> Result<Self, sqlx::Error> {
        let generations = generations_in_target(tx, &run.run_id, run.generation).await?;
        let (batches, rows) = sqlx::query_as(
            "SELECT count(*), coalesce(sum(rows_loaded), 0)::bigint FROM (
                 SELECT DISTINCT ON (first_row) first_row, rows_loaded FROM etl.batches WHERE run_id = $1 AND generation = ANY ($2)
                 ORDER BY first_row, generation DESC) f
             WHERE $4 OR NOT EXISTS (SELECT FROM etl.batches n WHERE n.run_id = $1 AND n.generation = $3 AND n.first_row = f.first_row)",
        )
        .bind(&run.run_id)
        .bind(&generations)
        .bind(run.generation)
        // Then nothing of the live generation has replaced it.
        .bind(run.is_staged())
        .fetch_one(tx)
        .await?;
        Ok(Self { batches, rows })
    }
}

/// The generations before the live one whose ledger is about rows in the target, as far as no later one has replaced them.
async fn generations_in_target(
    tx: &mut PgConnection,
    run: &str,
    live: i32,
) -> Result<Vec<i32>, sqlx::Error> {
    let before: Vec<Generation> = sqlx::query_as(
        "SELECT g.generation, g.job_spec, g.is_abandoned, next.state_before AS end
         FROM (SELECT first_generation AS generation, job_spec, false AS is_abandoned FROM etl.runs WHERE run_id = $1
               UNION ALL SELECT p.generation, p.job_spec, p.abandoned IS NOT NULL
               FROM etl.replays p JOIN etl.runs r USING (run_id) WHERE run_id = $1 AND p.generation > r.first_generation) g
         JOIN etl.replays next ON next.run_id = $1 AND next.generation = g.generation + 1 WHERE g.generation < $2",
    )
    .bind(run)
    .bind(live)
    .fetch_all(&mut *tx)
    .await?;
    let in_target = before.iter().filter(|generation| generation.is_in_target());
    Ok(in_target.map(|generation| generation.number).collect())
}

/// How many rows of a batch of the live generation the generations before have left in the target; none of a batch that is not
/// of a replay.
pub async fn rows_of_batch(tx: &mut PgConnection, id: &BatchId) -> Result<Option<i64>, Error> {
    let live = integer("the generation", id.generation)?;
    if live == 0 || !is_replay(tx, id).await? {
        return Ok(None);
    }
    let generations = generations_in_target(tx, id.run.as_str(), live).await?;
    let rows: Option<i64> = sqlx::query_scalar(
        "SELECT rows_loaded FROM etl.batches WHERE run_id = $1 AND generation = ANY ($2) AND first_row = $3 ORDER BY generation DESC LIMIT 1",
    )
    .bind(id.run.as_str())
    .bind(&generations)
    .bind(bigint("the first row", id.first_row)?)
    .fetch_optional(tx)
    .await?;
    Ok(Some(rows.unwrap_or(0)))
}

async fn is_replay(tx: &mut PgConnection, id: &BatchId) -> Result<bool, Error> {
    let found: Option<bool> =
        sqlx::query_scalar("SELECT $2 > first_generation FROM etl.runs WHERE run_id = $1")
            .bind(id.run.as_str())
            .bind(integer("the generation", id.generation)?)
            .fetch_optional(tx)
            .await?;
    Ok(found == Some(true))
}

impl Store {
    /// Whether a batch is of a replay, and so may have an earlier self in the target.
    pub async fn is_replayed(&self, id: &BatchId) -> Result<bool, Error> {
        let failure = "cannot look whether the batch is of a replay";
        self.read(failure, async |tx: &mut PgConnection| {
            is_replay(tx, id).await
        })
        .await
    }
}

impl LockedRun<'_> {
    /// How many rows the generations before the live one have left in the target, of a run of which nothing of the live one
    /// is there.
    pub async fn earlier_rows(&mut self) -> Result<i64, sqlx::Error> {
        Ok(Earlier::of(self.tx, &self.row).await?.rows)
    }

    /// Gives the batches of earlier generations that are in the target their place in the ledger of the live generation. What is
    /// staged of that has not reached the target and is forgotten; what has replaced its earlier self batch by batch stays.
    /// Answers how many those are.
    pub(crate) async fn carry_back(&mut self) -> Result<i64, sqlx::Error> {
        let (tx, run) = (&mut *self.tx, &self.row);
        let generations = generations_in_target(tx, &run.run_id, run.generation).await?;
        if run.is_staged() {
            for forget in [
                "DELETE FROM etl.rejected_rows WHERE run_id = $1 AND generation = $2",
                "DELETE FROM etl.batches WHERE run_id = $1 AND generation = $2",
            ] {
                let forget = sqlx::query(forget).bind(&run.run_id).bind(run.generation);
                forget.execute(&mut *tx).await?;
            }
        }
        let replaced = sqlx::query_scalar(
            "SELECT count(*) FROM etl.batches b JOIN etl.replays p USING (run_id, generation)
             WHERE run_id = $1 AND generation = $2 AND p.rows @> b.first_row",
        )
        .bind(&run.run_id)
        .bind(run.generation)
        .fetch_one(&mut *tx)
        .await?;
        // Rejected rows go with their batch.
        sqlx::query(
            "UPDATE etl.batches b SET generation = $3
             FROM (SELECT DISTINCT ON (first_row) first_row, generation FROM etl.batches WHERE run_id = $1 AND generation = ANY ($2)
                   ORDER BY first_row, generation DESC) f
             WHERE b.run_id = $1 AND b.generation = f.generation AND b.first_row = f.first_row AND NOT EXISTS (
                 SELECT FROM etl.batches n WHERE n.run_id = $1 AND n.generation = $3 AND n.first_row = b.first_row)",
        )
        .bind(&run.run_id)
        .bind(&generations)
        .bind(run.generation)
        .execute(tx)
        .await?;
        Ok(replaced)
    }
}
