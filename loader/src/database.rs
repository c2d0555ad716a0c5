//! Connections to Postgres and the transactions on them. Promises: a transaction starts with the
//! settings that its meaning depends on, whatever the role's or the server's defaults are; a
//! connection whose transaction did not end in good order is closed, never used again (one that a
//! COPY was broken off on stays out of step for good); and nothing waits for ever.

use std::time::Duration;

use common::settings::SecretUrl;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction};

/// How long a transaction may take altogether before the connection counts as dead: a peer that
/// vanished silently is noticed by nothing else. Above what the bisection of a batch takes.
const TRANSACTION: Duration = Duration::from_mins(5);

/// How long getting a connection may take.
const ACQUIRE: Duration = Duration::from_secs(15);

/// Connections of a loader at most. It handles batches, events and dead letters at the same time.
const CONNECTIONS: u32 = 5;

/// Begins a transaction in which text means what the transformer meant by it, names cannot be
/// hijacked by whoever may create objects in `public`, deferred constraints are checked where a row
/// can still be told from others, a commit is durable once it is acknowledged, and no lock or
/// statement is waited for without end.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
    SET LOCAL search_path = pg_catalog, pg_temp; \
    SET LOCAL TimeZone = 'UTC'; \
    SET LOCAL DateStyle = 'ISO, YMD'; \
    SET LOCAL standard_conforming_strings = on; \
    SET LOCAL client_min_messages = warning; \
    SET LOCAL lock_timeout = '10s'; \
    SET LOCAL statement_timeout = '2min'; \
    SET LOCAL idle_in_transaction_session_timeout = '1min'; \
    SET CONSTRAINTS ALL IMMEDIATE; \
    SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'";

/// sqlx takes any scheme for its own.
fn options(url: &SecretUrl) -> Result<PgConnectOptions, sqlx::Error> {
    match url.expose().scheme() {
        "postgres" | "postgresql" => url.expose().as_str().parse(),
        other => Err(sqlx::Error::Configuration(
            format!("its scheme is {other}, not postgres").into(),
        )),
    }
}

/// A pool of connections; none is made yet.
pub fn pool(url: &SecretUrl, name: &str) -> Result<PgPool, sqlx::Error> {
    let options = options(url)?;
    Ok(PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE)
        .connect_lazy_with(options.application_name(name)))
}

/// A connection of the pool that is closed when dropped, unless it was given back.
pub struct Held(Option<PoolConnection<Postgres>>);

impl Held {
    /// Waits for a connection.
    pub async fn acquire(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self(Some(pool.acquire().await?)))
    }

    /// Begins a transaction with the settings above.
    pub async fn begin(&mut self) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
        let connection = self.0.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        connection.begin_with(BEGIN).await
    }

    /// Its transaction ended in good order.
    pub fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            // Dropping a detached connection closes its socket; the server ends the transaction.
            drop(connection.detach());
        }
    }
}

/// Does `work` in a transaction and commits it. Any error means that the outcome is unknown, so that
/// the work has to be one that may be done again.
pub async fn transaction<T>(
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    transaction_within(TRANSACTION, pool, work).await
}

/// [`transaction`], which may take this long.
pub(crate) async fn transaction_within<T>(
    limit: Duration,
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    within(limit, async {
        let mut held = Held::acquire(pool).await?;
        let mut tx = held.begin().await?;
        let done = work(&mut tx).await?;
        tx.commit().await?;
        held.give_back();
        Ok(done)
    })
    .await
}

/// Awaits `work`, but not for ever.
pub async fn bounded<T, E: From<sqlx::Error>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    within(TRANSACTION, work).await
}

async fn within<T, E: From<sqlx::Error>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()),
    }
}

/// A savepoint: `work` is undone when it fails, and what came before is not.
pub async fn savepoint<T>(
    connection: &mut PgConnection,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let mut point = connection.begin().await?;
    match work(&mut point).await {
        Ok(done) => {
            point.commit().await?;
            Ok(done)
        }
        Err(error @ sqlx::Error::Database(_)) => {
            point.rollback().await?;
            Err(error)
        }
        // The connection is in no state to roll back on; the transaction goes with it.
        Err(error) => Err(error),
    }
}

/// A connection of its own, outside the pool.
pub async fn connect(url: &SecretUrl, name: &str) -> Result<PgConnection, sqlx::Error> {
    let options = options(url)?;
    match tokio::time::timeout(
        ACQUIRE,
        PgConnection::connect_with(&options.application_name(name)),
    )
    .await
    {
        Ok(connected) => connected,
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}
