//! Drops the rows of a dead letter, or the replay that it was part of, so that the run can come to its end without it.

use common::message::RunId;
use sqlx::PgConnection;

use super::{DeadLetter, resolve};
use crate::batch;
use crate::database::Store;
use crate::error::Error;
use crate::removal::DroppedBatch;
use crate::run::{LockedRun, bigint};
use crate::state::{RunState, Transition};

/// What became of a batch that a person drops.
#[derive(Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Its rows are counted as dropped.
    Counted,
    /// The ledger did not need it, and why.
    NotNeeded(&'static str),
    /// Rows of an earlier generation of the batch are in the target. A loader removes them, and counts the batch:
    /// [`Store::removed`] tells when it has.
    Requested { removal: i64 },
}

/// What became of the replay that a dropped task belongs to.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplayDropped {
    /// The run was complete before, and is so again.
    Restored,
    /// It was not, and has failed now.
    Failed,
    /// There is no such replay, or it is not the live one: only the dead letter was resolved.
    NotNeeded,
}

impl Store {
    /// Counts the rows of a batch as dropped, so that its run can complete without them, and resolves the dead letter.
    pub async fn drop_batch(
        &self,
        run: &RunId,
        batch: &DroppedBatch,
        by: &str,
        why: &str,
    ) -> Result<Dropped, Error> {
        let failure = format!("cannot drop the dead letter {}", batch.dead_letter);
        self.transaction(failure, async |tx: &mut PgConnection| {
            let locked = LockedRun::lock_for_person(&mut *tx, run).await;
            let mut locked = match locked {
                Err(Error::NotFound(_)) => {
                    let reason = "its run is unknown here";
                    let resolution = format!("dropped by {by}: {why} ({reason})");
                    resolve(tx, batch.dead_letter, &batch.received_at, &resolution).await?;
                    return Ok(Dropped::NotNeeded(reason));
                }
                locked => locked?,
            };
            // A replay that replaces batch by batch has left the rows of the generation before in the target until the batch
            // arrives. It never will.
            if locked.row.is_replay()
                && locked.row.replays_by_batch()
                && locked.why_not_needed(batch).await?.is_none()
            {
                let removal = locked.request_removal(Some(batch), by, why).await?;
                return Ok(Dropped::Requested { removal });
            }
            let not_needed = locked.drop_batch(batch, by, why).await?;
            Ok(not_needed.map_or(Dropped::Counted, Dropped::NotNeeded))
        })
        .await
    }

    /// Drops the dead letter of a task that was to read a result again, and abandons the replay that sent the task: the run is
    /// then what it was before, and no row that had been loaded is lost.
    pub async fn drop_replay(
        &self,
        letter: &DeadLetter,
        run: &RunId,
        generation: u32,
        by: &str,
        why: &str,
    ) -> Result<ReplayDropped, Error> {
        let failure = format!("cannot drop the dead letter {}", letter.id);
        self.transaction(failure, async |tx: &mut PgConnection| {
            // The run first, as everywhere: another command may hold it and want the dead letter.
            let dropped = match LockedRun::lock_for_person(&mut *tx, run).await {
                Err(Error::NotFound(_)) => ReplayDropped::NotNeeded,
                locked => locked?.drop_replay(generation, by, why).await?,
            };
            let resolution = format!("dropped by {by}: {why}");
            resolve(tx, letter.id, &letter.received_at, &resolution).await?;
            Ok(dropped)
        })
        .await
    }
}

