//! Locks that last as long as the process that took them.

use sqlx::PgConnection;

use crate::database::{Store, bounded, lock_key};
use crate::error::Error;

/// A connection whose locks are held until this is dropped or the process ends.
pub struct SessionLock {
    connection: PgConnection,
}

const FAILURE: &str = "cannot take a lock in the database";

impl Store {
    /// A connection of its own for locks, which holds none yet.
    pub async fn session_lock(&self) -> Result<SessionLock, Error> {
        let connection = self.acquire().await.map_err(Error::postgres(FAILURE))?;
        Ok(SessionLock {
            connection: connection.detach(),
        })
    }
}

impl SessionLock {
    /// Takes a lock that one process at a time may have; false when another process has it. PostgreSQL releases the lock of a
    /// process that was killed only a moment later, and so it is waited for a little.
    pub async fn take(&mut self, purpose: &str, name: &str) -> Result<bool, Error> {
        let taken = async {
            sqlx::query("SET lock_timeout = '5s'")
                .execute(&mut self.connection)
                .await?;
            sqlx::query("SELECT pg_advisory_lock($1)")
                .bind(lock_key(purpose, name))
                .execute(&mut self.connection)
                .await
        };
        match bounded(taken).await {
            Ok(_) => Ok(true),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => {
                Ok(false)
            }
            Err(error) => Err(Error::postgres(FAILURE)(error)),
        }
    }
}
