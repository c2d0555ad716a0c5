//! Connections to PostgreSQL and the one way to begin a transaction, for every program that reads or changes the ledger.
//! Promises: a transaction starts with the settings that its meaning depends on, whatever the role's or the server's
//! defaults are; a connection whose transaction did not end in good order is closed, never used again (one that a COPY was
//! broken off on stays out of step for good); every wait is bounded.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::address::Address;
use crate::error::Error;
use crate::hosts::{Hosts, Role};
use crate::pool::{Connected, Pool};

/// The longest that a transaction may take before the connection counts as dead: a peer that vanished silently is noticed by
/// nothing else. Above what a batch with refused rows takes.
const TRANSACTION_TIMEOUT: Duration = Duration::from_mins(5);

/// The longest that a COMMIT may take: it waits for the disk, and for a synchronous standby.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);

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
pub(crate) const BEGIN_READING: &str = begin!("REPEATABLE READ READ ONLY", "10s", "2min");

/// The ledger of a database, through a pool of connections.
#[derive(Clone)]
pub struct Store {
    pool: Arc<Pool>,
    /// How a transaction that writes begins.
    begin: &'static str,
}

impl Store {
    /// A store of at most so many connections, each with this application name; none is made yet.
    pub fn new(address: &Address, application: &str, connections: u32) -> Self {
        Self::with(Hosts::new(address, application, false), connections)
    }

    /// [`Self::new`], which reads from a standby while no server takes writes.
    pub fn or_standby(address: &Address, application: &str, connections: u32) -> Self {
        Self::with(Hosts::new(address, application, true), connections)
    }

    fn with(hosts: Hosts, connections: u32) -> Self {
        Self {
            pool: Pool::new(hosts, connections),
            begin: BEGIN,
        }
    }

    /// The same store, with transactions that wait for a lock and for a statement for seconds: for work that others wait
    /// behind, and that can be done later.
    #[must_use]
    pub fn briefly(&self) -> Self {
        Self {
            pool: Arc::clone(&self.pool),
            begin: BEGIN_BRIEFLY,
        }
    }

    /// Makes the first connection, and says what its server is. The error says at once why there is none.
    pub async fn connect(&self) -> Result<Role, sqlx::Error> {
        self.pool.first().await
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A connection that is closed when dropped, unless it is given back.
    pub async fn acquire(&self) -> Result<Connected, sqlx::Error> {
        self.pool.acquire(self.begin).await
    }

    /// A connection outside the pool.
    pub(crate) async fn connect_anew(&self) -> Result<PgConnection, sqlx::Error> {
        Ok(self.pool.hosts.connect().await?.connection)
    }

    /// What each server of the URL is, by its host and port.
    pub async fn roles(&self) -> Vec<(String, Result<Role, sqlx::Error>)> {
        self.pool.hosts.roles().await
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
        let done = self.within(limit, async {
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

    /// Awaits `work` for at most as long as a transaction may take, and not when another server has taken the place of the one
    /// that it is on.
    pub async fn bounded<T, E: From<sqlx::Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.within(TRANSACTION_TIMEOUT, work).await
    }

    async fn within<T, E: From<sqlx::Error>>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::select! {
            biased;
            done = within(limit, work) => done,
            () = self.pool.hosts.replaced() => Err(sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::ConnectionAborted,
                "the server does not take writes any more, and another one does",
            ))
            .into()),
        }
    }
}

/// A transaction on a connection of the pool.
pub struct Tx<'c> {
    tx: Transaction<'c, Postgres>,
}

impl<'c> Tx<'c> {
    pub(crate) fn new(tx: Transaction<'c, Postgres>) -> Self {
        Self { tx }
    }

    /// Commits it. Any error means that the outcome is unknown.
    ///
    /// No setting of PostgreSQL limits how long a COMMIT waits for a synchronous standby: `statement_timeout` ends before. It
    /// must not be cancelled, after which PostgreSQL reports success with a warning that the standby may not have it.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        match tokio::time::timeout(COMMIT_TIMEOUT, self.tx.commit()).await {
            Ok(done) => done,
            Err(_) => Err(sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "the COMMIT had no answer in time; is a synchronous standby away? pg_stat_replication shows those that are there",
            ))),
        }
    }

    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        self.tx.rollback().await
    }
}

impl std::ops::Deref for Tx<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.tx
    }
}

impl std::ops::DerefMut for Tx<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.tx
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

/// A connection of its own, to the server that takes writes: the first of a process or of its work. The error says, too, that the
/// address is of no use.
pub async fn connect(address: &Address, application: &str) -> Result<PgConnection, sqlx::Error> {
    let hosts = Hosts::new(address, application, false);
    Ok(hosts.connect_first().await?.connection)
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

/// Takes an advisory lock until the transaction ends, unless another transaction has it.
pub async fn try_lock(tx: &mut PgConnection, key: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
        .bind(key)
        .fetch_one(tx)
        .await
}
