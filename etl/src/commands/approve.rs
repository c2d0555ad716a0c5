//! `etl approve`: lets a held run be committed.

use common::message::RunId;
use serde_json::json;

use super::Command;
use crate::Failure;
use crate::books::Books;
use crate::output::run::follow;
use crate::output::show;

/// Commit a held run in spite of the reason that it is held for.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl approve daily-2018-04-09 --follow")]
pub struct Arguments {
    /// The run's whole name.
    pub run: RunId,
    /// The reason, for the ledger.
    #[arg(long, value_name = "WHY")]
    pub why: Option<String>,
    /// Wait until a loader has committed the run, and exit with 0 only if it is complete.
    #[arg(long)]
    pub follow: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Approves the run in the ledger; a loader commits it.
pub async fn act(books: &Books, run: &RunId, why: Option<&str>) -> Result<(), Failure> {
    books.approve(run, why).await
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let run = &self.run;
        let books = Books::open().await?;
        act(&books, run, self.why.as_deref()).await?;
        if self.follow {
            let end = follow(&books, run.as_str(), None, self.json).await?;
            return Ok(end.is_complete());
        }
        show(
            self.json,
            &json!({ "run_id": run, "approved": true }),
            |_| {
                format!(
                    "the run {run} is approved; a loader commits it within seconds (`etl status {run}`)"
                )
            },
        )?;
        Ok(true)
    }
}
