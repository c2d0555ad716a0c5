//! Connections to PostgreSQL and the one way to begin a transaction, for every program that reads or changes the ledger.
//! Promises: a transaction starts with the settings that its meaning depends on, whatever the role's or the server's
//! defaults are; a connection whose transaction did not end in good order is closed, never used again (one that a COPY was
//! broken off on stays out of step for good); every wait is bounded.

use std::borrow::Cow;
use std::time::Duration;

use common::settings::SecretUrl;
use sha2::{Digest, Sha256};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction};

use crate::error::Error;

/// The longest that a transaction may take before the connection counts as dead: a peer that vanished silently is noticed by
/// nothing else. Above what a batch with refused rows takes.
const TRANSACTION_TIMEOUT: Duration = Duration::from_mins(5);

/// The longest that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Begins a transaction in which text means what the transformer meant by it, names cannot be hijacked by a role that may
/// create objects in `public`, a row security policy is an error rather than a filter, deferred constraints are checked where a
/// row can still be told from others, a commit is durable once it is acknowledged, and no lock or statement is waited for
/// without end.
macro_rules! begin {
    ($mode:literal, $lock:literal, $statement:literal) => {
        concat!(
            "BEGIN ISOLATION LEVEL ", $mode, "; \
            SET LOCAL search_path = pg_catalog, pg_temp; \
            SET LOCAL row_security = off; \
            SET LOCAL TimeZone = 'UTC'; \
            SET LOCAL DateStyle = 'ISO, YMD'; \
            SET LOCAL standard_conforming_strings = on; \
            SET LOCAL client_min_messages = warning; \
            SET LOCAL lock_timeout = '", $lock, "'; \
            SET LOCAL statement_timeout = '", $statement, "'; \
            SET LOCAL idle_in_transaction_session_timeout = '1min'; \
            SET CONSTRAINTS ALL IMMEDIATE; \
            SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
        )
    };
}

pub(crate) const BEGIN: &str = begin!("READ COMMITTED", "10s", "2min");

/// Of [`Store::briefly`].
const BEGIN_BRIEFLY: &str = begin!("READ COMMITTED", "1s", "5s");

/// Every statement sees the same snapshot.
const BEGIN_READING: &str = begin!("REPEATABLE READ READ ONLY", "10s", "2min");

/// The ledger of a database, through a pool of connections.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    /// How a transaction that writes begins.
    begin: &'static str,
}

impl Store {
    /// A store of at most so many connections, each with this application name; none is made yet.
    pub fn new(url: &SecretUrl, application: &str, connections: u32) -> Result<Self, sqlx::Error> {
        let options = options(url)?.application_name(application);
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(options);
        Ok(Self { pool, begin: BEGIN })
    }

    /// The same store, with transactions that wait for a lock and for a statement for seconds: for work that others wait
    /// behind, and that can be done later.
    #[must_use]
    pub fn briefly(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            begin: BEGIN_BRIEFLY,
        }
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A connection that is closed when dropped, unless it is given back.
    pub async fn acquire(&self) -> Result<Connected, sqlx::Error> {
        Ok(Connected {
            connection: Some(self.pool.acquire().await?),
            begin: self.begin,
        })
    }

