//! What `etl cancel`, `etl approve` and `etl discard` answer.

use common::message::RunId;
use serde_json::{Value, json};

use super::{counted, number, print, print_json};
use crate::Failure;
use crate::books::{GivenUp, Rows};

/// `etl cancel`.
pub(crate) fn cancelled(run: &RunId, given_up: &GivenUp, json: bool) -> Result<(), Failure> {
    if json {
        print_json(&cancelled_json(run, given_up))
    } else {
        print(&cancelled_text(run, given_up))
    }
}

fn cancelled_text(run: &RunId, given_up: &GivenUp) -> String {
    let table = &given_up.target_table;
    let what = match given_up.was.as_deref() {
        Some("failed") => format!("the run {run} had failed before"),
        Some(state) => format!("the run {run} was {state} before"),
        None => format!("the run {run} is cancelled"),
    };
    let rows = match &given_up.rows {
        Rows::NeverThere => format!("none of its rows is in {table}"),
        Rows::Stay(rows) => format!(
            "{} rows of it had been loaded into {table} and stay there",
            number(*rows)
        ),
        Rows::Removed(rows) => {
            format!("{} rows of it were removed from {table}", number(*rows))
        }
        Rows::AsBefore { rows, replaced } => return as_before(run, table, *rows, *replaced),
    };
    format!("{what}; {rows}")
}

/// A replay that is given up, of a run that was complete before.
fn as_before(run: &RunId, table: &str, rows: i64, replaced: i64) -> String {
    let replaced = match replaced {
        0 => String::new(),
        1 => "; 1 batch had been put through again by then and stays as it is now".to_owned(),
        _ => format!(
            "; {} batches had been put through again by then and stay as they are now",
            number(replaced)
        ),
    };
    format!(
        "the replay of the run {run} is given up, and the run is complete, as it was before: {} of it stay in {table}{replaced}",
        counted(rows, "row")
    )
}

fn cancelled_json(run: &RunId, given_up: &GivenUp) -> Value {
    let (stay, removed) = match given_up.rows {
        Rows::NeverThere => (0, 0),
        Rows::Stay(rows) | Rows::AsBefore { rows, .. } => (rows, 0),
        Rows::Removed(rows) => (0, rows),
    };
    // One that had failed stays so.
    let state = match (&given_up.rows, given_up.was.as_deref()) {
        (Rows::AsBefore { .. }, _) => "completed",
        (_, Some(was)) => was,
        (_, None) => "cancelled",
    };
    json!({ "run_id": run, "state": state, "was": given_up.was, "target_table": given_up.target_table,
            "rows_that_stay": stay, "rows_removed": removed, "rows_dropped": given_up.dropped })
}

/// `etl approve`, without `--follow`.
pub(crate) fn approved(run: &RunId, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&json!({ "run_id": run, "approved": true }));
    }
    print(&approved_text(run))
}

fn approved_text(run: &RunId) -> String {
    format!(
        "the run {run} is approved; a loader publishes it within a quarter of a minute (`etl status {run}`)"
    )
}

/// `etl discard`.
pub(crate) fn discarded(run: &RunId, given_up: &GivenUp, json: bool) -> Result<(), Failure> {
    if json {
        print_json(&cancelled_json(run, given_up))
    } else {
        print(&discarded_text(run, given_up))
    }
}

fn discarded_text(run: &RunId, given_up: &GivenUp) -> String {
    match &given_up.rows {
        Rows::NeverThere => format!(
            "the run {run} is given up; {} dropped, and none of them had been published",
            match given_up.dropped {
                1 => "1 row was".to_owned(),
                rows => format!("{} rows were", number(rows)),
            }
        ),
        // A replay, of which rows of before are there.
        _ => cancelled_text(run, given_up),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_where_the_rows_are() {
        let run: RunId = "daily".parse().unwrap();
        let mut shown = Vec::new();
        for rows in [
            Rows::NeverThere,
            Rows::Stay(25_000),
            Rows::Removed(25_000),
            Rows::AsBefore {
                rows: 25_000,
                replaced: 0,
            },
            Rows::AsBefore {
                rows: 25_000,
                replaced: 3,
            },
        ] {
            let given_up = GivenUp {
                job: "clicks".into(),
                generation: 0,
                target_table: "public.clicks".into(),
                was: matches!(rows, Rows::Removed(_)).then(|| "failed".to_owned()),
                rows,
                dropped: 0,
            };
            shown.push(cancelled_text(&run, &given_up));
            shown.push(cancelled_json(&run, &given_up).to_string());
        }
        let discarded = GivenUp {
            job: "clicks".into(),
            generation: 0,
            target_table: "public.clicks".into(),
            was: None,
            rows: Rows::NeverThere,
            dropped: 25_000,
        };
        shown.push(discarded_text(&run, &discarded));
        shown.push(cancelled_json(&run, &discarded).to_string());
        shown.push(approved_text(&run));
        insta::assert_snapshot!(shown.join("\n"));
    }
}
