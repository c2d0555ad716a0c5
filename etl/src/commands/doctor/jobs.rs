//! The jobs and their targets.

use std::collections::BTreeMap;

use common::findings::Findings;

use crate::Failure;
use crate::jobs::{Jobs, checkable, example};
use crate::target::{self, Examined, TargetPlan};
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
    let mut role_note = None;
    for name in names {
        match one(&jobs, store, &name).await {
            Ok(None) => findings.fine(
                "job",
                format!("{name} can be read; its target was not checked"),
            ),
            Ok(Some(examined)) => {
                report(&name, &examined, findings);
                role_note = examined.role_note;
            }
            Err(failure) => {
                // The error of a file that is not TOML has lines.
                let error = failure.paragraph().replace('\n', " ");
                findings.wrong("job", format!("{name}: {error}"));
            }
        }
    }
    if let Some(note) = role_note {
        findings.warning("loader", note);
    }
    Ok(())
}

/// A line for each thing that is wrong with a job's target, and for each that will be.
fn report(name: &str, examined: &Examined, findings: &mut Findings) {
    if let TargetPlan::Refused { why } = &examined.plan {
        for why in why {
            findings.wrong("job", format!("{name}: {why}"));
        }
    } else {
        let roles = examined.roles.join(" and ");
        findings.fine(
            "job",
            format!("{name} can be read, and its target takes it from the role {roles}"),
        );
    }
    for warning in &examined.warnings {
        findings.warning("job", format!("{name}: {warning}"));
    }
}

/// The target of a job, examined where there is a ledger.
async fn one(jobs: &Jobs, store: Option<&Store>, name: &str) -> Result<Option<Examined>, Failure> {
    let job = jobs.read(name)?;
    let Some(store) = store else {
        return Ok(None);
    };
    let request = example(&job, &BTreeMap::new())?;
    let spec = checkable(&request);
    target::plan(store, &spec, &jobs.schemas).await.map(Some)
}
