//! A checked table, and the test whether it is unchanged.

use ledger::database;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::ddl::{TableName, literal};
use crate::errors::LoadError;

/// A digest of the checked properties of the table `pg_class c`, as an SQL expression. A cast to another type rounds
/// silently, so a table with another fingerprint is checked again.
pub(super) const FINGERPRINT: &str = "(SELECT encode(sha256(convert_to(concat_ws(' ', c.oid, c.relkind, c.relpersistence, \
    string_agg(concat_ws(' ', attnum, atttypid, atttypmod, attnotnull, attgenerated, quote_ident(attname)), ',' ORDER BY attnum), \
    CASE WHEN c.relhassubclass THEN (SELECT string_agg(concat_ws(' ', p.oid, p.relkind), ',' ORDER BY p.oid) \
    FROM pg_partition_tree(c.oid) t JOIN pg_class p ON p.oid = t.relid) END), 'UTF8')), 'hex') \
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

    /// A target that rows are added to: its lock is shared with others that add, and keeps out who deletes or merges.
    pub(crate) fn shared(name: &TableName, fingerprint: String) -> Self {
        let table = name.sql();
        let turn = format!("SELECT pg_advisory_xact_lock_shared({})", lock_key(name));
        Self {
            lock: format!("{turn}; {}", lock(&table)),
            table,
            fingerprint,
        }
    }

    /// Whether the table is unchanged since its check. It cannot change until the transaction ends.
    pub(crate) async fn is_unchanged(&self, tx: &mut PgConnection) -> Result<bool, LoadError> {
        let failed = LoadError::target(|| format!("cannot lock {}", self.table));
        let lock = sqlx::raw_sql(AssertSqlSafe(self.lock.clone()));
        match lock.fetch_all(tx).await {
            Ok(rows) => {
                let found = rows.last().ok_or(sqlx::Error::RowNotFound);
                let found = found.and_then(|row| row.try_get::<String, _>(0));
                Ok(found.map_err(failed)? == self.fingerprint)
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

/// The key of the lock of a target, which every transaction that writes to it takes: alone where it decides about rows that
/// are there (merges, deletions), shared where it only adds rows.
pub(crate) fn lock_key(name: &TableName) -> i64 {
    database::lock_key("target", &name.sql())
}

/// How long a batch waits for the lock on its target: less than other batches may be delayed. One that waited in vain is parked.
const LOCK_TIMEOUT: &str = "1s";

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
