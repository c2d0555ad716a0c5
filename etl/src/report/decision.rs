//! What `etl cancel`, `etl approve` and `etl discard` answer.

use common::message::RunId;
use serde_json::{Value, json};

use super::{number, print, print_json};
use crate::Failure;
use crate::books::{Discarded, GivenUp, Rows};

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
    let what = match (&given_up.was, &given_up.rows) {
        (Some(state), _) => format!("the run {run} was {state} before"),
        (None, Rows::AsBefore(_)) => format!("the replay of the run {run} is cancelled"),
        (None, _) => format!("the run {run} is cancelled"),
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
        Rows::AsBefore(rows) => complete_as_before(*rows, table),
    };
    format!("{what}; {rows}")
}

fn complete_as_before(rows: i64, table: &str) -> String {
    format!(
        "the run is complete, as it was before: the {} rows that it has loaded are in {table}",
        number(rows)
    )
}

fn cancelled_json(run: &RunId, given_up: &GivenUp) -> Value {
    let (stay, removed) = match given_up.rows {
        Rows::NeverThere => (0, 0),
        Rows::Stay(rows) | Rows::AsBefore(rows) => (rows, 0),
        Rows::Removed(rows) => (0, rows),
    };
    json!({ "run_id": run, "was": given_up.was, "target_table": given_up.target_table,
            "complete_as_before": matches!(given_up.rows, Rows::AsBefore(_)),
            "rows_that_stay": stay, "rows_removed": removed })
}

/// `etl approve`, without `--follow`.
pub(crate) fn approved(run: &RunId, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&json!({ "run_id": run, "approved": true }));
    }
    print(&format!(
        "the run {run} is approved; a loader publishes it within a quarter of a minute (`etl status {run}`)"
    ))
}

/// `etl discard`.
pub(crate) fn discarded(run: &RunId, discarded: &Discarded, json: bool) -> Result<(), Failure> {
    if json {
        print_json(&discarded_json(run, discarded))
    } else {
        print(&discarded_text(run, discarded))
    }
}

fn discarded_text(run: &RunId, discarded: &Discarded) -> String {
    let table = &discarded.target_table;
    let dropped = number(discarded.dropped);
    match discarded.rows {
        Rows::AsBefore(rows) => format!(
            "the replay of the run {run} is given up with the {dropped} rows that were waiting; {}",
            complete_as_before(rows, table)
        ),
        Rows::Stay(rows) => format!(
            "the run {run} is given up with the {dropped} rows that were waiting; {} rows that it had loaded before are in {table} and stay there",
            number(rows)
        ),
        Rows::NeverThere | Rows::Removed(_) => format!(
            "the run {run} is given up; {dropped} rows were dropped, and none of them had been published"
        ),
    }
}

fn discarded_json(run: &RunId, discarded: &Discarded) -> Value {
    let stay = match discarded.rows {
        Rows::Stay(rows) | Rows::AsBefore(rows) => rows,
        Rows::NeverThere | Rows::Removed(_) => 0,
    };
    json!({ "run_id": run, "rows_dropped": discarded.dropped, "rows_that_stay": stay,
            "complete_as_before": matches!(discarded.rows, Rows::AsBefore(_)) })
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
            Rows::AsBefore(25_000),
        ] {
            if !matches!(rows, Rows::Removed(_)) {
                let discarded = Discarded {
                    target_table: "public.clicks".into(),
                    dropped: 1_000,
                    rows: rows.clone(),
                };
                shown.push(discarded_text(&run, &discarded));
                shown.push(discarded_json(&run, &discarded).to_string());
            }
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
        insta::assert_snapshot!(shown.join("\n"));
    }
}
