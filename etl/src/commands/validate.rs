//! `etl validate`: whether job files can be run, for editors and continuous integration.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::anyhow;
use common::command::{assignment, assignments};
use common::findings::Findings;
use common::job::ParameterError;

use super::Command;
use crate::extractor::Extractor;
use crate::jobs::{Jobs, checkable, example};
use crate::query_columns::QueryColumns;
use crate::target::{self, Examined, TargetPlan};
use crate::{Failure, channels, store};
use ledger::Store;
use loader::ddl::TableName;

/// Check job files; --connected adds the query and the target.
///
/// Loads nothing. --connected also checks the permissions in AWS. It runs each query with a LIMIT of 0, which scans nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etl validate\n  etl validate clicks --connected\n\nExit code 0: nothing is wrong. 1: something is. 2: usage error."
)]
pub struct Arguments {
    /// The jobs: names of files in `ETL_JOBS`, without .toml; all of them by default.
    #[arg(value_name = "JOB")]
    pub jobs: Vec<String>,
    /// Also check the query's columns, the permissions in AWS and the target.
    #[arg(long)]
    pub connected: bool,
    /// Set a parameter of the jobs that have it; the others have their defaults, or an example of their type.
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What jobs are checked against.
struct Connected {
    store: Store,
    extractor: Extractor,
}

/// Checks jobs.
pub async fn plan(arguments: &Arguments) -> Result<Findings, Failure> {
    let jobs = Jobs::load()?;
    let names = match &arguments.jobs[..] {
        [] => jobs.names()?,
        named => named.to_vec(),
    };
    let set = assignments(&arguments.set)?;
    check_names(&jobs, &names, &set)?;
    let connected = if arguments.connected {
        let (extractor, store) = (Extractor::find()?, store::open().await?);
        Some(Connected { store, extractor })
    } else {
        None
    };
    let mut findings = Findings::default();
    for name in names {
        let checked = check(&jobs, &name, &set, connected.as_ref(), &mut findings).await;
        if let Err(failure) = checked {
            // The error of a file that is not TOML has lines.
            findings.wrong(name, failure.paragraph().replace('\n', " "));
        }
    }
    Ok(findings)
}

/// Refuses a value for a parameter that none of the jobs has. What is wrong with a job itself is a finding.
fn check_names(
    jobs: &Jobs,
    names: &[String],
    set: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let read = names.iter().map(|name| jobs.read(name).ok());
    let Some(read) = read.collect::<Option<Vec<_>>>() else {
        return Ok(());
    };
    let known: BTreeSet<_> = read.iter().flat_map(|job| job.parameters.keys()).collect();
    match set.keys().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => Err(Failure::usage(anyhow!(ParameterError::Unknown {
            name: name.clone(),
            known: known.into_iter().cloned().collect(),
        }))),
    }
}

async fn check(
    jobs: &Jobs,
    name: &str,
    set: &BTreeMap<String, String>,
    connected: Option<&Connected>,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let job = jobs.read(name)?;
    let mut set = set.clone();
    set.retain(|parameter, _| job.parameters.contains_key(parameter));
    let spec = checkable(&example(&job, &set)?);
    let Some(Connected { store, extractor }) = connected else {
        TableName::of(&spec.target, &jobs.schemas).map_err(|refusal| anyhow!(refusal))?;
        findings.fine(name.to_owned(), "the files are right");
        return Ok(());
    };
    let asked: Findings = extractor.ask(&jobs.folder, &["check", name]).await?;
    let is_wrong = !asked.is_fine();
    findings.extend(name, asked);
    if is_wrong {
        return Ok(());
    }
    let columns = QueryColumns::ask(extractor, jobs, &job, &set, &spec).await?;
    let mut examined = target::plan_all(store, &spec, &columns.target, &jobs.schemas).await?;
    let loaders = store.loader_roles().await?;
    let missing = channels::missing(&job, loaders.channels());
    examined.warnings.extend(missing);
    report(name, columns.result.len(), &examined, findings);
    Ok(())
}

fn report(name: &str, columns: usize, examined: &Examined, findings: &mut Findings) {
    let name = name.to_owned();
    match &examined.plan {
        TargetPlan::Refused { why } => {
            for why in why {
                findings.wrong(name.clone(), why);
            }
        }
        TargetPlan::Fits => findings.fine(
            name.clone(),
            format!("the target takes the {columns} columns of the query"),
        ),
        TargetPlan::Creates { .. } => findings.fine(
            name.clone(),
            format!("the first batch creates the target, with {columns} columns of the query"),
        ),
        TargetPlan::Alters { statements } => findings.fine(
            name.clone(),
            format!("the first batch runs: {}", statements.join(" ")),
        ),
    }
    for warning in &examined.warnings {
        findings.warning(name.clone(), warning);
    }
}

impl Command for Arguments {
    /// True when nothing is wrong.
    async fn run(self) -> Result<bool, Failure> {
        plan(&self).await?.report(self.json)
    }
}
