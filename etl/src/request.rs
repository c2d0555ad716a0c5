//! `etl run`: everything that can be wrong is found before anything is written or sent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use common::job::Job;
use common::message::{ExtractTask, Limits, RunId, TaskState};
use common::queue::Outgoing;
use common::settings;
use serde::Deserialize;

use crate::Failure;
use crate::books::{Books, Requested, Run};
use crate::broker::Broker;
use crate::cli::RunArguments;
use crate::{follow, report};

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

/// Asks for a run, and follows it when that is wanted.
pub(crate) async fn run(arguments: &RunArguments) -> Result<bool, Failure> {
    let settings: Settings = settings::load().map_err(Failure::misuse)?;
    let job = Job::read(&settings.jobs, &arguments.job).map_err(Failure::misuse)?;
    let set = assignments(&arguments.set)?;
    let request = job
        .request(&set)
        .with_context(|| format!("cannot run the job {}", job.spec.name))
        .map_err(Failure::Misuse)?;
    // The time is that of the books, later; any will do for a check.
    let asked = request.spec.asked_at(jiff::Timestamp::now());
    transformer::check_job(&asked)
        .with_context(|| format!("cannot run the job {}", job.spec.name))
        .map_err(Failure::Misuse)?;
    let books = Books::open().await?;
    let schemas: Vec<_> = settings
        .schemas
        .split(',')
        .map(|schema| schema.trim().to_owned())
        .collect();
    let run = arguments
        .run_id
        .clone()
        .unwrap_or_else(|| new_run_id(&job.spec.name));
    // One that is in the books was checked when it was asked for, and may only be looked at now.
    if !books.knows(&run).await? {
        books.check_target(&asked, &schemas).await?;
    }
    let broker = Broker::open().await?;
    let known = match books.request(&run, &job, &request).await? {
        Requested::New => None,
        Requested::Known(known) => Some(known),
    };
    if known
        .as_ref()
        .is_none_or(|known| known.state == "requested")
    {
        let task = ExtractTask {
            run: run.clone(),
            generation: 0,
            sql: request.sql,
            source: job.source,
            job: request
                .spec
                .asked_at(books.requested_at(&run).await?)
                .into(),
            limits: Limits::default(),
            state: TaskState::Start { attempt: 1 },
        };
        let message = Outgoing::of(&task).context("cannot ask for this run")?;
        broker.send(&[message]).await.with_context(|| {
            format!("the run {run} is in the books, but it is not known whether its task was sent; ask again with --run-id {run}")
        })?;
    }
    broker.close().await;
    answer(arguments, &books, &run, known.as_deref()).await
}

async fn answer(
    arguments: &RunArguments,
    books: &Books,
    run: &RunId,
    known: Option<&Run>,
) -> Result<bool, Failure> {
    if known.is_some() {
        report::note(&format!("the run {run} was asked for before"));
    }
    if !arguments.follow {
        report::requested(run, arguments.json)?;
        // Asking again for a run that came to nothing does not make it better.
        let lost = known.filter(|run| run.is_over() && !run.is_complete());
        if let Some(run) = lost {
            report::note(&format!(
                "it is {} and nothing was sent; ask under another --run-id",
                run.state
            ));
        }
        return Ok(lost.is_none());
    }
    let over = follow::to_the_end(books, run.as_str()).await?;
    report::outcome(books, &over, arguments.json).await
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

/// A name that sorts by time, tells the job, and is not made twice.
fn new_run_id(job: &str) -> RunId {
    let now = jiff::Timestamp::now().strftime("%Y%m%dt%H%M%S");
    let random: u32 = rand::random_range(0..0x1_0000_0000_u64)
        .try_into()
        .unwrap_or_default();
    format!("{job}-{now}-{random:08x}")
        .parse()
        .expect("a job's name, a time and a number make a run id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_are_made_once() {
        let (one, other) = (new_run_id("clicks"), new_run_id("clicks"));
        assert_ne!(one, other);
        assert!(one.as_str().starts_with("clicks-2"));
    }

    #[test]
    fn a_parameter_set_twice_is_refused() {
        let twice = [
            ("a".to_owned(), "1".to_owned()),
            ("a".to_owned(), "2".to_owned()),
        ];
        assert!(assignments(&twice).is_err());
    }
}
