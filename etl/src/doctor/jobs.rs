//! The jobs, and the targets that they name.

use common::job::Job;

use crate::Failure;
use crate::books::Books;
use crate::jobs::{Jobs, checkable, filled_in};
use crate::report::Finding;

pub(super) async fn examine(books: Option<&Books>, findings: &mut Vec<Finding>) {
    let names = match Jobs::load() {
        Ok(jobs) => jobs.names().map(|names| (jobs, names)),
        Err(Failure::Misuse(error) | Failure::Untrue(error)) => Err(error),
    };
    let (jobs, names) = match names {
        Ok(found) => found,
        Err(error) => {
            findings.push(Finding::wrong("jobs", format!("{error:#}")));
            return;
        }
    };
    if names.is_empty() {
        findings.push(Finding::warning(
            "jobs",
            format!(
                "there is none in {}; set ETL_JOBS to the folder of your jobs",
                jobs.folder()
            ),
        ));
    }
    for name in names {
        findings.push(match examine_one(&jobs, books, &name).await {
            Ok(text) => Finding::fine("job", format!("{name} {text}")),
            Err(Failure::Misuse(error) | Failure::Untrue(error)) => {
                // A file that is no TOML is shown with its lines.
                let error = format!("{error:#}").replace('\n', " ");
                Finding::wrong("job", format!("{name}: {error}"))
            }
        });
    }
}

async fn examine_one(
    jobs: &Jobs,
    books: Option<&Books>,
    name: &str,
) -> Result<&'static str, Failure> {
    let job = jobs.read(name)?;
    let Some(books) = books else {
        return Ok("can be read; its target was not looked at");
    };
    // One whose parameters have no defaults cannot be filled in here.
    let request = match filled_in(&job, &[]) {
        Err(error) if !needs_values(&job) => return Err(error),
        request => request.ok(),
    };
    let spec = request.map_or_else(|| job.spec.clone(), |request| checkable(&request));
    books.check_target(&spec, &jobs.schemas).await?;
    Ok("can be read, and its target takes it")
}

/// Whether a run has to set some of the job's parameters.
fn needs_values(job: &Job) -> bool {
    job.parameters.values().any(|spec| spec.default.is_none())
}
