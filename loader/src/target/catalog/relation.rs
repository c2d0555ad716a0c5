//! An existing table, as the catalog has it, the same for every role.

use common::schema::TargetColumn;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::ddl::{
    Cascade, ColumnType, ExistingColumn, ExistingTable, ForeignPartition, Generated, TableName,
    Unidentified,
};
use crate::target::table::FINGERPRINT;

/// A relation, from the catalog.
pub(in crate::target) struct Found {
    pub(super) oid: Oid,
    /// Read before `table`: a change in between makes the fingerprint differ.
    pub(in crate::target) fingerprint: String,
    pub(super) table: ExistingTable,
}

impl Found {
    /// What the columns of the table take. A fitting column has the same or a wider type, so each has one.
    pub(in crate::target) fn types(&self, columns: &[TargetColumn]) -> Vec<ColumnType> {
        let types = columns
            .iter()
            .filter_map(|column| self.table.type_of(&column.name));
        types.collect()
    }
}

pub(super) async fn look_up(
    tx: &mut PgConnection,
    name: &TableName,
) -> Result<Option<Found>, sqlx::Error> {
    let select = format!(
        "SELECT c.oid, c.relkind::text AS kind, {FINGERPRINT} AS fingerprint, c.relnatts::bigint AS places,
             ARRAY(SELECT u.oid::regclass::text FROM pg_class u WHERE u.relpersistence = 'u' AND u.relkind = 'r'
                       AND (u.oid = c.oid OR u.oid IN (SELECT relid FROM pg_partition_tree(c.oid))) ORDER BY 1) AS unlogged,
             c.relkind = 'p' AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) AS has_no_partition,
             (SELECT min(quote_ident(rulename)) FROM pg_rewrite WHERE ev_class = c.oid AND (ev_type = '2' OR ev_type <> '1' AND ev_enabled IN ('O', 'A'))) AS rule
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2"
    );
    let found: Option<RelationRow> = sqlx::query_as(AssertSqlSafe(select))
        .bind(&name.schema)
        .bind(&name.table)
        .fetch_optional(&mut *tx)
        .await?;
    let Some(found) = found else {
        return Ok(None);
    };
    let oid = found.oid;
    let columns: Vec<ColumnRow> = sqlx::query_as(COLUMNS)
        .bind(oid)
        .fetch_all(&mut *tx)
        .await?;
    let unique = sqlx::query_scalar(UNIQUE).bind(oid);
    let foreign: Option<(String, String)> = sqlx::query_as(FOREIGN_PARTITION)
        .bind(oid)
        .fetch_optional(&mut *tx)
        .await?;
    let table = ExistingTable {
        kind: found.kind,
        unlogged: found.unlogged,
        foreign_partition: foreign.map(|(name, detach)| ForeignPartition { name, detach }),
        has_no_partition: found.has_no_partition,
        rule: found.rule,
        unique: unique.fetch_all(&mut *tx).await?,
        cascades: cascades(tx, oid).await?,
        unidentified: unidentified(tx, oid).await?,
        places: usize::try_from(found.places).unwrap_or_default(),
        columns: columns.into_iter().map(ExistingColumn::from).collect(),
    };
    Ok(Some(Found {
        oid,
        fingerprint: found.fingerprint,
        table,
    }))
}

#[derive(FromRow)]
struct RelationRow {
    oid: Oid,
    kind: String,
    fingerprint: String,
    places: i64,
    unlogged: Vec<String>,
    has_no_partition: bool,
    rule: Option<String>,
}

/// The columns of the table $1. A domain takes what the type below it does, with the length that is written there.
const COLUMNS: &str = "WITH RECURSIVE types AS (
         SELECT attnum, atttypid AS typid, atttypmod AS typmod FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
         UNION ALL SELECT attnum, t.typbasetype, t.typtypmod FROM types JOIN pg_type t ON t.oid = typid AND t.typtype = 'd')
     SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type_name,
         CASE WHEN t.typtype = 'e' OR t.typname = 'citext' AND t.typcategory = 'S' THEN 'text' ELSE format_type(b.typid, b.typmod) END AS takes,
         CASE WHEN t.typtype = 'e' THEN a.atttypid::regtype::text END AS cast_to,
         t.typtype = 'e' OR t.typname = 'citext' AS compares_otherwise,
         a.attnotnull AS not_null, a.atthasdef OR a.attidentity <> '' AS has_default, a.attgenerated::text AS generated, a.attidentity = 'a' AS identity_always
     FROM pg_attribute a JOIN types b USING (attnum) JOIN pg_type t ON t.oid = b.typid AND t.typtype <> 'd'
     WHERE a.attrelid = $1 ORDER BY a.attnum";

#[derive(FromRow)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a property in the catalog"
)]
struct ColumnRow {
    name: String,
    type_name: String,
    takes: String,
    cast_to: Option<String>,
    compares_otherwise: bool,
    not_null: bool,
    has_default: bool,
    generated: String,
    identity_always: bool,
}

impl From<ColumnRow> for ExistingColumn {
    fn from(row: ColumnRow) -> Self {
        Self {
            name: row.name,
            type_name: row.type_name,
            takes: row.takes,
            cast: row.cast_to,
            compares_otherwise: row.compares_otherwise,
            not_null: row.not_null,
            has_default: row.has_default,
            generated: match row.generated.as_str() {
                "" => None,
                "v" => Some(Generated::Virtual),
                _ => Some(Generated::Stored),
            },
            identity_always: row.identity_always,
        }
    }
}

