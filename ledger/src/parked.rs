//! Batches that wait in the queue `etl.parked` for their target, commits that wait for it, and why: what `etl status` and `etl doctor` show. A row says
//! where a batch waits and decides nothing; a batch that was loaded counts no more, whatever became of its row.

use std::borrow::Cow;

use common::message::{BatchId, RunId, ValidBatch};
use serde::Serialize;
use sqlx::{Connection as _, FromRow, PgConnection};

use crate::database::{BEGIN, Store};
use crate::error::Error;
use crate::run::integer;

/// What waits for a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct Parked {
    pub target_table: String,
    pub batches: i64,
    /// Runs whose staged rows wait to be committed.
    pub commits: i64,
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
      AND NOT EXISTS (SELECT FROM etl.batches b WHERE (b.run_id, b.generation, b.seq) = (p.run_id, p.generation, p.seq))";

/// Stands for the commit of a run, which waits as a batch does.
const COMMIT: i64 = -1;

/// About what a batch writes: a disk that is full has room for a row.
const PROBE_KIB: i32 = 256;

impl Store {
    /// Records that a batch waits for its target, once more.
    pub async fn park(&self, batch: &ValidBatch, target: &str, reason: &str) -> Result<(), Error> {
        let failure = "cannot record that a batch waits for its target";
        self.transaction(failure, async |tx: &mut PgConnection| {
            park(tx, place(&batch.id), target, reason).await
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
                    park(tx, place, &target, reason).await
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
                "DELETE FROM etl.parked WHERE run_id = $1 AND generation = $2 AND seq = $3",
            )
            .bind(id.run.as_str())
            .bind(integer("the generation", id.generation)?)
            .bind(integer("the seq", id.seq)?)
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
            park(&mut tx, place(id), "", &text).await?;
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
                "SELECT p.target_table, count(*) FILTER (WHERE p.seq <> {COMMIT}) AS batches,
                        count(*) FILTER (WHERE p.seq = {COMMIT}) AS commits, count(DISTINCT p.run_id) AS runs, min(p.parked_at)::text AS since,
                        max(p.attempts) AS attempts, (array_agg(p.reason ORDER BY p.tried_at DESC))[1] AS reason
                 {WAITING} AND ($1::text IS NULL OR p.run_id = $1) GROUP BY p.target_table ORDER BY p.target_table"
            );
            let select = sqlx::query_as(sqlx::AssertSqlSafe(select)).bind(run);
            Ok(select.fetch_all(tx).await?)
        })
        .await
    }
}

fn place(id: &BatchId) -> (&RunId, i64, i64) {
    (&id.run, id.generation.into(), id.seq.into())
}

async fn park(
    tx: &mut PgConnection,
    (run, generation, seq): (&RunId, i64, i64),
    target: &str,
    reason: &str,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO etl.parked AS p (run_id, generation, seq, target_table, reason) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (run_id, generation, seq) DO UPDATE SET reason = excluded.reason, attempts = p.attempts + 1, tried_at = now()",
    )
    .bind(run.as_str())
    .bind(generation)
    .bind(seq)
    .bind(target)
    .bind(reason)
    .execute(tx)
    .await?;
    Ok(())
}
