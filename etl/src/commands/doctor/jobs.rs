//! The jobs and their targets.

use std::collections::BTreeMap;

use common::findings::Findings;

use crate::jobs::{Jobs, checkable, example};
use crate::output::brief;
use crate::target::{self, Examined, TargetPlan};
use crate::{Failure, channels};
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
    if let Some(store) = store {
        examine_lateness(&jobs, store, &names, findings).await?;
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

/// A line for each job that is late.
async fn examine_lateness(
    jobs: &Jobs,
    store: &Store,
    names: &[String],
    findings: &mut Findings,
) -> Result<(), Failure> {
    for last in store.freshness().await? {
        let (Some(late), Some(every)) = (last.seconds_late, last.expected_seconds) else {
            continue;
        };
        let (job, run, state) = (&last.job, &last.run_id, last.state);
        let remedy = if names.contains(job) {
            format!("`etl runs --job {job}` shows its runs")
        } else {
            let folder = jobs.folder.display();
            format!(
                "{folder} does not have it; where it is to run no more: `etl jobs --retire {job}`"
            )
        };
        findings.warning(
            "late",
            format!(
                "{job} is expected every {} and is late by {}; its latest run {run} is {state}; {remedy}",
                brief(every),
                brief(late)
            ),
        );
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
    let mut examined = target::plan(store, &spec, &jobs.schemas).await?;
    let loaders = store.loader_roles().await?;
    let missing = channels::missing(&job, loaders.channels());
    examined.warnings.extend(missing);
    Ok(Some(examined))
}
