//! `etl reconcile`: the proof that every row is accounted for.

use serde_json::json;

use super::{align_numbers, note, number, print, print_json, table};
use crate::Failure;
use crate::books::{Books, Run, shown};

/// `etl reconcile`: true when every run that is over balances, and the one that was named is over.
pub(crate) async fn reconcile(books: &Books, runs: &[Run], json: bool) -> Result<bool, Failure> {
    let mut reports = Vec::new();
    let mut table = table(&[
        "run",
        "state",
        "extracted",
        "loaded",
        "rejected",
        "dropped",
        "batches",
        "verdict",
    ]);
    let mut all_true = true;
    for run in runs {
        let missing = books.missing(run).await?;
        let (is_true, verdict) = verdict(run, &missing, runs.len() == 1);
        all_true &= is_true;
        let expected = run
            .batches_expected
            .map_or_else(|| "?".to_owned(), |expected| number(expected.into()));
        table.add_row([
            run.run_id.clone(),
            run.state.clone(),
            number(run.rows_expected.unwrap_or(run.rows_read)),
            number(run.rows_loaded),
            number(run.rows_rejected),
            number(run.rows_dropped),
            format!("{} of {expected}", number(run.batches)),
            verdict.clone(),
        ]);
        reports.push(
            json!({ "run": run, "missing": missing, "verdict": verdict, "balanced": is_true }),
        );
    }
    align_numbers(&mut table, 2..7);
    if runs.is_empty() {
        note(
            "there are no runs in these books, and so nothing is proven; is ETL_DATABASE_URL right?",
        );
    }
    if json {
        print_json(&reports)?;
    } else if runs.is_empty() {
        return Ok(false);
    } else {
        print(&table.to_string())?;
    }
    Ok(all_true && !runs.is_empty())
}

/// Whether a run's books balance, and what to say of it.
fn verdict(run: &Run, missing: &[(i32, i32)], alone: bool) -> (bool, String) {
    match run.state.as_str() {
        "completed" if run.is_complete() => (true, "extracted = loaded + rejected".to_owned()),
        state @ ("failed" | "cancelled") if run.rows_loaded == 0 => {
            (!alone, format!("{state}, no row of it is in the target"))
        }
        state @ ("failed" | "cancelled") => {
            let loaded = number(run.rows_loaded);
            (
                false,
                format!("{state}, and {loaded} rows of it are in the target"),
            )
        }
        "requested" | "running" if run.dead_letters == 0 => (!alone, "not over yet".to_owned()),
        _ => {
            let mut problems = Vec::new();
            if run.dead_letters > 0 {
                problems.push(format!("{} dead letters", number(run.dead_letters)));
            }
            if !missing.is_empty() {
                problems.push(format!(
                    "missing batches {}; `etl replay {} --missing` sends them again",
                    shown(missing),
                    run.run_id
                ));
            }
            if !run.balanced && missing.is_empty() {
                problems.push("the rows do not add up".to_owned());
            }
            (false, format!("NOT BALANCED: {}", problems.join("; ")))
        }
    }
}
