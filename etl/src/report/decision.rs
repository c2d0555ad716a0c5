//! What `etl cancel`, `etl approve` and `etl discard` answer.

use common::message::RunId;
use serde_json::{Value, json};

use super::{number, print, print_json};
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
    let what = match &given_up.was {
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
    };
    format!("{what}; {rows}")
}

fn cancelled_json(run: &RunId, given_up: &GivenUp) -> Value {
    let (stay, removed) = match given_up.rows {
        Rows::NeverThere => (0, 0),
        Rows::Stay(rows) => (rows, 0),
        Rows::Removed(rows) => (0, rows),
    };
    json!({ "run_id": run, "was": given_up.was, "target_table": given_up.target_table,
            "rows_that_stay": stay, "rows_removed": removed })
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
pub(crate) fn discarded(run: &RunId, rows: i64, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&json!({ "run_id": run, "rows_dropped": rows }));
    }
    print(&format!(
        "the run {run} is given up; {} rows were dropped, and none of them had been published",
        number(rows)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_where_the_rows_are() {
        let run: RunId = "daily".parse().unwrap();
        let mut shown = Vec::new();
        for rows in [Rows::NeverThere, Rows::Stay(25_000), Rows::Removed(25_000)] {
            let given_up = GivenUp {
                job: "clicks".into(),
                generation: 0,
                target_table: "public.clicks".into(),
                was: matches!(rows, Rows::Removed(_)).then(|| "failed".to_owned()),
                rows,
            };
            shown.push(cancelled_text(&run, &given_up));
            shown.push(cancelled_json(&run, &given_up).to_string());
        }
        shown.push(approved_text(&run));
        insta::assert_snapshot!(shown.join("\n"));
    }
}
