//! The quarantine: rows that were not loaded, and why. Always of the live generation.

use anyhow::Context;
use futures::Stream;
use serde::Serialize;
use sqlx::FromRow;
use sqlx::types::Json;

use super::{Books, Run};
use crate::Failure;

/// How many rows broke a rule.
#[derive(Debug, FromRow, Serialize)]
pub struct RejectCount {
    pub column_name: Option<String>,
    pub rule: String,
    pub rows: i64,
    /// How many runs they are of.
    #[serde(skip)]
    pub runs: i64,
}

/// A row in quarantine.
#[derive(Debug, FromRow, Serialize)]
pub struct RejectedRow {
    pub run_id: String,
    pub generation: i32,
    pub seq: i32,
    pub row_number: i64,
    pub column_name: Option<String>,
    pub rule: String,
    pub reason: String,
    pub raw: Option<Json<Box<serde_json::value::RawValue>>>,
}

/// Which rejected rows are meant.
#[derive(Debug, Clone, Copy, Default)]
pub struct RejectFilter<'a> {
    pub rule: Option<&'a str>,
    pub column: Option<&'a str>,
}

/// A run's live generation.
#[derive(Debug, Clone, FromRow)]
pub struct Generation {
    pub run_id: String,
    pub generation: i32,
}

impl From<&Run> for Generation {
    fn from(run: &Run) -> Self {
        Self {
            run_id: run.run_id.clone(),
            generation: run.generation,
        }
    }
}

const FILTER: &str = "run_id = $1 AND generation = $2 AND ($3::text IS NULL OR rule = $3) AND ($4::text IS NULL OR column_name = $4)";

impl Books {
    /// The runs of a job that have a rejected row, the oldest first.
    pub async fn runs_with_rejects(&self, job: &str) -> Result<Vec<Generation>, Failure> {
        let runs = sqlx::query_as(
            "SELECT run_id, generation FROM etl.runs r WHERE job = $1 AND EXISTS (
                 SELECT FROM etl.rejected_rows q WHERE q.run_id = r.run_id AND q.generation = r.generation) ORDER BY run_no",
        )
        .bind(job)
        .fetch_all(&self.pool)
        .await
        .with_context(|| format!("cannot look for rejected rows of {job}"))?;
        Ok(runs)
    }

    /// How many rows of these runs broke which rule, the most first.
    pub async fn reject_counts(
        &self,
        runs: &[Generation],
        filter: RejectFilter<'_>,
    ) -> Result<Vec<RejectCount>, Failure> {
        let (names, generations): (Vec<_>, Vec<_>) = runs
            .iter()
            .map(|run| (run.run_id.as_str(), run.generation))
            .unzip();
        let counts = sqlx::query_as(
            "SELECT column_name, rule, count(*) AS rows, count(DISTINCT run_id) AS runs
             FROM unnest($1::text[], $2::integer[]) AS r (run_id, generation) JOIN etl.rejected_rows q USING (run_id, generation)
             WHERE ($3::text IS NULL OR rule = $3) AND ($4::text IS NULL OR column_name = $4)
             GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
        )
        .bind(names)
        .bind(generations)
        .bind(filter.rule)
        .bind(filter.column)
        .fetch_all(&self.pool)
        .await
        .context("cannot count the rejected rows")?;
        Ok(counts)
    }

    /// The rejected rows of a run, in the result's order, as they come from the server: however many
    /// they are, few are in memory.
    pub fn rejected_rows<'a>(
        &'a self,
        run: &'a Generation,
        filter: RejectFilter<'a>,
        limit: Option<i64>,
    ) -> impl Stream<Item = Result<RejectedRow, sqlx::Error>> + 'a {
        let query = sqlx::AssertSqlSafe(format!(
            "SELECT run_id, generation, seq, row_number, column_name, rule, reason, raw FROM etl.rejected_rows
             WHERE {FILTER} ORDER BY row_number LIMIT $5"
        ));
        sqlx::query_as(query)
            .bind(&run.run_id)
            .bind(run.generation)
            .bind(filter.rule)
            .bind(filter.column)
            .bind(limit)
            .fetch(&self.pool)
    }

    /// One row's raw values for each rule: rows of one rule have the same columns.
    pub async fn reject_samples(
        &self,
        run: &Generation,
        filter: RejectFilter<'_>,
    ) -> Result<Vec<String>, Failure> {
        let query = sqlx::AssertSqlSafe(format!(
            "SELECT DISTINCT ON (rule) raw::text FROM etl.rejected_rows WHERE {FILTER} AND raw IS NOT NULL ORDER BY rule, row_number"
        ));
        let samples = sqlx::query_scalar(query)
            .bind(&run.run_id)
            .bind(run.generation)
            .bind(filter.rule)
            .bind(filter.column)
            .fetch_all(&self.pool)
            .await
            .with_context(|| format!("cannot read the rejected rows of {}", run.run_id))?;
        Ok(samples)
    }
}
