//! The folder of job files, and a job with its parameters filled in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use common::command::{assignments, jobs_folder};
use common::job::{Job, JobSpec, ParameterError, Request};
use common::settings;
use jiff::Timestamp;
use ledger::{Run, Store};
use serde::Deserialize;

use crate::Failure;

/// The jobs of `ETL_JOBS`.
pub struct Jobs {
    /// Where the job files are.
    pub folder: PathBuf,
    /// The schemas that targets may be in, as the loader has them.
    pub schemas: Vec<String>,
}

impl Jobs {
    /// Reads the settings, and no job yet.
    pub fn load() -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Settings {
            /// Comma separated.
            schemas: Option<String>,
        }
        let settings: Settings = settings::load().map_err(Failure::usage)?;
        Ok(Self {
            folder: jobs_folder()?,
            schemas: settings::names(settings.schemas.as_deref().unwrap_or("public")),
        })
    }

    /// Reads a job. A job that is missing or wrong is a usage error.
    pub fn read(&self, name: &str) -> Result<Job, Failure> {
        Job::read(&self.folder, name).map_err(Failure::usage)
    }

    /// The names of the jobs, sorted. A folder that is missing is an error.
    pub fn names(&self) -> Result<Vec<String>, Failure> {
        Job::names(&self.folder).map_err(Failure::usage)
    }
}

/// Fills in a job's parameters: the values that are set, and the defaults of the others. Relative ones are as `recorded` of a
/// run that was requested before, or of now. Refuses a job that the transformer refuses, its rules included.
pub fn filled_in(
    job: &Job,
    set: &[(String, String)],
    recorded: Option<&BTreeMap<String, String>>,
) -> Result<Request, Failure> {
    let values = job.resolve(&assignments(set)?, recorded, Timestamp::now());
    checked(job, job.request(&values))
}

/// The same for a request that reads on from the job's watermark, where it has one. What is relative, and the range, is as
/// recorded of the run that was requested `before` under this name, or of now.
pub async fn reading_on(
    store: &Store,
    job: &Job,
    set: &[(String, String)],
    before: Option<&Run>,
) -> Result<Request, Failure> {
    let (set, now) = (assignments(set)?, store.now().await?);
    let recorded = before.map(|run| &run.parameters);
    let mut values = job.resolve(&set, recorded, now);
    let watermark = match before.and_then(|run| run.watermark_from.clone()) {
        None if job.watermark().is_some() => store.watermark(&job.spec.name).await?,
        recorded => recorded,
    };
    let is_recorded = before.is_some_and(|run| run.watermark_from.is_some());
    let read_on = job.read_on(&set, &mut values, watermark.as_deref(), is_recorded, now);
    let read_on = read_on.map_err(|why| Failure::usage(anyhow!(why)))?;
    let request = checked(job, job.request(&values))?.reading_on(read_on);
    if let (None, Some(range)) = (&request.read_on, &request.spec.watermark)
        && range.is_empty()
    {
        let (from, to) = (&range.from, range.to.as_deref().unwrap_or_default());
        return Err(Failure::usage(anyhow!(
            "the range from {from} up to, and not including, {to} has no value in it"
        )));
    }
    Ok(request)
}

/// The same for a check: a parameter without a value gets an example of its type.
pub fn example(job: &Job, set: &BTreeMap<String, String>) -> Result<Request, Failure> {
    checked(job, job.example(set))
}

fn checked(job: &Job, request: Result<Request, ParameterError>) -> Result<Request, Failure> {
    let checked = || -> anyhow::Result<Request> {
        let request = request?;
        transformer::check_job(&checkable(&request))?;
        Ok(request)
    };
    checked()
        .with_context(|| format!("cannot run the job {}", job.spec.name))
        .map_err(Failure::Usage)
}

/// The job as a run would have it, for checks: they do not depend on the time of the request.
pub fn checkable(request: &Request) -> JobSpec {
    request.spec.with_requested_at(Timestamp::now())
}
