//! The migrations of schema `etl`. Safe with several replicas at once, and with an older binary
//! beside a newer schema; a role that may not create anything can use a schema that is up to date.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::address::Address;
use crate::database;
use crate::error::{cause, is_denied};

/// The migrations that were applied; beside the ledger, so that it goes where the ledger goes.
const TABLE: &str = "etl.schema_migrations";

/// The longest that another replica's migration is waited for.
const LOCK_TIMEOUT: Duration = Duration::from_mins(1);

fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!();
    // A newer binary has been here; its migrations only add.
    migrator.set_ignore_missing(true);
    migrator.dangerous_set_table_name(TABLE);
    migrator.create_schema("etl");
    migrator
}

/// Whether every migration of this version has been applied.
pub async fn is_current(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let known: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(TABLE)
        .fetch_one(&mut *connection)
        .await?;
    if !known {
        return Ok(false);
    }
    let select = AssertSqlSafe(format!(
        "SELECT version, checksum FROM {TABLE} WHERE success"
    ));
    let applied: Vec<(i64, Vec<u8>)> = sqlx::query_as(select).fetch_all(connection).await?;
    Ok(migrator().iter().all(|one| {
        applied
            .iter()
            .any(|(version, checksum)| *version == one.version && *checksum == *one.checksum)
    }))
}

/// Applies what is missing. Where nothing is, any role that may read the schema will do.
pub async fn run(address: &Address) -> anyhow::Result<()> {
    let connected = database::connect(address, "etl loader migrate").await;
    let mut connection = connected.map_err(|error| anyhow::anyhow!(address.failed(&error)))?;
    if !is_current(&mut connection).await.unwrap_or(false) {
        run_on(&mut connection).await?;
    }
    connection.close().await.ok();
    Ok(())
}

/// [`run`], on a connection of the caller's, which is not to be used again after an error.
pub async fn run_on(connection: &mut PgConnection) -> anyhow::Result<()> {
    // Bounds each wait for a lock, the migrator's own advisory lock included.
    sqlx::query(AssertSqlSafe(format!(
        "SET lock_timeout = '{}s'",
        LOCK_TIMEOUT.as_secs()
    )))
    .execute(&mut *connection)
    .await?;
    match tokio::time::timeout(
        LOCK_TIMEOUT * 5,
        migrator().run_direct(None, connection, false),
    )
    .await
    {
        Ok(Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)))
            if is_denied(&error) =>
        {
            anyhow::bail!(
                "cannot bring schema etl up to date: {}; run loader migrate as the role that owns the schema, with CREATE on the database",
                cause(&error)
            )
        }
        Ok(migrated) => migrated.context(
            "cannot bring schema etl up to date; nothing of the failed migration was kept",
        ),
        Err(_) => anyhow::bail!(
            "cannot bring schema etl up to date: it took longer than {} s; look for a lock in pg_stat_activity",
            LOCK_TIMEOUT.as_secs() * 5
        ),
    }
}
