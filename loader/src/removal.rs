//! Executes removals: deletes rows that a person requested to remove from the target and updates the ledger in one
//! transaction, under the locks of the run and the target.

use common::message::RunId;
use common::schema::{BATCH_COLUMN, quoted};
use ledger::{LockedRun, Store, database};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::ddl::TableName;
use crate::errors::LoadError;
use crate::target::merge_lock_key;

/// Executes the pending removals. A failed one is recorded with its reason, for the command that waits, and does not
/// block the others; the next sweep retries it.
pub async fn execute_all(store: &Store) -> Result<(), LoadError> {
    for (id, run) in store.pending_removals().await? {
        let failure = format!("cannot remove the rows of the run {run} from its target");
        let work = async |tx: &mut PgConnection| execute(tx, id, &run).await;
        let done = store.transaction(failure, work).await;
        let Err(error) = done.map_err(LoadError::of_target) else {
            continue;
        };
        let why = error.sentence();
        tracing::warn!(run.id = %run, error = why, "rows were not removed; the next sweep tries again");
        store.removal_failed(id, &why).await?;
    }
    Ok(())
}

async fn execute(tx: &mut PgConnection, id: i64, run: &RunId) -> Result<(), ledger::Error> {
    let Some(mut run) = LockedRun::try_lock(tx, run).await? else {
        return Ok(());
    };
    let Some(removal) = run.begin_removal(id).await? else {
        return Ok(());
    };
    let row = run.row();
    let (schema, table) = row
        .target_table
        .split_once('.')
        .unwrap_or(("public", &row.target_table));
    let name = TableName {
        schema: schema.to_owned(),
        table: table.to_owned(),
    };
    let batches = removal.batch_nos(row.run_no);
    let removed = delete(run.connection(), &name, batches).await?;
    tracing::info!(
        run.id = row_id(&run),
        target.table = name.sql(),
        rows = removed,
        "rows removed from the target by request"
    );
    run.finish_removal(&removal, removed).await
}

fn row_id<'a>(run: &'a LockedRun<'_>) -> &'a str {
    &run.row().run_id
}

/// Deletes the rows with these values of `_batch`, and returns their number: 0 without a table.
async fn delete(
    tx: &mut PgConnection,
    name: &TableName,
    batches: std::ops::Range<i64>,
) -> Result<i64, sqlx::Error> {
    database::lock(tx, merge_lock_key(name)).await?;
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
