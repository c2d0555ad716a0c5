//! The quarantine: rows that were not loaded, and why. Written in the transaction of their batch; read always of the live
//! generation.

use std::borrow::Cow;

use common::message::{RejectedRow, ValidBatch};
use futures::TryStreamExt as _;
use serde::{Serialize, Serializer as _};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::run::{bigint, integer};
use crate::summary::Run;

/// How many rows break a rule.
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
pub struct QuarantinedRow {
    pub run_id: String,
    pub generation: i32,
    /// The first row of its batch.
    pub first_row: i64,
    pub row_number: i64,
    pub column_name: Option<String>,
    pub rule: String,
    pub reason: String,
    pub raw: Option<Json<Box<serde_json::value::RawValue>>>,
}

/// Which rejected rows.
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

/// Writes rows of a batch into quarantine.
pub async fn quarantine(
    tx: &mut PgConnection,
    batch: &ValidBatch,
    rows: &[RejectedRow],
) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let numbers = rows
        .iter()
        .map(|row| bigint("the row number", row.row))
        .collect::<Result<Vec<_>, _>>()?;
    let columns: Vec<_> = rows
        .iter()
        .map(|row| row.reject.column.as_deref().map(storable))
        .collect();
    let rules: Vec<_> = rows.iter().map(|row| storable(&row.reject.rule)).collect();
    let reasons: Vec<_> = rows
        .iter()
        .map(|row| storable(&row.reject.reason))
        .collect();
    let values: Vec<String> = rows.iter().map(|row| json_object(&row.raw)).collect();
    sqlx::query(
        "INSERT INTO etl.rejected_rows (run_id, generation, first_row, row_number, column_name, rule, reason, raw)
         SELECT $1, $2, $3, r.row_number, r.column_name, r.rule, r.reason, r.raw::json
         FROM unnest($4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[]) AS r (row_number, column_name, rule, reason, raw)",
    )
    .bind(batch.id.run.as_str())
    .bind(integer("the generation", batch.id.generation)?)
    .bind(bigint("the first row", batch.id.first_row)?)
    .bind(numbers)
    .bind(columns)
    .bind(rules)
    .bind(reasons)
    .bind(values)
    .execute(tx)
    .await?;
    Ok(())
}

/// A row's values by column, in their order, NUL as `\u0000`.
fn json_object(raw: &[(String, Option<String>)]) -> String {
    let mut json = Vec::new();
    let written = serde_json::Serializer::new(&mut json)
        .collect_map(raw.iter().map(|(name, value)| (name, value)));
    debug_assert!(written.is_ok(), "texts can be written as JSON");
    String::from_utf8(json).unwrap_or_default()
}

/// Text without the one character that Postgres does not take.
pub(crate) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        text.replace('\0', "\u{2400}").into()
    } else {
        text.into()
    }
}

const FILTER: &str = "run_id = $1 AND generation = $2 AND ($3::text IS NULL OR rule = $3) AND ($4::text IS NULL OR column_name = $4)";

impl Store {
    /// How many rows of these runs break which rule, the most first.
    pub async fn reject_counts(
        &self,
        runs: &[Generation],
        filter: RejectFilter<'_>,
    ) -> Result<Vec<RejectCount>, Error> {
        let of_run = |run: &Generation| (run.run_id.clone(), run.generation);
        let (names, generations): (Vec<_>, Vec<_>) = runs.iter().map(of_run).unzip();
        self.read("cannot count the rejected rows", async |tx: &mut PgConnection| {
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
            .fetch_all(tx)
            .await?;
            Ok(counts)
        })
        .await
    }

    /// Hands the rejected rows of a run to `row`, in the result's order, as they come from the server: however many they are, few
    /// are in memory, and a slow reader may take its time. Ends early when `row` answers false.
    pub async fn each_rejected_row(
        &self,
        run: &Generation,
        filter: RejectFilter<'_>,
        limit: Option<i64>,
        mut row: impl FnMut(QuarantinedRow) -> bool,
    ) -> Result<(), Error> {
        let failed = || Error::postgres(format!("cannot read the rejected rows of {}", run.run_id));
        let query = format!(
            "SELECT run_id, generation, first_row, row_number, column_name, rule, reason, raw FROM etl.rejected_rows
             WHERE {FILTER} ORDER BY row_number LIMIT $5"
        );
        let mut connection = self.acquire().await.map_err(failed())?;
        let mut tx = connection.begin_reading().await.map_err(failed())?;
        sqlx::raw_sql(
            "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0",
        )
        .execute(&mut *tx)
        .await
        .map_err(failed())?;
        let query = sqlx::query_as(AssertSqlSafe(query))
            .bind(&run.run_id)
            .bind(run.generation);
        let query = query.bind(filter.rule).bind(filter.column).bind(limit);
        let mut rows = query.fetch(&mut *tx);
        while let Some(found) = rows.try_next().await.map_err(failed())? {
            if !row(found) {
                // The connection is closed with the rows that it still has.
                return Ok(());
            }
        }
        drop(rows);
        tx.commit().await.map_err(failed())?;
        connection.give_back();
        Ok(())
    }

    /// One row's raw values for each rule: rows of one rule have the same columns.
    pub async fn reject_samples(
        &self,
        run: &Generation,
        filter: RejectFilter<'_>,
    ) -> Result<Vec<String>, Error> {
        let failure = format!("cannot read the rejected rows of {}", run.run_id);
        let query = format!(
            "SELECT DISTINCT ON (rule) raw::text FROM etl.rejected_rows WHERE {FILTER} AND raw IS NOT NULL ORDER BY rule, row_number"
        );
        self.read(failure, async |tx: &mut PgConnection| {
            let query = sqlx::query_scalar(AssertSqlSafe(query)).bind(&run.run_id);
            let query = query
                .bind(run.generation)
                .bind(filter.rule)
                .bind(filter.column);
            Ok(query.fetch_all(tx).await?)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_values_keep_their_order_null_and_nul() {
        let raw = [
            ("z".to_owned(), Some("a\0\"b".to_owned())),
            ("a".to_owned(), None),
        ];
        assert_eq!(json_object(&raw), r#"{"z":"a\u0000\"b","a":null}"#);
        assert_eq!(storable("a\0b"), "a\u{2400}b");
    }
}
