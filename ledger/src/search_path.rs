//! The `search_path` of a statement that fires the triggers of a target.
//!
//! Transactions have `search_path = pg_catalog, pg_temp`, so that a role which may create objects somewhere gets none of its own
//! functions and operators into our statements. A trigger's author, however, expects the names that `psql` finds. So such a
//! statement, and nothing else, runs with the path that the role has by itself, followed by the schema of the target; every
//! function, operator and type in it is named with its schema.

use sqlx::{Executor as _, PgConnection};

/// Does `work`, a statement on a table of this schema, with the names that its triggers expect. An error leaves the path as it
/// is: the transaction, or a savepoint from before, has to be rolled back.
pub async fn as_triggers_expect<T>(
    tx: &mut PgConnection,
    schema: &str,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    sqlx::query("SELECT pg_catalog.set_config('search_path', etl.path_of_triggers($1), true)")
        .bind(schema)
        .execute(&mut *tx)
        .await?;
    let done = work(tx).await?;
    tx.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        .await?;
    Ok(done)
}