/// The columns of each unique index of the table $1 that can decide a conflict.
const UNIQUE: &str = "SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_index i
     JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place) ON k.place <= i.indnkeyatts
     JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
     WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
     GROUP BY i.indexrelid";

/// A partition or a child of the table $1, at any level, that is a foreign table, and the statement that takes it out.
const FOREIGN_PARTITION: &str = "WITH RECURSIVE below AS (
         SELECT inhrelid, inhparent FROM pg_inherits WHERE inhparent = $1
         UNION SELECT i.inhrelid, i.inhparent FROM below JOIN pg_inherits i ON i.inhparent = below.inhrelid)
     SELECT c.oid::regclass::text, CASE WHEN c.relispartition THEN format('ALTER TABLE %s DETACH PARTITION %s', inhparent::regclass, c.oid::regclass)
         ELSE format('ALTER FOREIGN TABLE %s NO INHERIT %s', c.oid::regclass, inhparent::regclass) END
     FROM below JOIN pg_class c ON c.oid = inhrelid WHERE c.relkind = 'f' ORDER BY 1 LIMIT 1";

/// The foreign keys that refer to a table, or to a partition or child of it, and change the table that they are of. One that a
/// partition has from a partitioned table is altered there.
async fn cascades(tx: &mut PgConnection, table: Oid) -> Result<Vec<Cascade>, sqlx::Error> {
    let found: Vec<(String, bool, bool, Vec<String>, String)> = sqlx::query_as(
        "WITH RECURSIVE here AS (
             SELECT $1::oid AS relid
             UNION SELECT i.inhrelid FROM here JOIN pg_inherits i ON i.inhparent = here.relid)
         SELECT DISTINCT format('%I of %s', k.conname, k.conrelid::regclass), k.confdeltype IN ('c', 'n', 'd'), k.confupdtype IN ('c', 'n', 'd'),
                ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = k.confrelid AND a.attnum = ANY (k.confkey) ORDER BY 1),
                format('ALTER TABLE %1$s DROP CONSTRAINT %2$I, ADD CONSTRAINT %2$I %3$s', top.conrelid::regclass, top.conname,
                       regexp_replace(pg_get_constraintdef(top.oid), ' ON (UPDATE|DELETE) (CASCADE|SET NULL|SET DEFAULT)( \\([^)]*\\))?', '', 'g'))
         FROM here JOIN pg_constraint k ON k.confrelid = here.relid AND k.contype = 'f'
         JOIN pg_constraint top ON top.oid = coalesce(nullif(k.conparentid, 0), k.oid)
         WHERE k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd') ORDER BY 1",
    )
    .bind(table)
    .fetch_all(tx)
    .await?;
    let cascades =
        found.into_iter().map(
            |(constraint, on_delete, on_update, columns, alter)| Cascade {
                constraint,
                on_delete,
                on_update,
                columns,
                alter,
            },
        );
    Ok(cascades.collect())
}

/// A foreign key that refers to the table and by which a deletion changes another table, too.
pub(in crate::target) async fn cascade_of_deletes(
    tx: &mut PgConnection,
    name: &TableName,
) -> Result<Option<Cascade>, sqlx::Error> {
    let table: Option<Oid> = sqlx::query_scalar("SELECT to_regclass($1)::oid")
        .bind(name.sql())
        .fetch_one(&mut *tx)
        .await?;
    let Some(table) = table else { return Ok(None) };
    let found = cascades(tx, table).await?.into_iter();
    let mut deletes = found.filter(|one| one.on_delete);
    Ok(deletes.next())
}

/// The table, or partitions and children of it, that are published and have no replica identity.
async fn unidentified(tx: &mut PgConnection, table: Oid) -> Result<Vec<Unidentified>, sqlx::Error> {
    let found: Vec<(String, String, bool, bool)> = sqlx::query_as(
        "WITH RECURSIVE here AS (
             SELECT $1::oid AS relid
             UNION SELECT i.inhrelid FROM here JOIN pg_inherits i ON i.inhparent = here.relid),
         bare AS (
             SELECT c.oid FROM here JOIN pg_class c ON c.oid = relid AND c.relkind = 'r' AND c.relreplident <> 'f'
             WHERE NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                 AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident)))
         SELECT DISTINCT bare.oid::regclass::text, quote_ident(p.pubname), p.pubdelete, p.pubupdate
         FROM bare CROSS JOIN LATERAL (SELECT bare.oid AS relid UNION SELECT relid::oid FROM pg_partition_ancestors(bare.oid)) up
         JOIN pg_class c ON c.oid = up.relid JOIN pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_publication_tables t ON (t.schemaname, t.tablename) = (n.nspname, c.relname)
         JOIN pg_publication p USING (pubname)
         WHERE p.pubdelete OR p.pubupdate ORDER BY 1, 2",
    )
    .bind(table)
    .fetch_all(tx)
    .await?;
    let found = found
        .into_iter()
        .map(|(table, publication, on_delete, on_update)| Unidentified {
            table,
            publication,
            on_delete,
            on_update,
        });
    Ok(found.collect())
}