    /// A connection outside the pool.
    pub(crate) async fn connect_anew(&self) -> Result<PgConnection, sqlx::Error> {
        let options = self.pool.connect_options();
        match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await {
            Ok(connected) => connected,
            Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    /// Does `work` in a transaction and commits it. `failure` says in a sentence what could not be done. Any error means that
    /// the outcome is unknown, so that the work has to be idempotent.
    pub async fn transaction<T>(
        &self,
        failure: impl Into<Cow<'static, str>>,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.transaction_within(TRANSACTION_TIMEOUT, failure, work)
            .await
    }

    /// [`Self::transaction`] with a limit of its own.
    pub async fn transaction_within<T>(
        &self,
        limit: Duration,
        failure: impl Into<Cow<'static, str>>,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.in_transaction(self.begin, limit, failure, work).await
    }

    /// [`Self::transaction`] for what only reads: every statement sees the same snapshot.
    pub async fn read<T>(
        &self,
        failure: impl Into<Cow<'static, str>>,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.in_transaction(BEGIN_READING, TRANSACTION_TIMEOUT, failure, work)
            .await
    }

    async fn in_transaction<T>(
        &self,
        begin: &'static str,
        limit: Duration,
        failure: impl Into<Cow<'static, str>>,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let done = within(limit, async {
            let mut connection = self.acquire().await?;
            let mut tx = connection.begin_with(begin).await?;
            let done = work(&mut tx).await?;
            tx.commit().await?;
            connection.give_back();
            Ok(done)
        });
        done.await
            .map_err(|error: Error| error.while_doing(|| failure.into()))
    }
}

/// What sqlx understands after the `?` of a URL. It logs the names and values of others, and a misspelt `password` is one.
const PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// sqlx accepts any scheme, and its errors quote values.
fn options(url: &SecretUrl) -> Result<PgConnectOptions, sqlx::Error> {
    let refused = |why: &'static str| sqlx::Error::Configuration(why.into());
    let url = url.expose();
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err(refused("ETL_DATABASE_URL does not begin with postgres://"));
    }
    let is_known = |name: &str| PARAMETERS.contains(&name) || name.starts_with("options[");
    if !url.query_pairs().all(|(name, _)| is_known(&name)) {
        return Err(refused(
            "ETL_DATABASE_URL has a parameter after its ? that is not known, such as sslmode would be",
        ));
    }
    let parsed = url.as_str().parse();
    parsed.map_err(|_| {
        refused(
            "a parameter after the ? of ETL_DATABASE_URL has a value that it cannot have, or a part of the URL is not UTF-8",
        )
    })
}

/// A connection of the pool that is closed when dropped, unless it was given back.
pub struct Connected {
    connection: Option<PoolConnection<Postgres>>,
    begin: &'static str,
}

impl Connected {
    /// Begins a transaction with the settings above.
    pub async fn begin(&mut self) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
        self.begin_with(self.begin).await
    }

    /// Begins a transaction that only reads, all of its statements from one snapshot.
    pub async fn begin_reading(&mut self) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
        self.begin_with(BEGIN_READING).await
    }

    async fn begin_with(
        &mut self,
        begin: &'static str,
    ) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
        let connection = self.connection.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        connection.begin_with(begin).await
    }

    /// Its transaction ended in good order.
    pub fn give_back(mut self) {
        drop(self.connection.take());
    }

    /// Takes the connection out of the pool: what the session holds ends with it.
    pub(crate) fn detach(mut self) -> Result<PgConnection, sqlx::Error> {
        let connection = self.connection.take().ok_or(sqlx::Error::PoolClosed)?;
        Ok(connection.detach())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Dropping a detached connection closes its socket; the server ends the transaction.
            drop(connection.detach());
        }
    }
}

/// Awaits `work` for at most as long as a transaction may take.
pub async fn bounded<T, E: From<sqlx::Error>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    within(TRANSACTION_TIMEOUT, work).await
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

/// A connection of its own, outside the pool. A pool retries for as long as it may, and does not say why it has no connection.
pub async fn connect(url: &SecretUrl, application: &str) -> Result<PgConnection, sqlx::Error> {
    let options = options(url)?.application_name(application);
    match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(connected) => connected,
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}

/// The key of an advisory lock on something, for one purpose. Every program takes its keys from here.
pub fn lock_key(purpose: &str, name: &str) -> i64 {
    let digest = Sha256::digest(format!("etl {purpose} {name}"));
    i64::from_be_bytes(digest[..8].try_into().unwrap_or_default())
}

/// Takes an advisory lock until the transaction ends; waits for as long as `lock_timeout` allows.
pub async fn lock(tx: &mut PgConnection, key: i64) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(key)
        .execute(tx)
        .await
        .map(drop)
}
