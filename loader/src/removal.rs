//! Executes removals: deletes rows that a person requested to leave the target, in the transaction that makes the ledger say so,
//! under the run's lock and the target's.

use std::time::Duration;

use common::message::RunId;
use ledger::{LockedRun, Removal, ToRemove, database};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use crate::ddl::TableName;
use crate::errors::{LoadError, Verdict};
use crate::load::Loader;
use crate::target::{Deletion, Expected, lock_key};

/// The longest that one may take: it may read a large table once.
const REMOVAL_TIMEOUT: Duration = Duration::from_hours(1);

/// The longest that one waits for a lock on its target: the next removal, of another target, waits as well.
const LOCK_TIMEOUT: &str = "2s";

/// The longest that it waits for a row, once it has that lock: it would begin anew.
const ROW_TIMEOUT: &str = "1min";

/// Executes the removals that are due. One that fails is recorded with its reason, for the command that waits, and keeps no other.
pub async fn execute_all(loader: &Loader) -> Result<(), LoadError> {
    for (id, run) in loader.store.pending_removals().await? {
        let Err(error) = execute(loader, id, &run).await else {
            continue;
        };
        let error = LoadError::of_target(error);
        let why = error.reason();
        if loader.is_news(&format!("{run} {}", why.logged())) {
            tracing::warn!(run.id = %run, error = why.logged(), "rows were not removed");
        }
        let is_soon = error.verdict() == Verdict::Retry;
        loader.store.removal_failed(id, why.text(), is_soon).await?;
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
        sqlx::query("SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)")
            .bind(format!("{}s", REMOVAL_TIMEOUT.as_secs()))
            .bind(LOCK_TIMEOUT)
            .execute(run.connection())
            .await?;
        database::lock(run.connection(), lock_key(&name)).await?;
        let rows = delete(&mut run, &removal, &name).await?;
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

/// Deletes the rows, and returns their number: 0 without a table.
async fn delete(
    run: &mut LockedRun<'_>,
    removal: &Removal,
    name: &TableName,
) -> Result<i64, ledger::Error> {
    let is_there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(name.sql())
        .fetch_one(run.connection())
        .await?;
    if !is_there {
        return Ok(0);
    }
    let wait = format!(
        "LOCK TABLE {} IN ROW EXCLUSIVE MODE; SET LOCAL lock_timeout = '{ROW_TIMEOUT}'",
        name.sql()
    );
    run.connection().execute(AssertSqlSafe(wait)).await?;
    let ToRemove {
        most,
        fewest,
        allows_cascades,
    } = run.to_remove(removal).await?;
    let batches = removal.batch_nos(run.row().run_no);
    let deletion = Deletion::new(name, allows_cascades);
    let deleted = deletion.delete_batches(run.connection(), batches, Expected { fewest, most });
    let deleted = deleted.await?;
    deleted.map_err(|refused| ledger::Error::NotAllowed(refused.to_string()))
}
