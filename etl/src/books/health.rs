//! The database itself: its version, whether it can be written to, and what the role may do.

use anyhow::Context;
use sqlx::FromRow;

use super::Books;

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

/// What the role lacks, as `GRANT` names it; nothing when it may do what `etl` does.
#[derive(Debug, Clone, Default)]
pub struct Privileges {
    pub missing: Vec<String>,
}

/// What `etl` does to the books, apart from reading them.
const WRITES: [(&str, &str); 7] = [
    ("etl.runs", "INSERT"),
    ("etl.runs", "UPDATE"),
    ("etl.batches", "UPDATE"),
    ("etl.rejected_rows", "UPDATE"),
    ("etl.dead_letters", "UPDATE"),
    ("etl.replays", "INSERT"),
    ("etl.replays", "UPDATE"),
];

impl Books {
    pub async fn server(&self) -> anyhow::Result<Server> {
        sqlx::query_as(
            "SELECT current_setting('server_version_num')::integer AS version_num, current_setting('server_version') AS version,
                    current_user::text AS role,
                    pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean AS is_read_only,
                    extract(epoch FROM clock_timestamp())::float8 AS clock",
        )
        .fetch_one(&self.pool)
        .await
        .context("cannot ask the database for its version")
    }

    /// Whether the schema `etl` is there, and has every migration of this version.
    pub async fn migrations_are_current(&self) -> anyhow::Result<bool> {
        let mut connection = self.pool.acquire().await?;
        let current = loader::migrate::is_current(&mut connection).await;
        current.context("cannot read the migrations")
    }

    /// What the role may not do to the books.
    pub async fn privileges(&self) -> anyhow::Result<Privileges> {
        let doing = "cannot read the privileges";
        let mut missing: Vec<String> = sqlx::query_scalar(
            "SELECT format('SELECT ON etl.%I', c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = 'etl' AND c.relkind IN ('r', 'v', 'p') AND NOT has_table_privilege(c.oid, 'SELECT') ORDER BY 1",
        )
        .fetch_all(&self.pool)
        .await
        .context(doing)?;
        for (table, privilege) in WRITES {
            let may: Option<bool> =
                sqlx::query_scalar("SELECT has_table_privilege(to_regclass($1), $2)")
                    .bind(table)
                    .bind(privilege)
                    .fetch_one(&self.pool)
                    .await
                    .context(doing)?;
            if may == Some(false) {
                missing.push(format!("{privilege} ON {table}"));
            }
        }
        Ok(Privileges { missing })
    }

    /// Whether tables can be made in a schema; none when there is no such schema.
    pub async fn may_create_in(&self, schema: &str) -> anyhow::Result<Option<bool>> {
        let query =
            "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1";
        sqlx::query_scalar(query)
            .bind(schema)
            .fetch_optional(&self.pool)
            .await
            .context("cannot read the privileges")
    }
}
