//! `etl trace`: from rows of a target table to their batches, runs, queries and results.

use std::collections::BTreeSet;

use anyhow::{Context, anyhow};
use common::schema::quoted;
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow};

use super::Command;
use crate::Failure;
use crate::output::{self, Sheet, by, note, number, print, print_json, shortened};
use crate::store;
use ledger::{Origin, Store};

/// From a row of a target table to its batch, run, query and result.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: etl trace --table clicks --where \"url = 'https://example.org/'\""
)]
pub struct Arguments {
    /// The target table, with its schema unless that is public.
    #[arg(long)]
    pub table: String,
    /// Which rows, as in SQL. The condition runs as your user, in a transaction that can only read.
    #[arg(long = "where", value_name = "CONDITION")]
    pub condition: String,
    /// The most rows to read.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Print JSON, each row with its values.
    #[arg(long)]
    pub json: bool,
}

/// A row of a target table.
#[derive(Debug, FromRow, Serialize)]
pub struct TracedRow {
    /// The value of `_batch`; none where another program wrote the row.
    pub batch: Option<i64>,
    pub row: Json<Box<serde_json::value::RawValue>>,
}

/// Rows, and the batches that wrote them.
#[derive(Debug, Serialize)]
pub struct Trace {
    pub origins: Vec<Origin>,
    pub rows: Vec<TracedRow>,
}

impl Trace {
    /// Whether there is a row, and the ledger knows every one.
    pub fn is_known(&self) -> bool {
        let in_ledger = |batch| {
            let mut known = self
                .origins
                .iter()
                .filter(|origin| origin.rows_extracted.is_some());
            known.any(|origin| Some(origin.batch) == batch)
        };
        !self.rows.is_empty() && self.rows.iter().all(|row| in_ledger(row.batch))
    }
}

/// Reads the rows that meet a condition, and where they come from.
pub async fn plan(
    store: &Store,
    table: &str,
    condition: &str,
    limit: u32,
) -> Result<Trace, Failure> {
    let table = table.split_once('.').unwrap_or(("public", table));
    let rows = read(store, table, condition, limit).await?;
    let batches: BTreeSet<i64> = rows.iter().filter_map(|row| row.batch).collect();
    let origins = store.origins(&Vec::from_iter(batches)).await?;
    Ok(Trace { origins, rows })
}

/// Rows of the table that meet a condition of the operator's own. Reads only and not for long, whatever the condition is; one
/// statement, since it is prepared. Names in the condition mean what they mean to the operator's role.
async fn read(
    store: &Store,
    (schema, table): (&str, &str),
    condition: &str,
    limit: u32,
) -> Result<Vec<TracedRow>, Failure> {
    let name = format!("{}.{}", quoted(schema), quoted(table));
    let unreadable = || format!("cannot read the table {name}");
    let mut connection = store.acquire().await.with_context(unreadable)?;
    let mut tx = connection.begin_reading().await.with_context(unreadable)?;
    let found: Option<bool> = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c AND attname = '_batch' AND NOT attisdropped)
         FROM to_regclass($1) AS c WHERE c IS NOT NULL",
    )
    .bind(&name)
    .fetch_optional(&mut *tx)
    .await
    .with_context(unreadable)?;
    match found {
        Some(true) => {}
        Some(false) => {
            return Err(Failure::usage(anyhow!(
                "the table {name} has no column _batch: no row of it was loaded by this project"
            )));
        }
        None => return Err(Failure::usage(anyhow!("there is no table {name}"))),
    }
    sqlx::raw_sql("SET LOCAL search_path TO DEFAULT; SET LOCAL statement_timeout = '30s'")
        .execute(&mut *tx)
        .await
        .with_context(unreadable)?;
    // A line of its own: the condition may end with a comment.
    let query = format!(
        "SELECT t._batch AS batch, to_json(t) AS row FROM (SELECT * FROM {name} WHERE ({condition}\n) LIMIT {limit}) AS t"
    );
    let rows = sqlx::query_as(AssertSqlSafe(query))
        .fetch_all(&mut *tx)
        .await;
    rows.map_err(|error| {
        let failure = format!("cannot find the rows of {name} where {condition}");
        match error.as_database_error() {
            // The message alone: the line that the error shows besides is one of PostgreSQL's own source.
            Some(refused) => Failure::usage(anyhow!("{failure}: {}", refused.message())),
            None => Failure::Failed(anyhow::Error::from(error).context(failure)),
        }
    })
}

