//! The database itself: its version, whether it can be written to, and what the role may do.

use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::grant::Part;
use crate::migrate;

/// The server, as the role that connected sees it.
#[derive(Debug, Clone, FromRow)]
pub struct Server {
    pub version_num: i32,
    pub version: String,
    pub role: String,
    /// A standby, or set to read-only.
    pub is_read_only: bool,
    /// Seconds since the epoch, by its clock.
    pub clock: f64,
}

const UNREADABLE: &str = "cannot read the privileges";

impl Store {
    /// The server that the connection leads to.
    pub async fn server(&self) -> Result<Server, Error> {
        let failure = "cannot ask the database for its version";
        self.read(failure, async |tx: &mut PgConnection| {
            let server = sqlx::query_as(
                "SELECT current_setting('server_version_num')::integer AS version_num, current_setting('server_version') AS version,
                        current_user::text AS role,
                        pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean AS is_read_only,
                        extract(epoch FROM clock_timestamp())::float8 AS clock",
            );
            Ok(server.fetch_one(tx).await?)
        })
        .await
    }

    /// Whether schema `etl` is there.
    pub async fn exists(&self) -> Result<bool, Error> {
        let failure = "cannot look for the schema etl";
        self.read(failure, async |tx: &mut PgConnection| {
            let found = "SELECT to_regclass('etl.run_balance') IS NOT NULL";
            Ok(sqlx::query_scalar(found).fetch_one(tx).await?)
        })
        .await
    }

    /// Whether schema `etl` is there, and has every migration of this version.
    pub async fn is_current(&self) -> Result<bool, Error> {
        let failure = "cannot read the migrations of schema etl";
        self.read(failure, async |tx: &mut PgConnection| {
            Ok(migrate::is_current(tx).await?)
        })
        .await
    }

    /// What the role lacks to do what an operator's command does to the ledger, as `GRANT` names it. Without a privilege to
    /// read, nothing else can be asked.
    pub async fn missing_privileges(&self) -> Result<Vec<String>, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let (tables, privileges): (Vec<_>, Vec<_>) = Part::Command.writes().unzip();
            let missing = sqlx::query_scalar(
                "WITH ledger AS (SELECT oid, nspname FROM pg_namespace WHERE nspname = 'etl'),
                      tables AS (SELECT c.oid, format('etl.%I', c.relname) AS name FROM pg_class c JOIN ledger ON ledger.oid = c.relnamespace WHERE c.relkind IN ('r', 'v', 'p'))
                 SELECT missing FROM (
                     SELECT 0 AS place, 'USAGE ON SCHEMA etl' AS missing FROM ledger WHERE NOT has_schema_privilege(oid, 'USAGE')
                     UNION ALL
                     SELECT 1, 'SELECT ON ' || name FROM tables WHERE NOT has_table_privilege(oid, 'SELECT')
                     UNION ALL
                     SELECT 1 + w.place, format('%s ON %s', privilege, name) FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (name, privilege, place)
                     JOIN tables USING (name) WHERE NOT has_table_privilege(oid, privilege)
                     UNION ALL
                     SELECT 1000, format('EXECUTE ON FUNCTION etl.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid))
                     FROM pg_proc p JOIN ledger ON ledger.oid = p.pronamespace WHERE NOT has_function_privilege(p.oid, 'EXECUTE')
                 ) AS all_of_them ORDER BY place, missing",
            );
            Ok(missing.bind(tables).bind(privileges).fetch_all(tx).await?)
        })
        .await
    }

    /// Whether a role may make tables in a schema; none when there is no such schema.
    pub async fn may_create_in(&self, schema: &str, role: &str) -> Result<Option<bool>, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let query = sqlx::query_scalar(
                "SELECT has_schema_privilege($2, oid, 'CREATE') FROM pg_namespace WHERE nspname = $1",
            );
            Ok(query.bind(schema).bind(role).fetch_optional(tx).await?)
        })
        .await
    }
}
