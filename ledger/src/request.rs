//! The request of a run: its row, before anything of it is sent.

use std::collections::{BTreeMap, BTreeSet};

use common::command::user;
use common::job::{Commit, Job, JobSpec, Request, Target, is_same_sql};
use common::message::{Limits, RunId};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::database::{Store, lock, lock_key};
use crate::error::Error;
use crate::job::record;
use crate::query::over_monthly_limit;
use crate::removal::check_no_removal;
use crate::run::{LockedRun, generation_no, run_id};
use crate::same_rows::{ConflictingRun, conflicting, left_in};
use crate::state::RunState;
use crate::summary::{Run, find_run};
use crate::watermark::{Place, check_same_values, check_watermark};

/// What became of a request.
#[derive(Debug)]
pub enum Requested {
    New,
    /// The same request was made before, under this name.
    Known(Box<Run>),
    /// The same was requested under another name, and nothing was written.
    Conflicts(ConflictingRun),
    /// So many rows of a run that ended are in the target and would be there twice: of the former attempt, or in the range that
    /// a request reads on. Nothing was written.
    LeftRows {
        run: RunId,
        rows: i64,
    },
}

/// What a request may do where something like it was requested before.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// Append the rows although the same were appended before.
    pub again: bool,
    /// Go on with a run of this name that failed or was cancelled, as a new attempt.
    pub retry: bool,
}

/// What of a request is settled before anything is sent, and never changes.
#[derive(Debug)]
pub struct Settled {
    /// The live generation.
    pub generation: u32,
    /// What Athena receives.
    pub sql: String,
    /// To the microsecond: a column may be filled with it.
    pub requested_at: Timestamp,
    /// The bounds of the run's batches.
    pub limits: Limits,
}

impl Store {
    /// What the request of a run has settled.
    pub async fn settled(&self, run: &RunId) -> Result<Settled, Error> {
        let failure = format!("cannot read the request of the run {run}");
        let (text, limits, sql, generation): (String, Option<Json<Limits>>, String, i32) = self
            .read(failure, async |tx: &mut PgConnection| {
                let select = r#"SELECT to_char(requested_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), limits, sql, generation FROM etl.runs WHERE run_id = $1"#;
                Ok(sqlx::query_as(select).bind(run.as_str()).fetch_one(tx).await?)
            })
            .await?;
        let requested_at = text.parse().map_err(|_| {
            Error::NotAllowed(format!(
                "the run {run} has no time of request that can be read"
            ))
        })?;
        Ok(Settled {
            generation: generation_no(generation),
            sql,
            requested_at,
            limits: limits.map_or(Limits::UNRECORDED, |limits| limits.0),
        })
    }

    /// Writes the row of a run. Of two requests of the same job at the same moment one waits here for the other, and sees what
    /// that one wrote.
    pub async fn request(
        &self,
        run: &RunId,
        job: &Job,
        request: &Request,
        limits: Limits,
        terms: Terms,
    ) -> Result<Requested, Error> {
        let failure = format!("cannot write the run {run} into the ledger");
        self.transaction(failure, async |tx: &mut PgConnection| {
            lock(tx, lock_key("request", &job.spec.name)).await?;
            let mut is_retry = false;
            if is_known(tx, run).await? {
                let known = known(tx, run, job, request, terms).await?;
                is_retry = terms.retry && known.has_failed();
                if !is_retry {
                    return Ok(Requested::Known(Box::new(known)));
                }
            }
            if let Some(why) = over_monthly_limit(tx, job).await? {
                return Err(Error::NotAllowed(why));
            }
            if let Some(read_on) = &request.read_on {
                let initial = initial(job)?;
                let (name, place) = (job.spec.name.as_str(), Place::of(job));
                check_watermark(tx, Some(run), name, &place, read_on, &initial).await?;
                check_same_values(tx, job, read_on, &request.parameters).await?;
                let left = left_in(tx, run, (name, &place.table), &read_on.range).await?;
                if let Some((left, rows)) = left.filter(|_| job.spec.target.mode.adds()) {
                    let run = run_id(left)?;
                    return Ok(Requested::LeftRows { run, rows });
                }
            }
            if let Some(conflicting) = conflicting(tx, Some(run), job, request, terms.again).await?
            {
                return Ok(Requested::Conflicts(conflicting));
            }
            let (schema, table) = job.spec.target.schema_and_table();
            check_no_removal(tx, &format!("{schema}.{table}")).await?;
            if is_retry {
                let locked = LockedRun::lock_for_person(tx, run).await?;
                let requested = locked.retry(job, request, limits).await?;
                record(tx, job).await?;
                return Ok(requested);
            }
            if !insert(tx, run, job, request, limits).await? {
                // Another job's run of this name came in between.
                let known = known(tx, run, job, request, terms).await?;
                return Ok(Requested::Known(Box::new(known)));
            }
            record(tx, job).await?;
            Ok(Requested::New)
        })
        .await
    }
}

async fn is_known(tx: &mut PgConnection, run: &RunId) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM etl.runs WHERE run_id = $1)")
        .bind(run.as_str())
        .fetch_one(tx)
        .await
}

