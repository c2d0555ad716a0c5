//! The columns of a job's query, by asking Athena or as the ledger has them.

use std::collections::BTreeMap;

use anyhow::Context as _;
use common::job::{Job, JobSpec, resolve};
use common::schema::{ResultColumn, TargetColumn};

use crate::Failure;
use crate::extractor::Extractor;
use crate::jobs::Jobs;

/// The columns of a query, and those of the target that a job makes of them.
pub struct QueryColumns {
    pub result: Vec<ResultColumn>,
    pub target: Vec<TargetColumn>,
}

impl QueryColumns {
    /// Asks for the columns of the job's query, whose parameters are set so, and refuses a job that they do not fit.
    pub async fn ask(
        extractor: &Extractor,
        jobs: &Jobs,
        job: &Job,
        set: &BTreeMap<String, String>,
        spec: &JobSpec,
    ) -> Result<Self, Failure> {
        let set = set
            .iter()
            .map(|(name, value)| format!("--set={name}={value}"));
        let set: Vec<_> = set.collect();
        let arguments = ["columns", &job.spec.name].into_iter();
        let arguments: Vec<_> = arguments.chain(set.iter().map(String::as_str)).collect();
        Self::of(extractor.ask(&jobs.folder, &arguments).await?, spec)
    }

    /// Of a query with these columns.
    pub fn of(result: Vec<ResultColumn>, spec: &JobSpec) -> Result<Self, Failure> {
        let cannot = "the query does not fit the job";
        let resolved = resolve(&spec.columns, &result, &spec.target.key).context(cannot)?;
        transformer::Plan::new(spec, &result).context(cannot)?;
        let target = resolved.into_iter().map(|column| column.target).collect();
        Ok(Self { result, target })
    }
}
