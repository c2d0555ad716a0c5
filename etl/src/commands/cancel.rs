//! `etl cancel`: ends a run, or the replay of one.

use std::time::Duration;

use anyhow::{Context, anyhow};
use common::message::{self, Control, RunId};
use common::queue::Outgoing;
use serde_json::{Value, json};

use super::Command;
use crate::Failure;
use crate::broker::Broker;
use crate::output::{counted, note, number, show};
use crate::select::{Selection, State, each};
use crate::store;
use ledger::{Ended, Meant, Removed, Rows, RunState, Store};

/// Cancel runs: stop their queries, and load no more of them.
///
/// Rows that are in the target already stay there unless --undo removes them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  etl cancel daily-2018-04-09 --undo --why 'the wrong week'\n  etl cancel --job daily --state failed --undo"
)]
pub struct Arguments {
    #[command(flatten)]
    pub selection: Selection,
    /// Also remove the rows of the runs that are in its target already.
    #[arg(long)]
    pub undo: bool,
    /// The reason, for the ledger.
    #[arg(long, value_name = "WHY")]
    pub why: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The longest that a command waits for a loader to remove rows: some sweeps, and the deletion of a large run.
const REMOVAL_TIMEOUT: Duration = Duration::from_mins(5);

/// Cancels the run in the ledger. Its rows, with `undo`, are still to be removed then: [`removed`] waits for that.
pub async fn act(
    store: &Store,
    run: &Meant,
    undo: bool,
    why: Option<&str>,
) -> Result<Ended, Failure> {
    Ok(store.cancel(run.clone(), undo, why).await?)
}

/// Waits until a loader has removed rows of the run from its target. Only loaders write to targets. Returns how many rows
/// were deleted, or why there was nothing to remove.
pub async fn removed(
    store: &Store,
    run: &RunId,
    removal: i64,
) -> Result<Result<i64, String>, Failure> {
    let why = match store.removed(removal, REMOVAL_TIMEOUT).await? {
        Removed::Done(rows) => return Ok(Ok(rows)),
        Removed::NotNeeded(reason) => return Ok(Err(reason)),
        Removed::Pending(Some(why)) => format!("the last attempt failed: {why}"),
        Removed::Pending(None) => format!(
            "no loader has done it within {}; is one running?",
            humantime::format_duration(REMOVAL_TIMEOUT)
        ),
    };
    Err(anyhow!(
        "the rows of the run {run} are still in its target, and a loader removes them as soon as it can: {why}; `etl status {run}` shows when they are gone"
    )
    .into())
}

/// Tells every extractor to stop the run's query and to drop its task. The ledger is enough for the run to be cancelled;
/// this saves the rest of the query.
pub async fn stop_query(store: &Store, run: &RunId, cancelled: &Ended) -> Result<(), Failure> {
    let send = async {
        let moment = store.moment(run, cancelled.generation).await?;
        let control = Control {
            run: run.clone(),
            run_no: moment.run_no,
            generation: cancelled.generation,
            at: moment.now,
            job: cancelled.job.clone(),
            command: message::Command::Cancel,
        };
        let broker = Broker::open(note).await?;
        broker.send(&[Outgoing::of(&control)?]).await?;
        broker.close().await;
        anyhow::Ok(())
    };
    Ok(send.await.with_context(|| {
        format!("the run {run} is cancelled in the ledger, and its query may go on, since the extractors could not be told; cancel it again")
    })?)
}

impl Command for Arguments {
    async fn run(self) -> Result<bool, Failure> {
        let store = store::open().await?;
        let runs = self.selection.agreed(&store, "cancel", State::Open).await?;
        let cancel = async |meant: &Meant| {
            self.cancel(&store, meant).await?;
            Ok(true)
        };
        each(&runs, cancel).await
    }
}

impl Arguments {
    async fn cancel(&self, store: &Store, meant: &Meant) -> Result<(), Failure> {
        let cancelled = act(store, meant, self.undo, self.why.as_deref()).await?;
        let run = &meant.run;
        // The query first: it costs money while rows are removed. A broker that is down keeps no row from being removed.
        let stopped = stop_query(store, run, &cancelled).await;
        let rows = match cancelled.rows {
            Rows::Leave { rows, removal } => {
                let rows = counted(rows, "row");
                note(&format!(
                    "waiting for a loader to remove {rows} of the run {run}"
                ));
                removed(store, run, removal).await?.map_err(|reason| {
                    anyhow!("the rows of the run {run} were not removed: {reason}; `etl status {run}` shows what is in its target")
                })?
            }
            _ => 0,
        };
        show(self.json, &to_json(run, &cancelled, rows), |_| {
            sentence(run, &cancelled, rows)
        })?;
        stopped
    }
}

/// What became of the run and of its rows, `removed` of which were deleted from the target.
pub(super) fn sentence(run: &RunId, cancelled: &Ended, removed: i64) -> String {
    let table = &cancelled.target_table;
    let rows = match &cancelled.rows {
        Rows::NeverThere => format!("none of its rows is in {table}"),
        Rows::Stay(rows) => format!("{} rows of it are in {table} and stay there", number(*rows)),
        Rows::Leave { .. } => {
            format!("{} rows of it were removed from {table}", number(removed))
        }
        Rows::AsBefore { rows, replaced } => {
            let replaced = match replaced {
                0 => String::new(),
                _ => format!(
                    "; {} had been replaced by the replay until then, and stay replaced",
                    counted(*replaced, "batch")
                ),
            };
            return format!(
                "the replay of the run {run} is cancelled, and the run is complete, as it was before: {} of it stay in {table}{replaced}",
                counted(*rows, "row")
            );
        }
    };
    match cancelled.was {
        Some(RunState::Failed) => format!("the run {run} had failed before; {rows}"),
        Some(state) => format!("the run {run} was {state} before; {rows}"),
        None => format!("the run {run} is cancelled; {rows}"),
    }
}

pub(super) fn to_json(run: &RunId, cancelled: &Ended, removed: i64) -> Value {
    let stay = match cancelled.rows {
        Rows::NeverThere | Rows::Leave { .. } => 0,
        Rows::Stay(rows) | Rows::AsBefore { rows, .. } => rows,
    };
    let state = match (&cancelled.rows, cancelled.was) {
        (Rows::AsBefore { .. }, _) => RunState::Completed,
        // A failed run stays failed.
        (_, Some(was)) => was,
        (_, None) => RunState::Cancelled,
    };
    json!({ "run_id": run, "state": state, "was": cancelled.was, "target_table": cancelled.target_table,
            "rows_that_stay": stay, "rows_removed": removed, "rows_dropped": cancelled.dropped })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run that was cancelled, with these rows.
    pub(in crate::commands) fn cancelled(rows: Rows, dropped: i64) -> Ended {
        Ended {
            job: "clicks".into(),
            generation: 0,
            target_table: "public.clicks".into(),
            was: matches!(rows, Rows::Leave { .. }).then_some(RunState::Failed),
            rows,
            dropped,
        }
    }

    #[test]
    fn sentence_says_where_the_rows_are() {
        let run: RunId = "daily".parse().unwrap();
        let as_before = |replaced| Rows::AsBefore {
            rows: 25_000,
            replaced,
        };
        let mut shown = Vec::new();
        for rows in [
            Rows::NeverThere,
            Rows::Stay(25_000),
            Rows::Leave {
                rows: 25_000,
                removal: 1,
            },
            as_before(0),
            as_before(3),
        ] {
            let removed = if matches!(rows, Rows::Leave { .. }) {
                25_000
            } else {
                0
            };
            let cancelled = cancelled(rows, 0);
            shown.push(sentence(&run, &cancelled, 25_000));
            shown.push(to_json(&run, &cancelled, removed).to_string());
        }
        insta::assert_snapshot!(shown.join("\n"));
    }
}
