//! `etl cancel`: ends a run, or the replay of one.

use anyhow::Context;
use common::message::{Control, RunId};
use common::queue::Outgoing;
use serde_json::{Value, json};

use super::Command;
use crate::Failure;
use crate::books::{Books, GivenUp, Rows};
use crate::broker::Broker;
use crate::output::{counted, note, number, print, print_json};

/// Cancel a run: its query is stopped, and its messages in the queues are not loaded.
///
/// Rows that are in the target already stay there unless --undo removes them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: etl cancel daily-2018-04-09 --undo --why 'the wrong week'")]
pub struct Arguments {
    /// The run's whole name.
    pub run: RunId,
    /// Also remove the rows of the run that are in its target already.
    #[arg(long)]
    pub undo: bool,
    /// The reason, for the ledger.
    #[arg(long, value_name = "WHY")]
    pub why: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Cancels the run in the ledger.
pub async fn act(
    books: &Books,
    run: &RunId,
    undo: bool,
    why: Option<&str>,
) -> Result<GivenUp, Failure> {
    books.cancel(run, undo, why).await
}

/// Tells every extractor to stop the run's query and to drop its task. The ledger is enough for the run to be cancelled;
/// this saves the rest of the query.
pub async fn stop_query(run: &RunId, cancelled: &GivenUp) -> Result<(), Failure> {
    let send = async {
        let control = Control::cancel(run.clone(), cancelled.generation, cancelled.job.clone());
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
        let Self {
            run,
            undo,
            why,
            json,
        } = self;
        let books = Books::open().await?;
        let cancelled = act(&books, &run, undo, why.as_deref()).await?;
        // First, so that it is said even where the broker is down.
        if json {
            print_json(&to_json(&run, &cancelled))?;
        } else {
            print(&sentence(&run, &cancelled))?;
        }
        stop_query(&run, &cancelled).await?;
        Ok(true)
    }
}

/// What became of the run and of its rows.
pub(super) fn sentence(run: &RunId, cancelled: &GivenUp) -> String {
    let table = &cancelled.target_table;
    let rows = match &cancelled.rows {
        Rows::NeverThere => format!("none of its rows is in {table}"),
        Rows::Stay(rows) => format!("{} rows of it are in {table} and stay there", number(*rows)),
        Rows::Removed(rows) => format!("{} rows of it were removed from {table}", number(*rows)),
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
    match cancelled.was.as_deref() {
        Some("failed") => format!("the run {run} had failed before; {rows}"),
        Some(state) => format!("the run {run} was {state} before; {rows}"),
        None => format!("the run {run} is cancelled; {rows}"),
    }
}

pub(super) fn to_json(run: &RunId, cancelled: &GivenUp) -> Value {
    let (stay, removed) = match cancelled.rows {
        Rows::NeverThere => (0, 0),
        Rows::Stay(rows) | Rows::AsBefore { rows, .. } => (rows, 0),
        Rows::Removed(rows) => (0, rows),
    };
    let state = match (&cancelled.rows, cancelled.was.as_deref()) {
        (Rows::AsBefore { .. }, _) => "completed",
        // A failed run stays failed.
        (_, Some(was)) => was,
        (_, None) => "cancelled",
    };
    json!({ "run_id": run, "state": state, "was": cancelled.was, "target_table": cancelled.target_table,
            "rows_that_stay": stay, "rows_removed": removed, "rows_dropped": cancelled.dropped })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run that was cancelled, with these rows.
    pub(in crate::commands) fn cancelled(rows: Rows, dropped: i64) -> GivenUp {
        GivenUp {
            job: "clicks".into(),
            generation: 0,
            target_table: "public.clicks".into(),
            was: matches!(rows, Rows::Removed(_)).then(|| "failed".to_owned()),
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
            Rows::Removed(25_000),
            as_before(0),
            as_before(3),
        ] {
            let cancelled = cancelled(rows, 0);
            shown.push(sentence(&run, &cancelled));
            shown.push(to_json(&run, &cancelled).to_string());
        }
        insta::assert_snapshot!(shown.join("\n"));
    }
}
