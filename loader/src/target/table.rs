//! A table that was checked, and whether it still is that table.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::ddl::{TableName, literal};
use crate::errors::LoadError;

/// A digest of what was checked of the table `pg_class c`, as an SQL expression. A cast to another type rounds silently, so that a
/// table with another fingerprint has to be checked again.
pub(super) const FINGERPRINT: &str = "(SELECT encode(sha256(convert_to(concat_ws(' ', c.oid, c.relkind, c.relpersistence, \
    string_agg(concat_ws(' ', attnum, atttypid, atttypmod, attnotnull, attgenerated, quote_ident(attname)), ',' ORDER BY attnum)), 'UTF8')), 'hex') \
    FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)";

/// A table with the fingerprint that it was checked with.
#[derive(Debug)]
pub(crate) struct Checked {
    table: String,
    lock: String,
    fingerprint: String,
}

impl Checked {
    /// The table as SQL has it.
    pub(crate) fn new(table: &str, fingerprint: String) -> Self {
        Self {
            table: table.to_owned(),
            lock: lock(table),
            fingerprint,
        }
    }

    /// Whether the table still is as it was checked; it stays so until the transaction ends.
    pub(crate) async fn is_unchanged(&self, tx: &mut PgConnection) -> Result<bool, LoadError> {
        let failed = LoadError::target(|| format!("cannot lock {}", self.table));
        let lock = sqlx::raw_sql(AssertSqlSafe(self.lock.clone()));
        match lock.fetch_one(tx).await {
            Ok(row) => {
                let found = row.try_get::<String, _>(0).map_err(failed)?;
                Ok(found == self.fingerprint)
            }
            // There is no such table, or it is something else by now.
            Err(sqlx::Error::Database(error))
                if matches!(error.code().as_deref(), Some("42P01" | "42809" | "3F000")) =>
            {
                Ok(false)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// Keeps a table as it is until the transaction ends, and answers its fingerprint. Two statements, so that the second one sees
/// what the lock waited for.
pub(super) fn lock(table: &str) -> String {
    format!(
        "LOCK TABLE ONLY {table} IN ROW EXCLUSIVE MODE; SELECT {FINGERPRINT} FROM pg_class c WHERE c.oid = {}::regclass",
        literal(table)
    )
}

/// The fingerprint of a table; none when it is not there.
pub(super) async fn fingerprint_of(
    tx: &mut PgConnection,
    name: &TableName,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT {FINGERPRINT} FROM pg_class c WHERE c.oid = to_regclass($1)"
    )))
    .bind(name.sql())
    .fetch_optional(tx)
    .await
}
