//! `etl jobs`: the jobs, with their latest runs.

use std::collections::BTreeMap;

use anyhow::anyhow;
use comfy_table::Table;
use common::job::Job;
use serde::Serialize;
use serde_json::json;

use super::Command;
use crate::jobs::{Jobs, example};
use crate::output::{Narrow, Terminal, brief, show, table_within};
use crate::{Failure, store};
use ledger::{Freshness, Store};

/// List the jobs with their latest runs.
///
/// Shows the mode, the target, the latest run, when rows were loaded last, and which jobs are late.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  etl jobs\n  etl jobs --retire clicks")]
pub struct Arguments {
    /// Expect no more runs of this job, which was late or will be, until it is requested again.
    #[arg(long, value_name = "JOB")]
    pub retire: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A job, as far as it can be read.
#[derive(Debug, Serialize)]
pub struct Listed {
    pub job: String,
    pub description: String,
    pub mode: Option<String>,
    pub target: Option<String>,
    /// From where the next run reads on, in a job with a watermark.
    pub watermark: Option<String>,
    /// Why the files make no job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// None for a job that has never run.
    pub last: Option<Freshness>,
}

/// Every job of the folder.
pub async fn plan(jobs: &Jobs, store: &Store) -> Result<Vec<Listed>, Failure> {
    let freshness = store.freshness().await?.into_iter();
    let mut freshness: BTreeMap<_, _> = freshness.map(|one| (one.job.clone(), one)).collect();
    let mut watermarks = store.watermarks().await?;
    let names = jobs.names()?;
    let listed = names.into_iter().map(|name| {
        let last = freshness.remove(&name);
        let read = jobs.read(&name);
        // As `etl validate` reads it.
        let read = read.and_then(|job| example(&job, &BTreeMap::new()).map(|_| job));
        match read {
            Ok(job) => {
                let (schema, table) = job.spec.target.schema_and_table();
                Listed {
                    target: Some(format!("{schema}.{table}")),
                    mode: Some(job.spec.target.mode.to_string()),
                    watermark: watermark(&job, watermarks.remove(&name)),
                    description: job.description,
                    problem: None,
                    job: name,
                    last,
                }
            }
            Err(failure) => Listed {
                job: name,
                description: String::new(),
                mode: None,
                target: None,
                watermark: None,
                problem: Some(failure.paragraph()),
                last,
            },
        }
    });
    Ok(listed.collect())
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let store = store::open().await?;
        if let Some(job) = &self.retire {
            return self.retire(&store, job).await;
        }
        let jobs = Jobs::load()?;
        let listed = plan(&jobs, &store).await?;
        show(self.json, &listed, |listed| {
            if listed.is_empty() {
                let folder = jobs.folder.display();
                return format!("no jobs in {folder} yet; `etl init` writes one");
            }
            list(listed, Terminal::of_stdout()).to_string()
        })?;
        Ok(true)
    }
}

impl Arguments {
    async fn retire(&self, store: &Store, job: &str) -> Result<bool, Failure> {
        if !store.retire(job).await? {
            return Err(anyhow!(
                "no runs of a job {job:?} are expected; `etl jobs` shows which jobs are late"
            )
            .into());
        }
        show(self.json, &json!({ "job": job, "retired": true }), |_| {
            format!("no more runs of the job {job} are expected, until it is requested again")
        })?;
        Ok(true)
    }
}

fn list(jobs: &[Listed], terminal: Terminal) -> Table {
    let rows = jobs.iter().map(|job| {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let last = job.last.as_ref();
        let state = match (&job.problem, last) {
            (Some(_), _) => "wrong: `etl validate` says why".to_owned(),
            (None, None) => "never run".to_owned(),
            (None, Some(last)) if last.seconds_late.is_some() => format!("{}, late", last.state),
            (None, Some(last)) => last.state.to_string(),
        };
        vec![
            job.job.clone(),
            text(&job.mode),
            text(&job.target),
            last.map_or_else(|| "-".to_owned(), |last| last.run_id.clone()),
            state,
            loaded(last),
            text(&job.watermark),
        ]
    });
    let header = [
        "job",
        "mode",
        "target",
        "last run",
        "state",
        "loaded",
        "watermark",
    ];
    let rows: Vec<_> = rows.collect();
    let narrow = Narrow {
        cut: None,
        spare: &[3, 1, 2, 6],
    };
    table_within(terminal, &header, 0..0, &rows, &narrow)
}

/// The job's watermark: the ledger's, or the initial one.
fn watermark(job: &Job, current: Option<String>) -> Option<String> {
    let one = job.watermark()?;
    current.or_else(|| one.initial().ok())
}

/// When rows were loaded last.
fn loaded(last: Option<&Freshness>) -> String {
    match last.and_then(|last| last.seconds_since) {
        None => "never".to_owned(),
        Some(seconds) => format!("{} ago", brief(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::on_a_terminal;
    use ledger::RunState;

    #[test]
    fn jobs_are_listed_with_their_freshness() {
        let last = |seconds_since| Freshness {
            job: "clicks".to_owned(),
            run_id: "clicks-20261130t031500-0a1b2c3d".to_owned(),
            state: RunState::Completed,
            requested_at: "2026-11-30T03:15:00.000Z".to_owned(),
            completed_at: None,
            seconds_since,
            expected_seconds: None,
            seconds_late: None,
        };
        let late = Freshness {
            state: RunState::Failed,
            seconds_late: Some(3_600.0),
            ..last(Some(11_000.0))
        };
        let listed = |job: &str, problem: Option<&str>, last| Listed {
            job: job.to_owned(),
            description: String::new(),
            mode: Some("append".to_owned()).filter(|_| problem.is_none()),
            target: Some("public.clicks".to_owned()).filter(|_| problem.is_none()),
            watermark: Some("2018-04-02".to_owned()).filter(|_| job == "clicks"),
            problem: problem.map(str::to_owned),
            last,
        };
        let jobs = [
            listed("clicks", None, Some(last(Some(11_000.0)))),
            listed("failing", None, Some(last(None))),
            listed("late", None, Some(late)),
            listed("new", None, None),
            listed("wrong", Some("line 3"), None),
        ];
        insta::assert_snapshot!(on_a_terminal(
            list(
                &jobs,
                Terminal {
                    width: Some(120),
                    ..Terminal::default()
                }
            ),
            120
        ));
    }
}
