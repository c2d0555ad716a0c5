//! The folder of job files, and a job with its parameters filled in.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use common::command::{assignments, jobs_folder};
use common::job::{Job, JobSpec, Request};
use common::settings;
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
    pub fn names(&self) -> anyhow::Result<Vec<String>> {
        let entries = fs::read_dir(&self.folder).with_context(|| {
            format!(
                "cannot read the folder {}; set ETL_JOBS to the folder of your jobs",
                self.folder.display()
            )
        })?;
        let mut names: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "toml"))
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        Ok(names)
    }
}

/// Fills in a job's parameters: the values that are set, and the defaults of the others. Refuses a job that the
/// transformer refuses, its rules included.
pub fn filled_in(job: &Job, set: &[(String, String)]) -> Result<Request, Failure> {
    let set = assignments(set)?;
    let request = || -> anyhow::Result<Request> {
        let request = job.request(&set)?;
        transformer::check_job(&checkable(&request))?;
        Ok(request)
    };
    request()
        .with_context(|| format!("cannot run the job {}", job.spec.name))
        .map_err(Failure::Usage)
}

/// The job as a run would have it, for checks: they do not depend on the time of the request.
pub fn checkable(request: &Request) -> JobSpec {
    request.spec.with_requested_at(jiff::Timestamp::now())
}
