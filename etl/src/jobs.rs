//! The folder of jobs, and what the settings say of where their rows may go.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use common::job::{Job, JobSpec, Request};
use common::settings;
use serde::Deserialize;

use crate::Failure;

#[derive(Deserialize)]
struct Settings {
    #[serde(default = "default_jobs")]
    jobs: PathBuf,
    /// As the loader has it: the schemas that targets may be in, comma separated.
    #[serde(default = "default_schemas")]
    schemas: String,
}

fn default_schemas() -> String {
    "public".to_owned()
}

fn default_jobs() -> PathBuf {
    PathBuf::from("jobs")
}

/// The jobs of `ETL_JOBS`.
pub(crate) struct Jobs {
    folder: PathBuf,
    /// The schemas that targets may be in.
    pub(crate) schemas: Vec<String>,
}

impl Jobs {
    pub(crate) fn load() -> Result<Self, Failure> {
        let settings: Settings = settings::load().map_err(Failure::misuse)?;
        let schemas = settings.schemas.split(',');
        Ok(Self {
            schemas: schemas.map(|schema| schema.trim().to_owned()).collect(),
            folder: settings.jobs,
        })
    }

    /// Reads a job. What is wrong with it is misuse.
    pub(crate) fn read(&self, name: &str) -> Result<Job, Failure> {
        Job::read(&self.folder, name).map_err(Failure::misuse)
    }

    /// The names of the jobs, sorted; the folder has to be there.
    pub(crate) fn names(&self) -> anyhow::Result<Vec<String>> {
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

    pub(crate) fn folder(&self) -> String {
        self.folder.display().to_string()
    }
}

/// Fills in a job's parameters: what is set, and the defaults of the others. A job that no batch could
/// be made with is refused, its rules included.
pub(crate) fn filled_in(job: &Job, set: &[(String, String)]) -> Result<Request, Failure> {
    let doing = || format!("cannot run the job {}", job.spec.name);
    let request = job
        .request(&assignments(set)?)
        .with_context(doing)
        .map_err(Failure::Misuse)?;
    transformer::check_job(&checkable(&request))
        .with_context(doing)
        .map_err(Failure::Misuse)?;
    Ok(request)
}

/// The job as a run would have it. The time of the request is that of the books, later; any will do
/// for a check.
pub(crate) fn checkable(request: &Request) -> JobSpec {
    request.spec.asked_at(jiff::Timestamp::now())
}

fn assignments(set: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
    let mut values = BTreeMap::new();
    for (name, value) in set {
        if values.insert(name.clone(), value.clone()).is_some() {
            return Err(Failure::misuse(anyhow::anyhow!(
                "the parameter {name:?} is set twice"
            )));
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_set_twice_is_refused() {
        let twice = [
            ("a".to_owned(), "1".to_owned()),
            ("a".to_owned(), "2".to_owned()),
        ];
        assert!(assignments(&twice).is_err());
    }
}
