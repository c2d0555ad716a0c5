//! Target tables: created when missing, checked when there, once per target and columns in a
//! process and again when the table has changed. Safe with several loaders at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::job::Target;
use common::schema::TargetColumn;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};

use crate::database::transaction;
use crate::ddl::{self, ExistingColumn, ExistingTable, Refusal, TableName};
use crate::errors::{LoadError, Refused};
use crate::statements::{FINGERPRINT, Statements, lock_key};

/// How long after a batch was given up its target is not tried with patience again.
const AILING: Duration = Duration::from_mins(1);

/// Targets that were found fit, and how rows get into them.
pub struct Targets {
    allowed_schemas: Vec<String>,
    /// Targets that a batch was given up for, and when.
    ailing: Mutex<HashMap<Target, Instant>>,
    prepared: Mutex<Prepared>,
}

/// The statements for each target and its columns.
type Prepared = HashMap<(Target, Vec<TargetColumn>), Arc<Statements>>;

impl Targets {
    pub fn new(allowed_schemas: Vec<String>) -> Self {
        Self {
            allowed_schemas,
            ailing: Mutex::default(),
            prepared: Mutex::default(),
        }
    }

    /// The statements for a target, which is created or checked the first time. `job` is named in
    /// the new table's comment.
    pub async fn prepare(
        &self,
        pool: &PgPool,
        target: &Target,
        columns: &[TargetColumn],
        job: &str,
    ) -> Result<Arc<Statements>, LoadError> {
        if let Some(known) = self.known(target, columns) {
            return Ok(known);
        }
        let name = TableName::of(target, &self.allowed_schemas).map_err(Refused::from)?;
        ddl::check_columns(&name, target, columns).map_err(Refused::from)?;
        let checked = transaction(pool, async |tx: &mut PgConnection| {
            create_or_check(tx, &name, target, columns, job).await
        });
        let fingerprint = checked
            .await
            .map_err(|source| LoadError::target(name.sql(), "created or checked", source))?
            .map_err(Refused::from)?;
        let statements = Arc::new(Statements::of_table(&name, target, columns, fingerprint));
        self.prepared()
            .insert((target.clone(), columns.to_vec()), Arc::clone(&statements));
        Ok(statements)
    }

    /// The statements for a target that was prepared before.
    pub fn known(&self, target: &Target, columns: &[TargetColumn]) -> Option<Arc<Statements>> {
        self.prepared()
            .get(&(target.clone(), columns.to_vec()))
            .map(Arc::clone)
    }

    /// Looks again the next time, since the table is not what it was.
    pub fn forget(&self, target: &Target) {
        self.prepared().retain(|(known, _), _| known != target);
    }

    /// A batch was given up for this target: the next ones are not tried again and again, so that
    /// one broken target does not hold up the others.
    pub fn mark_ailing(&self, target: &Target) {
        self.ailing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(target.clone(), Instant::now());
    }

    /// Whether that was a moment ago.
    pub fn is_ailing(&self, target: &Target) -> bool {
        let ailing = self.ailing.lock().unwrap_or_else(PoisonError::into_inner);
        ailing
            .get(target)
            .is_some_and(|since| since.elapsed() < AILING)
    }

