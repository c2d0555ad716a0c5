//! Locks that last as long as the process that took them.

use std::time::Duration;

use anyhow::Context;
use sqlx::PgConnection;

use super::Books;
use crate::Failure;

/// A lock, held until this is dropped or the process dies.
pub struct Lock {
    _connection: PgConnection,
}

impl Books {
    /// Takes a lock that one process at a time may have; none when another has it.
    pub async fn lock_alone(&self, key: &str) -> Result<Option<Lock>, Failure> {
        let doing = "cannot take a lock in the books";
        let mut connection = self.pool.acquire().await.context(doing)?.detach();
        let taken = try_take(&mut connection, key).await.context(doing)?;
        Ok(taken.then_some(Lock {
            _connection: connection,
        }))
    }
}

/// Takes a lock that lasts as long as the connection; false when another connection has it. Postgres lets go of the lock
/// of a process that ended only a moment later, and so it is waited for a little.
pub(super) async fn try_take(connection: &mut PgConnection, key: &str) -> sqlx::Result<bool> {
    for _ in 0..25 {
        let taken = sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
            .bind(key)
            .fetch_one(&mut *connection)
            .await?;
        if taken {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(false)
}
