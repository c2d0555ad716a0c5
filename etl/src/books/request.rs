//! Writing a run into the books, before anything of it is sent.

use anyhow::{Context, anyhow};
use common::job::{Job, Mode, Publish};
use common::message::{Limits, RunId};
use common::settings::variable;
use sqlx::PgConnection;
use sqlx::types::Json;

use super::{Books, Run};
use crate::Failure;

/// What became of the wish to write a run into the books.
pub enum Requested {
    New,
    /// The same request was made before, under this name.
    Known(Box<Run>),
    /// It was made under another name, and nothing was written.
    Refused(Rival),
}

/// A run of the same job with the same parameters that speaks against another one.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Rival {
    pub run_id: String,
    pub state: String,
    /// Whether the job was another version of itself.
    pub is_of_older_job: bool,
}

impl Rival {
    /// Whether it is still to come to its end.
    pub fn goes_on(&self) -> bool {
        self.state != "completed"
    }

    /// Why it is in the way, and what to do.
    pub fn sentence(&self) -> String {
        let Self {
            run_id,
            state,
            is_of_older_job,
        } = self;
        if self.goes_on() {
            return format!(
                "the run {run_id} of the same job with the same parameters is {state}; wait for it, or give it up with `etl cancel {run_id}`; nothing was sent"
            );
        }
        let older = if *is_of_older_job {
            " by an older version of the job"
        } else {
            ""
        };
        format!(
            "the run {run_id} has loaded the same{older}, and in mode append another run adds its rows again; ask with --again if that is what you want; nothing was sent"
        )
    }
}

/// A run of the same job and parameters that is under way or, in mode append, was loaded.
const RIVAL: &str = "
    SELECT run_id, state, job_hash <> $3 AS is_of_older_job FROM etl.runs
    WHERE job = $1 AND parameters = $2
      AND (state IN ('requested', 'running', 'held') OR $4 AND state = 'completed' AND target_table = $5)
    ORDER BY state = 'completed', run_no DESC LIMIT 1";

impl Books {
    /// Whether a run of this name was asked for.
    pub async fn knows(&self, run: &RunId) -> Result<bool, Failure> {
        let known = sqlx::query_scalar("SELECT EXISTS (SELECT FROM etl.runs WHERE run_id = $1)")
            .bind(run.as_str())
            .fetch_one(&self.pool)
            .await
            .context("cannot read the books")?;
        Ok(known)
    }

    /// When the run was asked for, to the microsecond.
    pub async fn requested_at(&self, run: &RunId) -> Result<jiff::Timestamp, Failure> {
        let text: String = sqlx::query_scalar(
            r#"SELECT to_char(requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') FROM etl.runs WHERE run_id = $1"#,
        )
        .bind(run.as_str())
        .fetch_one(&self.pool)
        .await
        .with_context(|| format!("cannot read when the run {run} was asked for"))?;
        let time = text.parse().context("a run in the books has no time")?;
        Ok(time)
    }

    /// What bounds the run's batches.
    pub async fn limits_of(&self, run: &RunId) -> Result<Limits, Failure> {
        let limits: Option<Json<Limits>> =
            sqlx::query_scalar("SELECT limits FROM etl.runs WHERE run_id = $1")
                .bind(run.as_str())
                .fetch_one(&self.pool)
                .await
                .with_context(|| format!("cannot read the limits of the run {run}"))?;
        Ok(limits.map_or(Limits::UNRECORDED, |limits| limits.0))
    }

    /// What speaks against a run of this job, before anybody asks for it.
    pub async fn rival(
        &self,
        job: &Job,
        request: &common::job::Request,
        again: bool,
    ) -> Result<Option<Rival>, Failure> {
        let mut connection = self.pool.acquire().await.context("cannot read the books")?;
        let rival = rival(&mut connection, job, request, again).await;
        Ok(rival.context("cannot read the books")?)
    }

    /// Writes a run into the books, before anything of it is sent. Of two who ask at the same moment
    /// for the same job one waits here for the other, and sees what that one wrote. `again`: although
    /// the same rows were appended before.
    pub async fn request(
        &self,
        run: &RunId,
        job: &Job,
        request: &common::job::Request,
        limits: Limits,
        again: bool,
    ) -> Result<Requested, Failure> {
        let doing = || format!("cannot write the run {run} into the books");
        let mut tx = self.pool.begin().await.with_context(doing)?;
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('etl run ' || $1, 0))")
            .bind(&job.spec.name)
            .execute(&mut *tx)
            .await
            .with_context(doing)?;
        let known: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM etl.runs WHERE run_id = $1)")
                .bind(run.as_str())
                .fetch_one(&mut *tx)
                .await
                .with_context(doing)?;
        if known {
            drop(tx);
            return self.known(run, job, request).await;
        }
        let rival = rival(&mut tx, job, request, again)
            .await
            .with_context(doing)?;
        if let Some(rival) = rival {
            return Ok(Requested::Refused(rival));
        }
        let is_new = insert(&mut tx, run, job, request, limits)
            .await
            .with_context(doing)?;
        tx.commit().await.with_context(doing)?;
        if is_new {
            Ok(Requested::New)
        } else {
            // Another job's run of this name came in between.
            self.known(run, job, request).await
        }
    }

    async fn known(
        &self,
        run: &RunId,
        job: &Job,
        request: &common::job::Request,
    ) -> Result<Requested, Failure> {
        let known = self.exactly(run.as_str()).await?;
        if known.job != job.spec.name
            || known.parameters != request.parameters
            || known.job_hash != job.hash()
        {
            return Err(Failure::usage(anyhow!(
                "the run {run} was asked for before, with another job, other parameters or an older version of the job; choose another --run-id"
            )));
        }
        Ok(Requested::Known(Box::new(known)))
    }
}

async fn rival(
    connection: &mut PgConnection,
    job: &Job,
    request: &common::job::Request,
    again: bool,
) -> Result<Option<Rival>, sqlx::Error> {
    let (schema, table) = job.spec.target.schema_and_table();
    sqlx::query_as(RIVAL)
        .bind(&job.spec.name)
        .bind(Json(&request.parameters))
        .bind(job.hash())
        .bind(job.spec.target.mode == Mode::Append && !again)
        .bind(format!("{schema}.{table}"))
        .fetch_optional(connection)
        .await
}

async fn insert(
    tx: &mut PgConnection,
    run: &RunId,
    job: &Job,
    request: &common::job::Request,
    limits: Limits,
) -> Result<bool, sqlx::Error> {
    let (schema, table) = job.spec.target.schema_and_table();
    let publish = if job.spec.target.is_staged(0) {
        Publish::Run
    } else {
        Publish::Batch
    };
    let written = sqlx::query(
        "INSERT INTO etl.runs (run_id, job, job_hash, job_spec, parameters, sql, target_table, mode, publish, requested_by, limits)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (run_id) DO NOTHING",
    )
    .bind(run.as_str())
    .bind(&job.spec.name)
    .bind(job.hash())
    .bind(Json(&request.spec))
    .bind(Json(&request.parameters))
    .bind(&request.sql)
    .bind(format!("{schema}.{table}"))
    .bind(job.spec.target.mode.name())
    .bind(publish.name())
    .bind(variable("USER"))
    .bind(Json(limits))
    .execute(tx)
    .await?;
    Ok(written.rows_affected() == 1)
}
