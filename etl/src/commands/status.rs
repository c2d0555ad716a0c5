//! `etl status`: a run with its rate, its cost and the queues, once or every second.

mod price;
mod sheet;
mod watch;

use serde::Serialize;

use super::{Command, runs};
use crate::broker::{self, Depth};
use crate::output::show;
use crate::{Failure, loss, store};
use ledger::{
    Attempt, DroppedRows, Generation, Parked, Query, RejectCount, RejectFilter, Run, Store,
};
pub use price::Price;
pub use sheet::waiting;

/// Show runs: progress, rate, cost, and the depths of the queues.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl status most_visited_url-20180409 --watch")]
pub struct Arguments {
    /// The run, or the beginning of its name where only one run begins so; without one, the latest runs.
    pub run: Option<String>,
    /// Show the run every second until it is over; the exit code is 0 only if it is complete then.
    #[arg(long, requires = "run", conflicts_with = "json")]
    pub watch: bool,
    /// Print JSON.
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
            broker: queues.as_ref().err().cloned(),
            queues: queues.ok(),
            lost: None,
            run,
        }
    }
}

/// Rows that are loaded, rejected or dropped.
fn accounted(run: &Run) -> i64 {
    run.rows_loaded + run.rows_rejected + run.rows_dropped
}

fn rate(rows: i64, seconds: Option<f64>) -> Option<f64> {
    let seconds = seconds.filter(|seconds| *seconds > 0.0)?;
    #[expect(clippy::cast_precision_loss, reason = "a rate, rounded when shown")]
    let rows = rows as f64;
    Some((rows / seconds * 10.0).round() / 10.0)
}

/// The status of a run. A broker that is down does not keep the ledger from being shown.
pub async fn plan(store: &Store, run: &str, price: Option<Price>) -> Result<Status, Failure> {
    let run = store.exactly(run).await?;
    let asked = store.queries(&run.run_id).await?;
    let attempts = store.attempts(&run.run_id).await?;
    let filter = RejectFilter::default();
    let rejects = store
        .reject_counts(&[Generation::from(&run)], filter)
        .await?;
    let drops = store.dropped_rows(&run).await?;
    let parked = store.parked(Some(&run.run_id)).await?;
    let queues = broker::depths().await;
    let lost = match &queues {
        Ok(queues) => loss::remedy(store, &run, queues).await?,
        Err(_) => None,
    };
    let mut status = Status::new(run, asked, rejects, drops, parked, queues, price);
    (status.lost, status.attempts) = (lost, attempts);
    Ok(status)
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let Some(name) = &self.run else {
            let latest = runs::Arguments {
                job: None,
                state: None,
                limit: 20,
                json: self.json,
            };
            return latest.run().await;
        };
        let price = Price::configured()?;
        let store = store::open().await?;
        let run = store.find(name).await?.run_id;
        if self.watch {
            return watch::watch(&store, &run, price).await;
        }
        show(self.json, &plan(&store, &run, price).await?, sheet::lines)?;
        Ok(true)
    }
}
