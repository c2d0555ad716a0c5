//! `etl approve`: lets a held run be committed.

use serde_json::json;

use super::Command;
use crate::Failure;
use crate::output::run::follow;
use crate::output::show;
use crate::select::{Selection, State, each};
use crate::store;
use ledger::{Meant, Store};

/// Commit held runs in spite of the reasons that they are held for.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etl approve daily-2018-04-09 --follow\n  etl approve --job daily --last --yes"
)]
pub struct Arguments {
    #[command(flatten)]
    pub selection: Selection,
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
pub async fn act(store: &Store, run: &Meant, why: Option<&str>) -> Result<(), Failure> {
    Ok(store.approve(run.clone(), why).await?)
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let store = store::open().await?;
        let runs = self
            .selection
            .agreed(&store, "approve", State::Held)
            .await?;
        let approve = async |meant: &Meant| {
            act(&store, meant, self.why.as_deref()).await?;
            let run = &meant.run;
            if !self.follow {
                show(
                    self.json,
                    &json!({ "run_id": run, "approved": true }),
                    |_| {
                        format!(
                            "the run {run} is approved; a loader commits it within seconds (`etl status {run}`)"
                        )
                    },
                )?;
            }
            Ok(true)
        };
        let are_approved = each(&runs, approve).await?;
        if !self.follow {
            return Ok(are_approved);
        }
        let follow = async |meant: &Meant| {
            let end = follow(&store, meant.run.as_str(), None, self.json).await?;
            Ok(end.is_complete())
        };
        Ok(each(&runs, follow).await? && are_approved)
    }
}