/// The run of this name, if it is the same request. A retry may be of another version of the job.
async fn known(
    tx: &mut PgConnection,
    run: &RunId,
    job: &Job,
    request: &Request,
    terms: Terms,
) -> Result<Run, Error> {
    let known = find_run(tx, run.as_str()).await?;
    let name = &known.job;
    let changes = if known.job != job.spec.name {
        vec![format!("it is a run of the job {name}")]
    } else if known.watermark_from.is_some() && request.read_on.is_none() {
        vec![format!(
            "it reads on from a watermark, which the job {name} has no more"
        )]
    } else if known.parameters != request.parameters {
        vec![other_values(&known.parameters, &request.parameters)]
    } else if known.job_hash != job.hash() && !(terms.retry && known.has_failed()) {
        let changed = changes(tx, run, request).await?;
        let replay = match known.state {
            RunState::Failed | RunState::Cancelled => {
                "`--retry` requests it again by the job as it is now".to_owned()
            }
            _ => format!("`etl replay {run}` loads its rows by the job as it is now"),
        };
        vec![
            format!(
                "the job {name} has changed since then: {}",
                changed.join(", ")
            ),
            replay,
        ]
    } else {
        return Ok(known);
    };
    Err(Error::NotFound(format!(
        "the run {run} was requested before and is {}, and this is another request: {}; a new run needs another --run-id",
        known.state,
        changes.join("; ")
    )))
}

fn other_values(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> String {
    let names: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let differ = names
        .into_iter()
        .filter(|name| before.get(*name) != now.get(*name));
    let value =
        |value: Option<&String>| value.map_or("not there".to_owned(), |value| format!("{value:?}"));
    let differ = differ.map(|name| {
        format!(
            "the parameter {name} was {} and is {}",
            value(before.get(name)),
            value(now.get(name))
        )
    });
    differ.collect::<Vec<_>>().join(", ")
}

/// What of a job is not as it was when the run was requested.
async fn changes(
    tx: &mut PgConnection,
    run: &RunId,
    request: &Request,
) -> Result<Vec<String>, sqlx::Error> {
    let (spec, sql): (Json<JobSpec>, String) =
        sqlx::query_as("SELECT job_spec, sql FROM etl.runs WHERE run_id = $1")
            .bind(run.as_str())
            .fetch_one(tx)
            .await?;
    let (before, now) = (&spec.0, &request.spec);
    let mut changed = Vec::new();
    if !is_same_sql(&sql, &request.sql) {
        changed.push("its SQL".to_owned());
    }
    let target = |spec: &JobSpec| fields(&spec.target);
    let columns = |spec: &JobSpec| {
        let columns = spec.columns.iter();
        let named = columns.map(|one| (one.target_name().to_owned(), serde_json::json!(one)));
        named.collect()
    };
    for (part, before, now) in [
        ("[target]", target(before), target(now)),
        ("[[columns]]", columns(before), columns(now)),
    ] {
        let names = before.keys().chain(now.keys()).collect::<BTreeSet<_>>();
        let differ = names
            .into_iter()
            .filter(|name| before.get(*name) != now.get(*name));
        let differ: Vec<_> = differ.map(String::as_str).collect();
        if !differ.is_empty() {
            changed.push(format!("{part} ({})", differ.join(", ")));
        }
    }
    if changed.is_empty() {
        // Nothing else is part of the hash.
        let is_order = before.columns != now.columns;
        let what = if is_order {
            "the order of [[columns]]"
        } else {
            "[source]"
        };
        changed.push(what.to_owned());
    }
    Ok(changed)
}

/// The fields of a struct, as JSON has them.
fn fields(value: &impl Serialize) -> BTreeMap<String, Value> {
    let json = serde_json::to_value(value).unwrap_or_default();
    serde_json::from_value(json).unwrap_or_default()
}

/// The lock that requests of a run's job take before that on the run: for a person's change that looks at other runs of the job.
pub(crate) async fn lock_requests(tx: &mut PgConnection, run: &RunId) -> Result<(), sqlx::Error> {
    let job: Option<String> = sqlx::query_scalar("SELECT job FROM etl.runs WHERE run_id = $1")
        .bind(run.as_str())
        .fetch_optional(&mut *tx)
        .await?;
    match job {
        Some(job) => lock(tx, lock_key("request", &job)).await,
        None => Ok(()),
    }
}

/// The watermark of a job before its first run is complete.
fn initial(job: &Job) -> Result<String, Error> {
    let initial = job
        .watermark()
        .map_or(Ok(String::new()), |one| one.initial());
    initial.map_err(Error::NotAllowed)
}

/// The job's watermark at the request, and the one that follows, as far as it is known.
pub(crate) fn watermarks(request: &Request) -> (Option<&str>, Option<&str>) {
    let read_on = request.read_on.as_ref();
    (
        read_on.map(|read_on| read_on.watermark.as_str()),
        read_on.and_then(|read_on| read_on.range.to.as_deref()),
    )
}

/// When rows of a run with this target reach it.
pub(crate) fn commit_of(target: &Target) -> Commit {
    if target.is_staged(0) {
        Commit::Run
    } else {
        Commit::Batch
    }
}

async fn insert(
    tx: &mut PgConnection,
    run: &RunId,
    job: &Job,
    request: &Request,
    limits: Limits,
) -> Result<bool, sqlx::Error> {
    let (schema, table) = job.spec.target.schema_and_table();
    let written = sqlx::query(
        "INSERT INTO etl.runs (run_id, job, job_hash, job_spec, parameters, sql, target_table, mode, commit, requested_by, limits,
                               watermark_from, watermark_to, description, catalog, database)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, nullif($14, ''), $15, $16) ON CONFLICT (run_id) DO NOTHING",
    )
    .bind(run.as_str())
    .bind(&job.spec.name)
    .bind(job.hash())
    .bind(Json(&request.spec))
    .bind(Json(&request.parameters))
    .bind(&request.sql)
    .bind(format!("{schema}.{table}"))
    .bind(job.spec.target.mode.name())
    .bind(commit_of(&job.spec.target).name())
    .bind(user())
    .bind(Json(limits))
    .bind(watermarks(request).0)
    .bind(watermarks(request).1)
    .bind(&job.description)
    .bind(&job.source.catalog)
    .bind(&job.source.database)
    .execute(tx)
    .await?;
    Ok(written.rows_affected() == 1)
}
