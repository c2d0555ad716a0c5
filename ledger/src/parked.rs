//! Batches that wait in the queue `etl.parked` for their target, commits that wait for it, extractions that are paused meanwhile,
//! and why: what `etl status` and `etl doctor` show. A row says where a batch waits; a batch that was loaded counts no more,
//! whatever became of its row.
//!
//! The bytes that wait for a target decide whether extraction for it goes on. They are an estimate, and a wrong one costs only
//! time: a run is paused for nothing, or more than the limit waits.

use std::borrow::Cow;

use common::message::{BatchId, ExtractTask, RunId, ValidBatch};
use jiff::Timestamp;
use serde::Serialize;
use sqlx::{Connection as _, FromRow, PgConnection};

use crate::database::{BEGIN, Store};
use crate::error::{Error, Refused};
use crate::moment::{Moment, moment};
use crate::run::{bigint, integer};

/// What waits for a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct Parked {
    pub target_table: String,
    pub batches: i64,
    /// The bytes of their messages.
    pub bytes: i64,
    /// Runs whose staged rows wait to be committed.
    pub commits: i64,
    /// Runs whose extraction is paused, since so much waits.
    pub paused: i64,
    pub runs: i64,
    /// The longest wait.
    pub since: String,
    /// The attempts to load the batch that was tried most often.
    pub attempts: i32,
    /// Why the latest attempt failed.
    pub reason: String,
}

// A batch of a run that has ended, or of a superseded generation, waits for nothing: it is dropped when its turn comes.
const WAITING: &str = "FROM etl.parked p JOIN etl.runs r USING (run_id)
    WHERE r.state IN ('requested', 'running') AND r.generation = p.generation
      AND NOT EXISTS (SELECT FROM etl.batches b WHERE (b.run_id, b.generation, b.first_row) = (p.run_id, p.generation, p.first_row))";

// The archive's batches come from no extractor.
const IS_BEING_EXTRACTED: &str = "
    SELECT CASE WHEN generation = first_generation THEN extracted_at IS NULL
           ELSE EXISTS (SELECT FROM etl.replays p WHERE (p.run_id, p.generation, p.source) = (r.run_id, r.generation, 'athena')) END
    FROM etl.runs r WHERE run_id = $1 AND generation = $2";

/// Stands for the commit of a run, which waits as a batch does.
const COMMIT: i64 = -1;

/// Stands for the extraction of a run.
pub(crate) const EXTRACTION: i64 = -2;

/// About what a batch writes: a disk that is full has room for a row.
const PROBE_KIB: i32 = 256;

/// What becomes of a paused extraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paused {
    Waits,
    /// It goes on, since this time by the ledger's clock.
    Resumed(Timestamp),
    /// Its run needs it no more: the run has ended, was replayed or requested again.
    Over,
}

/// Bytes that wait for a target before the extraction for it is paused, where `ETL_PARKED_BYTES` does not say otherwise.
pub fn default_parked_bytes() -> u64 {
    256 << 20
}

impl Store {
    /// Records that a batch of so many bytes waits for its target, once more.
    pub async fn park(
        &self,
        batch: &ValidBatch,
        bytes: usize,
        target: &str,
        reason: &str,
    ) -> Result<(), Error> {
        let failure = "cannot record that a batch waits for its target";
        self.transaction(failure, async |tx: &mut PgConnection| {
            park(tx, place(&batch.id), target, bytes, reason).await
        })
        .await
    }

    /// Records that the extraction of a run is paused when more than so many bytes wait for its target, and returns when. None
    /// otherwise.
    pub async fn pause(
        &self,
        id: &BatchId,
        target: &str,
        limit: u64,
    ) -> Result<Option<Moment>, Error> {
        let failure = "cannot record that the extraction of a run is paused";
        self.transaction(failure, async |tx: &mut PgConnection| {
            let is_being_extracted: Option<bool> = sqlx::query_scalar(IS_BEING_EXTRACTED)
                .bind(id.run.as_str())
                .bind(integer("the generation", id.generation)?)
                .fetch_optional(&mut *tx)
                .await?;
            if is_being_extracted != Some(true) || waiting_bytes(tx, target).await? <= limit {
                return Ok(None);
            }
            let place = (&id.run, id.generation.into(), EXTRACTION);
            park(tx, place, target, 0, "so much waits for the target").await?;
            Ok(Some(moment(tx, &id.run, id.generation).await?))
        })
        .await
    }

    /// Whether the extraction that this task goes on with still has to wait. It goes on when no more than so many bytes wait for
    /// its target. A run that the ledger does not have is [refused](Refused::UnknownRun).
    pub async fn resume(
        &self,
        task: &ExtractTask,
        target: &str,
        limit: u64,
    ) -> Result<Paused, Error> {
        let failure = "cannot look whether the extraction of a run has to wait";
        self.transaction(failure, async |tx: &mut PgConnection| {
            let select = "SELECT state IN ('requested', 'running') AND generation = $2 AND run_no = $3 FROM etl.runs WHERE run_id = $1";
            let needs_it: Option<bool> = sqlx::query_scalar(select)
                .bind(task.run.as_str())
                .bind(integer("the generation", task.generation)?)
                .bind(task.run_no)
                .fetch_optional(&mut *tx)
                .await?;
            let needs_it = needs_it.ok_or_else(|| Refused::UnknownRun {
                run: task.run.to_string(),
            })?;
            let paused = if !needs_it {
                Paused::Over
            } else if waiting_bytes(tx, target).await? > limit {
                return Ok(Paused::Waits);
            } else {
                Paused::Resumed(moment(tx, &task.run, task.generation).await?.now)
            };
            let delete = "DELETE FROM etl.parked WHERE run_id = $1 AND first_row = $2";
            let delete = sqlx::query(delete).bind(task.run.as_str()).bind(EXTRACTION);
            delete.execute(tx).await?;
            Ok(paused)
        })
        .await
    }

