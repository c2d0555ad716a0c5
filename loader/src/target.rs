//! Target tables: created when missing, checked when there, once per target and columns in a
//! process and again when the table has changed. Safe with several loaders at once.

mod indexes;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::job::{Mode, Target};
use common::message::{RunId, ValidBatch};
use common::schema::{PgType, TargetColumn};
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};

use crate::database::transaction;
use crate::ddl::{self, Change, ExistingColumn, ExistingTable, Known, Refusal, TableName};
use crate::errors::{LoadError, Refused};
use crate::staging;
use crate::statements::{FINGERPRINT, Statements, lock_key};
use indexes::Indexes;

/// How long after a batch was given up its target is not tried with patience again.
const AILING: Duration = Duration::from_mins(1);

/// Targets that were found fit, and how rows get into them.
pub struct Targets {
    allowed_schemas: Vec<String>,
    /// Targets that a batch was given up for, and when.
    ailing: Mutex<HashMap<Target, Instant>>,
    prepared: Mutex<Prepared>,
    indexes: Indexes,
}

/// How many of them are kept: each run that is published as a whole has its own.
const KEPT: usize = 256;

type Prepared = HashMap<Place, Arc<Statements>>;

/// Where the rows of a batch go: a target with these columns, or the staging table of a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    target: Target,
    columns: Vec<TargetColumn>,
    staged: Option<(RunId, u32)>,
}

impl Place {
    fn of(batch: &ValidBatch) -> Self {
        let staged = batch.target.is_staged(batch.id.generation);
        Self {
            target: if staged {
                batch.target.clone()
            } else {
                shape(&batch.target)
            },
            columns: batch.columns.clone(),
            staged: staged.then(|| (batch.id.run.clone(), batch.id.generation)),
        }
    }
}

/// What of a target matters to whoever writes a batch into it.
fn shape(target: &Target) -> Target {
    Target {
        table: target.table.clone(),
        mode: target.mode,
        key: target.key.clone(),
        schema: target.schema,
        ..Target::default()
    }
}

impl Targets {
    pub fn new(allowed_schemas: Vec<String>) -> Self {
        Self {
            allowed_schemas,
            ailing: Mutex::default(),
            prepared: Mutex::default(),
            indexes: Indexes::default(),
        }
    }

    /// The statements for a batch, whose target is created or checked the first time.
    pub async fn prepare(
        &self,
        pool: &PgPool,
        batch: &ValidBatch,
    ) -> Result<Arc<Statements>, LoadError> {
        if let Some(known) = self.known(batch) {
            return Ok(known);
        }
        let (target, columns) = (&batch.target, &batch.columns);
        let name = TableName::of(target, &self.allowed_schemas).map_err(Refused::from)?;
        ddl::check_columns(&name, target, columns).map_err(Refused::from)?;
        let checked = transaction(pool, async |tx: &mut PgConnection| {
            create_or_check(tx, &name, target, columns, &batch.job).await
        });
        let (fingerprint, types) = checked
            .await
            .map_err(|source| LoadError::target(name.sql(), "created or checked", source))?
            .map_err(Refused::from)?;
        let place = Place::of(batch);
        let statements = if place.staged.is_some() {
            staging::prepare(pool, batch).await?
        } else {
            Statements::of_table(&name, target, columns, types, fingerprint)
        };
        let statements = Arc::new(statements);
        let mut prepared = self.prepared();
        if prepared.len() >= KEPT {
            prepared.clear();
        }
        prepared.insert(place, Arc::clone(&statements));
        Ok(statements)
    }

    /// Before a batch of a replay that replaces each batch by itself: gives the target the index by which the rows of each
    /// are found. Not before, since it takes a quarter of the time that Postgres needs for a row. Without it, a replay
    /// reads the whole table for each batch, and is as right.
    pub async fn index(&self, pool: &PgPool, batch: &ValidBatch) -> Result<(), LoadError> {
        let target = &batch.target;
        if batch.id.generation == 0
            || target.mode != Mode::Append
            || target.is_staged(batch.id.generation)
        {
            return Ok(());
        }
        let name = TableName::of(target, &self.allowed_schemas).map_err(Refused::from)?;
        let indexed = self.indexes.ensure(pool, &name).await;
        indexed.map_err(|source| LoadError::target(name.sql(), "indexed by batch", source))
    }

