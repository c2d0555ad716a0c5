//! `etl cancel`, `etl approve` and `etl discard`: what a person decides about a run.

use anyhow::Context;
use common::message::{Control, RunId};
use common::queue::Outgoing;

use crate::books::{Books, GivenUp};
use crate::broker::Broker;
use crate::cli::{ApproveArguments, CancelArguments, DiscardArguments};
use crate::{Failure, follow, report};

/// A run's whole name; one that no run could have is not in the books either.
fn name(text: &str) -> Result<RunId, Failure> {
    text.parse().map_err(Failure::misuse)
}

/// `etl cancel`. The books come first: what is in them holds even where the extractors cannot be told.
pub(crate) async fn cancel(arguments: &CancelArguments) -> Result<bool, Failure> {
    let run = name(&arguments.run)?;
    let books = Books::open().await?;
    let given_up = books
        .cancel(&run, arguments.undo, arguments.why.as_deref())
        .await?;
    report::cancelled(&run, &given_up, arguments.json)?;
    tell(&run, &given_up).await.with_context(|| {
        format!("the run {run} is cancelled in the books, but the extractors could not be told, so that its query may go on; ask again")
    })?;
    Ok(true)
}

/// Tells every extractor to stop the run's query and to drop its task.
async fn tell(run: &RunId, given_up: &GivenUp) -> anyhow::Result<()> {
    let order = Control::cancel(run.clone(), given_up.generation, given_up.job.clone());
    let message = Outgoing::of(&order)?;
    let broker = Broker::open().await?;
    broker.send(&[message]).await?;
    broker.close().await;
    Ok(())
}

/// `etl approve`.
pub(crate) async fn approve(arguments: &ApproveArguments) -> Result<bool, Failure> {
    let run = name(&arguments.run)?;
    let books = Books::open().await?;
    books.approve(&run, arguments.why.as_deref()).await?;
    if !arguments.follow {
        report::approved(&run, arguments.json)?;
        return Ok(true);
    }
    let end = follow::to_the_end(&books, run.as_str(), None).await?;
    report::outcome(&books, &end, arguments.json).await
}

/// `etl discard`.
pub(crate) async fn discard(arguments: &DiscardArguments) -> Result<bool, Failure> {
    let run = name(&arguments.run)?;
    let books = Books::open().await?;
    let given_up = books.discard(&run, &arguments.why).await?;
    report::discarded(&run, &given_up, arguments.json)?;
    Ok(true)
}
