//! Statistics of a target after a large load. Autovacuum collects them too, about a minute later, and plans of queries are bad
//! until then. PostgreSQL itself knows which tables need it, so that no loader has to remember that.

use std::time::Duration;

use ledger::{Store, completion::recently_loaded, database};
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::ddl::TableName;
use crate::errors::LoadError;

/// A load of fewer rows is left to autovacuum.
const MIN_ROWS: i64 = 100_000;

/// The timeout for a table. A sample of it is read.
const ANALYZE_TIMEOUT: Duration = Duration::from_mins(10);

/// The tables that runs have loaded lately and that this role may analyze, of which many rows changed since their statistics were
/// collected.
const DUE: &str =
    "SELECT s.schemaname::text, s.relname::text FROM pg_stat_all_tables s JOIN pg_class c ON c.oid = s.relid
     WHERE s.schemaname || '.' || s.relname = ANY ($1) AND s.n_mod_since_analyze >= $2
         AND s.n_mod_since_analyze > greatest(c.reltuples, 0) / 10 AND pg_has_role(c.relowner, 'USAGE')";

/// Analyzes the targets that need it, one after the other. Returns them. One that cannot be analyzed keeps no other from its
/// turn, and is the error at the end.
pub async fn analyze(store: &Store) -> Result<Vec<TableName>, LoadError> {
    let loaded = recently_loaded(store).await?;
    if loaded.is_empty() {
        return Ok(Vec::new());
    }
    let failure = "cannot look which targets need new statistics";
    let due: Vec<(String, String)> = store
        .transaction(failure, async |tx: &mut PgConnection| {
            let due = sqlx::query_as(DUE).bind(&loaded).bind(MIN_ROWS);
            Ok(due.fetch_all(tx).await?)
        })
        .await?;
    let (mut analyzed, mut failed) = (Vec::new(), None);
    for (schema, table) in due {
        let name = TableName { schema, table };
        match analyze_one(store, &name).await {
            Ok(true) => analyzed.push(name),
            Ok(false) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(analyzed), |error| Err(LoadError::of_target(error)))
}

/// False when another loader analyzes the table.
async fn analyze_one(store: &Store, name: &TableName) -> Result<bool, ledger::Error> {
    let table = name.sql();
    let failure = format!("cannot analyze {table}");
    store
        .transaction_within(ANALYZE_TIMEOUT, failure, async |tx: &mut PgConnection| {
            let limit = ANALYZE_TIMEOUT.as_secs();
            let limits =
                format!("SET LOCAL statement_timeout = '{limit}s'; SET LOCAL lock_timeout = '2s'");
            tx.execute(AssertSqlSafe(limits)).await?;
            if !database::try_lock(tx, database::lock_key("analyze", &table)).await? {
                return Ok(false);
            }
            tx.execute(AssertSqlSafe(format!("ANALYZE {table}")))
                .await?;
            tracing::info!(target.table = table, "target analyzed");
            Ok(true)
        })
        .await
}
