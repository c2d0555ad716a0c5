//! `etl status`: one run with all that is around it, once or again and again.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use anyhow::anyhow;
use common::settings;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::Failure;
use crate::books::{Books, Filter, Generation, RejectFilter};
use crate::broker;
use crate::cli::{RunsArguments, StatusArguments};
use crate::report::{self, Price, Status};

/// How often a watched run is looked at.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Settings {
    price_per_tb: Option<f64>,
}

/// `etl runs`.
pub(crate) async fn runs(arguments: &RunsArguments) -> Result<bool, Failure> {
    let books = Books::open().await?;
    let filter = Filter {
        job: arguments.job.as_deref(),
        states: arguments
            .state
            .map(crate::cli::State::names)
            .unwrap_or_default(),
        only_stuck: arguments.state == Some(crate::cli::State::Stuck),
        limit: arguments.limit,
    };
    let runs = books.latest(&filter).await?;
    let is_filtered = arguments.job.is_some() || arguments.state.is_some();
    report::runs(&runs, is_filtered, arguments.json)?;
    Ok(true)
}

/// `etl status`.
pub(crate) async fn status(arguments: &StatusArguments) -> Result<bool, Failure> {
    let Some(name) = &arguments.run else {
        let books = Books::open().await?;
        let latest = Filter {
            limit: 20,
            ..Filter::default()
        };
        report::runs(&books.latest(&latest).await?, false, arguments.json)?;
        return Ok(true);
    };
    let price = price()?;
    let books = Books::open().await?;
    let run = books.find(name).await?.run_id;
    if arguments.watch {
        watch(&books, &run, price).await?;
    } else {
        report::status(&look(&books, &run, price).await?, arguments.json)?;
    }
    Ok(true)
}

/// What Athena charges a terabyte, where somebody has set it.
fn price() -> Result<Option<Price>, Failure> {
    let settings: Settings = settings::load().map_err(Failure::misuse)?;
    let Some(price) = settings.price_per_tb else {
        return Ok(None);
    };
    Price::per_tb(price).map(Some).ok_or_else(|| {
        Failure::misuse(anyhow!(
            "ETL_PRICE_PER_TB is {price}, which is no price; set it to what a terabyte costs, such as 5"
        ))
    })
}

async fn look(books: &Books, run: &str, price: Option<Price>) -> Result<Status, Failure> {
    let run = books.exactly(run).await?;
    let rejects = books
        .reject_counts(&[Generation::from(&run)], RejectFilter::default())
        .await?;
    let drops = books.drops(&run).await?;
    // The books are here, whether the broker is or not.
    let queues = broker::depths().await;
    Ok(Status::new(run, rejects, drops, queues, price))
}

async fn watch(books: &Books, run: &str, price: Option<Price>) -> Result<(), Failure> {
    let mut last: Option<(i64, Instant)> = None;
    loop {
        let mut status = look(books, run, price).await?;
        let now = (status.accounted(), Instant::now());
        if let Some((rows, at)) = last {
            status.now_at(now.0 - rows, now.1.duration_since(at));
        }
        last = Some(now);
        report::watched(&status, stdout().is_terminal())?;
        if status.is_over() {
            return Ok(());
        }
        sleep(LOOK).await;
    }
}
