//! Lists of runs.

use super::{align_numbers, number, print, print_json, table};
use crate::Failure;
use crate::books::Run;

/// `etl status`: the latest runs, a line each.
pub(crate) fn runs(runs: &[Run], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&runs);
    }
    if runs.is_empty() {
        return print("no runs yet; `etl run JOB` asks for one");
    }
    let mut table = table(&[
        "run",
        "state",
        "extracted",
        "loaded",
        "rejected",
        "balanced",
        "requested",
    ]);
    for run in runs {
        let balanced = if run.balanced {
            "yes"
        } else if run.is_over() {
            "no"
        } else {
            "not yet"
        };
        let state = if run.dead_letters > 0 {
            format!("{}, stuck", run.state)
        } else {
            run.state.clone()
        };
        table.add_row([
            run.run_id.clone(),
            state,
            number(run.rows_read),
            number(run.rows_loaded),
            number(run.rows_rejected),
            balanced.to_owned(),
            run.requested_at.clone(),
        ]);
    }
    align_numbers(&mut table, 2..5);
    print(&table.to_string())
}
