//! How fresh the rows of each job are: its latest run, the latest one that completed, and whether the next one is late.

use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::job::LATENESS;
use crate::state::RunState;

/// The latest runs of a job. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Freshness {
    pub job: String,
    /// The latest run, in any state.
    pub run_id: String,
    #[sqlx(try_from = "String")]
    pub state: RunState,
    pub requested_at: String,
    /// When a run of the job completed last.
    pub completed_at: Option<String>,
    /// The time since then, by the database's clock.
    pub seconds_since: Option<f64>,
    /// The job's `expected_every`, as its latest request had it.
    pub expected_seconds: Option<f64>,
    /// For how long the job is late; none of one that is in time.
    pub seconds_late: Option<f64>,
}

impl Store {
    /// The freshness of every job that has run, by name.
    pub async fn freshness(&self) -> Result<Vec<Freshness>, Error> {
        self.read("cannot read the latest runs", async |tx: &mut PgConnection| {
            let jobs = format!(
                r#"SELECT last.*, extract(epoch FROM late.expected_every)::float8 AS expected_seconds, late.seconds_late, to_char(done.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS completed_at,
                       extract(epoch FROM now() - done.at)::float8 AS seconds_since
                   FROM (SELECT DISTINCT ON (job) job, run_id, state,
                             to_char(requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS requested_at
                         FROM etl.runs ORDER BY job, run_no DESC) last
                   LEFT JOIN (SELECT job, max(finished_at) AS at FROM etl.runs WHERE state = 'completed' GROUP BY job) done USING (job)
                   LEFT JOIN ({LATENESS}) late USING (job)
                   ORDER BY job"#,
            );
            Ok(sqlx::query_as(AssertSqlSafe(jobs)).fetch_all(tx).await?)
        })
        .await
    }
}