    /// The statements for a batch whose target was prepared before.
    pub fn known(&self, batch: &ValidBatch) -> Option<Arc<Statements>> {
        self.prepared().get(&Place::of(batch)).map(Arc::clone)
    }

    /// Looks again the next time, since the table is not what it was.
    pub fn forget(&self, target: &Target) {
        if let Ok(name) = TableName::of(target, &self.allowed_schemas) {
            self.indexes.forget(&name);
        }
        self.check_again(target);
    }

    /// Looks at the columns again the next time, since it may be for them that a batch could not be loaded. Not at the index:
    /// whoever could not have it would wait for it again and again.
    pub fn check_again(&self, target: &Target) {
        let target = shape(target);
        self.prepared()
            .retain(|known, _| shape(&known.target) != target);
    }

    /// A batch was given up for this target: the next ones are not tried again and again, so that
    /// one broken target does not hold up the others.
    pub fn mark_ailing(&self, target: &Target) {
        self.ailing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(shape(target), Instant::now());
    }

    /// Whether that was a moment ago.
    pub fn is_ailing(&self, target: &Target) -> bool {
        let ailing = self.ailing.lock().unwrap_or_else(PoisonError::into_inner);
        ailing
            .get(&shape(target))
            .is_some_and(|since| since.elapsed() < AILING)
    }

