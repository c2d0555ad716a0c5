//! Locks that last as long as the process that took them.

use std::time::Duration;

use anyhow::Context;
use sqlx::PgConnection;

use super::Books;
use crate::Failure;

/// A lock, held until this is dropped or the process dies.
pub(crate) struct Lock {
    _connection: PgConnection,
}

impl Books {
    /// Takes a lock that one process at a time may have; none when another has it. One that was
    /// killed a moment ago may still have it, and so it is waited for a little.
    pub(crate) async fn lock_alone(&self, key: &str) -> Result<Option<Lock>, Failure> {
        let doing = "cannot take a lock in the books";
        let mut connection = self.pool.acquire().await.context(doing)?.detach();
        for _ in 0..10 {
            let taken: bool =
                sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
                    .bind(key)
                    .fetch_one(&mut connection)
                    .await
                    .context(doing)?;
            if taken {
                return Ok(Some(Lock {
                    _connection: connection,
                }));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(None)
    }
}