impl LockedRun<'_> {
    /// Why the ledger does not need a batch, if it does not.
    async fn why_not_needed(
        &mut self,
        batch: &DroppedBatch,
    ) -> Result<Option<&'static str>, Error> {
        let row = &self.row;
        if !row.state.takes_batches() {
            return Ok(Some("its run had ended without it"));
        }
        if batch.generation != row.generation {
            return Ok(Some("a replay has superseded it"));
        }
        let is_beyond = |expected: i64| batch.first_row + batch.rows > expected.unsigned_abs();
        if row.check_pinned(&batch.result_id).is_err() || row.rows_expected.is_some_and(is_beyond) {
            return Ok(Some("it is not part of the run's result"));
        }
        let is_there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM etl.batches WHERE run_id = $1 AND generation = $2 AND first_row = $3)",
        )
        .bind(self.id.as_str())
        .bind(batch.generation)
        .bind(bigint("the first row", batch.first_row)?)
        .fetch_one(&mut *self.tx)
        .await?;
        Ok(is_there.then_some("it was loaded after all"))
    }

    /// Gives a batch its ledger row, all of its rows dropped, and resolves its dead letter. Answers why it was not needed, if it
    /// was not.
    pub(crate) async fn drop_batch(
        &mut self,
        batch: &DroppedBatch,
        by: &str,
        why: &str,
    ) -> Result<Option<&'static str>, Error> {
        let not_needed = self.why_not_needed(batch).await?;
        if not_needed.is_none() {
            self.write_dropped(batch, by, why).await?;
        }
        let resolution = match not_needed {
            None => format!("dropped by {by}, {} rows: {why}", batch.rows),
            Some(reason) => format!("dropped by {by}: {why} ({reason})"),
        };
        let (id, received_at) = (batch.dead_letter, &batch.received_at);
        resolve(self.tx, id, received_at, &resolution).await?;
        Ok(not_needed)
    }

    async fn write_dropped(
        &mut self,
        batch: &DroppedBatch,
        by: &str,
        why: &str,
    ) -> Result<(), Error> {
        let state = self.to(Transition::DropBatch)?;
        sqlx::query(
            "INSERT INTO etl.batches (run_id, generation, first_row, content_hash, result_id, rows_extracted, rows_loaded, rows_dropped, dropped_by, drop_reason)
             VALUES ($1, $2, $3, $4, $5, $6, 0, $6, $7, $8)",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .bind(bigint("the first row", batch.first_row)?)
        .bind(&batch.content_hash)
        .bind(&batch.result_id)
        .bind(bigint("the number of rows", batch.rows)?)
        .bind(by)
        .bind(why)
        .execute(&mut *self.tx)
        .await?;
        let id = self.batch_id(batch.first_row);
        batch::check_neighbours(self.tx, &id, batch.rows).await?;
        // The run may have no result yet: this batch is of it, like the first one that is loaded.
        sqlx::query("UPDATE etl.runs SET result_id = coalesce(result_id, $2), state = $3, started_at = coalesce(started_at, now()) WHERE run_id = $1")
            .bind(self.id.as_str())
            .bind(&batch.result_id)
            .bind(state.name())
            .execute(&mut *self.tx)
            .await?;
        Ok(self.tell_start().await?)
    }

    async fn drop_replay(
        mut self,
        generation: u32,
        by: &str,
        why: &str,
    ) -> Result<ReplayDropped, Error> {
        let is_live = u32::try_from(self.row.generation) == Ok(generation);
        let source: Option<String> = sqlx::query_scalar(
            "SELECT source FROM etl.replays WHERE run_id = $1 AND generation = $2",
        )
        .bind(self.id.as_str())
        .bind(self.row.generation)
        .fetch_optional(&mut *self.tx)
        .await?;
        let is_reading = source.as_deref() == Some("athena");
        if !is_live || !is_reading || self.row.state != RunState::Running {
            return Ok(ReplayDropped::NotNeeded);
        }
        let reason = format!("abandoned by {by}: {why}");
        self.give_replay_up(&reason).await?;
        if self.is_balanced().await? && self.overwritten_by_older().await?.is_none() {
            self.restore(&reason).await?;
            return Ok(ReplayDropped::Restored);
        }
        self.fail(&format!("its replay was {reason}")).await?;
        Ok(ReplayDropped::Failed)
    }
}
