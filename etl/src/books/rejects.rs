//! The quarantine: rows that were not loaded, and why.

use anyhow::Context;
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;

use super::{Books, Run};
use crate::Failure;

/// How many rows of a run broke a rule.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct RejectCount {
    pub(crate) column_name: Option<String>,
    pub(crate) rule: String,
    pub(crate) rows: i64,
}

/// A row in quarantine.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct RejectedRow {
    pub(crate) row_number: i64,
    pub(crate) seq: i32,
    pub(crate) column_name: Option<String>,
    pub(crate) rule: String,
    pub(crate) reason: String,
    pub(crate) raw: Option<Json<Box<serde_json::value::RawValue>>>,
}

impl Books {
    /// How many rows of a run broke which rule, the most first.
    pub(crate) async fn reject_counts(&self, run: &Run) -> Result<Vec<RejectCount>, Failure> {
        let counts = sqlx::query_as(
            "SELECT column_name, rule, count(*) AS rows FROM etl.rejected_rows
             WHERE run_id = $1 AND generation = $2 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
        )
        .bind(&run.run_id)
        .bind(run.generation)
        .fetch_all(&self.pool)
        .await
        .context("cannot count the rejected rows")?;
        Ok(counts)
    }

    /// The first rejected rows of a run, in the result's order.
    pub(crate) async fn rejected_rows(
        &self,
        run: &Run,
        limit: Option<u32>,
    ) -> Result<Vec<RejectedRow>, Failure> {
        let rows = sqlx::query_as(
            "SELECT row_number, seq, column_name, rule, reason, raw FROM etl.rejected_rows
             WHERE run_id = $1 AND generation = $2 ORDER BY row_number LIMIT $3",
        )
        .bind(&run.run_id)
        .bind(run.generation)
        .bind(limit.map(i64::from))
        .fetch_all(&self.pool)
        .await
        .context("cannot read the rejected rows")?;
        Ok(rows)
    }
}
