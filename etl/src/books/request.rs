//! Writing a run into the books, before anything of it is sent.

use anyhow::{Context, anyhow};
use common::job::{Job, JobSpec, Publish};
use common::message::RunId;
use common::schema::TargetColumn;
use sqlx::types::Json;

use super::{Books, Run};
use crate::Failure;

/// What became of the wish to write a run into the books.
pub(crate) enum Requested {
    New,
    /// The same request was made before.
    Known(Box<Run>),
}

impl Books {
    /// Whether a run of this name was asked for.
    pub(crate) async fn knows(&self, run: &RunId) -> Result<bool, Failure> {
        let known = sqlx::query_scalar("SELECT EXISTS (SELECT FROM etl.runs WHERE run_id = $1)")
            .bind(run.as_str())
            .fetch_one(&self.pool)
            .await
            .context("cannot read the books")?;
        Ok(known)
    }

    /// Refuses a job whose rows could not be loaded, as far as that can be known before the query ran.
    pub(crate) async fn check_target(
        &self,
        spec: &JobSpec,
        schemas: &[String],
    ) -> Result<(), Failure> {
        let declared = spec.columns.iter().filter_map(|column| {
            Some(TargetColumn {
                name: column.target_name().to_owned(),
                pg_type: column.declared_type()?,
                athena_type: String::new(),
            })
        });
        let declared: Vec<_> = declared.collect();
        let target = &spec.target;
        let refused = loader::target::inspect(&self.pool, target, &declared, schemas)
            .await
            .with_context(|| format!("cannot look at the target {}", target.table))?;
        refused
            .with_context(|| format!("cannot run the job {}", spec.name))
            .map_err(Failure::Misuse)
    }

    /// When the run was asked for, to the microsecond.
    pub(crate) async fn requested_at(&self, run: &RunId) -> Result<jiff::Timestamp, Failure> {
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

    /// Writes a run into the books, before anything of it is sent.
    pub(crate) async fn request(
        &self,
        run: &RunId,
        job: &Job,
        request: &common::job::Request,
    ) -> Result<Requested, Failure> {
        let (schema, table) = job.spec.target.schema_and_table();
        let publish = if job.spec.target.is_staged(0) {
            Publish::Run
        } else {
            Publish::Batch
        };
        let hash = job.hash();
        let written = sqlx::query(
            "INSERT INTO etl.runs (run_id, job, job_hash, job_spec, parameters, sql, target_table, mode, publish)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (run_id) DO NOTHING",
        )
        .bind(run.as_str())
        .bind(&job.spec.name)
        .bind(&hash)
        .bind(Json(&request.spec))
        .bind(Json(&request.parameters))
        .bind(&request.sql)
        .bind(format!("{schema}.{table}"))
        .bind(job.spec.target.mode.name())
        .bind(publish.name())
        .execute(&self.pool)
        .await
        .with_context(|| format!("cannot write the run {run} into the books"))?;
        if written.rows_affected() == 1 {
            return Ok(Requested::New);
        }
        let known = self.exactly(run.as_str()).await?;
        if known.job != job.spec.name
            || known.parameters != request.parameters
            || known.job_hash != hash
        {
            return Err(Failure::misuse(anyhow!(
                "the run {run} was asked for before, with another job, other parameters or an older version of the job; choose another --run-id"
            )));
        }
        Ok(Requested::Known(Box::new(known)))
    }
}
