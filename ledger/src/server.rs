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

    /// What the role lacks to do what an operator's command does to the ledger, as `GRANT` names it.
    pub async fn missing_privileges(&self) -> Result<Vec<String>, Error> {
        self.read(UNREADABLE, async |tx: &mut PgConnection| {
            let mut missing: Vec<String> = sqlx::query_scalar(
                "SELECT format('SELECT ON etl.%I', c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = 'etl' AND c.relkind IN ('r', 'v', 'p') AND NOT has_table_privilege(c.oid, 'SELECT') ORDER BY 1",
            )
            .fetch_all(&mut *tx)
            .await?;
            let (tables, privileges): (Vec<_>, Vec<_>) = Part::Command.writes().unzip();
            let unwritable = sqlx::query_scalar(
                "SELECT format('%s ON %s', privilege, tab) FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (tab, privilege, place)
                 WHERE NOT has_table_privilege(to_regclass(tab), privilege) ORDER BY place",
            );
            let unwritable: Vec<String> =
                unwritable.bind(tables).bind(privileges).fetch_all(tx).await?;
            missing.extend(unwritable);
            Ok(missing)
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
