//! `etl run`: requests a run, and follows it with `--follow`.

use std::time::Duration;

use anyhow::anyhow;
use common::command::assignment;
use common::job::{Job, Request};
use common::message::RunId;
use serde_json::json;

use super::Command;
use crate::Failure;
use crate::broker::Broker;
use crate::extractor::Extractor;
use crate::jobs::{Jobs, checkable, reading_on};
use crate::output::run::follow;
use crate::output::{note, notes, print_json, show};
use crate::query_columns::QueryColumns;
use crate::request::request;
use crate::store;
use crate::target;
use ledger::{Requested, Run, Store, Terms};

/// Request a run of a job.
#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
#[command(
    after_help = "Example: etl run most_visited_url --set from=2018-04-02 --set to=2018-04-08 --follow --wait-timeout 1h"
)]
pub struct Arguments {
    /// The job: the name of a file in `ETL_JOBS`, without .toml.
    pub job: String,
    /// Set a parameter of the job; the others have their defaults. A date or a timestamp may be relative, such as yesterday or
    /// "now - 2h".
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
    /// A name for the run. A second request with the same name is the same run.
    #[arg(long, value_name = "ID")]
    pub run_id: Option<RunId>,
    /// Where the run of this name failed or was cancelled, request it again under its name: rows that it had loaded are removed
    /// first. For schedulers, which repeat a command.
    #[arg(long, requires = "run_id")]
    pub retry: bool,
    /// Request the run although a run of the same job and parameters has appended the same rows.
    #[arg(long)]
    pub again: bool,
    /// Ask Athena for the query's columns first, and request nothing where they do not fit the job or its target. Runs the query
    /// with a LIMIT of 0, which scans nothing; needs the extractor program.
    #[arg(long)]
    pub connected: bool,
    /// Wait until the run is over, and exit with 0 only if it is complete.
    #[arg(long)]
    pub follow: bool,
    /// Follow for at most this time, such as 30m; then the run goes on, and the exit code is 1.
    #[arg(long, value_name = "TIME", requires = "follow", value_parser = humantime::parse_duration)]
    pub wait_timeout: Option<Duration>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Checks the target of a run, and returns what a person has to know. A run that is in the ledger was checked when it was
/// requested.
pub async fn plan(
    store: &Store,
    jobs: &Jobs,
    job: &Job,
    run: Option<&Run>,
    request: &Request,
    arguments: &Arguments,
) -> Result<Vec<String>, Failure> {
    if run.is_some_and(|run| !(arguments.retry && run.has_failed())) {
        return Ok(Vec::new());
    }
    let spec = checkable(request);
    let asked = if arguments.connected {
        let extractor = Extractor::find()?;
        Some(QueryColumns::ask(&extractor, jobs, job, &request.parameters, &spec).await?)
    } else {
        None
    };
    let asked = asked.as_ref().map(|asked| &*asked.target);
    target::check(store, &spec, asked, None, &jobs.schemas).await
}

/// Requests the run. Returns the run when its name is known already; a conflicting run is an error.
pub async fn act(
    store: &Store,
    broker: &Broker,
    run: &RunId,
    job: &Job,
    wanted: &Request,
    terms: Terms,
) -> Result<Option<Box<Run>>, Failure> {
    let look = &mut |text: String| note(&text);
    match request(store, broker, run, job, wanted, terms, look).await? {
        Requested::Known(known) => Ok(Some(known)),
        Requested::Conflicts(conflict) => Err(anyhow!(conflict.sentence()).into()),
        Requested::New | Requested::LeftRows { .. } => Ok(None),
    }
}

/// A name that sorts by time and begins with the job.
pub fn new_run_id(job: &str) -> RunId {
    let now = jiff::Timestamp::now().strftime("%Y%m%dt%H%M%S");
    format!("{job}-{now}-{:08x}", rand::random::<u32>())
        .parse()
        .expect("a job's name, a time and a number make a run id")
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let jobs = Jobs::load()?;
        let job = jobs.read(&self.job)?;
        let store = store::open().await?;
        let before = match &self.run_id {
            Some(run) => store.named(&[run.to_string()]).await?.remove(run.as_str()),
            None => None,
        };
        let request = reading_on(&store, &job, &self.set, before.as_ref()).await?;
        if let Some(nothing) = nothing_new(&job, &request).filter(|_| before.is_none()) {
            if let Some(read_on) = &request.read_on {
                store
                    .check_watermark(&job, read_on, &request.parameters)
                    .await?;
            }
            note(&nothing);
            if self.json {
                print_json(&json!({ "run_id": null }))?;
            }
            return Ok(true);
        }
        let run = self
            .run_id
            .clone()
            .unwrap_or_else(|| new_run_id(&job.spec.name));
        notes(&plan(&store, &jobs, &job, before.as_ref(), &request, &self).await?);
        let broker = Broker::open(note)
            .await
            .map_err(|failure| failure.context(format!("the run {run} was not requested now")))?;
        let terms = Terms {
            again: self.again,
            retry: self.retry,
        };
        let known = act(&store, &broker, &run, &job, &request, terms).await;
        broker.close().await;
        let known = known?;
        match (&known, before) {
            (Some(_), _) => note(&format!("the run {run} was requested before")),
            (None, Some(before)) => note(&tried_again(&before, &job)),
            (None, None) if self.follow => note(&format!("the run {run} is requested")),
            (None, None) => {}
        }
        if self.follow {
            let end = follow(&store, run.as_str(), self.wait_timeout, self.json).await?;
            return Ok(end.is_complete());
        }
        self.answer(&run, known.as_deref())
    }
}

impl Arguments {
    /// Prints the name of the run, and why nothing was sent where it has ended without being complete.
    fn answer(&self, run: &RunId, known: Option<&Run>) -> Result<bool, Failure> {
        let ended = known.filter(|known| known.state.is_over() && !known.is_complete());
        let Some(Run { state, .. }) = ended else {
            show(self.json, &json!({ "run_id": run }), |_| run.to_string())?;
            return Ok(true);
        };
        let remedy = if ended.is_some_and(Run::has_failed) {
            "--retry requests it again"
        } else {
            "request another run with another --run-id"
        };
        let why = format!("the run {run} is {state} and nothing was sent; {remedy}");
        let said = json!({ "run_id": run, "state": state, "error": why, "exit_code": 1 });
        show(self.json, &said, |_| run.to_string())?;
        note(&why);
        Ok(false)
    }
}

/// Why there is nothing to request: the range that a run would read is empty.
fn nothing_new(job: &Job, request: &Request) -> Option<String> {
    let read_on = request
        .read_on
        .as_ref()
        .filter(|read_on| read_on.range.is_empty())?;
    let (name, from) = (&job.spec.name, &read_on.watermark);
    let to = read_on.range.to.as_deref().unwrap_or_default();
    Some(format!(
        "nothing is new yet: the watermark of the job {name} is {from}, and a run would read up to {to}; nothing was sent"
    ))
}

fn tried_again(before: &Run, job: &Job) -> String {
    let (run, state) = (&before.run_id, before.state);
    let older = if before.job_hash == job.hash() {
        ""
    } else {
        ", by the job as it is now: it has changed since"
    };
    format!("the run {run} was {state} and is requested again{older}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_are_unique_and_begin_with_the_job() {
        let (one, other) = (new_run_id("clicks"), new_run_id("clicks"));
        assert_ne!(one, other);
        assert!(one.as_str().starts_with("clicks-2"));
    }
}