    /// The bytes that wait for a target.
    pub async fn waiting_bytes(&self, target: &str) -> Result<u64, Error> {
        let failure = "cannot read how much waits for a target";
        self.read(failure, async |tx: &mut PgConnection| {
            waiting_bytes(tx, target).await
        })
        .await
    }

    /// Records that the commit of a run waits for its target, once more.
    pub async fn park_commit(&self, run: &RunId, reason: &str) -> Result<(), Error> {
        let failure = "cannot record that the commit of a run waits for its target";
        self.transaction(failure, async |tx: &mut PgConnection| {
            let select = "SELECT generation, target_table FROM etl.runs WHERE run_id = $1";
            let found: Option<(i32, String)> = sqlx::query_as(select)
                .bind(run.as_str())
                .fetch_optional(&mut *tx)
                .await?;
            match found {
                Some((generation, target)) => {
                    let place = (run, i64::from(generation), COMMIT);
                    park(tx, place, &target, 0, reason).await
                }
                None => Ok(()),
            }
        })
        .await
    }

    /// Records that a batch waits no longer.
    pub async fn unpark(&self, id: &BatchId) -> Result<(), Error> {
        let failure = "cannot record that a batch waits no longer";
        self.transaction(failure, async |tx: &mut PgConnection| {
            sqlx::query(
                "DELETE FROM etl.parked WHERE run_id = $1 AND generation = $2 AND first_row = $3",
            )
            .bind(id.run.as_str())
            .bind(integer("the generation", id.generation)?)
            .bind(bigint("the first row", id.first_row)?)
            .execute(tx)
            .await?;
            Ok(())
        })
        .await
    }

    /// Whether PostgreSQL takes a write on the ledger, on a connection of its own; it is rolled back. After a failure on a
    /// target this tells whose fault it is: the target's, or the server's.
    pub async fn probe(&self, id: &BatchId) -> Result<(), Error> {
        let probed = async {
            let mut connection = self.connect_anew().await?;
            let mut tx = connection.begin_with(BEGIN).await?;
            let text: String = sqlx::query_scalar(
                "SELECT string_agg(md5(n::text || random()), '') FROM generate_series(1, 32 * $1) AS g (n)",
            )
            .bind(PROBE_KIB)
            .fetch_one(&mut *tx)
            .await?;
            park(&mut tx, place(id), "", 0, &text).await?;
            tx.rollback().await?;
            connection.close().await.ok();
            Ok(())
        };
        let failure = || Cow::Borrowed("cannot write to the ledger");
        let probed: Result<(), Error> = crate::database::bounded(probed).await;
        probed.map_err(|error| error.while_doing(failure))
    }

    /// The batches that wait, of all runs or of one, by target.
    pub async fn parked(&self, run: Option<&str>) -> Result<Vec<Parked>, Error> {
        let failure = "cannot read which batches wait for their target";
        self.read(failure, async |tx: &mut PgConnection| {
            let select = format!(
                "SELECT p.target_table, count(*) FILTER (WHERE p.first_row >= 0) AS batches, sum(p.bytes)::bigint AS bytes,
                        count(*) FILTER (WHERE p.first_row = {COMMIT}) AS commits, count(*) FILTER (WHERE p.first_row = {EXTRACTION} AND (r.extracted_at IS NULL OR p.generation > r.first_generation)) AS paused,
                        count(DISTINCT p.run_id) AS runs, min(p.parked_at)::text AS since, max(p.attempts) AS attempts,
                        (array_agg(p.reason ORDER BY p.first_row = {EXTRACTION}, p.tried_at DESC))[1] AS reason
                 {WAITING} AND ($1::text IS NULL OR p.run_id = $1) GROUP BY p.target_table ORDER BY p.target_table"
            );
            let select = sqlx::query_as(sqlx::AssertSqlSafe(select)).bind(run);
            Ok(select.fetch_all(tx).await?)
        })
        .await
    }
}

/// The bytes that wait for a target.
async fn waiting_bytes(tx: &mut PgConnection, target: &str) -> Result<u64, Error> {
    let select =
        format!("SELECT coalesce(sum(p.bytes), 0)::bigint {WAITING} AND p.target_table = $1");
    let select = sqlx::query_scalar(sqlx::AssertSqlSafe(select)).bind(target);
    let bytes: i64 = select.fetch_one(tx).await?;
    Ok(bytes.unsigned_abs())
}

fn place(id: &BatchId) -> (&RunId, i64, i64) {
    (&id.run, id.generation.into(), id.first_row.cast_signed())
}

async fn park(
    tx: &mut PgConnection,
    (run, generation, first_row): (&RunId, i64, i64),
    target: &str,
    bytes: usize,
    reason: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO etl.parked AS p (run_id, generation, first_row, target_table, bytes, reason) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (run_id, generation, first_row) DO UPDATE SET reason = excluded.reason, attempts = p.attempts + 1, tried_at = now()",
    )
    .bind(run.as_str())
    .bind(generation)
    .bind(first_row)
    .bind(target)
    .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
    .bind(reason)
    .execute(tx)
    .await?;
    Ok(())
}
