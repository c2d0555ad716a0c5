//! The register of staging tables: one for each generation of a run that is committed as a whole. The tables themselves, in
//! schema `etl_staging`, are the loader's; a register row and its table are made and dropped in one transaction.

use common::job::Target;
use common::message::{BatchId, RunId};
use common::schema::TargetColumn;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use crate::database::{Store, lock, lock_key};
use crate::error::{Error, Refused};
use crate::run::{LockedRun, integer};

/// What the ledger says of a staging table.
#[derive(Debug, FromRow)]
pub struct Staging {
    pub table_name: String,
    pub target: Json<Target>,
    pub columns: Json<Vec<TargetColumn>>,
    /// Whether the run was approved after this table was made: an approval is of a generation.
    pub is_approved: bool,
}

impl LockedRun<'_> {
    /// The staging of the live generation, if it has one.
    pub async fn staging(&mut self) -> Result<Option<Staging>, Error> {
        Ok(find(self.tx, &self.id, self.row.generation).await?)
    }
}

async fn find(
    tx: &mut PgConnection,
    run: &RunId,
    generation: i32,
) -> Result<Option<Staging>, sqlx::Error> {
    sqlx::query_as(
        "SELECT s.table_name, s.target, s.columns, coalesce(r.approved_at > s.created_at, false) AS is_approved
         FROM etl.staging s JOIN etl.runs r USING (run_id) WHERE s.run_id = $1 AND s.generation = $2",
    )
    .bind(run.as_str())
    .bind(generation)
    .fetch_optional(tx)
    .await
}

/// The number of the run whose batch is about to be staged. Until the transaction ends no other loader stages its first batch.
pub async fn begin_staging(tx: &mut PgConnection, run: &RunId) -> Result<i64, Error> {
    lock(tx, lock_key("stage", run.as_str())).await?;
    let run_no: Option<i64> = sqlx::query_scalar("SELECT run_no FROM etl.runs WHERE run_id = $1")
        .bind(run.as_str())
        .fetch_optional(tx)
        .await?;
    let run = run.to_string();
    Ok(run_no.ok_or(Refused::UnknownRun { run })?)
}

/// Registers a staging table: true when it is new, and has to be made. Refused when the table that is there is for another
/// target or other columns.
pub async fn register(
    tx: &mut PgConnection,
    id: &BatchId,
    table: &str,
    target: &Target,
    columns: &[TargetColumn],
) -> Result<bool, Error> {
    let generation = integer("the generation", id.generation)?;
    match find(tx, &id.run, generation).await? {
        Some(known) if known.target.0 != *target || known.columns.0 != columns => {
            let run = id.run.to_string();
            Err(Refused::OtherShape { run, generation }.into())
        }
        Some(_) => Ok(false),
        None => {
            sqlx::query("INSERT INTO etl.staging (run_id, generation, table_name, target, columns) VALUES ($1, $2, $3, $4, $5)")
                .bind(id.run.as_str())
                .bind(generation)
                .bind(table)
                .bind(Json(target))
                .bind(Json(columns))
                .execute(tx)
                .await?;
            Ok(true)
        }
    }
}

/// Staging tables that are of no use any more, a hundred at most: those of runs that have ended, and of generations that a
/// replay has superseded.
pub async fn unused(store: &Store) -> Result<Vec<(String, i32)>, Error> {
    let failure = "cannot look for staging tables that are of no use any more";
    store
        .read(failure, async |tx: &mut PgConnection| {
            let found = sqlx::query_as(
                "SELECT s.run_id, s.generation FROM etl.staging s JOIN etl.runs r USING (run_id)
                 WHERE r.finished_at IS NOT NULL OR s.generation < r.generation LIMIT 100",
            )
            .fetch_all(tx)
            .await?;
            Ok(found)
        })
        .await
}

/// Takes a staging table out of the register: its name, for the loader to drop. None when another loader is at it.
pub async fn unregister(
    tx: &mut PgConnection,
    run: &str,
    generation: i32,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "DELETE FROM etl.staging WHERE (run_id, generation) IN (
             SELECT run_id, generation FROM etl.staging WHERE run_id = $1 AND generation = $2 FOR UPDATE SKIP LOCKED)
         RETURNING table_name",
    )
    .bind(run)
    .bind(generation)
    .fetch_optional(tx)
    .await
}
