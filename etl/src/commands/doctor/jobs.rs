//! The jobs and their targets.

use common::findings::Findings;

use crate::Failure;
use crate::jobs::{Jobs, checkable, filled_in};
use crate::target;
use ledger::Store;

pub(super) async fn examine(store: Option<&Store>, findings: &mut Findings) -> Result<(), Failure> {
    let jobs = Jobs::load()?;
    let names = jobs.names()?;
    if names.is_empty() {
        let folder = jobs.folder.display();
        findings.warning(
            "jobs",
            format!("{folder} has no jobs; set ETL_JOBS to the folder of your jobs"),
        );
    }
    for name in names {
        match one(&jobs, store, &name).await {
            Ok(text) => findings.fine("job", format!("{name} {text}")),
            Err(failure) => {
                // The error of a file that is not TOML has lines.
                let error = failure.paragraph().replace('\n', " ");
                findings.wrong("job", format!("{name}: {error}"));
            }
        }
    }
    Ok(())
}

async fn one(jobs: &Jobs, store: Option<&Store>, name: &str) -> Result<&'static str, Failure> {
    let job = jobs.read(name)?;
    let Some(store) = store else {
        return Ok("can be read; its target was not checked");
    };
    // A job whose parameters have no defaults cannot be filled in here.
    let needs_values = job.parameters.values().any(|spec| spec.default.is_none());
    let spec = match filled_in(&job, &[]) {
        Ok(request) => checkable(&request),
        Err(_) if needs_values => job.spec.clone(),
        Err(failure) => return Err(failure),
    };
    target::check(store, &spec, &jobs.schemas).await?;
    Ok("can be read, and its target takes it")
}
