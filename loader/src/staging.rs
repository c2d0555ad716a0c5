//! The tables in which a run's rows wait until they are published as a whole: one for each run and
//! generation, made by whoever loads the first batch, gone once nothing can come of it any more.

use common::job::Target;
use common::message::ValidBatch;
use common::schema::TargetColumn;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, PgPool};

use crate::database::transaction;
use crate::ddl::TableName;
use crate::errors::{LoadError, Refused};
use crate::ledger::integer;
use crate::statements::publish::{create_staging, into_staging, staging_table};
use crate::statements::{FINGERPRINT, Statements, lock_key};

/// What the books say of a staging table.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Staging {
    pub(crate) table_name: String,
    pub(crate) target: Json<Target>,
    pub(crate) columns: Json<Vec<TargetColumn>>,
    /// Whether the run was approved after this table was made: an approval is of a generation.
    pub(crate) is_approved: bool,
}

const FIND: &str = "SELECT s.table_name, s.target, s.columns, coalesce(r.approved_at > s.created_at, false) AS is_approved \
     FROM etl.staging s JOIN etl.runs r USING (run_id) WHERE s.run_id = $1 AND s.generation = $2";

/// The staging of a run's generation, if it has one.
pub(crate) async fn find(
    tx: &mut PgConnection,
    run: &str,
    generation: i32,
) -> Result<Option<Staging>, sqlx::Error> {
    let found = sqlx::query_as(FIND).bind(run).bind(generation);
    found.fetch_optional(tx).await
}

/// How the rows of a batch get into the staging table of its run, which is made if it is missing.
pub(crate) async fn prepare(pool: &PgPool, batch: &ValidBatch) -> Result<Statements, LoadError> {
    let generation = integer("the generation", batch.id.generation)?;
    let made = transaction(pool, async |tx: &mut PgConnection| {
        make(tx, batch, generation).await
    });
    let (staging, fingerprint) = made
        .await
        .map_err(|error| LoadError::target("etl_staging", "given a staging table", error))??;
    Ok(into_staging(&staging, &batch.columns, fingerprint))
}

async fn make(
    tx: &mut PgConnection,
    batch: &ValidBatch,
    generation: i32,
) -> Result<Result<(TableName, String), Refused>, sqlx::Error> {
    let run = batch.id.run.as_str();
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(lock_key("stage", run))
        .execute(&mut *tx)
        .await?;
    let run_no: Option<i64> = sqlx::query_scalar("SELECT run_no FROM etl.runs WHERE run_id = $1")
        .bind(run)
        .fetch_optional(&mut *tx)
        .await?;
    let Some(run_no) = run_no else {
        let run = run.to_owned();
        return Ok(Err(Refused::UnknownRun { run }));
    };
    let table = staging_table(run_no, generation);
    match find(tx, run, generation).await? {
        Some(known) if known.target.0 != batch.target || known.columns.0 != batch.columns => {
            let run = run.to_owned();
            return Ok(Err(Refused::OtherShape { run, generation }));
        }
        Some(_) => {}
        None => {
            let create = create_staging(&table, &batch.columns);
            tx.execute(AssertSqlSafe(create)).await?;
            sqlx::query("INSERT INTO etl.staging (run_id, generation, table_name, target, columns) VALUES ($1, $2, $3, $4, $5)")
                .bind(run)
                .bind(generation)
                .bind(&table.table)
                .bind(Json(&batch.target))
                .bind(Json(&batch.columns))
                .execute(&mut *tx)
                .await?;
        }
    }
    let fingerprint: Option<String> = sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT {FINGERPRINT} FROM pg_class c WHERE c.oid = to_regclass($1)"
    )))
    .bind(table.sql())
    .fetch_optional(tx)
    .await?;
    let gone = || Refused::StagingGone { table: table.sql() };
    Ok(fingerprint
        .ok_or_else(gone)
        .map(|fingerprint| (table.clone(), fingerprint)))
}

/// Drops the staging tables that nothing can come of any more: those of runs that are over, and of
/// generations that a replay has superseded. Answers how many.
pub async fn clean_up(pool: &PgPool) -> Result<usize, LoadError> {
    let over = transaction(pool, async |tx: &mut PgConnection| {
        sqlx::query_as::<_, (String, i32)>(
            "SELECT s.run_id, s.generation FROM etl.staging s JOIN etl.runs r USING (run_id)
             WHERE r.state IN ('completed', 'failed', 'cancelled', 'superseded') OR s.generation < r.generation LIMIT 100",
        )
        .fetch_all(tx)
        .await
    });
    let over = over
        .await
        .map_err(LoadError::books("searched for staging tables"))?;
    let mut dropped = 0;
    for (run, generation) in over {
        let done = transaction(pool, async |tx: &mut PgConnection| {
            drop_one(tx, &run, generation).await
        });
        let done = done
            .await
            .map_err(|error| LoadError::target("etl_staging", "rid of a staging table", error))?;
        dropped += usize::from(done);
    }
    Ok(dropped)
}

/// Another loader may be at it; then this one leaves it alone.
async fn drop_one(tx: &mut PgConnection, run: &str, generation: i32) -> Result<bool, sqlx::Error> {
    let name: Option<String> = sqlx::query_scalar(
        "SELECT table_name FROM etl.staging WHERE run_id = $1 AND generation = $2 FOR UPDATE SKIP LOCKED",
    )
    .bind(run)
    .bind(generation)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(table) = name else {
        return Ok(false);
    };
    let schema = crate::statements::publish::STAGING_SCHEMA.to_owned();
    let table = TableName { schema, table };
    let sql = format!("DROP TABLE IF EXISTS {}", table.sql());
    tx.execute(AssertSqlSafe(sql)).await?;
    sqlx::query("DELETE FROM etl.staging WHERE run_id = $1 AND generation = $2")
        .bind(run)
        .bind(generation)
        .execute(tx)
        .await?;
    Ok(true)
}