    fn prepared(&self) -> std::sync::MutexGuard<'_, Prepared> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a target that cannot be loaded into, without touching it: for whoever is about to ask
/// for a run.
pub async fn inspect(
    pool: &PgPool,
    target: &Target,
    columns: &[TargetColumn],
    allowed_schemas: &[String],
    job: &str,
) -> Result<Result<(), Refusal>, sqlx::Error> {
    let planned = plan(pool, target, columns, allowed_schemas, job).await?;
    Ok(planned.map(drop))
}

/// What would be done to a target, or why it is refused, as this connection's role could do it;
/// nothing is touched. `columns` are those that the job declares with a type; what else the query
/// returns is not known yet.
pub async fn plan(
    pool: &PgPool,
    target: &Target,
    columns: &[TargetColumn],
    allowed_schemas: &[String],
    job: &str,
) -> Result<Result<Change, Refusal>, sqlx::Error> {
    let name = match TableName::of(target, allowed_schemas) {
        Ok(name) => name,
        Err(refusal) => return Ok(Err(refusal)),
    };
    transaction(pool, async |tx: &mut PgConnection| {
        let found = look_up(tx, &name).await?;
        let table = found.as_ref().map(|found| &found.table);
        match ddl::decide(&name, target, columns, Known::Declared, job, table) {
            Ok(change) => check_privileges(tx, &name, target, found.as_ref(), change).await,
            Err(refusal) => Ok(Err(refusal)),
        }
    })
    .await
}

/// Checks a table against the columns again, in the transaction that is about to write to it.
pub(crate) async fn check_again(
    tx: &mut PgConnection,
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
) -> Result<Result<(), Refusal>, sqlx::Error> {
    let found = look_up(tx, name).await?.ok_or(sqlx::Error::RowNotFound)?;
    Ok(ddl::check_table(name, target, columns, &found.table))
}

/// The fingerprint of the table that was created, changed or found fit, and the types that the columns have in it.
async fn create_or_check(
    tx: &mut PgConnection,
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
    job: &str,
) -> Result<Result<(String, Vec<PgType>), Refusal>, sqlx::Error> {
    // Another loader may be creating or altering it at this moment; IF NOT EXISTS alone does not
    // prevent the error that the second of two gets.
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(lock_key("create", &name.sql()))
        .execute(&mut *tx)
        .await?;
    let found = look_up(tx, name).await?;
    let table = found.as_ref().map(|found| &found.table);
    let change = match ddl::decide(name, target, columns, Known::All, job, table) {
        Ok(change) => check_privileges(tx, name, target, found.as_ref(), change).await?,
        Err(refusal) => Err(refusal),
    };
    let change = match change {
        Ok(change) => change,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let table = name.sql();
    let was = match (&change, found) {
        (Change::Nothing, found) => found,
        _ => None,
    };
    match change {
        Change::Nothing => {}
        Change::Create { ddl, .. } => {
            tx.execute(AssertSqlSafe(ddl)).await?;
            tracing::info!(target.table = table, job.name = job, "target created");
        }
        Change::Add { columns, ddl } => {
            tx.execute(AssertSqlSafe(ddl)).await?;
            let columns = columns.join(", ");
            tracing::info!(
                target.table = table,
                target.columns = columns,
                job.name = job,
                "columns added to the target"
            );
        }
    }
    // What is answered is the table that was looked at: one that somebody alters at this moment is another one.
    let now = match was {
        Some(was) => was,
        None => look_up(tx, name).await?.ok_or(sqlx::Error::RowNotFound)?,
    };
    // Fit is a column of the same or of a wider type, so that each has one.
    let types = columns
        .iter()
        .filter_map(|column| now.table.type_of(&column.name));
    Ok(Ok((now.fingerprint, types.collect())))
}

/// Whether this connection's role may do what is to be done, and write the rows then.
async fn check_privileges(
    tx: &mut PgConnection,
    name: &TableName,
    target: &Target,
    found: Option<&Found>,
    change: Change,
) -> Result<Result<Change, Refusal>, sqlx::Error> {
    let table = name.sql();
    let Some(found) = found else {
        return may_create(tx, name, change).await;
    };
    let (may_write, may_delete, is_owner, role): (bool, bool, bool, String) = sqlx::query_as(
        "SELECT has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE'),
                has_table_privilege(oid, 'DELETE'), pg_has_role(relowner, 'USAGE'), current_user::text FROM pg_class WHERE oid = $1",
    )
    .bind(found.oid)
    .fetch_one(tx)
    .await?;
    let (may_write, privileges) = if target.mode == Mode::Replace {
        (may_write && may_delete, "SELECT, INSERT, UPDATE, DELETE")
    } else {
        (may_write, "SELECT, INSERT, UPDATE")
    };
    Ok(match change {
        _ if !may_write => Err(Refusal::MayNotWrite {
            table,
            role,
            privileges,
        }),
        Change::Add { ddl, .. } if !is_owner => Err(Refusal::MayNotAlter { table, role, ddl }),
        change => Ok(change),
    })
}

async fn may_create(
    tx: &mut PgConnection,
    name: &TableName,
    change: Change,
) -> Result<Result<Change, Refusal>, sqlx::Error> {
    let schema: Option<(bool, String)> = sqlx::query_as("SELECT has_schema_privilege(oid, 'CREATE'), current_user::text FROM pg_namespace WHERE nspname = $1")
        .bind(&name.schema)
        .fetch_optional(&mut *tx)
        .await?;
    Ok(match (schema, change) {
        (None, _) => Err(Refusal::SchemaMissing {
            schema: name.schema.clone(),
        }),
        (Some((false, role)), Change::Create { by_hand, .. }) => Err(Refusal::MayNotCreate {
            table: name.sql(),
            schema: common::schema::quoted(&name.schema),
            role,
            by_hand,
        }),
        (Some(_), change) => Ok(change),
    })
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
        "SELECT c.oid, c.relkind::text, c.relpersistence = 'u'
             OR EXISTS (SELECT FROM pg_partition_tree(c.oid) p JOIN pg_class leaf ON leaf.oid = p.relid WHERE leaf.relpersistence = 'u'), {FINGERPRINT} FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
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
