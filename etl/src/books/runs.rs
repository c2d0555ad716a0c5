//! Runs and their sums, as the books have them.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow};

use super::Books;
use crate::Failure;

/// A run with its sums. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, FromRow, Serialize)]
#[expect(
    clippy::struct_field_names,
    reason = "the books' own names, and those of the JSON"
)]
pub(crate) struct Run {
    pub(crate) run_id: String,
    pub(crate) run_no: i64,
    pub(crate) job: String,
    #[serde(skip)]
    pub(crate) job_hash: String,
    #[sqlx(json)]
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) target_table: String,
    pub(crate) mode: String,
    pub(crate) state: String,
    pub(crate) generation: i32,
    pub(crate) query_execution_id: Option<String>,
    pub(crate) result_id: Option<String>,
    pub(crate) bytes_scanned: Option<i64>,
    pub(crate) batches_expected: Option<i32>,
    pub(crate) rows_expected: Option<i64>,
    /// As the extractor reports it, while it reads.
    pub(crate) rows_read: i64,
    /// The ledger's sums.
    pub(crate) batches: i64,
    pub(crate) rows_extracted: i64,
    pub(crate) rows_loaded: i64,
    pub(crate) rows_collapsed: i64,
    pub(crate) rows_rejected: i64,
    pub(crate) rows_dropped: i64,
    /// Messages of the run that no stage could handle and nobody has dealt with.
    pub(crate) dead_letters: i64,
    pub(crate) late_messages: i64,
    /// Every batch is in the ledger, and extracted = loaded + rejected + dropped.
    pub(crate) balanced: bool,
    pub(crate) failure: Option<String>,
    pub(crate) requested_at: String,
    pub(crate) finished_at: Option<String>,
}

impl Run {
    /// Whether the run is over.
    pub(crate) fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "requested" | "running")
    }

    /// Whether every row that Athena returned is accounted for.
    pub(crate) fn is_complete(&self) -> bool {
        self.state == "completed" && self.balanced && self.dead_letters == 0
    }
}

const RUNS: &str = r#"
    SELECT r.run_id, r.run_no, r.job, r.job_hash, r.parameters, r.target_table, r.mode, r.state, r.generation,
           r.query_execution_id, r.result_id, r.bytes_scanned, r.batches_expected, r.rows_expected,
           greatest(r.rows_extracted, b.rows_extracted) AS rows_read,
           b.batches, b.rows_extracted, b.rows_loaded, b.rows_collapsed, b.rows_rejected, b.rows_dropped,
           b.dead_letters, r.late_messages, r.failure,
           b.balanced AND b.rows_rejected = (SELECT count(*) FROM etl.rejected_rows q
               WHERE q.run_id = r.run_id AND q.generation = r.generation) AS balanced,
           to_char(r.requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS requested_at,
           to_char(r.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS finished_at
    FROM etl.runs r JOIN etl.run_books b USING (run_id)
"#;

impl Books {
    /// The run of this name and of no other: for whatever proves or changes something.
    pub(crate) async fn exactly(&self, name: &str) -> Result<Run, Failure> {
        let found = self
            .read(format!("{RUNS} WHERE r.run_id = $1"), name)
            .await?;
        found.into_iter().next().ok_or_else(|| {
            Failure::misuse(anyhow!(
                "there is no run {name:?}; `etl status` lists the latest"
            ))
        })
    }

    /// The run of this name, or the only one whose name begins so: for looking only.
    pub(crate) async fn find(&self, name: &str) -> Result<Run, Failure> {
        let query = format!(
            "{RUNS} WHERE r.run_id = $1 OR $1 <> '' AND starts_with(r.run_id, $1) ORDER BY r.run_id = $1 DESC, r.run_no LIMIT 4"
        );
        let mut found: Vec<Run> = self.read(query, name).await?;
        if found.first().is_some_and(|run| run.run_id == name) || found.len() == 1 {
            return Ok(found.swap_remove(0));
        }
        if found.is_empty() {
            return Err(Failure::misuse(anyhow!(
                "there is no run {name:?}; `etl status` lists the latest"
            )));
        }
        let names: Vec<_> = found.into_iter().map(|run| run.run_id).collect();
        Err(Failure::misuse(anyhow!(
            "{name:?} is the beginning of several runs: {}; say more of the name",
            names.join(", ")
        )))
    }

    /// The latest runs, the newest first.
    pub(crate) async fn latest(&self) -> Result<Vec<Run>, Failure> {
        self.read(
            format!("{RUNS} WHERE $1 = '' ORDER BY r.run_no DESC LIMIT 20"),
            "",
        )
        .await
    }

    /// Every run, the oldest first.
    pub(crate) async fn all(&self) -> Result<Vec<Run>, Failure> {
        self.read(format!("{RUNS} WHERE $1 = '' ORDER BY r.run_no"), "")
            .await
    }

    async fn read(&self, query: String, name: &str) -> Result<Vec<Run>, Failure> {
        let query = sqlx::query_as(AssertSqlSafe(query)).bind(name);
        Ok(query.fetch_all(&self.pool).await.context(
            "cannot read the books; is the schema etl of this version (`loader migrate`)?",
        )?)
    }
}
