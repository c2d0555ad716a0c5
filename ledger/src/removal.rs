//! Removals: a person's request to take rows of a run out of its target. A command only writes the request, since only the
//! loader writes a target; a loader's sweep executes it under the run's lock, in the transaction that makes the ledger say so.

use std::ops::Range;
use std::time::Duration;

use common::message::{BatchId, RunId};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use tokio::time::{Instant, sleep};

use crate::batch_no::BatchNo;
use crate::database::Store;
use crate::earlier;
use crate::error::Error;
use crate::run::{LockedRun, run_id};
use crate::state::Transition;

/// How often a command looks whether its removal was executed.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A batch that a person drops, with the dead letter that it was in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedBatch {
    pub generation: i32,
    pub content_hash: String,
    pub result_id: String,
    pub first_row: u64,
    pub rows: u64,
    /// The dead letter, and the time of its arrival, which tells whether it arrived again.
    pub dead_letter: i64,
    pub received_at: String,
}

/// A removal that is to be executed.
#[derive(Debug, FromRow)]
pub struct Removal {
    id: i64,
    generation: i32,
    batch: Option<Json<DroppedBatch>>,
    requested_by: String,
    reason: String,
}

/// The longest that a loader waits before it tries a removal again that failed.
const RETRY_INTERVAL: &str = "1 minute";

/// Where a removal stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A loader has removed so many rows.
    Done(i64),
    /// There was nothing to remove, and why.
    NotNeeded(String),
    /// No loader has executed it yet; with the reason why the last attempt failed.
    Pending(Option<String>),
}

impl Store {
    /// Waits until a loader has executed a removal, for `timeout` at most. A failed attempt ends the waiting, unless it only met
    /// another transaction; the loader tries again.
    pub async fn removed(&self, removal: i64, timeout: Duration) -> Result<Removed, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let (found, has_failed) = self.look_at_removal(removal).await?;
            match found {
                Removed::Pending(_) if !has_failed && Instant::now() < deadline => {
                    sleep(POLL_INTERVAL).await;
                }
                found => return Ok(found),
            }
        }
    }

    /// Where the removal stands, and whether the loader gave it up for a while.
    async fn look_at_removal(&self, removal: i64) -> Result<(Removed, bool), Error> {
        let failure = "cannot look whether the rows were removed";
        let (rows_removed, outcome, failure, has_failed) = self
            .read(failure, async |tx: &mut PgConnection| {
                let select = "SELECT rows_removed, outcome, failure, failed_at IS NOT NULL FROM etl.removals WHERE id = $1";
                Ok(sqlx::query_as(select).bind(removal).fetch_one(tx).await?)
            })
            .await?;
        let found = match (rows_removed, outcome) {
            (Some(rows), _) => Removed::Done(rows),
            (None, Some(outcome)) => Removed::NotNeeded(outcome),
            (None, None) => Removed::Pending(failure),
        };
        Ok((found, has_failed))
    }

    /// The removals that a loader is to execute now, the oldest first. One that failed a moment ago is left out.
    pub async fn pending_removals(&self) -> Result<Vec<(i64, RunId)>, Error> {
        let failure = "cannot look for rows that are to be removed";
        self.read(failure, async |tx: &mut PgConnection| {
                let select = "SELECT id, run_id FROM etl.removals
                     WHERE finished_at IS NULL AND (failed_at IS NULL OR failed_at < now() - $1::text::interval) ORDER BY id";
                let query = sqlx::query_as(select).bind(RETRY_INTERVAL);
                let found: Vec<(i64, String)> = query.fetch_all(tx).await?;
                let removals = found.into_iter().map(|(id, run)| Ok((id, run_id(run)?)));
                Ok(removals.collect::<Result<_, sqlx::Error>>()?)
            })
            .await
    }

    /// Records why an attempt failed, for the command that waits. `is_soon`: another transaction was in the way, and the next
    /// look for removals tries again.
    pub async fn removal_failed(
        &self,
        removal: i64,
        why: &str,
        is_soon: bool,
    ) -> Result<(), Error> {
        let failure = "cannot record why rows could not be removed";
        self.transaction(failure, async |tx: &mut PgConnection| {
            sqlx::query(
                "UPDATE etl.removals SET failure = $2, failed_at = CASE WHEN NOT $3 THEN now() END
                 WHERE id = $1 AND finished_at IS NULL",
            )
            .bind(removal)
            .bind(why)
            .bind(is_soon)
            .execute(tx)
            .await?;
            Ok(())
        })
        .await
    }
}

