//! `etl discard`: ends a held run, or the held replay of one, without its rows.

use common::message::RunId;

use super::Command;
use super::cancel::{sentence as cancelled, to_json};
use crate::Failure;
use crate::output::{number, show};
use crate::select::{Selection, State, each};
use crate::store;
use ledger::{Ended, Meant, Rows, Store};

/// Discard held runs: none of their rows reaches the target.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etl discard daily-2018-04-09 --why 'half of it was rejected'\n  etl discard --job daily --why 'a wrong export'"
)]
pub struct Arguments {
    #[command(flatten)]
    pub selection: Selection,
    /// The reason, for the ledger.
    #[arg(long, value_name = "WHY")]
    pub why: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Discards the run in the ledger.
pub async fn act(store: &Store, run: &Meant, why: &str) -> Result<Ended, Failure> {
    Ok(store.discard(run.clone(), why).await?)
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let Self {
            selection,
            why,
            json,
        } = self;
        let store = store::open().await?;
        let runs = selection.agreed(&store, "discard", State::Held).await?;
        let discard = async |meant: &Meant| {
            let discarded = act(&store, meant, &why).await?;
            let run = &meant.run;
            show(json, &to_json(run, &discarded, 0), |_| {
                sentence(run, &discarded)
            })?;
            Ok(true)
        };
        each(&runs, discard).await
    }
}

fn sentence(run: &RunId, discarded: &Ended) -> String {
    match (&discarded.rows, discarded.dropped) {
        (Rows::NeverThere, rows) => {
            let were = if rows == 1 { "row was" } else { "rows were" };
            format!(
                "the run {run} is discarded; {} {were} dropped, and none of them had been committed",
                number(rows)
            )
        }
        // A replay: rows of the generation before are in the target.
        _ => cancelled(run, discarded, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::cancel::tests::cancelled;

    #[test]
    fn sentence_counts_the_dropped_rows() {
        let run: RunId = "daily".parse().unwrap();
        let discarded = cancelled(Rows::NeverThere, 25_000);
        insta::assert_snapshot!(format!(
            "{}\n{}",
            sentence(&run, &discarded),
            to_json(&run, &discarded, 0)
        ));
    }
}
