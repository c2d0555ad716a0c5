//! `etl approve`: lets a held run be committed.

use common::message::RunId;
use serde_json::json;

use super::Command;
use crate::Failure;
use crate::output::run::follow;
use crate::output::show;
use crate::store;
use ledger::Store;

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
pub async fn act(store: &Store, run: &RunId, why: Option<&str>) -> Result<(), Failure> {
    Ok(store.approve(run, why).await?)
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let run = &self.run;
        let store = store::open().await?;
        act(&store, run, self.why.as_deref()).await?;
        if self.follow {
            let end = follow(&store, run.as_str(), None, self.json).await?;
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
