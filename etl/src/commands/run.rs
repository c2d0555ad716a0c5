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
use crate::jobs::{Jobs, checkable, filled_in};
use crate::output::run::follow;
use crate::output::{note, notes, show};
use crate::request::request;
use crate::store;
use crate::target;
use ledger::{Requested, Run, Store};

/// Request a run of a job.
#[derive(Debug, clap::Args)]
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
    /// Request the run although a run of the same job and parameters has appended the same rows.
    #[arg(long)]
    pub again: bool,
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
    run: &RunId,
    request: &Request,
) -> Result<Vec<String>, Failure> {
    if store.knows(run).await? {
        return Ok(Vec::new());
    }
    target::check(store, &checkable(request), &jobs.schemas).await
}

/// Requests the run. Returns the run when its name is known already; a conflicting run is an error.
pub async fn act(
    store: &Store,
    broker: &Broker,
    run: &RunId,
    job: &Job,
    wanted: &Request,
    again: bool,
) -> Result<Option<Box<Run>>, Failure> {
    match request(store, broker, run, job, wanted, again).await? {
        Requested::New => Ok(None),
        Requested::Known(known) => Ok(Some(known)),
        Requested::Conflicts(conflict) => Err(anyhow!(conflict.sentence()).into()),
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
        let mut request = filled_in(&job, &self.set, None)?;
        let store = store::open().await?;
        if let Some(run) = &self.run_id
            && let Some(known) = store.named(&[run.to_string()]).await?.get(run.as_str())
        {
            request = filled_in(&job, &self.set, Some(&known.parameters))?;
        }
        let run = self.run_id.unwrap_or_else(|| new_run_id(&job.spec.name));
        notes(&plan(&store, &jobs, &run, &request).await?);
        let broker = Broker::open(note)
            .await
            .map_err(|failure| failure.context(format!("the run {run} was not requested now")))?;
        let known = act(&store, &broker, &run, &job, &request, self.again).await;
        broker.close().await;
        let known = known?;
        if known.is_some() {
            note(&format!("the run {run} was requested before"));
        }
        if self.follow {
            if known.is_none() {
                note(&format!("the run {run} is requested"));
            }
            let end = follow(&store, run.as_str(), self.wait_timeout, self.json).await?;
            return Ok(end.is_complete());
        }
        show(self.json, &json!({ "run_id": run }), |_| run.to_string())?;
        match known.filter(|known| known.state.is_over() && !known.is_complete()) {
            Some(known) => {
                note(&format!(
                    "the run {run} is {} and nothing was sent; request another run with another --run-id",
                    known.state
                ));
                Ok(false)
            }
            None => Ok(true),
        }
    }
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
