//! How fresh the rows of each job are: its latest run, and the latest one that completed.

use serde::Serialize;
use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
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
}

impl Store {
    /// The freshness of every job that has run, by name.
    pub async fn freshness(&self) -> Result<Vec<Freshness>, Error> {
        self.read("cannot read the latest runs", async |tx: &mut PgConnection| {
            let jobs = sqlx::query_as(
                r#"SELECT last.*, to_char(done.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS completed_at,
                       extract(epoch FROM now() - done.at)::float8 AS seconds_since
                   FROM (SELECT DISTINCT ON (job) job, run_id, state,
                             to_char(requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS requested_at
                         FROM etl.runs ORDER BY job, run_no DESC) last
                   LEFT JOIN (SELECT job, max(finished_at) AS at FROM etl.runs WHERE state = 'completed' GROUP BY job) done USING (job)
                   ORDER BY job"#,
            );
            Ok(jobs.fetch_all(tx).await?)
        })
        .await
    }
}
