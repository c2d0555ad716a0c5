//! Reads a target table from the catalog: its columns and keys, the changes that the job's columns need, and the
//! privileges of this connection's role. Reads only; `etl plan` uses it too.

use common::job::Target;
use common::schema::TargetColumn;
use ledger::Store;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};

use super::table::FINGERPRINT;
use crate::ddl::{self, Cascade, Change, ExistingColumn, ExistingTable, Known, Refusal, TableName};

/// The change that the first batch would make to a target, or the refusal, for this connection's role. Changes nothing.
/// `columns` are those that the job declares with a type; other columns of the query are not known yet.
pub async fn plan(
    store: &Store,
    target: &Target,
    columns: &[TargetColumn],
    allowed_schemas: &[String],
    job: &str,
) -> Result<Result<Change, Refusal>, ledger::Error> {
    let name = match TableName::of(target, allowed_schemas) {
        Ok(name) => name,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let failure = format!("cannot look at the target {}", target.table);
    let work = async |tx: &mut PgConnection| {
        let found = look_up(tx, &name).await?;
        let table = found.as_ref().map(|found| &found.table);
        match ddl::decide(&name, target, columns, Known::Declared, job, table) {
            Ok(change) => Ok(check_privileges(tx, &name, target, found.as_ref(), change).await?),
            Err(refusal) => Ok(Err(refusal)),
        }
    };
    store.read(failure, work).await
}

/// Checks a table against the columns again, in the transaction that will write to it.
pub(crate) async fn check_again(
    tx: &mut PgConnection,
    name: &TableName,
    target: &Target,
    columns: &[TargetColumn],
) -> Result<Result<(), Refusal>, sqlx::Error> {
    let found = look_up(tx, name).await?.ok_or(sqlx::Error::RowNotFound)?;
    Ok(ddl::check_table(name, target, columns, &found.table))
}

/// Whether this connection's role may make the change and write the rows.
pub(super) async fn check_privileges(
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
    let (may_write, may_delete, is_owner, has_policies, role): (bool, bool, bool, bool, String) = sqlx::query_as(
        "SELECT has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE'),
                has_table_privilege(oid, 'DELETE'), pg_has_role(relowner, 'USAGE'), row_security_active(oid), current_user::text FROM pg_class WHERE oid = $1",
    )
    .bind(found.oid)
    .fetch_one(tx)
    .await?;
    let (may_write, privileges) = if target.mode.replaces() {
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
        _ if has_policies => Err(Refusal::RowSecurity { table, role }),
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

/// A relation, from the catalog.
pub(super) struct Found {
    oid: Oid,
    /// Read before `table`: a change in between makes the fingerprint differ.
    pub(super) fingerprint: String,
    pub(super) table: ExistingTable,
}

pub(super) async fn look_up(
    tx: &mut PgConnection,
    name: &TableName,
) -> Result<Option<Found>, sqlx::Error> {
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
    let foreign = sqlx::query_scalar(FOREIGN_PARTITION).bind(oid);
    let foreign_partition = foreign.fetch_optional(&mut *tx).await?;
    let cascades = cascades(tx, oid).await?;
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
        foreign_partition,
        cascades,
        columns: columns.collect(),
        unique: unique.into_iter().map(|(columns,)| columns).collect(),
    };
    Ok(Some(Found {
        oid,
        fingerprint,
        table,
    }))
}

/// A partition or a child of the table $1, at any level, that is a foreign table.
const FOREIGN_PARTITION: &str = "WITH RECURSIVE below AS (
         SELECT inhrelid FROM pg_inherits WHERE inhparent = $1
         UNION SELECT i.inhrelid FROM below JOIN pg_inherits i ON i.inhparent = below.inhrelid)
     SELECT c.oid::regclass::text FROM below JOIN pg_class c ON c.oid = inhrelid WHERE c.relkind = 'f' LIMIT 1";

/// The foreign keys that refer to a table, or to a partition or child of it, and change the table that they are of.
async fn cascades(tx: &mut PgConnection, table: Oid) -> Result<Vec<Cascade>, sqlx::Error> {
    let found: Vec<(String, bool, bool, Vec<String>)> = sqlx::query_as(
        "WITH RECURSIVE here AS (
             SELECT $1::oid AS relid
             UNION SELECT i.inhrelid FROM here JOIN pg_inherits i ON i.inhparent = here.relid)
         SELECT DISTINCT format('%I of %s', k.conname, k.conrelid::regclass), k.confdeltype IN ('c', 'n', 'd'), k.confupdtype IN ('c', 'n', 'd'),
                ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = k.confrelid AND a.attnum = ANY (k.confkey) ORDER BY 1)
         FROM here JOIN pg_constraint k ON k.confrelid = here.relid AND k.contype = 'f'
         WHERE k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd') ORDER BY 1",
    )
    .bind(table)
    .fetch_all(tx)
    .await?;
    let cascades = found
        .into_iter()
        .map(|(constraint, on_delete, on_update, columns)| Cascade {
            constraint,
            on_delete,
            on_update,
            columns,
        });
    Ok(cascades.collect())
}

/// A foreign key that refers to the table and by which a deletion changes another table, too.
pub(super) async fn cascade_of_deletes(
    tx: &mut PgConnection,
    name: &TableName,
) -> Result<Option<String>, sqlx::Error> {
    let table: Option<Oid> = sqlx::query_scalar("SELECT to_regclass($1)::oid")
        .bind(name.sql())
        .fetch_one(&mut *tx)
        .await?;
    let Some(table) = table else { return Ok(None) };
    let found = cascades(tx, table).await?.into_iter();
    let mut deletes = found.filter(|one| one.on_delete);
    Ok(deletes.next().map(|one| one.constraint))
}