    fn prepared(&self) -> std::sync::MutexGuard<'_, Prepared> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a target that cannot be loaded into, without touching it: for whoever is about to ask
/// for a run. A table that is not there yet is fine where it can be created. `columns` are those
/// that the job declares with a type; what else the query returns is not known yet.
pub async fn inspect(
    pool: &PgPool,
    target: &Target,
    columns: &[TargetColumn],
    allowed_schemas: &[String],
) -> Result<Result<(), Refusal>, sqlx::Error> {
    let name = match TableName::of(target, allowed_schemas) {
        Ok(name) => name,
        Err(refusal) => return Ok(Err(refusal)),
    };
    transaction(pool, async |tx: &mut PgConnection| {
        if let Some(mut found) = look_up(tx, &name).await? {
            // A column that the job does not declare may well be one that the query returns.
            found
                .table
                .columns
                .iter_mut()
                .for_each(|column| column.not_null = false);
            return Ok(ddl::check_table(&name, target, columns, &found.table));
        }
        let schema: Option<i32> =
            sqlx::query_scalar("SELECT 1 FROM pg_namespace WHERE nspname = $1")
                .bind(&name.schema)
                .fetch_optional(tx)
                .await?;
        Ok(schema.map(drop).ok_or_else(|| Refusal::SchemaMissing {
            schema: name.schema.clone(),
        }))
    })
    .await
}

/// The fingerprint of the table that was created or found fit.
async fn create_or_check(
    tx: &mut PgConnection,
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    job: &str,
) -> Result<Result<String, Refusal>, sqlx::Error> {
    // Another loader may be creating it at this moment; IF NOT EXISTS alone does not prevent the
    // error that the second of two gets.
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(lock_key("create", &name.sql()))
        .execute(&mut *tx)
        .await?;
    let Some(found) = look_up(tx, name).await? else {
        if let Err(refusal) = create(tx, name, target, columns, job).await? {
            return Ok(Err(refusal));
        }
        let created = look_up(tx, name).await?.ok_or(sqlx::Error::RowNotFound)?;
        return Ok(Ok(created.fingerprint));
    };
    if let Err(refusal) = ddl::check_table(name, target, columns, &found.table) {
        return Ok(Err(refusal));
    }
    let (may_write, role): (bool, String) = sqlx::query_as(
        "SELECT has_table_privilege($1, 'SELECT') AND has_table_privilege($1, 'INSERT') AND has_table_privilege($1, 'UPDATE'), current_user::text",
    )
    .bind(found.oid)
    .fetch_one(tx)
    .await?;
    Ok(if may_write {
        Ok(found.fingerprint)
    } else {
        Err(Refusal::MayNotWrite {
            table: name.sql(),
            role,
        })
    })
}

async fn create(
    tx: &mut PgConnection,
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    job: &str,
) -> Result<Result<(), Refusal>, sqlx::Error> {
    let found: Option<(bool, String)> = sqlx::query_as("SELECT has_schema_privilege(oid, 'CREATE'), current_user::text FROM pg_namespace WHERE nspname = $1")
        .bind(&name.schema)
        .fetch_optional(&mut *tx)
        .await?;
    let sql = ddl::create_table(name, target, columns, job);
    match found {
        None => Ok(Err(Refusal::SchemaMissing {
            schema: name.schema.clone(),
        })),
        Some((false, role)) => {
            let (table, schema) = (name.sql(), common::schema::quoted(&name.schema));
            Ok(Err(Refusal::MayNotCreate {
                table,
                schema,
                role,
                ddl: sql,
            }))
        }
        Some((true, _)) => {
            tx.execute(AssertSqlSafe(sql)).await?;
            tracing::info!(target.table = name.sql(), job.name = job, "target created");
            Ok(Ok(()))
        }
    }
}

/// A relation as the catalog has it.
struct Found {
    oid: Oid,
    /// Of the moment before `table` was read: a change in between makes it another one.
    fingerprint: String,
    table: ExistingTable,
}

async fn look_up(tx: &mut PgConnection, name: &TableName) -> Result<Option<Found>, sqlx::Error> {
    let select = format!(
        "SELECT c.oid, c.relkind::text, c.relpersistence = 'u', {FINGERPRINT} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = $1 AND c.relname = $2"
    );
    let found: Option<(Oid, String, bool, String)> = sqlx::query_as(AssertSqlSafe(select))
        .bind(&name.schema)
        .bind(&name.table)
        .fetch_optional(&mut *tx)
        .await?;
    let Some((oid, kind, unlogged, fingerprint)) = found else {
        return Ok(None);
    };
    let columns: Vec<(String, String, bool, bool, bool)> = sqlx::query_as(
        "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull, atthasdef OR attidentity <> '', attgenerated <> ''
         FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    )
    .bind(oid)
    .fetch_all(&mut *tx)
    .await?;
    let unique: Vec<(Vec<String>,)> = sqlx::query_as(
        "SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_index i
         JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place) ON k.place <= i.indnkeyatts
         JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
         WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
         GROUP BY i.indexrelid",
    )
    .bind(oid)
    .fetch_all(&mut *tx)
    .await?;
    let columns = columns
        .into_iter()
        .map(
            |(name, type_name, not_null, has_default, generated)| ExistingColumn {
                name,
                type_name,
                not_null,
                has_default,
                generated,
            },
        );
    let table = ExistingTable {
        kind,
        unlogged,
        columns: columns.collect(),
        unique: unique.into_iter().map(|(columns,)| columns).collect(),
    };
    Ok(Some(Found {
        oid,
        fingerprint,
        table,
    }))
}
