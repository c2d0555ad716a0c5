//! Executes removals: deletes rows that a person requested to leave the target, in the transaction that makes the ledger say so,
//! under the run's lock and, where the rows have a key, the lock of merges into the target.

use std::ops::Range;
use std::time::Duration;

use common::message::RunId;
use common::schema::{BATCH_COLUMN, quoted};
use ledger::{LockedRun, database};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::ddl::TableName;
use crate::errors::{LoadError, Verdict};
use crate::load::Loader;
use crate::target::merge_lock_key;

/// The longest that one may take: it may read a large table once.
const REMOVAL_TIMEOUT: Duration = Duration::from_hours(1);

/// Executes the removals that are due. One that fails is recorded with its reason, for the command that waits, and keeps no other.
pub async fn execute_all(loader: &Loader) -> Result<(), LoadError> {
    for (id, run) in loader.store.pending_removals().await? {
        let Err(error) = execute(loader, id, &run).await else {
            continue;
        };
        let error = LoadError::of_target(error);
        // Another transaction was in the way: the next look tries again.
        if error.verdict() == Verdict::Retry {
            continue;
        }
        let why = error.sentence();
        tracing::warn!(run.id = %run, error = why, "rows were not removed");
        loader.store.removal_failed(id, &why).await?;
    }
    Ok(())
}

async fn execute(loader: &Loader, id: i64, run: &RunId) -> Result<(), ledger::Error> {
    let Loader { store, targets, .. } = loader;
    let table = store.exactly(run.as_str()).await?.target_table;
    let (schema, table) = table.split_once('.').unwrap_or(("public", &table));
    let name = TableName {
        schema: schema.to_owned(),
        table: table.to_owned(),
    };
    // Without it the table is read as a whole.
    targets.indexes.ensure(store, &name).await?;
    let failure = format!("cannot remove the rows of the run {run} from its target");
    let work = async |tx: &mut PgConnection| {
        let mut run = LockedRun::lock(tx, run).await?;
        let Some(removal) = run.begin_removal(id).await? else {
            return Ok(());
        };
        sqlx::query("SELECT set_config('statement_timeout', $1, true)")
            .bind(format!("{}s", REMOVAL_TIMEOUT.as_secs()))
            .execute(run.connection())
            .await?;
        if run.row().mode.has_key() {
            database::lock(run.connection(), merge_lock_key(&name)).await?;
        }
        let batches = removal.batch_nos(run.row().run_no);
        let rows = delete(run.connection(), &name, batches).await?;
        let (run_id, table) = (&run.row().run_id, name.sql());
        tracing::info!(
            run.id = run_id,
            target.table = table,
            rows,
            "rows removed by request"
        );
        run.finish_removal(&removal, rows).await
    };
    store
        .transaction_within(REMOVAL_TIMEOUT, failure, work)
        .await
}

/// Deletes the rows with these values of `_batch`, and returns their number: 0 without a table.
async fn delete(
    tx: &mut PgConnection,
    name: &TableName,
    batches: Range<i64>,
) -> Result<i64, sqlx::Error> {
    let table = name.sql();
    let is_there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&table)
        .fetch_one(&mut *tx)
        .await?;
    if !is_there {
        return Ok(0);
    }
    let batch = quoted(BATCH_COLUMN);
    let delete = format!("DELETE FROM {table} WHERE {batch} >= $1 AND {batch} < $2");
    let deleted = sqlx::query(AssertSqlSafe(delete))
        .bind(batches.start)
        .bind(batches.end)
        .execute(tx)
        .await?;
    Ok(deleted.rows_affected().try_into().unwrap_or(i64::MAX))
}
