//! A checked table, and the test whether it is unchanged.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::LOCK_TIMEOUT;
use crate::ddl::{TableName, literal};
use crate::errors::LoadError;

/// A digest of the checked properties of the table `pg_class c`, as an SQL expression. A cast to another type rounds
/// silently, so a table with another fingerprint is checked again.
pub(super) const FINGERPRINT: &str = "(SELECT encode(sha256(convert_to(concat_ws(' ', c.oid, c.relkind, c.relpersistence, \
    string_agg(concat_ws(' ', attnum, atttypid, atttypmod, attnotnull, attgenerated, quote_ident(attname)), ',' ORDER BY attnum)), 'UTF8')), 'hex') \
    FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)";

/// A table with the fingerprint of its check.
#[derive(Debug)]
pub(crate) struct Checked {
    table: String,
    lock: String,
    fingerprint: String,
}

impl Checked {
    /// The quoted table.
    pub(crate) fn new(table: &str, fingerprint: String) -> Self {
        Self {
            table: table.to_owned(),
            lock: lock(table),
            fingerprint,
        }
    }

    /// Whether the table is unchanged since its check. It cannot change until the transaction ends.
    pub(crate) async fn is_unchanged(&self, tx: &mut PgConnection) -> Result<bool, LoadError> {
        let failed = LoadError::target(|| format!("cannot lock {}", self.table));
        let lock = sqlx::raw_sql(AssertSqlSafe(self.lock.clone()));
        match lock.fetch_one(tx).await {
            Ok(row) => {
                let found = row.try_get::<String, _>(0).map_err(failed)?;
                Ok(found == self.fingerprint)
            }
            // The table is missing, or is another kind of relation now.
            Err(sqlx::Error::Database(error))
                if matches!(error.code().as_deref(), Some("42P01" | "42809" | "3F000")) =>
            {
                Ok(false)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// Locks a table against changes until the transaction ends, and returns its fingerprint. From here on the transaction
/// waits for no lock for long. The last statement sees the changes that the lock waited for.
pub(super) fn lock(table: &str) -> String {
    format!(
        "SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; LOCK TABLE ONLY {table} IN ROW EXCLUSIVE MODE; SELECT {FINGERPRINT} FROM pg_class c WHERE c.oid = {}::regclass",
        literal(table)
    )
}

/// The fingerprint of a table; none when it is missing.
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
