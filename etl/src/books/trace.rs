//! From rows of a target table back to the books.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use common::schema::quoted;
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow};

use super::Books;
use crate::Failure;

/// A row of a target table.
#[derive(Debug, FromRow, Serialize)]
pub struct TracedRow {
    /// Which batch wrote it; none where something else did.
    pub batch: Option<i64>,
    pub row: Json<Box<serde_json::value::RawValue>>,
}

/// What the books say of a value of `_batch`.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Origin {
    pub batch: i64,
    pub run_id: String,
    pub run_no: i64,
    pub seq: i32,
    pub generation: i32,
    pub job: String,
    pub state: String,
    pub requested_by: Option<String>,
    pub requested_at: String,
    /// Of the batch, in the result; none while it is not in the ledger of the live generation.
    pub first_row: Option<i64>,
    pub rows_extracted: Option<i64>,
    pub loaded_at: Option<String>,
    pub query_execution_id: Option<String>,
    pub result_id: Option<String>,
    pub result_location: Option<String>,
    #[sqlx(json)]
    pub parameters: BTreeMap<String, String>,
    pub sql: String,
}

impl Books {
    /// Rows of a table that meet a condition of the operator's own. Read only and not for long,
    /// whatever the condition is; one statement, since it is prepared.
    pub async fn traced_rows(
        &self,
        (schema, table): (&str, &str),
        condition: &str,
        limit: u32,
    ) -> Result<Vec<TracedRow>, Failure> {
        let name = format!("{}.{}", quoted(schema), quoted(table));
        let mut tx = self
            .pool
            .begin_with(
                "BEGIN READ ONLY; SET LOCAL statement_timeout = '30s'; SET LOCAL TimeZone = 'UTC'",
            )
            .await
            .context("cannot begin a transaction that only reads")?;
        let found: Option<bool> = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c AND attname = '_batch' AND NOT attisdropped)
             FROM to_regclass($1) AS c WHERE c IS NOT NULL",
        )
        .bind(&name)
        .fetch_optional(&mut *tx)
        .await
        .with_context(|| format!("cannot look at the table {name}"))?;
        match found {
            Some(true) => {}
            Some(false) => {
                return Err(Failure::usage(anyhow!(
                    "the table {name} has no column _batch, so that nothing in it was loaded from here"
                )));
            }
            None => return Err(Failure::usage(anyhow!("there is no table {name}"))),
        }
        // A line of its own: the condition may end with a comment.
        let query = format!(
            "SELECT t._batch AS batch, to_json(t) AS row FROM (SELECT * FROM {name} WHERE ({condition}\n) LIMIT {limit}) AS t"
        );
        let rows = sqlx::query_as(AssertSqlSafe(query))
            .fetch_all(&mut *tx)
            .await;
        rows.map_err(|error| {
            let doing = format!("cannot find the rows of {name} where {condition}");
            match error.as_database_error() {
                // The message alone: the line that the error shows besides is one of Postgres' own source.
                Some(refused) => Failure::usage(anyhow!("{doing}: {}", refused.message())),
                None => Failure::Failed(anyhow::Error::from(error).context(doing)),
            }
        })
    }

    /// What the books say of each of these values of `_batch`; nothing of those that are not theirs.
    pub async fn origins(&self, batches: &[i64]) -> Result<Vec<Origin>, Failure> {
        let origins = sqlx::query_as(
            r#"SELECT n.batch, r.run_id, r.run_no, (n.batch & 16777215)::integer AS seq, r.generation, r.job, r.state, r.requested_by,
                      to_char(r.requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS requested_at,
                      b.first_row, b.rows_extracted,
                      to_char(b.loaded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS loaded_at,
                      coalesce(r.query_execution_id, split_part(r.result_id, ':', 1)) AS query_execution_id,
                      r.result_id, r.result_location, r.parameters, r.sql
               FROM unnest($1::bigint[]) AS n (batch) JOIN etl.runs r ON r.run_no = n.batch >> 24
               LEFT JOIN etl.batches b ON b.run_id = r.run_id AND b.generation = r.generation AND b.seq = (n.batch & 16777215)
               ORDER BY n.batch"#,
        )
        .bind(batches)
        .fetch_all(&self.pool)
        .await
        .context("cannot read the books")?;
        Ok(origins)
    }
}
