//! Forgets old values. Runs and batches are never pruned: a replay of a forgotten batch would load it twice.

use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::types::PgInterval;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::database::Store;
use crate::error::Error;

/// Runs whose rows are pruned in one transaction.
const RUNS_AT_A_TIME: usize = 200;

/// The longest that one of them may take, and the statement by which PostgreSQL sets no limit of its own: it may rewrite millions
/// of rows.
const TIMEOUT: Duration = Duration::from_hours(6);
const UNLIMITED: &str = "SET LOCAL statement_timeout = 0";

/// What to forget.
#[derive(Debug, Clone, Copy)]
pub struct Prune {
    pub older_than: Duration,
    /// Bodies of unresolved dead letters, too.
    pub unresolved: bool,
    /// Messages that were never sent, too.
    pub unsent: bool,
    /// Counts only.
    pub dry_run: bool,
}

/// What was forgotten, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    pub rejected_values: i64,
    pub dead_letter_bodies: i64,
    pub unsent: i64,
}

// A run that has not ended may still be decided about, or replayed by what its rejected rows show.
const ROWS: &str = "run_id = ANY ($1) AND rejected_at < now() - $2 AND raw IS NOT NULL";

// The body of an unresolved dead letter may be the only copy of a batch: it is pruned on demand only, and never while its run
// waits for it.
const BODIES: &str = "body IS NOT NULL AND (resolved_at < now() - $1
    OR $2 AND resolved_at IS NULL AND received_at < now() - $1 AND NOT EXISTS (
        SELECT FROM etl.runs r WHERE r.run_id = d.run_id AND r.finished_at IS NULL))";

impl Store {
    /// Prunes, some runs in each transaction: what was pruned before a failure stays pruned.
    pub async fn prune(&self, what: Prune) -> Result<Pruned, Error> {
        let age = PgInterval {
            months: 0,
            days: 0,
            microseconds: i64::try_from(what.older_than.as_micros()).unwrap_or(i64::MAX),
        };
        let over: Vec<String> = self
            .read("cannot look for runs that have ended", async |tx: &mut PgConnection| {
                let query = sqlx::query_scalar(
                    "SELECT run_id FROM etl.runs WHERE finished_at IS NOT NULL AND requested_at < now() - $1 ORDER BY run_no",
                );
                Ok(query.bind(age).fetch_all(tx).await?)
            })
            .await?;
        let mut pruned = Pruned::default();
        let rows = statement(what.dry_run, "etl.rejected_rows", "raw", ROWS);
        let failure = "cannot prune the rejected values; what was pruned before stays so";
        for runs in over.chunks(RUNS_AT_A_TIME) {
            pruned.rejected_values += self
                .transaction_within(TIMEOUT, failure, async |tx: &mut PgConnection| {
                    sqlx::query(UNLIMITED).execute(&mut *tx).await?;
                    let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(rows.clone()));
                    Ok(query.bind(runs).bind(age).fetch_one(tx).await?)
                })
                .await?;
        }
        let bodies = statement(what.dry_run, "etl.dead_letters d", "body", BODIES);
        let failure = "cannot prune the bodies of dead letters";
        pruned.dead_letter_bodies = self
            .transaction_within(TIMEOUT, failure, async |tx: &mut PgConnection| {
                sqlx::query(UNLIMITED).execute(&mut *tx).await?;
                let query = sqlx::query_scalar(AssertSqlSafe(bodies));
                Ok(query.bind(age).bind(what.unresolved).fetch_one(tx).await?)
            })
            .await?;
        if what.unsent {
            pruned.unsent = self.prune_outbox(age, what.dry_run).await?;
        }
        Ok(pruned)
    }
}

/// Counts what meets the condition, and unless it is a dry run forgets it.
fn statement(dry_run: bool, table: &str, column: &str, condition: &str) -> String {
    if dry_run {
        format!("SELECT count(*) FROM {table} WHERE {condition}")
    } else {
        format!(
            "WITH gone AS (UPDATE {table} SET {column} = NULL WHERE {condition} RETURNING 1) SELECT count(*) FROM gone"
        )
    }
}