/// Refuses to bring rows into a table that rows are to be removed from: a row that gives way to one of those would be lost with it.
pub(crate) async fn check_no_removal(tx: &mut PgConnection, table: &str) -> Result<(), Error> {
    let run: Option<String> = sqlx::query_scalar(
        "SELECT run_id FROM etl.removals m JOIN etl.runs r USING (run_id) WHERE m.finished_at IS NULL AND r.target_table = $1 LIMIT 1",
    )
    .bind(table)
    .fetch_optional(tx)
    .await?;
    match run {
        None => Ok(()),
        Some(run) => Err(Error::NotAllowed(format!(
            "rows of the run {run} are being removed from {table} by request; repeat the command when `etl status {run}` says that they are gone, or keep them with `etl cancel {run}`"
        ))),
    }
}

/// What the ledger says of the rows that a removal deletes.
#[derive(Debug)]
pub struct ToRemove {
    /// There are so many at most: those that were accepted.
    pub most: i64,
    /// And so many at least: others lost to rows of the same key.
    pub fewest: i64,
    /// Whether the job allows deletions that cascade to other tables.
    pub allows_cascades: bool,
}

impl Removal {
    /// The values of `_batch` whose rows go.
    pub fn batch_nos(&self, run_no: i64) -> Range<i64> {
        match &self.batch {
            None => BatchNo::of_run(run_no),
            Some(batch) => {
                let no = BatchNo::new(run_no, batch.first_row).get();
                no..no + 1
            }
        }
    }
}

