//! `etl status`: runs with their rates, their cost and the queues, once or every second.

mod price;
mod several;
mod sheet;
mod watch;

use serde::Serialize;

use super::{Command, runs};
use crate::broker::{self, Depth};
use crate::output::phase::accounted;
use crate::output::{Terminal, note, number, show};
use crate::select::{self, Which};
use crate::{Failure, loss, store};
use ledger::outbox::Waiting;
use ledger::{
    Attempt, DroppedRows, Generation, Parked, Query, RejectCount, RejectFilter, Run, RunFilter,
    Store,
};
pub use price::Price;
pub use sheet::waiting;

/// Show runs: progress, rate, cost, and the depths of the queues.
///
/// Without a choice it lists the latest runs; with --watch, it watches all open and held ones.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  etl status most_visited_url-20180409 --watch
  etl status --last --job clicks
  etl status --watch                    all runs that are open or held")]
pub struct Arguments {
    #[command(flatten)]
    pub which: Which,
    /// Show the runs every second until all of them are over; the exit code is 0 only if all are complete then.
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// The most runs to show, the latest.
    #[arg(long, value_name = "N", default_value = "20", conflicts_with_all = ["watch", "runs", "last"], value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Print JSON: an object of one run, else an array.
    #[arg(long)]
    pub json: bool,
}

/// A run with everything around it.
#[derive(Debug, Serialize)]
pub struct Status {
    #[serde(flatten)]
    pub run: Run,
    /// Extracted rows that are neither loaded nor rejected nor dropped yet.
    pub rows_in_flight: i64,
    /// The average since the query was started.
    pub rows_per_second: Option<f64>,
    /// Since the look before, where there is one.
    #[serde(skip)]
    pub rows_per_second_now: Option<f64>,
    /// Each query that Athena executed for the run.
    pub queries: Vec<Query>,
    /// Of all of them.
    pub cost: Option<f64>,
    /// The run's former attempts, where it was retried.
    pub attempts: Vec<Attempt>,
    #[serde(skip)]
    pub price: Option<Price>,
    pub rejects: Vec<RejectCount>,
    pub drops: Vec<DroppedRows>,
    /// What waits for the target.
    pub parked: Vec<Parked>,
    /// What channels have not been told of it yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unsent: Vec<Waiting>,
    /// None when the broker cannot be asked.
    pub queues: Option<Vec<Depth>>,
    /// Why the broker cannot be asked.
    pub broker: Option<String>,
    /// Why nothing of the run moves although no queue has anything of it, and the command that repairs it.
    pub lost: Option<String>,
}

impl Status {
    fn new(
        run: Run,
        asked: Vec<Query>,
        rejects: Vec<RejectCount>,
        drops: Vec<DroppedRows>,
        parked: Vec<Parked>,
        queues: Result<Vec<Depth>, String>,
        price: Option<Price>,
    ) -> Self {
        let accounted = accounted(&run);
        let in_flight = (run.rows_read - accounted).max(0);
        let cost = price.filter(|_| run.bytes_scanned.is_some());
        Self {
            rows_in_flight: if run.state.is_over() { 0 } else { in_flight },
            rows_per_second: rate(accounted, run.working_seconds),
            rows_per_second_now: None,
            cost: cost.map(|price| price.of(&asked)),
            queries: asked,
            attempts: Vec::new(),
            price,
            rejects,
            drops,
            parked,
            unsent: Vec::new(),
            broker: queues.as_ref().err().cloned(),
            queues: queues.ok(),
            lost: None,
            run,
        }
    }
}

fn rate(rows: i64, seconds: Option<f64>) -> Option<f64> {
    let seconds = seconds.filter(|seconds| *seconds > 0.0)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate, rounded when shown")]
    let rows = rows as f64;
    Some((rows / seconds * 10.0).round() / 10.0)
}

/// The status of a run. A broker that is down does not keep the ledger from being shown.
pub async fn plan(
    store: &Store,
    run: &str,
    price: Option<Price>,
    queues: Result<Vec<Depth>, String>,
) -> Result<Status, Failure> {
    let run = store.exactly(run).await?;
    let asked = store.queries(&run.run_id).await?;
    let attempts = store.attempts(&run.run_id).await?;
    let filter = RejectFilter::default();
    let rejects = store
        .reject_counts(&[Generation::from(&run)], filter)
        .await?;
    let drops = store.dropped_rows(&run).await?;
    let parked = store.parked(Some(&run.run_id)).await?;
    let lost = match &queues {
        Ok(queues) => loss::remedy(store, &run, queues).await?,
        Err(_) => None,
    };
    let mut status = Status::new(run, asked, rejects, drops, parked, queues, price);
    (status.lost, status.attempts) = (lost, attempts);
    status.unsent = store.outbox(Some(&status.run.run_id)).await?;
    Ok(status)
}

impl Arguments {
    /// The runs to show, the oldest first. Says so where there are more.
    async fn found(&self, store: &Store) -> Result<Vec<Run>, Failure> {
        let among = RunFilter {
            limit: self.limit.saturating_add(1),
            ..RunFilter::default()
        };
        let mut found = self.which.found(store, among).await?;
        if found.is_empty() {
            return Err(select::none());
        }
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        if self.which.runs.is_empty() && found.len() > limit {
            found.remove(0);
            let shown = number(self.limit.into());
            note(&format!(
                "these are the latest {shown} of more runs; --limit shows more, and `etl runs` has a line for each"
            ));
        }
        Ok(found)
    }
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let price = Price::configured()?;
        if self.watch {
            return watch::watch(&store::open().await?, &self.which, price).await;
        }
        if self.which.is_empty() {
            let latest = runs::Arguments {
                job: None,
                state: None,
                limit: self.limit,
                json: self.json,
            };
            return latest.run().await;
        }
        let store = store::open().await?;
        let found = self.found(&store).await?;
        let queues = broker::depths().await;
        let mut statuses = Vec::with_capacity(found.len());
        for run in found {
            statuses.push(plan(&store, &run.run_id, price, queues.clone()).await?);
        }
        let lines = |status: &Status| sheet::lines(status, Terminal::of_stdout());
        if self.which.is_one() {
            show(self.json, &statuses[0], lines)?;
        } else {
            let all = |statuses: &Vec<Status>| {
                let sheets = statuses.iter().map(lines);
                sheets.collect::<Vec<_>>().join("\n\n")
            };
            show(self.json, &statuses, all)?;
        }
        Ok(true)
    }
}
