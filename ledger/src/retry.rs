//! Retries: a run that failed or was cancelled goes on under its name, as a new attempt with a number, a generation and a query
//! of its own. The former attempt moves to `etl.attempts`; what still arrives of it is stale. None of its rows is in the target
//! by then.

use common::command::user;
use common::job::{Job, Request};
use common::message::Limits;
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use crate::database::Store;
use crate::error::Error;
use crate::request::{Requested, commit_of, watermarks};
use crate::run::LockedRun;
use crate::state::Transition;

/// A former attempt of a run that was retried. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Attempt {
    /// The number that the run had then.
    pub run_no: i64,
    /// Its last generation.
    pub generation: i32,
    /// `failed` or `cancelled`.
    pub state: String,
    pub failure: Option<String>,
    pub decided_by: Option<String>,
    pub decision: Option<String>,
    pub query_execution_id: Option<String>,
    pub result_id: Option<String>,
    pub requested_by: Option<String>,
    pub requested_at: String,
    pub finished_at: String,
}

impl Store {
    /// The former attempts of a run, the first one first.
    pub async fn attempts(&self, run: &str) -> Result<Vec<Attempt>, Error> {
        let failure = format!("cannot read the former attempts of the run {run}");
        self.read(failure, async |tx: &mut PgConnection| {
            let attempts = sqlx::query_as(
                r#"SELECT run_no, generation, state, failure, decided_by, decision, query_execution_id, result_id, requested_by,
                          to_char(requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS requested_at,
                          to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS finished_at
                   FROM etl.attempts WHERE run_id = $1 ORDER BY generation"#,
            );
            Ok(attempts.bind(run).fetch_all(tx).await?)
        })
        .await
    }
}

impl LockedRun<'_> {
    /// Makes the run a new request of the job as it is now, unless rows of the former attempt are in the target.
    pub(crate) async fn retry(
        mut self,
        job: &Job,
        request: &Request,
        limits: Limits,
    ) -> Result<Requested, Error> {
        let state = self.to(Transition::Retry)?;
        let left = self.rows_left().await?;
        if left > 0 {
            let run = self.id.clone();
            return Ok(Requested::LeftRows { run, rows: left });
        }
        self.drop_loaded(&user(), "requested again").await?;
        self.keep_attempt().await?;
        let (schema, table) = job.spec.target.schema_and_table();
        sqlx::query(
            "UPDATE etl.runs SET run_no = DEFAULT, generation = generation + 1, first_generation = generation + 1, state = $2,
                 job_hash = $3, job_spec = $4, sql = $5, limits = $6, target_table = $7, mode = $8, commit = $9,
                 requested_by = $10, watermark_from = $11, watermark_to = $12,
                 description = nullif($13, ''), catalog = $14, database = $15, requested_at = now(), target_window = DEFAULT, ignored_messages = DEFAULT,
                 batches_extracted = DEFAULT, rows_extracted = DEFAULT, target_bounds = NULL, query_execution_id = NULL,
                 result_id = NULL, result_location = NULL, result_columns = NULL, target_columns = NULL, removed_columns = DEFAULT, batches_expected = NULL, rows_expected = NULL,
                 failure = NULL, held_because = NULL, decided_by = NULL, decision = NULL, started_at = NULL, extracted_at = NULL,
                 approved_at = NULL, committed_at = NULL, completed_at = NULL, finished_at = NULL
             WHERE run_id = $1",
        )
        .bind(self.id.as_str())
        .bind(state.name())
        .bind(job.hash())
        .bind(Json(&request.spec))
        .bind(&request.sql)
        .bind(Json(limits))
        .bind(format!("{schema}.{table}"))
        .bind(job.spec.target.mode.name())
        .bind(commit_of(&job.spec.target).name())
        .bind(user())
        .bind(watermarks(request).0)
        .bind(watermarks(request).1)
        .bind(&job.description)
        .bind(&job.source.catalog)
        .bind(&job.source.database)
        .execute(&mut *self.tx)
        .await?;
        resolve_former(self.tx, Some(self.id.as_str())).await?;
        Ok(Requested::New)
    }

    /// The rows of the former attempt that are in the target. Those of before a replay that was to replace a window cannot be
    /// removed: they have replaced others.
    async fn rows_left(&mut self) -> Result<i64, Error> {
        let rows = if self.row.is_only_staged() {
            0
        } else {
            self.rows_loaded().await?
        };
        if rows > 0 && self.row.mode.replaces() {
            let (run, table) = (&self.id, &self.row.target_table);
            return Err(Error::NotAllowed(format!(
                "{rows} rows of the run {run} are in {table} from before its replay; `etl replay {run}` repeats that, and another --run-id requests a new run"
            )));
        }
        Ok(rows)
    }

    /// The former attempt as the run's row has it.
    async fn keep_attempt(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO etl.attempts (run_no, run_id, first_generation, generation, state, failure, decided_by, decision, job_hash,
                 job_spec, sql, limits, query_execution_id, result_id, result_location, batches_expected, rows_expected,
                 requested_by, requested_at, started_at, finished_at)
             SELECT run_no, run_id, first_generation, generation, state, failure, decided_by, decision, job_hash,
                 job_spec, sql, limits, query_execution_id, result_id, result_location, batches_expected, rows_expected,
                 requested_by, requested_at, started_at, finished_at
             FROM etl.runs WHERE run_id = $1",
        )
        .bind(self.id.as_str())
        .execute(&mut *self.tx)
        .await
        .map(drop)
    }
}

/// Messages of a run's former attempts are of no use any more, whenever they arrive. A message's id begins with its run and
/// generation.
pub(crate) async fn resolve_former(
    tx: &mut PgConnection,
    run: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        r"UPDATE etl.dead_letters d SET resolved_at = now(), resolution = concat('its run was requested again by ', r.requested_by)
          FROM etl.runs r WHERE r.run_id = $1 AND d.run_id = $1 AND d.resolved_at IS NULL AND r.first_generation > 0
              AND CASE WHEN d.message_id ~ '^[^/]+/\d{1,9}/' THEN split_part(d.message_id, '/', 2)::integer < r.first_generation ELSE false END",
    )
    .bind(run)
    .execute(tx)
    .await
    .map(drop)
}