impl LockedRun<'_> {
    /// Requests a removal, or finds the same request that is pending: its number.
    pub(crate) async fn request_removal(
        &mut self,
        batch: Option<&DroppedBatch>,
        by: &str,
        reason: &str,
    ) -> Result<i64, sqlx::Error> {
        let batch = batch.map(Json);
        // A new request is a new attempt at once.
        let pending = sqlx::query_scalar(
            "UPDATE etl.removals SET failure = NULL, failed_at = NULL
             WHERE run_id = $1 AND generation = $2 AND batch IS NOT DISTINCT FROM $3 AND finished_at IS NULL RETURNING id",
        );
        let pending = pending
            .bind(self.id.as_str())
            .bind(self.row.generation)
            .bind(batch.as_ref())
            .fetch_optional(&mut *self.tx)
            .await?;
        if let Some(id) = pending {
            return Ok(id);
        }
        sqlx::query_scalar(
            "INSERT INTO etl.removals (run_id, generation, batch, requested_by, reason) VALUES ($1, $2, $3, $4, $5) RETURNING id",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .bind(batch)
        .bind(by)
        .bind(reason)
        .fetch_one(&mut *self.tx)
        .await
    }

    /// Withdraws the request to remove all rows of the run, if one is pending: the rows stay.
    pub(crate) async fn withdraw_removal(&mut self, by: &str) -> Result<bool, Error> {
        let withdrawn = sqlx::query(
            "UPDATE etl.removals SET finished_at = now(), outcome = $2 WHERE run_id = $1 AND batch IS NULL AND finished_at IS NULL",
        )
        .bind(self.id.as_str())
        .bind(format!("withdrawn by {by}"))
        .execute(&mut *self.tx)
        .await?;
        Ok(withdrawn.rows_affected() > 0)
    }

    /// The removal, when its rows have to be deleted now, before [`Self::finish_removal`]. None when it was executed before, or
    /// when there is nothing to remove, which is then recorded.
    pub async fn begin_removal(&mut self, id: i64) -> Result<Option<Removal>, Error> {
        let found: Option<Removal> = sqlx::query_as(
            "SELECT id, generation, batch, requested_by, reason FROM etl.removals WHERE id = $1 AND finished_at IS NULL FOR UPDATE",
        )
        .bind(id)
        .fetch_optional(&mut *self.tx)
        .await?;
        let Some(removal) = found else {
            return Ok(None);
        };
        let not_needed = match &removal.batch {
            // Rows of other runs may have given way since the request.
            None if removal.generation == self.row.generation => {
                self.check_undo().await?;
                None
            }
            None => Some("a replay has superseded it"),
            Some(batch) => {
                let (by, why) = (removal.requested_by.clone(), removal.reason.clone());
                self.drop_batch(&batch.0, &by, &why).await?
            }
        };
        let Some(why) = not_needed else {
            return Ok(Some(removal));
        };
        self.close_removal(&removal, None, why).await?;
        Ok(None)
    }

    /// What the ledger says of the rows that the removal deletes.
    pub async fn to_remove(&mut self, removal: &Removal) -> Result<ToRemove, Error> {
        if let Some(batch) = &removal.batch {
            let id = self.batch_id(batch.first_row);
            let rows = earlier::rows_of_batch(self.tx, &id).await?.unwrap_or(0);
            return Ok(ToRemove {
                most: rows,
                fewest: rows,
                allows_cascades: self.allows_cascades().await?,
            });
        }
        let (most, fewest) = sqlx::query_as(
            "SELECT coalesce(sum(rows_loaded), 0)::bigint,
                    coalesce(sum(rows_loaded - rows_deduplicated), 0)::bigint
                        - (SELECT coalesce(sum(rows), 0)::bigint FROM etl.conflicts WHERE run_no = $3)
             FROM etl.batches WHERE run_id = $1 AND generation = $2",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .bind(self.row.run_no)
        .fetch_one(&mut *self.tx)
        .await?;
        let allows_cascades = self.allows_cascades().await?;
        Ok(ToRemove {
            most,
            fewest,
            allows_cascades,
        })
    }

    async fn allows_cascades(&mut self) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT coalesce((coalesce(p.job_spec, r.job_spec) -> 'target' ->> 'allow_cascades')::boolean, false)
             FROM etl.runs r LEFT JOIN etl.replays p USING (run_id, generation) WHERE r.run_id = $1",
        )
        .bind(self.id.as_str())
        .fetch_one(&mut *self.tx)
        .await
    }

    /// The rows were deleted from the target in this transaction, so many: makes the ledger say so.
    pub async fn finish_removal(mut self, removal: &Removal, rows: i64) -> Result<(), Error> {
        if removal.batch.is_none() {
            let state = self.to(Transition::Undo)?;
            debug_assert_eq!(
                state, self.row.state,
                "a removal is requested of an ended run"
            );
            let (by, reason) = (&removal.requested_by, &removal.reason);
            self.drop_loaded(by, reason).await?;
            self.forget_conflicts().await?;
            self.move_watermark_back().await?;
        }
        self.close_removal(removal, Some(rows), "removed").await
    }

    async fn close_removal(
        &mut self,
        removal: &Removal,
        rows: Option<i64>,
        outcome: &str,
    ) -> Result<(), Error> {
        sqlx::query("UPDATE etl.removals SET finished_at = now(), rows_removed = $2, outcome = $3, failure = NULL WHERE id = $1")
            .bind(removal.id)
            .bind(rows)
            .bind(outcome)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// What `etl.batches` calls the batch: for a statement on one batch of this run's live generation.
    pub(crate) fn batch_id(&self, first_row: u64) -> BatchId {
        BatchId {
            run: self.id.clone(),
            generation: self.row.generation_no(),
            first_row,
        }
    }
}
