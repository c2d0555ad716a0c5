//! Forgetting old values. Runs and batches are never pruned: a replay of a forgotten batch would load
//! it twice.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use sqlx::postgres::types::PgInterval;

use super::Books;
use crate::Failure;

/// Runs whose rows are pruned in one transaction.
const RUNS_AT_A_TIME: usize = 200;

/// What to forget.
#[derive(Debug, Clone, Copy)]
pub struct Prune {
    pub older_than: Duration,
    /// Bodies of dead letters that nobody has dealt with, too.
    pub unresolved: bool,
    /// Counts only.
    pub dry_run: bool,
}

/// What was forgotten, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    pub rejected_values: i64,
    pub dead_letter_bodies: i64,
}

// A run that is not over may still be decided about, or replayed by what its rejected rows show.
const ROWS: &str = "run_id = ANY ($1) AND rejected_at < now() - $2 AND raw IS NOT NULL";

// The body of a letter that nobody has dealt with may be the only copy of a batch: it goes by demand
// only, and never while its run waits for it.
const LETTERS: &str = "body IS NOT NULL AND (resolved_at < now() - $1
    OR $2 AND resolved_at IS NULL AND received_at < now() - $1 AND NOT EXISTS (
        SELECT FROM etl.runs r WHERE r.run_id = d.run_id AND r.state IN ('requested', 'running', 'held')))";

impl Books {
    pub async fn prune(&self, what: Prune) -> Result<Pruned, Failure> {
        let age = PgInterval {
            months: 0,
            days: 0,
            microseconds: i64::try_from(what.older_than.as_micros()).unwrap_or(i64::MAX),
        };
        let over: Vec<String> = sqlx::query_scalar(
            "SELECT run_id FROM etl.runs WHERE finished_at IS NOT NULL AND requested_at < now() - $1 ORDER BY run_no",
        )
        .bind(age)
        .fetch_all(&self.pool)
        .await
        .context("cannot read the books")?;
        let mut pruned = Pruned::default();
        let rows = if what.dry_run {
            format!("SELECT count(*) FROM etl.rejected_rows WHERE {ROWS}")
        } else {
            format!(
                "WITH gone AS (UPDATE etl.rejected_rows SET raw = NULL WHERE {ROWS} RETURNING 1) SELECT count(*) FROM gone"
            )
        };
        for runs in over.chunks(RUNS_AT_A_TIME) {
            let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(rows.clone()))
                .bind(runs)
                .bind(age)
                .fetch_one(&self.pool)
                .await
                .context("cannot prune the rejected values; what was pruned before stays so")?;
            pruned.rejected_values += count;
        }
        let letters = if what.dry_run {
            format!("SELECT count(*) FROM etl.dead_letters d WHERE {LETTERS}")
        } else {
            format!(
                "WITH gone AS (UPDATE etl.dead_letters d SET body = NULL WHERE {LETTERS} RETURNING 1) SELECT count(*) FROM gone"
            )
        };
        pruned.dead_letter_bodies = sqlx::query_scalar(sqlx::AssertSqlSafe(letters))
            .bind(age)
            .bind(what.unresolved)
            .fetch_one(&self.pool)
            .await
            .context("cannot prune the bodies of dead letters")?;
        Ok(pruned)
    }
}