impl Command for Arguments {
    /// True when there is a row, and the ledger knows every one.
    async fn run(self) -> Result<bool, Failure> {
        let store = store::open().await?;
        let trace = plan(&store, &self.table, &self.condition, self.limit).await?;
        if trace.rows.len() >= self.limit as usize {
            note(&format!(
                "these are the first {} rows; --limit reads more",
                self.limit
            ));
        }
        if self.json {
            print_json(&trace)?;
            return Ok(trace.is_known());
        }
        if trace.rows.is_empty() {
            note("no row meets the condition");
        }
        let mut left: Vec<_> = trace.rows.iter().collect();
        for origin in &trace.origins {
            let of_it = |row: &&TracedRow| row.batch == Some(origin.batch);
            let (rows, others) = left.into_iter().partition::<Vec<_>, _>(of_it);
            print(&described(origin, &rows))?;
            left = others;
        }
        if !left.is_empty() {
            note(&format!(
                "{} of the rows are not from a batch of this ledger",
                left.len()
            ));
        }
        Ok(trace.is_known())
    }
}

fn described(origin: &Origin, rows: &[&TracedRow]) -> String {
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let first = origin.first_row;
    let batch = match origin.rows_extracted {
        Some(count) => format!(
            "rows {} to {} of the result, loaded {}",
            number(first),
            number(first + count - 1),
            or_unknown(&origin.loaded_at)
        ),
        None => format!(
            "from row {} of the result on, and not in the ledger of the run: a replay is under way, or the row was not written by the loader",
            number(first)
        ),
    };
    let mut sheet = Sheet::new(10);
    for row in rows {
        sheet.add("row", shortened(row.row.0.get(), 300));
    }
    let Origin {
        run_id,
        run_no,
        generation,
        state,
        ..
    } = origin;
    let object = origin.result_location.as_deref();
    let requested_by = by(origin.requested_by.as_ref());
    sheet.add("batch", batch);
    sheet.add(
        "run",
        format!("{run_id} (number {run_no}, generation {generation}, {state})"),
    );
    sheet.add(
        "requested",
        format!("{}{requested_by}", origin.requested_at),
    );
    sheet.add("job", output::job(&origin.job, &origin.parameters));
    sheet.add("query", or_unknown(&origin.query_execution_id));
    sheet.add("result", or_unknown(&origin.result_id));
    sheet.add(
        "object",
        object.unwrap_or("unknown: read as pages, or by an older version"),
    );
    sheet.add("sql", origin.sql.replace('\n', "\n            "));
    sheet.text() + "\n"
}

#[cfg(test)]
mod tests {
    use ledger::RunState;

    use super::*;

    fn rows() -> Vec<TracedRow> {
        let raw = r#"{"url":"https://example.org/","country_code":"CH","_batch":481036343740}"#;
        let raw = serde_json::value::RawValue::from_string(raw.to_owned()).unwrap();
        vec![TracedRow {
            batch: Some(481_036_343_740),
            row: Json(raw),
        }]
    }

    fn origin() -> Origin {
        Origin {
            batch: 481_036_343_740,
            run_id: "daily-2018-04-02".into(),
            run_no: 7,
            generation: 1,
            job: "clicks".into(),
            state: RunState::Completed,
            requested_by: Some("ana".into()),
            requested_at: "2018-04-03T02:00:00.000Z".into(),
            first_row: 6_588,
            rows_extracted: Some(2_196),
            loaded_at: Some("2018-04-03T02:00:09.120Z".into()),
            query_execution_id: Some("4bcb4933-3458-4a18-8ecc-9a59b114d0c5".into()),
            result_id: Some(
                "4bcb4933-3458-4a18-8ecc-9a59b114d0c5:\"9b2cf535f27731c974343645a3985328\"".into(),
            ),
            result_location: Some("s3://results/4bcb4933-3458-4a18-8ecc-9a59b114d0c5.csv".into()),
            parameters: [("from".to_owned(), "2018-04-02".to_owned())].into(),
            sql: "SELECT url, country_code\nFROM clicks\nWHERE date = DATE '2018-04-02'\n".into(),
        }
    }

    #[test]
    fn trace_shows_the_batch_the_run_and_the_query() {
        let (rows, origin) = (rows(), origin());
        // While a replay is under way, and of a run that was read as pages.
        let unproven = Origin {
            rows_extracted: None,
            loaded_at: None,
            requested_by: None,
            result_location: None,
            ..origin.clone()
        };
        let of_it: Vec<_> = rows.iter().collect();
        let (first, second) = (described(&origin, &of_it), described(&unproven, &[]));
        let origins = vec![origin];
        let json = serde_json::to_string_pretty(&Trace { origins, rows }).unwrap();
        insta::assert_snapshot!(format!("{first}\n{second}\n{json}"));
    }
}
