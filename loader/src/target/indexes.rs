//! The index by which a replay finds the rows of a batch in a target. Optional: without it, a replay reads the whole
//! table for each batch.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::schema::BATCH_COLUMN;
use ledger::{Class, Error, Store, cause, classify, database};
use sqlx::error::DatabaseError;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::ddl::{self, TableName};

/// The timeout for creating an index: it reads the table once and blocks writes to it.
const INDEX_TIMEOUT: Duration = Duration::from_mins(15);
/// The client's timeout: longer than the server's limit, so that the server ends the statement, and below the half hour
/// after which the broker takes a delivery back.
const WAIT_TIMEOUT: Duration = Duration::from_mins(20);

/// Tables that need no further check.
#[derive(Default)]
pub(crate) struct Indexes(Mutex<HashSet<String>>);

/// The result of the check of a table.
enum Found {
    NoTable,
    NotOurs,
    IsThere,
    Made,
}

impl Indexes {
    /// Creates the index if it is missing and this role may. Fails only where the database fails every batch.
    pub(crate) async fn ensure(&self, store: &Store, name: &TableName) -> Result<(), Error> {
        let table = name.sql();
        if self.known().contains(&table) {
            return Ok(());
        }
        let warn = |why: &str| {
            let sql = ddl::index_batches(name);
            tracing::warn!(
                target.table = table,
                "the target has no index by batch ({why}), so that this replay reads all of it for each batch; it would be much faster after: {sql}"
            );
        };
        match look_and_make(store, name).await {
            Ok(Found::NoTable) => return Ok(()),
            Ok(Found::IsThere) => {}
            Ok(Found::Made) => tracing::info!(target.table = table, "target indexed by batch"),
            Ok(Found::NotOurs) => warn("its owner is another role"),
            Err(Error::Postgres { source, .. }) if would_fail_again(&source) => {
                warn(&cause(&source));
            }
            Err(Error::Postgres { failure, source }) => match classify(&source) {
                // Another session writes to the table or creates the index: the next batch retries.
                Class::Conflict => return Ok(()),
                Class::World | Class::Configuration => {
                    return Err(Error::Postgres { failure, source });
                }
                Class::Row | Class::Message => warn(&cause(&source)),
            },
            Err(other) => return Err(other),
        }
        self.known().insert(table);
        Ok(())
    }

    /// Repeats the check at the next batch.
    pub(super) fn forget(&self, name: &TableName) {
        self.known().remove(&name.sql());
    }

    fn known(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the creation was too slow or cancelled, or a privilege is missing that only an index needs (to create in the
/// table's schema or tablespace).
fn would_fail_again(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    matches!(code.as_deref(), Some("57014" | "42501"))
}

async fn look_and_make(store: &Store, name: &TableName) -> Result<Found, Error> {
    let failure = format!("cannot index {} by batch", name.sql());
    store.transaction_within(WAIT_TIMEOUT, failure, async |tx: &mut PgConnection| {
        let limit = format!("SET LOCAL statement_timeout = '{}s'", INDEX_TIMEOUT.as_secs());
        tx.execute(AssertSqlSafe(limit)).await?;
        // A second loader waits for the one that creates the index, and finds it.
        database::lock(tx, database::lock_key("create", &name.sql())).await?;
        let found: Option<(bool, bool)> = sqlx::query_as(
            "SELECT pg_has_role(c.relowner, 'USAGE'), EXISTS (
                 SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
                 WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND a.attname = $3)
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2",
        )
        .bind(&name.schema)
        .bind(&name.table)
        .bind(BATCH_COLUMN)
        .fetch_optional(&mut *tx)
        .await?;
        Ok(match found {
            None => Found::NoTable,
            Some((_, true)) => Found::IsThere,
            Some((false, false)) => Found::NotOurs,
            Some((true, false)) => {
                // Batches of this target wait behind it, and removals from others.
                tx.execute("SET LOCAL lock_timeout = '2s'").await?;
                tx.execute(AssertSqlSafe(ddl::index_batches(name))).await?;
                Found::Made
            }
        })
    })
    .await
}
