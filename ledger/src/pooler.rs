//! Recognises a pooler that gives a connection of the server to another client after each transaction (PgBouncer's
//! `pool_mode = transaction`). Behind one, locks of a session outlive it or are another client's, prepared statements are missing,
//! and settings leak.
//!
//! What tells is what sessions promise, not a name: two clients that are connected at the same time have two sessions, each of
//! which stays the same, and the lock of a session is there until its client goes, and not after that. A pool in which only
//! this process works gives both clients the same session at once. In a busy one they may have two by chance; a lock that stays
//! behind shows it then.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::time::{Instant, sleep};

/// The longest that the lock of a client that went may stay. PostgreSQL takes milliseconds.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sessions {
    /// Each connection is a session of its own.
    Own,
    /// They are lent for a transaction.
    Lent,
    /// The lock of a client that went stays, and nothing else tells why.
    Unclear,
    /// The two connections led to two servers.
    TwoServers,
}

/// What the sessions of two connections to the same address are. `holder` is closed.
pub(crate) async fn examine(
    mut holder: PgConnection,
    watcher: &mut PgConnection,
) -> Result<Sessions, sqlx::Error> {
    let key: i64 = rand::random();
    if server(&mut holder).await? != server(watcher).await? {
        return Ok(Sessions::TwoServers);
    }
    let its = backend(&mut holder).await?;
    let own = backend(watcher).await?;
    if its == own || backend(&mut holder).await? != its {
        return Ok(Sessions::Lent);
    }
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "SELECT pg_catalog.pg_advisory_lock({key})"
    )))
    .execute(&mut holder)
    .await?;
    let held = look(watcher, key).await?;
    if held != (own, true) || backend(&mut holder).await? != its {
        // It would stay with the pooler's connection.
        let unlock = format!("SELECT pg_catalog.pg_advisory_unlock({key})");
        let unlocked = sqlx::raw_sql(sqlx::AssertSqlSafe(unlock))
            .execute(&mut holder)
            .await;
        if let Err(error) = unlocked {
            tracing::debug!(%error, "the lock of the probe stays");
        }
        return Ok(Sessions::Lent);
    }
    holder.close().await?;
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    loop {
        match look(watcher, key).await? {
            (backend, _) if backend != own => return Ok(Sessions::Lent),
            (_, false) => return Ok(Sessions::Own),
            _ if Instant::now() > deadline => return Ok(Sessions::Unclear),
            _ => sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// What tells one server from another: when it started.
async fn server(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let row = sqlx::raw_sql("SELECT pg_catalog.pg_postmaster_start_time()::pg_catalog.text")
        .fetch_one(connection);
    row.await?.try_get(0)
}

/// The process of the server that answers. Without a prepared statement, which a pooler may not know.
async fn backend(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = sqlx::raw_sql("SELECT pg_catalog.pg_backend_pid()").fetch_one(connection);
    row.await?.try_get(0)
}

/// The process that answers, and whether anybody has the lock.
async fn look(connection: &mut PgConnection, key: i64) -> Result<(i32, bool), sqlx::Error> {
    let select = format!(
        "SELECT pg_catalog.pg_backend_pid(), EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 1
         AND classid::pg_catalog.int8 = ({key} >> 32) & 4294967295 AND objid::pg_catalog.int8 = {key} & 4294967295)"
    );
    let row = sqlx::raw_sql(sqlx::AssertSqlSafe(select)).fetch_one(connection);
    let row = row.await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

impl Sessions {
    /// Refuses an address whose sessions are not its clients' own.
    pub(crate) fn require_own(self, server: &str) -> Result<(), sqlx::Error> {
        match self {
            Self::Own => Ok(()),
            Self::Lent => Err(sqlx::Error::Configuration(format!(
                "{server} is a pooler that lends a connection for one transaction, and locks and settings of a session would be another client's; use the direct address of the server (Supabase: port 5432; Neon: the host without -pooler; RDS Proxy: the endpoint of the instance or cluster), or a pool with pool_mode = session"
            ).into())),
            Self::TwoServers => Err(sqlx::Error::Io(std::io::Error::other(format!(
                "two connections to {server} led to two servers; use the address of the one that takes writes, or name each host in ETL_DATABASE_URL"
            )))),
            Self::Unclear => Err(sqlx::Error::Io(std::io::Error::other(format!(
                "a lock of a session on {server} is still there {} s after its client went, as behind a pooler that lends a connection for one transaction; use the direct address of the server, or a pool with pool_mode = session and server_reset_query = DISCARD ALL", RELEASE_TIMEOUT.as_secs()
            )))),
        }
    }
}
