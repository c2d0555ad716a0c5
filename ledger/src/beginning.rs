//! The beginning of a run in its target: what its first batch records, and a run that ends before it.

use common::message::{RunId, ValidBatch};
use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::parked::EXTRACTION;
use crate::run::{LockedRun, integer};
use crate::state::Transition;

/// The run of a job that loaded a table before.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct FormerRun {
    pub run_id: String,
    /// The columns of the table that it loaded.
    #[sqlx(rename = "target_columns")]
    pub columns: Vec<String>,
}

/// The latest run of a job that loaded the table (with its schema); not after `run`, if there is one. A run that is replayed has
/// loaded it: it is compared with itself. What an abandoned replay had begun to load does not count.
pub async fn former_run(
    tx: &mut PgConnection,
    job: &str,
    table: &str,
    run: Option<&RunId>,
) -> Result<Option<FormerRun>, sqlx::Error> {
    sqlx::query_as(
        "SELECT run_id, columns AS target_columns FROM (
             SELECT run_id, run_no, coalesce(
                 (SELECT p.target_columns FROM etl.replays p
                  WHERE p.run_id = r.run_id AND p.generation > r.first_generation AND p.abandoned IS NULL AND p.target_columns IS NOT NULL
                  ORDER BY p.generation DESC LIMIT 1), r.target_columns) AS columns
             FROM etl.runs r
             WHERE job = $1 AND target_table = $2 AND (state = 'completed' OR generation > first_generation)
                 AND ($3::text IS NULL OR run_no <= (SELECT run_no FROM etl.runs WHERE run_id = $3))) loaded
         WHERE columns IS NOT NULL ORDER BY run_no DESC LIMIT 1",
    )
    .bind(job)
    .bind(table)
    .bind(run.map(RunId::as_str))
    .fetch_optional(tx)
    .await
}

/// Makes the batch's result and columns those of the run, if it has none yet. A transaction of its own: a loader that holds the
/// row shared and wants to change it would deadlock with another that does the same.
pub async fn begin(store: &Store, batch: &ValidBatch) -> Result<(), Error> {
    let failure = "cannot record the run's result";
    store
        .transaction(failure, async |tx: &mut PgConnection| {
            LockedRun::lock(tx, &batch.id.run).await?.begin(batch).await
        })
        .await
}

/// Fails the run of a batch that its target does not take, if that is the first of the run: each of the others would be refused,
/// too. False where the run has a batch in the ledger already, or is replayed: then this batch alone is at fault.
pub async fn fail_before_first_batch(
    store: &Store,
    batch: &ValidBatch,
    why: &str,
) -> Result<bool, Error> {
    let failure = "cannot record that the run failed";
    store
        .transaction(failure, async |tx: &mut PgConnection| {
            let run = LockedRun::lock(tx, &batch.id.run).await?;
            run.fail_before_first_batch(batch, why).await
        })
        .await
}

impl LockedRun<'_> {
    async fn begin(self, batch: &ValidBatch) -> Result<(), Error> {
        let is_live = self.row.generation == integer("the generation", batch.id.generation)?;
        // A run that has begun, or ended meanwhile, is looked at again by the batch.
        if !is_live || self.row.has_begun || self.to(Transition::Start).is_err() {
            return Ok(());
        }
        self.row.check_pinned(&batch.result_id)?;
        let columns = batch.columns.iter().map(|column| column.name.as_str());
        let columns: Vec<_> = columns.collect();
        let (job, table) = (&self.row.job, &self.row.target_table);
        let former = former_run(self.tx, job, table, Some(&self.id)).await?;
        let mut removed = former.map(|former| former.columns).unwrap_or_default();
        removed.retain(|name| !columns.contains(&name.as_str()));
        sqlx::query("UPDATE etl.runs SET removed_columns = $2 WHERE run_id = $1")
            .bind(self.id.as_str())
            .bind(removed)
            .execute(&mut *self.tx)
            .await?;
        let record = if self.row.is_replay() {
            "UPDATE etl.replays SET target_columns = $3 WHERE run_id = $1 AND generation = $2"
        } else {
            "UPDATE etl.runs SET target_columns = $3 WHERE run_id = $1 AND generation = $2"
        };
        sqlx::query(record)
            .bind(self.id.as_str())
            .bind(self.row.generation)
            .bind(columns)
            .execute(&mut *self.tx)
            .await?;
        self.start(Some(&batch.result_id), None).await
    }

    async fn fail_before_first_batch(self, batch: &ValidBatch, why: &str) -> Result<bool, Error> {
        let row = &self.row;
        let is_live = row.generation == integer("the generation", batch.id.generation)?;
        if !is_live || row.is_replay() || !row.state.takes_batches() {
            return Ok(false);
        }
        row.check_pinned(&batch.result_id)?;
        let has_batch: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM etl.batches WHERE run_id = $1 AND generation = $2)",
        )
        .bind(self.id.as_str())
        .bind(row.generation)
        .fetch_one(&mut *self.tx)
        .await?;
        if has_batch {
            return Ok(false);
        }
        // Of a result that is not read to its end there is nothing to replay.
        let is_paused: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM etl.parked WHERE run_id = $1 AND first_row = $2)",
        )
        .bind(self.id.as_str())
        .bind(EXTRACTION)
        .fetch_one(&mut *self.tx)
        .await?;
        let (run, job) = (&self.id, &row.job);
        let retry = format!("`etl run {job} --run-id {run} --retry` asks Athena again");
        let then = if is_paused {
            retry
        } else {
            format!("`etl replay {run}` loads what Athena returned, and {retry}")
        };
        let failure = format!("{why}; nothing of the run was loaded. Then {then}");
        self.fail(&failure).await?;
        Ok(true)
    }
}
