//! What roles may do with a target, by PostgreSQL's own functions.

use common::job::Target;
use sqlx::{FromRow, PgConnection};

use super::relation::Found;
use crate::ddl::{Access, TableAccess, TableName};

/// What each of these roles may do, or this connection's role.
pub(super) async fn access(
    tx: &mut PgConnection,
    name: &TableName,
    target: &Target,
    found: Option<&Found>,
    roles: Option<&[String]>,
) -> Result<Vec<AccessRow>, sqlx::Error> {
    sqlx::query_as(ACCESS)
        .bind(&name.schema)
        .bind(found.map(|found| found.oid))
        .bind(roles)
        .bind(&target.grants)
        .bind(&target.tablespace)
        .fetch_all(tx)
        .await
}

/// $1: the schema; $2: the table, or NULL; $3: the roles, or NULL for this connection's; $4: the roles that
/// are to read the table; $5: its tablespace, or NULL.
///
/// No role inherits the attributes SUPERUSER and BYPASSRLS of another; privileges and ownership are as PostgreSQL says, a
/// superuser's and inherited ones included. Row level security spares the owner unless it is forced.
const ACCESS: &str = "SELECT r.rolname::text AS role, current_database()::text AS database, n.oid IS NOT NULL AS has_schema,
         coalesce(has_schema_privilege(r.oid, n.oid, 'USAGE'), false) AS uses_schema,
         coalesce(has_schema_privilege(r.oid, n.oid, 'CREATE'), false) AS creates_in_schema,
         has_database_privilege(r.oid, current_database(), 'TEMPORARY') AS makes_temporary,
         coalesce((SELECT has_schema_privilege(r.oid, s.oid, 'USAGE') AND has_schema_privilege(r.oid, s.oid, 'CREATE')
                   FROM pg_namespace s WHERE s.nspname = 'etl_staging'), true) AS stages,
         $5::text IS NULL OR coalesce((SELECT has_tablespace_privilege(r.oid, t.oid, 'CREATE') FROM pg_tablespace t WHERE t.spcname = $5), false)
             AS uses_tablespace,
         -- PUBLIC is no role, and every role is in it.
         ARRAY(SELECT name FROM unnest($4::text[]) AS g (name) WHERE name <> 'public' AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name))
             AS unknown_roles,
         c.oid IS NOT NULL AS has_table, coalesce(pg_has_role(r.oid, c.relowner, 'USAGE'), false) AS owns,
         coalesce(c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls
                  AND (c.relforcerowsecurity OR NOT pg_has_role(r.oid, c.relowner, 'USAGE')), false) AS has_policies,
         coalesce(has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'), false) AS locks,
         coalesce(has_table_privilege(r.oid, c.oid, 'DELETE'), false) AS deletes,
         a.no_insert, a.no_select, a.no_update, s.columns_of_sequences, s.sequences
     FROM pg_roles r LEFT JOIN pg_namespace n ON n.nspname = $1 LEFT JOIN pg_class c ON c.oid = $2
     CROSS JOIN LATERAL (
         SELECT coalesce(array_agg(attname::text) FILTER (WHERE NOT has_column_privilege(r.oid, attrelid, attnum, 'INSERT')), '{}') AS no_insert,
                coalesce(array_agg(attname::text) FILTER (WHERE NOT has_column_privilege(r.oid, attrelid, attnum, 'SELECT')), '{}') AS no_select,
                coalesce(array_agg(attname::text) FILTER (WHERE NOT has_column_privilege(r.oid, attrelid, attnum, 'UPDATE')), '{}') AS no_update
         FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) a
     CROSS JOIN LATERAL (
         SELECT coalesce(array_agg(a.attname::text), '{}') AS columns_of_sequences, coalesce(array_agg(d.refobjid::regclass::text), '{}') AS sequences
         FROM pg_attrdef f JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
         JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
         JOIN pg_class q ON q.oid = d.refobjid
         WHERE f.adrelid = c.oid AND CASE WHEN q.relkind = 'S' THEN NOT has_sequence_privilege(r.oid, q.oid, 'USAGE, UPDATE') END) s
     WHERE r.rolname = ANY (coalesce($3, ARRAY[current_user::text])) ORDER BY r.rolname";

#[derive(FromRow)]
#[expect(clippy::struct_excessive_bools, reason = "each is a privilege")]
pub(super) struct AccessRow {
    role: String,
    database: String,
    pub(super) has_schema: bool,
    uses_schema: bool,
    creates_in_schema: bool,
    makes_temporary: bool,
    stages: bool,
    uses_tablespace: bool,
    unknown_roles: Vec<String>,
    has_table: bool,
    owns: bool,
    has_policies: bool,
    locks: bool,
    deletes: bool,
    no_insert: Vec<String>,
    no_select: Vec<String>,
    no_update: Vec<String>,
    columns_of_sequences: Vec<String>,
    sequences: Vec<String>,
}

impl From<AccessRow> for Access {
    fn from(row: AccessRow) -> Self {
        let sequences = row.columns_of_sequences.into_iter().zip(row.sequences);
        Self {
            role: row.role,
            database: row.database,
            uses_schema: row.uses_schema,
            creates_in_schema: row.creates_in_schema,
            makes_temporary: row.makes_temporary,
            stages: row.stages,
            uses_tablespace: row.uses_tablespace,
            unknown_roles: row.unknown_roles,
            table: row.has_table.then(|| TableAccess {
                owns: row.owns,
                has_policies: row.has_policies,
                locks: row.locks,
                deletes: row.deletes,
                no_insert: row.no_insert,
                no_select: row.no_select,
                no_update: row.no_update,
                no_sequence: sequences.collect(),
            }),
        }
    }
}
