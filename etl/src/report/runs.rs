//! Lists of runs.

use comfy_table::Table;

use super::{align_numbers, number, print, print_json, table};
use crate::Failure;
use crate::books::Run;

/// `etl runs`: a line each.
pub(crate) fn runs(runs: &[Run], is_filtered: bool, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&runs);
    }
    if runs.is_empty() {
        return print(if is_filtered {
            "no such runs"
        } else {
            "no runs yet; `etl run JOB` asks for one"
        });
    }
    print(&list(runs).to_string())
}

fn list(runs: &[Run]) -> Table {
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
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{on_a_terminal, samples};

    #[test]
    fn on_a_terminal_of_any_width() {
        for width in [120, 70] {
            let shown = on_a_terminal(list(&samples::runs()), width);
            insta::assert_snapshot!(format!("runs_{width}"), shown);
        }
    }
}
